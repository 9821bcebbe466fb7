"""One compound request out of an atomic one: the question to a language model, and the check of its answer. Pure."""

import hashlib
import json
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LONGEST = 600  # characters of a request
CHINESE = re.compile(r"[\u3400-\u9fff]")
NUMBERED = re.compile(r"(?:(?<![a-z])(?:picture|image|figure|photo)|图片?|第(?=\s*\d+\s*张))\s*(\d+)", re.IGNORECASE)


class Invalid(Exception):  # noqa: N818, it carries a refusal
    """An answer that is refused; its argument is the reason, for counting."""


@dataclass(frozen=True)
class QuestionTemplate:
    """A question of ours: a text file, versioned, and hashed into every answer."""

    name: str
    version: str
    text: str
    digest: str

    def ask(self, atomic: str, operations: int, pictures: int) -> str:
        """Return the question about an atomic request, for so many operations and pictures."""
        question = self.text.replace("{operations}", str(operations))
        question = question.replace("{pictures}", str(pictures))
        return question.replace("{instruction}", atomic.strip())


@dataclass(frozen=True)
class Compound:
    """A request that asks for several things, and the single requests it is made of, the atomic one first."""

    instruction: str
    operations: tuple[str, ...]


@cache
def template(name: str = "evolve") -> QuestionTemplate:
    """Read a question by its name from the file beside this one: `version: N`, an empty line, the text."""
    whole = Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8")
    head, text = whole.split("\n\n", 1)
    digest = hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()
    return QuestionTemplate(name, head.removeprefix("version:").strip(), text.strip(), digest)


def compound(answer: str, atomic: str, operations: int, pictures: int) -> Compound:
    """Return the compound request in an answer of JSON {"operations": [...], "instruction": "..."}.

    Args:
        answer: of the language model.
        atomic: the request that it was given.
        operations: how many it was to write, the atomic request among them.
        pictures: how many there are to edit.

    Raises:
        Invalid: there are not exactly so many operations, all different, the atomic request first and word for word;
            or the compound request is not one line in its language, longer than the longest operation, or mentions a
            picture that is not there.
    """
    # Two fields: a list of texts and a text.
    content = _object(answer)
    listed = content.get("operations")
    request = content.get("instruction")
    if not isinstance(listed, list) or not all(isinstance(item, str) and item.strip() for item in listed):
        raise Invalid("no list of operations")
    if not isinstance(request, str) or not request.strip():
        raise Invalid("no instruction")
    single = [" ".join(item.split()) for item in listed]
    request = request.strip()

    # The operations.
    if len(single) != operations:
        raise Invalid("another number of operations")
    if len({_plain(operation) for operation in single}) != len(single):
        raise Invalid("an operation twice")
    if _plain(single[0]) != _plain(atomic):
        raise Invalid("the given request is not its first operation")

    # The request.
    _check_request(request, single, pictures)
    if bool(CHINESE.search(request)) != bool(CHINESE.search(atomic)):
        raise Invalid("another language")
    return Compound(request, tuple(single))


def _check_request(request: str, operations: list[str], pictures: int) -> None:
    """Raise Invalid for a compound request that is malformed, too short, or names a picture that is not there."""
    if "\n" in request or "<|" in request or len(request) > LONGEST:
        raise Invalid("not one line of text, or too long")
    if len(request) <= max(len(operation) for operation in operations):
        raise Invalid("no longer than one operation")
    for number in NUMBERED.findall(request):
        if not 1 <= int(number) <= pictures:
            raise Invalid("a picture that is not there")


def _object(answer: str) -> dict[str, Any]:
    """Return the last JSON object in an answer, whatever words or fences stand around it."""
    decoder = json.JSONDecoder()
    last = None
    begin = answer.find("{")
    while begin >= 0:
        end = begin + 1
        try:
            value, after = decoder.raw_decode(answer, begin)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            last = value
            end = after
        begin = answer.find("{", end)
    if last is None:
        raise Invalid("no JSON object")
    return last


def _plain(text: str) -> str:
    """Return the letters and digits of a text, without case."""
    return re.sub(r"[\s\W_]+", "", text).casefold()
