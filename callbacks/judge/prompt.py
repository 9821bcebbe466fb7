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

FOLDER = Path(__file__).with_name("prompts")


@dataclass(frozen=True)
class JudgePrompt:
    """A question with one `{instruction}`, and the form of its answer."""

    name: str
    version: str
    text: str
    marker: str  # the words before the score
    values: Mapping[str, float]  # value of each score token
    rationale: bool  # words come before the score
    digest: str  # of the whole file

    def ask(self, instruction: str) -> str:
        """Return the question about an instruction."""
        return self.text.replace("{instruction}", instruction.strip())


@dataclass(frozen=True)
class Question:
    """One edited picture to judge.

    Args:
        prompt: The prompt.
        instruction: The instruction of the edit.
        pictures: PNG files that the judge is shown: the sources, then the edit.
        sample: The sample, named by its content.
    """

    prompt: JudgePrompt
    instruction: str
    pictures: tuple[bytes, ...]
    sample: str

    @property
    def image(self) -> str:
        """Digest of the edit's pixels."""
        return hashlib.blake2b(self.pictures[-1], digest_size=12).hexdigest()

    @property
    def text(self) -> str:
        """The question in words."""
        return self.prompt.ask(self.instruction)


def read_prompt(name: str) -> JudgePrompt:
    """Return a prompt.

    Its file has head lines `version:`, `marker:`, `scale:` (score tokens, lowest first) and `rationale: yes | no`, an
    empty line, and the text.

    Args:
        name: One of ours (`edit`, `edit_direct`), or the path of a text file.

    Raises:
        UserError: There is no such file, or a part is missing.
    """
    ours = FOLDER / f"{name}.txt"
    path = ours if ours.is_file() else user_path(name)
    try:
        whole = read_text(path, MEGABYTE)
        head, text = whole.split("\n\n", 1)
        fields = dict(line.split(":", 1) for line in head.splitlines())
        version = fields["version"].strip()
        marker = fields["marker"].strip()
        rationale = fields["rationale"].strip()
        values = _values(fields["scale"].split())
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.txt")))
        raise UserError(f"prompt {name}: no such file, and not one of ours ({known})") from None
    except (OSError, ValueError, KeyError) as problem:
        raise UserError(f"{path}: not a prompt: its head lacks or misspells {problem}") from None
    if "{instruction}" not in text or len(values) < 2 or not marker or rationale not in ("yes", "no"):
        raise UserError(f"{path}: a prompt needs {{instruction}}, a marker, two scores and rationale: yes or no")
    return JudgePrompt(
        name=path.stem,
        version=version,
        text=text.strip(),
        marker=marker,
        values=values,
        rationale=rationale == "yes",
        digest=hashlib.blake2b(whole.encode(), digest_size=8).hexdigest(),
    )


def _values(tokens: list[str]) -> dict[str, float]:
    """Return the values of score tokens, which are different numbers. Raises ValueError."""
    values = {token: float(token) for token in tokens}
    if len(values) < len(tokens) or not all(math.isfinite(value) for value in values.values()):
        raise ValueError("scale: scores must be different numbers")
    check_scale(values)
    return values
