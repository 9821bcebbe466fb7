"""The soft score of a judge: the expected score over the score tokens alone. FireRed (2602.13344), eq. 4.

Scores are single tokens (use a scale of 0 to 5 or 0 to 9). What a server does not tell is bounded, never guessed: where
the bound is too wide, or there is no score, the answer is None and the sample's reward is missing.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def expected_score(logits: Tensor, values: Tensor) -> Tensor:
    """sum_v v P(v), P the softmax over the score tokens only. logits (..., S) of those tokens, values (S,) -> (...)."""
    return torch.softmax(logits.double(), -1) @ values.double().to(logits.device)


def expected_from_logprobs(
    logprobs: Mapping[str, float], values: Mapping[str, float], *, tolerance: float = 0.02
) -> float | None:
    """`expected_score` from the top log-probabilities of one position, token -> log-probability.

    Tokens that differ by white space alone count together. A score token that is not listed is at most as likely as the
    least likely listed token. Its share is left out if no such share could move the result by more than `tolerance` of
    the scale, up and down together; else the result is None, as it is when no score token is listed.
    """
    if any(not logprob <= 1e-3 for logprob in logprobs.values()):  # NaN, or no logarithm of a probability
        return None
    shares = dict.fromkeys(values, 0.0)
    for token, logprob in logprobs.items():
        if token.strip() in shares:
            shares[token.strip()] += math.exp(logprob)
    listed = [(values[token], share) for token, share in shares.items() if share > 0]
    if not listed:
        return None
    cap = math.exp(min(logprobs.values()))
    hidden = sorted(values[token] for token, share in shares.items() if share == 0)
    low, high = min(_means_with(listed, hidden, cap)), max(_means_with(listed, hidden[::-1], cap))
    scale = max(values.values()) - min(values.values())
    return _mean(listed) if high - low <= tolerance * scale else None


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    """Of values by their shares."""
    return sum(value * share for value, share in pairs) / sum(share for _, share in pairs)


def _means_with(listed: Sequence[tuple[float, float]], hidden: Sequence[float], cap: float) -> list[float]:
    """The mean as it moves when the hidden values, furthest first, are given the share `cap` one after another."""
    return [_mean([*listed, *((value, cap) for value in hidden[:n])]) for n in range(len(hidden) + 1)]


def score_logprobs(
    content: Sequence[Mapping[str, Any]], values: Mapping[str, float], *, marker: str = "Score:"
) -> dict[str, float] | None:
    """The top log-probabilities where the score stands: the first token with text after the last `marker`.

    content: `choices[i].logprobs.content` of an OpenAI-compatible server, a list of {token, logprob, top_logprobs}.
    None without a marker, without log-probabilities, or when that token is no score or goes on ("1", "0").
    """
    ends, text = [], ""
    for entry in content:
        text += entry["token"]
        ends.append(len(text))
    start = text.rfind(marker)
    if start < 0:
        return None
    after = [i for i, end in enumerate(ends) if text[start + len(marker) : end].strip()]
    if not after or content[after[0]]["token"].strip() not in values:
        return None
    place = after[0]
    if re.match(r"\.?\d", text[ends[place] :]):
        return None
    top = {item["token"]: float(item["logprob"]) for item in content[place].get("top_logprobs") or ()}
    return top or None


def mean_of_passes(scores: Sequence[float | None], values: Mapping[str, float], *, least: int = 1) -> float | None:
    """Mean over the K stochastic passes that gave a score, laid on [0, 1]; None when fewer than `least` did."""
    given = [score for score in scores if score is not None]
    if len(given) < max(least, 1):
        return None
    return to_unit(sum(given) / len(given), values)


def to_unit(score: float, values: Mapping[str, float]) -> float:
    """A score on the scale of `values`, laid on [0, 1]."""
    low, high = min(values.values()), max(values.values())
    return (score - low) / (high - low)
