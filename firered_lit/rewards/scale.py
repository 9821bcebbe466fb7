"""The scale of a reward: [0, 1], or a range of its own that is laid on it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from firered_lit.errors import UserError
from firered_lit.rewards.protocol import Scores

UNIT = (0.0, 1.0)
SLACK = 0.01  # of the scale: what lies no further outside is rounding


def check_range(name: str, limits: Sequence[float] | None) -> tuple[float, float]:
    """Return the lowest and the highest value of a reward, [0, 1] when it says none.

    Raises:
        UserError: they are not two finite numbers, the lower one first.
    """
    if limits is None:
        return UNIT
    try:
        low, high = (float(limit) for limit in limits)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"reward {name}: range={limits!r}: takes two numbers [low, high], the lower one first")
    return low, high


def on_unit(scores: Scores, limits: Sequence[float]) -> tuple[Scores, float | None]:
    """Lay a reward's values linearly on [0, 1].

    Args:
        scores: as the reward gave them, on its own scale.
        limits: the lowest and the highest value.

    Returns:
        The scores, without those that are no numbers or lie clearly outside; and the first value that does, as it was
        given, or None.
    """
    low, high = limits
    given = scores.value.detach().cpu().double()
    value = (given - low) / (high - low)
    known = scores.valid.cpu() & value.isfinite()
    inside = (value >= -SLACK) & (value <= 1 + SLACK)
    strangers = given[known & ~inside]
    first = float(strangers[0]) if len(strangers) else None
    value = torch.where(known & inside, value, 0.0).clamp(0, 1).float()
    return replace(scores, value=value, valid=known & inside), first


def refuse_outside(outside: Mapping[str, float], ranges: Mapping[str, Sequence[float]]) -> None:
    """Raise UserError for the first reward that gave a value clearly outside of its scale.

    Args:
        outside: reward -> such a value. The same on every process, so that all of them end.
        ranges: reward -> its lowest and highest value.
    """
    for name in sorted(outside):
        low, high = ranges.get(name, UNIT)
        raise UserError(
            f"reward {name}: a score of {outside[name]:g} lies outside of [{low:g}, {high:g}]; "
            f"say the reward's own scale by `range: [low, high]`, which is laid on [0, 1]"
        )
