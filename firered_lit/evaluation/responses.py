"""Answers of the judge by question: how judging writes them into the log, and how scoring finds them again."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from firered_lit.judges.log import Log
from firered_lit.judges.record import is_final, reply_of
from firered_lit.judges.reply import Kind, Reply
from firered_lit.judges.request import ChatRequest

from .protocols import Asking, Item

MOST_ATTEMPTS = 100  # attempts at one item, which are numbered together with its repeats


def question_of(fingerprint: str, item: Item, picture: str, asking: Asking) -> str:
    """Return what tells a question from any other: the benchmark, the item, the edited picture and the judge.

    The model that drew the picture is not part of it: the same picture of the same item is judged once.

    Args:
        fingerprint: Of the benchmark.
        item: The item.
        picture: SHA-256 of the edited picture's file.
        asking: Settings of the judge.
    """
    parts = [fingerprint, item.suite, item.id, item.instruction, picture, asking.model, dict(asking.settings)]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()


def marked(
    request: ChatRequest, question: str, call: int, repeat: int, attempt: int, item: Item, model: str
) -> ChatRequest:
    """Return a request with what `Responses` finds it by.

    Args:
        request: As the benchmark builds it.
        question: See `question_of`.
        call: Which of an attempt's requests it is, from 0.
        repeat: Which of the item's independent judgements it is, from 0.
        attempt: Which try at an answer that can be read, from 0.
        item: The item.
        model: The name of the model that drew the picture.
    """
    facts = {
        "question": question,
        "call": call,
        "attempt": attempt,
        "repeat": repeat,
        "suite": item.suite,
        "item": item.id,
        "model": model,
    }
    return replace(request, repeat=numbered(repeat, attempt), facts=facts)


def is_about_an_item(row: Mapping[str, Any]) -> bool:
    """Return whether a line is about a picture of an item by itself, and not about a pair or the text on it."""
    facts = row.get("facts")
    return isinstance(facts, Mapping) and "attempt" in facts


def numbered(repeat: int, attempt: int) -> int:
    """Return the number that a log's column `repeat` has for a repeat and an attempt."""
    return repeat * MOST_ATTEMPTS + attempt


@dataclass(frozen=True)
class Response:
    """One answer out of the log.

    Attributes:
        reply: What the judge said.
        model: The judge, as the server calls it.
        date: When it was asked, as ISO 8601 writes it.
    """

    reply: Reply
    model: str
    date: str

    @property
    def text(self) -> str | None:
        """The words; None where there are none."""
        return self.reply.text or None

    @property
    def refused(self) -> bool:
        """Return whether a filter or the model itself declined to answer."""
        return self.reply.kind is Kind.REFUSED or self.reply.declines


Attempt = tuple[Response | None, ...]


class Responses:
    """The answers of a log, as they were when the first was looked up.

    Args:
        path: The log.
    """

    def __init__(self, path: Path) -> None:
        self._log = Log(path, ("facts.question", "facts.call", "repeat"), counts=is_final)

    def find(self, question: str, call: int, repeat: int, attempt: int) -> Response | None:
        """Return the answer to one request; None where it has none yet."""
        row = self._log.find(question, call, numbered(repeat, attempt))
        reply = reply_of(row)
        if row is None or reply is None:
            return None
        return Response(reply, _judge_of(row), str(row.get("date", "")))

    def attempt(self, question: str, calls: int, repeat: int, attempt: int) -> Attempt:
        """Return the answers to all requests of an attempt, None for each that has none."""
        return tuple(self.find(question, call, repeat, attempt) for call in range(calls))

    def attempts(self, question: str, calls: int, repeat: int = 0) -> list[Attempt]:
        """Return all attempts of which anything was answered, in their order."""
        found: list[Attempt] = []
        for number in range(MOST_ATTEMPTS):
            attempt = self.attempt(question, calls, repeat, number)
            if all(response is None for response in attempt):
                break
            found.append(attempt)
        return found


def texts_of(attempt: Sequence[Response | None]) -> tuple[str | None, ...]:
    """Return the words of an attempt."""
    return tuple(None if response is None else response.text for response in attempt)


def _judge_of(row: dict[str, Any]) -> str:
    """Return the name that the server gave for what answered, else the one that it was asked by."""
    response = row.get("response")
    served = response.get("model") if isinstance(response, dict) else None
    return str(served or row.get("model", ""))
