"""The reply to a question: the kind of answer, its words, and why there are none."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

OPEN, CLOSE = "<think>", "</think>"  # of thoughts that a server leaves among the words
FILTERED = ("content_filter", "content_policy", "moderation", "data_inspection_failed", "responsibleaipolicy")
DECLINED = re.compile(  # how models decline in words
    r"^\W*(?:i['’]?m (?:very |really )?sorry\b|(?:sorry|apologies)\b|i (?:can(?:no|['’])t|am (?:not able|unable))\b"
    r"|(?:很)?抱歉|对不起|我(?:无法|不能))",
    re.IGNORECASE,
)


class Kind(StrEnum):
    """The kinds of a reply. The first four come from the model and may be read from a log again, see `FINAL`."""

    ANSWERED = "answered"
    REFUSED = "refused"  # by a content filter, or by the model in the field that says so
    CUT = "cut"  # the answer ended at the most tokens that it may have
    UNPARSED = "unparsed"  # thoughts alone, or words in which whoever asked finds no verdict
    ERROR = "error"  # no connection, HTTP 5xx, no JSON or another form, after the last try
    LATE = "late"  # the last try took longer than an answer may take
    LIMITED = "limited"  # HTTP 429 after the last try, or a quota that is used up
    KEY = "missing key"  # HTTP 401 or 403
    REJECTED = "rejected"  # any other HTTP 4xx: the server does not take such a request
    REDIRECTED = "redirected"  # to another address, which is never followed
    BUDGET = "over budget"  # not asked, the budget of requests is spent


FINAL = frozenset({Kind.ANSWERED, Kind.REFUSED, Kind.CUT, Kind.UNPARSED})


@dataclass(frozen=True)
class Reply:
    """The outcome of one request.

    Args:
        kind: the kind.
        text: the model's words exactly as they came, "" where there are none.
        reason: in one line why there is no answer; "" for an answer.
        message: the message that holds the words, with all its fields.
        logprobs: log-probabilities of all tokens, a list of {token, logprob, top_logprobs}.
        response: the server's whole answer.
        tries: how many HTTP requests it took; 0 when it comes from a log.
        seconds: from the first try to the end of the last.
        replayed: whether it comes from a log.
    """

    kind: Kind
    text: str = ""
    reason: str = ""
    message: Mapping[str, Any] = field(default_factory=dict)
    logprobs: Sequence[Mapping[str, Any]] = ()
    response: Mapping[str, Any] = field(default_factory=dict)
    tries: int = 0
    seconds: float = 0.0
    replayed: bool = False

    @property
    def words(self) -> str:
        """The text without thoughts that stand before it; "" when it ends inside of them."""
        if CLOSE in self.text:
            return self.text.rpartition(CLOSE)[2]
        return "" if OPEN in self.text else self.text

    @property
    def declines(self) -> bool:
        """Return whether the words begin as models do that decline to answer."""
        return DECLINED.match(self.words) is not None


class NoAnswerError(Exception):
    """The error of an answer that is no chat completion."""


def read(response: Any) -> Reply:
    """Return the reply that a server's JSON holds.

    Raises:
        NoAnswerError: it has another form, or holds neither words nor a reason for having none.
    """
    error = response.get("error") if isinstance(response, Mapping) else None
    if error and not response.get("choices"):  # some gateways say so under HTTP 200
        raise NoAnswerError(one_line(error.get("message") or error if isinstance(error, Mapping) else error))
    try:
        choice = response["choices"][0]
        message = choice["message"]
        finish = choice.get("finish_reason")
        text = message.get("content") or ""
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        declined = message.get("refusal")
        thoughts = message.get("reasoning_content") or message.get("reasoning")
        whole = isinstance(text, str) and all(isinstance(entry["token"], str) for entry in logprobs)
    except (KeyError, IndexError, TypeError, AttributeError) as problem:
        raise NoAnswerError("an answer of another form") from problem
    if not whole:
        raise NoAnswerError("an answer of another form")
    if finish == "content_filter" or declined:
        kind = Kind.REFUSED
        reason = f"refused: {one_line(declined or 'stopped by the content filter')}"
    elif finish == "length":
        kind = Kind.CUT
        reason = "cut at max_tokens"
    elif text.strip():
        kind = Kind.ANSWERED
        reason = ""
    elif thoughts:
        kind = Kind.UNPARSED
        reason = "thoughts without an answer"
    else:
        raise NoAnswerError("an answer without words")
    return Reply(kind, text, reason, message, logprobs, response)


def is_filter(body: str) -> bool:
    """Return whether the body of an HTTP error says that a content filter stopped the request."""
    text = body.lower().replace(" ", "_")
    return any(word in text for word in FILTERED)


def one_line(text: object, most: int = 200) -> str:
    """A text as one line of at most so many characters."""
    return " ".join(str(text).split())[:most]
