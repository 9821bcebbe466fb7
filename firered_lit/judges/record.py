"""A line of a log: what was asked, by its hashes, and what came of it."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from firered_lit.judges.reply import FINAL, Kind, NoAnswerError, Reply, read
from firered_lit.judges.request import ChatRequest


def row_of(request: ChatRequest, reply: Reply, url: str) -> dict[str, Any]:
    """Return the line of a request and its reply.

    Args:
        request: What was asked.
        reply: What came of it.
        url: Who was asked: a server's address, or a model's folder.
    """
    return {
        "request": request.digest,
        "repeat": request.repeat,
        "prompt": request.prompt_digest,
        "images": [picture.digest for picture in request.pictures],
        "model": request.model,
        "settings": dict(request.settings),
        "url": url,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kind": reply.kind,
        "reason": reply.reason,
        "tries": reply.tries,
        "seconds": round(reply.seconds, 3),
        "facts": dict(request.facts),
        "text": reply.text,
        "response": reply.response,
    }


def is_final(row: Mapping[str, Any]) -> bool:
    """Return whether a line holds what the model said, so that the question need not be asked again."""
    return row.get("kind") in FINAL


def reply_of(row: Mapping[str, Any] | None) -> Reply | None:
    """Return the reply that a line holds; None where it is no answer of the model, and the question is asked again."""
    if row is None or not is_final(row):
        return None
    if not row.get("response"):  # refused by an HTTP error, or answered by a model of this machine
        reason = str(row.get("reason", ""))
        return Reply(Kind(row["kind"]), str(row.get("text", "")), reason, replayed=True)
    try:
        return replace(read(row["response"]), replayed=True)
    except NoAnswerError:
        return None
