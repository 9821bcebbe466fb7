"""Statistics of a rollout's rewards: the numbers to watch for collapse and for reward hacking."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firered_lit.losses.nft import group_statistics

QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}


@dataclass(frozen=True)
class ScoredEdits:
    """N edits of one or several processes, with their rewards; all on the host."""

    tasks: tuple[str, ...]  # (N,)
    groups: Tensor  # (N,) int: the sample that was edited
    reward: Tensor  # (N,) in [0, 1] where valid
    valid: Tensor  # (N,) bool
    terms: dict[str, Tensor]  # (N,) each, NaN where there is none; a reward by its name, its terms as name/term
    distance: Tensor  # (N,) from the source, NaN without one
    outside: dict[str, float]  # reward -> a score clearly outside of its scale

    @staticmethod
    def join(parts: Sequence["ScoredEdits"]) -> "ScoredEdits":
        """Join edits one after another; groups of different parts stay different."""
        # Groups, numbered on from part to part.
        groups = []
        offset = 0
        for part in parts:
            groups.append(part.groups + offset)
            offset += int(part.groups.max()) + 1

        # Terms; one that a part does not have is NaN there.
        names = sorted({name for part in parts for name in part.terms})
        terms = {}
        for name in names:
            rows = [part.terms.get(name, torch.full_like(part.reward, torch.nan)) for part in parts]
            terms[name] = torch.cat(rows)

        outside: dict[str, float] = {}
        for part in parts:
            outside.update(part.outside)
        return ScoredEdits(
            tasks=tuple(task for part in parts for task in part.tasks),
            groups=torch.cat(groups),
            reward=torch.cat([part.reward for part in parts]),
            valid=torch.cat([part.valid for part in parts]),
            terms=terms,
            distance=torch.cat([part.distance for part in parts]),
            outside=outside,
        )


def statistics(scored: ScoredEdits, optimality: Tensor, used: Tensor) -> dict[str, float]:
    """Compute the numbers to log of a rollout.

    They are rewards by name and task, groups that teach nothing, optimality, and distance from the source.

    Args:
        scored: N edits.
        optimality: (N,) in [0, 1].
        used: (N,) bool, the edits that the policy term learns from.
    """
    # Rewards and their terms.
    total = torch.where(scored.valid, scored.reward, torch.nan)
    numbers = _by_task("rollout/total", total, scored.tasks, spread=True)
    for name, term in scored.terms.items():
        numbers |= _by_task(f"rollout/{name.replace('/', '.')}", term, scored.tasks, spread="/" not in name)
    numbers["rollout/missing"] = float((~scored.valid).sum())

    # Groups: where each begins, how many of its rewards are there, and whether it teaches.
    group = group_statistics(scored.reward, scored.groups, scored.valid)
    members = [scored.groups == number for number in scored.groups.unique()]
    first = torch.tensor([int(member.nonzero()[0]) for member in members])
    count = torch.stack([scored.valid[member].sum() for member in members])
    taught = torch.stack([used[member].any() for member in members])
    flat = (group.std[first] == 0) & (count > 1)
    numbers["groups/flat"] = float(flat.float().mean())
    numbers["groups/dropped"] = float((count < 2).float().mean())
    numbers["groups/settled"] = float((~taught & ~flat & (count > 1)).float().mean())
    numbers["groups/std"] = float(group.std[first].mean())

    # What the policy learns.
    if used.any():
        numbers |= histogram(optimality[used])
    return numbers | _by_task("rollout/source_distance", scored.distance, scored.tasks, spread=False)


def histogram(optimality: Tensor, bins: int = 10) -> dict[str, float]:
    """Return the shares of optimality (N,) in equal bins of [0, 1], by their borders, and its quantiles."""
    optimality = optimality.float()
    numbers = {}
    shares = torch.histc(optimality, bins, 0.0, 1.0) / len(optimality)
    for i, share in enumerate(shares):
        numbers[f"optimality/{i / bins:.1f}-{(i + 1) / bins:.1f}"] = float(share)

    marks = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    quantiles = torch.quantile(optimality, marks).tolist()
    for mark, value in zip(marks, quantiles):
        numbers[f"optimality/p{round(100 * float(mark)):02d}"] = value
    return numbers


def _by_task(key: str, values: Tensor, tasks: Sequence[str], *, spread: bool) -> dict[str, float]:
    """Return the mean (with `spread`, std and quantiles too) over all tasks and of each; NaN does not count."""
    numbers: dict[str, float] = {}
    for kind in sorted({"", *tasks}):  # "" for all of them
        belongs = torch.tensor([kind in ("", task) for task in tasks])
        own = values[belongs & ~values.isnan()].double()
        if not len(own):
            continue
        name = f"{key}/{kind}" if kind else key
        numbers[f"{name}/mean"] = float(own.mean())
        if spread:
            numbers[f"{name}/std"] = float(own.std(correction=0))
            for mark, q in QUANTILES.items():
                numbers[f"{name}/{mark}"] = float(torch.quantile(own, q))
    return numbers
