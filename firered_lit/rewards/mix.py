"""One reward from several: a weighted mean of the named rewards that score a sample's task."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from firered_lit.errors import UserError
from firered_lit.rewards.protocol import Scores


def mix(
    scores: Mapping[str, Scores],
    weights: Mapping[str, float],
    tasks: Sequence[str],
    routes: Mapping[str, Collection[str]] | None = None,
    able: Mapping[str, Sequence[bool]] | None = None,
) -> Scores:
    """sum_r w_r R_r / sum_r w_r over the rewards r that apply to each sample's task. tasks (B,).

    routes: reward -> the tasks that it scores; a reward that is not in it scores all that it is able to, by `able`. A
    sample is valid when at least one reward of positive weight applies to it and every one that applies is valid: a
    missing part is not made up.
    terms: every reward's value by its name (0 where it does not count) and its own terms as `name/term`.
    Raises UserError for a name without weight, a negative weight, and a value outside [0, 1].
    """
    _check_names(scores, weights, routes or {})
    total = torch.zeros(len(tasks), dtype=torch.float64)
    weight_sum, valid = torch.zeros_like(total), torch.ones(len(tasks), dtype=torch.bool)
    terms: dict[str, Tensor] = {}
    for name, score in scores.items():
        _check_values(name, score, len(tasks))
        applies = applies_to(name, tasks, routes, able) & (weights[name] > 0)
        counted = applies & score.valid.cpu()
        value = torch.where(counted, score.value.detach().cpu().double(), 0.0)
        total, weight_sum = total + weights[name] * value, weight_sum + weights[name] * applies
        valid &= score.valid.cpu() | ~applies
        terms |= {name: value.float()} | {f"{name}/{key}": term for key, term in score.terms.items()}
    valid &= weight_sum > 0
    value = torch.where(valid, total / weight_sum.clamp(min=1e-12), 0.0)
    return Scores(value.clamp(0, 1).float(), valid, terms)


def applies_to(
    name: str,
    tasks: Sequence[str],
    routes: Mapping[str, Collection[str]] | None,
    able: Mapping[str, Sequence[bool]] | None = None,
) -> Tensor:
    """(B,) bool: whether the reward `name` scores each sample: by its route, else where it is able to, else all."""
    routed = (routes or {}).get(name)
    if routed is not None:
        return torch.tensor([task in routed for task in tasks], dtype=torch.bool)
    return torch.tensor((able or {}).get(name, [True] * len(tasks)), dtype=torch.bool)


def _check_names(
    scores: Mapping[str, Scores], weights: Mapping[str, float], routes: Mapping[str, Collection[str]]
) -> None:
    if set(scores) != set(weights):
        raise UserError(f"reward weights: name each reward once: have {sorted(scores)}, weights for {sorted(weights)}")
    if unknown := set(routes) - set(scores):
        raise UserError(f"reward routes: no such reward: {sorted(unknown)}; have {sorted(scores)}")
    if string := [name for name, tasks in routes.items() if isinstance(tasks, str)]:
        raise UserError(f"reward routes: {string[0]} takes a list of tasks, not the string {routes[string[0]]!r}")
    if bad := {name: weight for name, weight in weights.items() if not 0 <= weight < float("inf")}:
        raise UserError(f"reward weights: must be finite and at least 0: {bad}")


def _check_values(name: str, score: Scores, count: int) -> None:
    if len(score) != count:
        raise UserError(f"reward {name}: {len(score)} scores for {count} samples")
    wrong = score.valid & ~((score.value >= 0) & (score.value <= 1))
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        value = float(score.value[place])
        raise UserError(f"reward {name}: {value} at sample {place}; rewards must lie in [0, 1], see `range`")
