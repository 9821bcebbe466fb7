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
    """Compute sum_r w_r R_r / sum_r w_r over the rewards r that apply to each sample's task.

    A sample is valid when at least one reward of positive weight applies to it and every one that applies is valid: a
    missing reward is not made up.

    Args:
        scores: by reward, each (B,), in [0, 1] where valid.
        weights: by reward, at least 0.
        tasks: (B,).
        routes: reward -> the tasks that it scores; one without a route scores all that it is able to.
        able: reward -> (B,), the samples that it is able to score; all when it is not in it.

    Returns:
        The mixture. Its terms are every reward's value by its name (0 where it does not count), and the reward's own
        terms as `name/term`.

    Raises:
        UserError: a name without weight, a negative weight, or a value outside [0, 1].
    """
    _check_names(scores, weights, routes or {})
    total = torch.zeros(len(tasks), dtype=torch.float64)
    weight_sum = torch.zeros_like(total)
    valid = torch.ones(len(tasks), dtype=torch.bool)
    terms: dict[str, Tensor] = {}
    for name, score in scores.items():
        _check_values(name, score, len(tasks))
        applies = applies_to(name, tasks, routes, able) & (weights[name] > 0)
        counted = applies & score.valid.cpu()
        value = torch.where(counted, score.value.detach().cpu().double(), 0.0)
        total = total + weights[name] * value
        weight_sum = weight_sum + weights[name] * applies
        valid &= score.valid.cpu() | ~applies

        terms[name] = value.float()
        for key, term in score.terms.items():
            terms[f"{name}/{key}"] = term
    valid &= weight_sum > 0
    value = torch.where(valid, total / weight_sum.clamp(min=1e-12), 0.0)
    return Scores(value.clamp(0, 1).float(), valid, terms)


def applies_to(
    name: str,
    tasks: Sequence[str],
    routes: Mapping[str, Collection[str]] | None,
    able: Mapping[str, Sequence[bool]] | None = None,
) -> Tensor:
    """Return the samples (B,) bool that the reward `name` scores: by its route, else where it is able to, else all."""
    if routes and name in routes:
        return torch.tensor([task in routes[name] for task in tasks], dtype=torch.bool)
    if able and name in able:
        return torch.tensor(able[name], dtype=torch.bool)
    return torch.ones(len(tasks), dtype=torch.bool)


def _check_names(
    scores: Mapping[str, Scores], weights: Mapping[str, float], routes: Mapping[str, Collection[str]]
) -> None:
    """Raise UserError unless each reward has one weight of at least 0, and routes name rewards and lists of tasks."""
    if set(scores) != set(weights):
        raise UserError(f"reward weights: name each reward once: have {sorted(scores)}, weights for {sorted(weights)}")
    unknown = set(routes) - set(scores)
    if unknown:
        raise UserError(f"reward routes: no such reward: {sorted(unknown)}; have {sorted(scores)}")
    for name, tasks in routes.items():
        if isinstance(tasks, str):
            raise UserError(f"reward routes: {name} takes a list of tasks, not the string {tasks!r}")
    bad = {name: weight for name, weight in weights.items() if not 0 <= weight < float("inf")}
    if bad:
        raise UserError(f"reward weights: must be finite and at least 0: {bad}")


def _check_values(name: str, score: Scores, count: int) -> None:
    """Raise UserError unless a reward gave `count` scores in [0, 1]."""
    if len(score) != count:
        raise UserError(f"reward {name}: {len(score)} scores for {count} samples")
    wrong = score.valid & ~((score.value >= 0) & (score.value <= 1))
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        value = float(score.value[place])
        raise UserError(f"reward {name}: {value} at sample {place}; rewards must lie in [0, 1], see `range`")
