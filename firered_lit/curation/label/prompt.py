"""Prompts for a labelling model: text files beside this one, or a user's own, versioned and hashed.

A file has a head, an empty line, and the text. The head's first line is `version: N`; each other one names an answer
and its kind: `text`, `flag`, `number LOW to HIGH`, or `one of A, B, C`. In the text, {instruction} stands for the row's
words. The answer is one JSON object with these names.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.places import user_path
from firered_lit.textfiles import MEGABYTE, read_text

FOLDER = Path(__file__).with_name("prompts")
INSTRUCTION = "{instruction}"
_NUMBER = re.compile(r"number (-?\d+(?:\.\d+)?) to (-?\d+(?:\.\d+)?)")
_LONGEST = 8192  # characters of a text that is kept


@dataclass(frozen=True)
class AnswerEntry:
    """One entry of an answer.

    Args:
        kind: As columns of annotators are: text, flag or number.
        least, most: Of a number.
        choices: Of a text that is one of some; () for any text.
    """

    kind: str
    least: float = 0.0
    most: float = 0.0
    choices: tuple[str, ...] = ()

    def read(self, value: Any) -> Any:
        """Return a value as a column holds it.

        Raises:
            ValueError: It is of another kind.
        """
        if self.kind == "flag":
            if isinstance(value, bool):
                return value
        elif self.kind == "number":
            if isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most:
                return float(value)
        elif isinstance(value, str) and value.strip():
            text = value.strip()[:_LONGEST].encode("utf-8", "replace").decode()
            if not self.choices or text in self.choices:
                return text
        raise ValueError(f"{str(value)[:60]!r} is no {self.kind} that was asked for")


@dataclass(frozen=True)
class LabelPrompt:
    """A question about the pictures of a row."""

    name: str
    version: str
    text: str
    answers: Mapping[str, AnswerEntry]
    digest: str  # of the whole file

    def ask(self, instruction: str) -> str:
        """Return the words to send."""
        return self.text.replace(INSTRUCTION, instruction.strip() or "(none)")

    def read(self, words: str) -> dict[str, Any]:
        """Return the answers that a model's words hold.

        Raises:
            ValueError: They hold no JSON object, or one that lacks an answer or has one of another kind.
        """
        start = words.find("{")
        if start < 0:
            raise ValueError("no JSON object in the answer")
        try:
            found, _ = json.JSONDecoder().raw_decode(words[start:])
        except (ValueError, RecursionError):
            raise ValueError("the answer is no JSON object") from None
        read: dict[str, Any] = {}
        for name, answer in self.answers.items():
            if name not in found:
                raise ValueError(f"the answer has no {name!r}")
            try:
                read[name] = answer.read(found[name])
            except ValueError as problem:
                raise ValueError(f"{name}: {problem}") from None
        return read


def read_prompt(name: str) -> LabelPrompt:
    """Return a prompt by the name of one of ours (describe, check) or the path of a text file.

    Raises:
        UserError: It is not there, or its head cannot be read.
    """
    ours = FOLDER / f"{name}.txt"
    path = ours if ours.is_file() else user_path(name)
    try:
        whole = read_text(path, MEGABYTE)
    except FileNotFoundError:
        known = ", ".join(sorted(file.stem for file in FOLDER.glob("*.txt")))
        raise UserError(f"label.prompts: {name}: no such file, and not one of ours ({known})") from None
    except (OSError, ValueError) as problem:
        raise UserError(f"{path}: cannot be read: {problem}") from None
    head, _, text = whole.partition("\n\n")
    version = ""
    answers: dict[str, AnswerEntry] = {}
    for line in head.splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "version":
            version = value
        elif not key.isidentifier():
            raise UserError(f"{path}: {line[:60]!r}: a line of the head is a name, a colon and a kind of answer")
        else:
            answers[key] = _answer(path, key, value)
    if not version or not answers or not text.strip():
        raise UserError(f"{path}: a prompt needs `version: N`, at least one answer, an empty line and a text")
    digest = hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()
    return LabelPrompt(path.stem, version, text.strip(), answers, digest)


def _answer(path: Path, name: str, kind: str) -> AnswerEntry:
    if kind in ("text", "flag"):
        return AnswerEntry(kind)
    number = _NUMBER.fullmatch(kind)
    if number and float(number[1]) < float(number[2]):
        return AnswerEntry("number", float(number[1]), float(number[2]))
    if kind.startswith("one of "):
        return AnswerEntry("text", choices=tuple(choice.strip() for choice in kind[7:].split(",")))
    raise UserError(f"{path}: {name}: {kind!r} is none of: text, flag, number LOW to HIGH, one of A, B, C")
