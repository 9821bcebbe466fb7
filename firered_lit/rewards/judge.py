"""The soft score of a judge: the expected score over the score tokens alone. FireRed (2602.13344), eq. 4.

Scores are single tokens (use a scale of 0 to 5 or 0 to 9). What a server does not list is bounded, never guessed: where
the bound is too wide, or there is no score, the answer is None and the sample's reward is missing.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

SENTINEL = -1000.0  # servers write -inf, -9999 or less where they have no log-probability
EMPHASIS = r"[\s*_`]*"  # what Markdown puts between the characters of a marker
AROUND = " \t\n\r*_`'\"[](){}<>"  # what may stand around a score
GOES_ON = re.compile(r"[.,]?\d|\s*[-\u2013~]\s*\d")  # a number or a range of which the score is only the beginning


def check_scale(tokens: Iterable[str]) -> None:
    """Raise ValueError unless the first token of each score distinguishes it from all others.

    Where one score begins another ("1" and "10"), a server's probability of the first is that of both.
    """
    scores = list(tokens)
    for score in scores:
        longer = [other for other in scores if other != score and other.startswith(score)]
        if longer:
            raise ValueError(f"the score {score} begins {longer[0]}; use a scale such as 0 to 5 or 0 to 9")


def expected_score(logits: Tensor, values: Tensor) -> Tensor:
    """sum_v v P(v), P the softmax over the score tokens only. logits (..., S) of those tokens, values (S,) -> (...)."""
    return torch.softmax(logits.double(), -1) @ values.double().to(logits.device)


def expected_from_logprobs(
    logprobs: Mapping[str, float], values: Mapping[str, float], *, tolerance: float = 0.02
) -> float | None:
    """Return `expected_score` from the top log-probabilities of one position, token -> log-probability.

    Tokens that differ by white space, emphasis or width alone count together. A log-probability under `SENTINEL` is
    a server's mark for a token that it does not list. A score token that is not listed is at most as likely as the
    least likely listed token. Its share is left out if no such share could move the result by more than `tolerance` of
    the scale, up and down together; else the result is None, as it is when no score token is listed.

    Args:
        logprobs: natural logarithms of probabilities, each at most 0.
        values: what each score token is worth.
        tolerance: share of the scale by which tokens that are not listed may move the result.

    Raises:
        ValueError: a score of the scale begins another one.
    """
    check_scale(values)
    if any(not logprob <= 1e-3 for logprob in logprobs.values()):  # NaN, or no logarithm of a probability
        return None
    known = {token: logprob for token, logprob in logprobs.items() if logprob > SENTINEL}
    shares = dict.fromkeys(values, 0.0)
    for token, logprob in known.items():
        score = _score_of(token)
        if score in shares:
            shares[score] += math.exp(logprob)
    listed = [(values[token], share) for token, share in shares.items() if share > 0]
    if not listed:
        return None

    # The result with nothing hidden, and as far up and down as hidden tokens could move it.
    cap = math.exp(min(known.values()))
    hidden = sorted(values[token] for token, share in shares.items() if share == 0)
    low = min(_means_with(listed, hidden, cap))
    high = max(_means_with(listed, hidden[::-1], cap))
    scale = max(values.values()) - min(values.values())
    if high - low > tolerance * scale:
        return None
    return _mean(listed)


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    """Return the mean of values weighted by their shares."""
    total = sum(share for _, share in pairs)
    return sum(value * share for value, share in pairs) / total


def _means_with(listed: Sequence[tuple[float, float]], hidden: Sequence[float], cap: float) -> list[float]:
    """Return the means when none, one, two, ... of the hidden values are given the share `cap`.

    Args:
        listed: (value, share) of the tokens that a server lists.
        hidden: the values of the others, furthest first.
        cap: the largest share that one of them can have.
    """
    pairs = list(listed)
    means = [_mean(pairs)]
    for value in hidden:
        pairs.append((value, cap))
        means.append(_mean(pairs))
    return means


def score_logprobs(
    content: Sequence[Mapping[str, Any]],
    values: Mapping[str, float],
    *,
    marker: str = "Score:",
    words: str | None = None,
    ended: bool = True,
) -> dict[str, float] | None:
    """Return the top log-probabilities where the score stands: the first token with text after the last `marker`.

    The marker and the score may be emphasised, and their characters full-width ("**Score:** 4", "Score：4").

    Args:
        content: `choices[i].logprobs.content` of an OpenAI-compatible server, a list of {token, logprob, top_logprobs}.
        values: what each score token is worth.
        marker: what stands before the score.
        words: the answer itself. The tokens of a model that thinks hold its thoughts as well, where no score is
            looked for. None looks at all tokens.
        ended: False when the server cut the answer; a score at its very end may then be the beginning of a number.

    Returns:
        Token -> log-probability; None without a marker, without log-probabilities, or when that token is no score or
        goes on ("1", "0").
    """
    # The whole text, and where each token ends in it.
    ends: list[int] = []
    text = ""
    for entry in content:
        text += _plain(entry["token"])
        ends.append(len(text))

    # The end of the last marker in the answer.
    begin = 0 if words is None else _start_of(text, words)
    start = _after_marker(text, marker, begin)
    if start is None:
        return None

    # The token that holds the first character after the marker, apart from emphasis.
    while start < len(text) and text[start] in AROUND:
        start += 1
    place = next((i for i, end in enumerate(ends) if end > start), None)
    if place is None or _score_of(content[place]["token"]) not in values:
        return None

    # It must be all of a number.
    rest = text[ends[place] :]
    cut = not ended and not rest
    if cut or GOES_ON.match(rest):
        return None
    top = {item["token"]: float(item["logprob"]) for item in content[place].get("top_logprobs") or ()}
    return top or None


def before_marker(text: str, marker: str) -> str:
    """Return the words that stand before the first `marker`, however it is emphasised; all of them without one."""
    match = _marker_pattern(marker, re.NOFLAG).search(text)
    return text if match is None else text[: match.start()]


def _after_marker(text: str, marker: str, begin: int | None) -> int | None:
    """Return the end of the last marker at or after `begin`; other capitals count where none is exact."""
    if begin is None:
        return None
    for flag in (re.NOFLAG, re.IGNORECASE):
        matches = list(_marker_pattern(_plain(marker), flag).finditer(text, begin))
        if matches:
            return matches[-1].end()
    return None


def _marker_pattern(marker: str, flag: re.RegexFlag) -> re.Pattern[str]:
    """Return a pattern of the marker with emphasis between its words and signs.

    No letter stands before it: "Underscore: 4" has no marker "score:".
    """
    signs = [re.escape(sign) for sign in re.findall(r"\w+|[^\w\s]", marker)]
    return re.compile("(?<![A-Za-z0-9])" + EMPHASIS.join(signs), flag)


def _start_of(text: str, words: str) -> int | None:
    """Return where an answer's words begin in all that the model wrote; None when not found."""
    own = _plain(words).strip()
    if not own:
        return None
    start = text.rfind(own)
    if start < 0:  # some servers write parts of a character as other tokens than they stand in the answer
        start = text.rfind("</think>")
    if start < 0:
        return 0 if text.lstrip()[:8] == own[:8] else None
    return start


def _plain(text: str) -> str:
    """Return a text with full-width characters as the usual ones."""
    return unicodedata.normalize("NFKC", text)


def _score_of(token: str) -> str:
    """Return a token without white space and emphasis around it."""
    return _plain(token).strip(AROUND)


def mean_of_passes(scores: Sequence[float | None], values: Mapping[str, float], *, least: int = 1) -> float | None:
    """Return the mean of the passes that gave a score, laid on [0, 1]; None when fewer than `least` did."""
    given = [score for score in scores if score is not None]
    if len(given) < max(least, 1):
        return None
    return to_unit(sum(given) / len(given), values)


def to_unit(score: float, values: Mapping[str, float]) -> float:
    """Return a score on the scale of `values`, laid on [0, 1]."""
    low = min(values.values())
    high = max(values.values())
    return (score - low) / (high - low)
