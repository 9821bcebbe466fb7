"""Statistics of a rollout's rewards: the numbers to watch for collapse and for reward hacking."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firered_lit.losses.nft import group_statistics

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


@dataclass(frozen=True)
class Scored:
    """N edits of one or several processes, with their rewards; all on the host."""

    tasks: tuple[str, ...]  # (N,)
    groups: Tensor  # (N,) int: the sample that was edited
    reward: Tensor  # (N,) in [0, 1] where valid
    valid: Tensor  # (N,) bool
    terms: dict[str, Tensor]  # (N,) each, NaN where there is none; a reward by its name, its terms as name/term
    distance: Tensor  # (N,) from the source, NaN without one
    outside: dict[str, float]  # reward -> a score clearly outside of its scale

    @staticmethod
    def join(parts: Sequence["Scored"]) -> "Scored":
        """One after another; groups of different parts stay different."""
        offset, groups = 0, []
        for part in parts:
            groups.append(part.groups + offset)
            offset += int(part.groups.max()) + 1
        names = {name for part in parts for name in part.terms}
        nothing = [torch.full_like(part.reward, torch.nan) for part in parts]
        terms = {n: torch.cat([p.terms.get(n, none) for p, none in zip(parts, nothing)]) for n in sorted(names)}
        outside = {name: value for part in parts for name, value in part.outside.items()}
        reward, valid, distance = (torch.cat([getattr(p, n) for p in parts]) for n in ("reward", "valid", "distance"))
        tasks = tuple(task for part in parts for task in part.tasks)
        return Scored(tasks, torch.cat(groups), reward, valid, terms, distance, outside)


def statistics(scored: Scored, optimality: Tensor, used: Tensor) -> dict[str, float]:
    """Compute the numbers to log of a rollout.

    They are rewards by name and task, groups that teach nothing, optimality, and distance from the source.

    optimality (N,), used (N,) bool: what the policy term learns from.
    """
    total = torch.where(scored.valid, scored.reward, torch.nan)
    numbers = _by_task("rollout/total", total, scored.tasks, spread=True)
    for name, term in scored.terms.items():
        numbers |= _by_task(f"rollout/{name.replace('/', '.')}", term, scored.tasks, spread="/" not in name)
    numbers["rollout/missing"] = float((~scored.valid).sum())
    group = group_statistics(scored.reward, scored.groups, scored.valid)
    first = torch.tensor([int((scored.groups == g).nonzero()[0]) for g in scored.groups.unique()])
    count = torch.stack([scored.valid[scored.groups == g].sum() for g in scored.groups.unique()])
    taught = torch.stack([used[scored.groups == g].any() for g in scored.groups.unique()])
    flat = (group.std[first] == 0) & (count > 1)
    numbers["groups/flat"] = float(flat.float().mean())
    numbers["groups/dropped"] = float((count < 2).float().mean())
    numbers["groups/settled"] = float((~taught & ~flat & (count > 1)).float().mean())
    numbers["groups/std"] = float(group.std[first].mean())
    if used.any():
        numbers |= histogram(optimality[used])
    return numbers | _by_task("rollout/source_distance", scored.distance, scored.tasks, spread=False)


def histogram(optimality: Tensor, bins: int = 10) -> dict[str, float]:
    """Shares of optimality (N,) in equal bins of [0, 1], by their borders, and its quantiles."""
    optimality = optimality.float()
    counts = torch.histc(optimality, bins, 0.0, 1.0) / len(optimality)
    shares = {f"optimality/{i / bins:.1f}-{(i + 1) / bins:.1f}": float(share) for i, share in enumerate(counts)}
    marks = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    spread = torch.quantile(optimality, marks).tolist()
    return shares | {f"optimality/p{round(100 * float(q)):02d}": value for q, value in zip(marks, spread)}


def _by_task(key: str, values: Tensor, tasks: Sequence[str], *, spread: bool) -> dict[str, float]:
    """Mean (and std and quantiles) over all tasks and of each; NaN does not count."""
    numbers: dict[str, float] = {}
    for kind in sorted({"", *tasks}):
        own = torch.tensor([not kind or task == kind for task in tasks]) & ~values.isnan()
        if not own.any():
            continue
        these, place = values[own].double(), f"{key}/{kind}" if kind else key
        numbers[f"{place}/mean"] = float(these.mean())
        if spread:
            numbers[f"{place}/std"] = float(these.std(correction=0))
            numbers |= {f"{place}/{name}": float(torch.quantile(these, q)) for name, q in QUANTILES.items()}
    return numbers
