"""One compound request out of an atomic one: what a language model is asked, and what of its answers is taken. Pure."""

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
    """An answer that is not taken; its argument is the reason, for counting."""


@dataclass(frozen=True)
class Template:
    """A question of ours: a text file, versioned, and hashed into every answer."""

    name: str
    version: str
    text: str
    digest: str

    def ask(self, atomic: str, operations: int, pictures: int) -> str:
        filled = self.text.replace("{operations}", str(operations)).replace("{pictures}", str(pictures))
        return filled.replace("{instruction}", atomic.strip())


@dataclass(frozen=True)
class Compound:
    """A request that asks for several things, and the single requests it is made of, the atomic one first."""

    instruction: str
    operations: tuple[str, ...]


@cache
def template(name: str = "evolve") -> Template:
    """A question by its name; its file lies beside this one. A line `version: N`, an empty line, the text."""
    whole = Path(__file__).with_name(f"{name}.txt").read_text(encoding="utf-8")
    head, text = whole.split("\n\n", 1)
    digest = hashlib.blake2b(whole.encode(), digest_size=8).hexdigest()
    return Template(name, head.removeprefix("version:").strip(), text.strip(), digest)


def compound(answer: str, atomic: str, operations: int, pictures: int) -> Compound:
    """The compound request in an answer of JSON {"operations": [...], "instruction": "..."}.

    Taken are exactly so many operations, all different, the atomic request first and word for word; a request in its
    language, of one line, longer than the longest of them, that mentions no picture which is not there. Raises Invalid.
    """
    content = _object(answer)
    parts, request = content.get("operations"), content.get("instruction")
    if not isinstance(parts, list) or not all(isinstance(part, str) and part.strip() for part in parts):
        raise Invalid("no list of operations")
    if not isinstance(request, str) or not request.strip():
        raise Invalid("no instruction")
    parts, request = [" ".join(part.split()) for part in parts], request.strip()
    if len(parts) != operations:
        raise Invalid("another number of operations")
    if len({_plain(part) for part in parts}) != len(parts):
        raise Invalid("an operation twice")
    if _plain(parts[0]) != _plain(atomic):
        raise Invalid("the given request is not its first operation")
    _check(request, parts, pictures)
    if bool(CHINESE.search(request)) != bool(CHINESE.search(atomic)):
        raise Invalid("another language")
    return Compound(request, tuple(parts))


def _check(request: str, parts: list[str], pictures: int) -> None:
    if "\n" in request or "<|" in request or len(request) > LONGEST:
        raise Invalid("not one line of text, or too long")
    if len(request) <= max(map(len, parts)):
        raise Invalid("no longer than one operation")
    if any(not 1 <= int(number) <= pictures for number in NUMBERED.findall(request)):
        raise Invalid("a picture that is not there")


def _object(answer: str) -> dict[str, Any]:
    """The last JSON object in an answer, whatever words or fences stand around it."""
    decode, found = json.JSONDecoder().raw_decode, None
    place = answer.find("{")
    while place >= 0:
        try:
            value, end = decode(answer, place)
            found, end = (value, end) if isinstance(value, dict) else (found, place + 1)
        except (ValueError, RecursionError):
            end = place + 1
        place = answer.find("{", end)
    if found is None:
        raise Invalid("no JSON object")
    return found


def _plain(text: str) -> str:
    return re.sub(r"[\s\W_]+", "", text).casefold()
