"""Prompts for a judge: text files beside this one, versioned, and hashed into every answer."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from firered_lit.errors import UserError
from firered_lit.places import user_path
from firered_lit.rewards.judge import check_scale
from firered_lit.textfiles import MEGABYTE, read_text

FOLDER = Path(__file__).with_name("judge_prompts")


@dataclass(frozen=True)
class Prompt:
    """A question with one `{instruction}`, and how it is answered."""

    name: str
    version: str
    text: str
    marker: str  # what stands before the score
    values: Mapping[str, float]  # score tokens and what they are worth
    rationale: bool  # whether words come before the score
    digest: str  # of the whole file

    def ask(self, instruction: str) -> str:
        return self.text.replace("{instruction}", instruction.strip())


@dataclass(frozen=True)
class Question:
    """One edited picture to judge: of which sample, by its content, and what the judge is shown."""

    prompt: Prompt
    instruction: str
    pictures: tuple[bytes, ...]  # PNG; the sources, then the edit
    sample: str

    @property
    def image(self) -> str:
        """The edit's pixels, as a digest."""
        return hashlib.blake2b(self.pictures[-1], digest_size=12).hexdigest()

    @property
    def text(self) -> str:
        return self.prompt.ask(self.instruction)


def read_prompt(name: str) -> Prompt:
    """A prompt by the name of one of ours (`edit`, `edit_direct`) or the path of a text file.

    Head lines `version:`, `marker:`, `scale:` (score tokens, lowest first) and `rationale: yes | no`, an empty line,
    the text. Raises UserError when a part is missing.
    """
    ours = FOLDER / f"{name}.txt"
    path = ours if ours.is_file() else user_path(name)
    try:
        whole = read_text(path, MEGABYTE)
        head, text = whole.split("\n\n", 1)
        fields = dict(line.split(":", 1) for line in head.splitlines())
        version, marker, scale, rationale = (fields[k].strip() for k in ("version", "marker", "scale", "rationale"))
        values = {token: float(token) for token in scale.split()}
        if len(values) < len(scale.split()) or not all(map(math.isfinite, values.values())):
            raise ValueError("scale: scores must be different numbers")
        check_scale(values)
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.txt")))
        raise UserError(f"prompt {name}: no such file, and not one of ours ({known})") from None
    except (OSError, ValueError, KeyError) as problem:
        raise UserError(f"{path}: not a prompt: its head lacks or misspells {problem}") from None
    if "{instruction}" not in text or len(values) < 2 or not marker or rationale not in ("yes", "no"):
        raise UserError(f"{path}: a prompt needs {{instruction}}, a marker, two scores and rationale: yes or no")
    digest = hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()
    return Prompt(path.stem, version, text.strip(), marker, values, rationale == "yes", digest)
