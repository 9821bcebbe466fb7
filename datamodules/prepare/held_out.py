"""The edits that validation keeps for itself: a share of the source images, and never too few of a small data set."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from firered_lit.draws import seed_of

from ..sources.records import Record, Refusal

RANGE = 1 << 63  # of `seed_of`
ENOUGH = 4  # times the fewest: with so many expected, the draw itself can be trusted


@dataclass(frozen=True)
class HeldOut:
    """The choice, a function of a row alone: all processes that prepare a data set make the same one.

    Attributes:
        below: Groups whose draw lies below this number are held out, 0 to 2^63.
        seed: Seed of the draws.
    """

    below: int
    seed: int

    def __call__(self, row: list[Record]) -> bool:
        """Return what the row says, else whether its group is held out: the edits of one source go together."""
        if row[0].held_out is not None:
            return row[0].held_out
        return _draw(row[0].group, self.seed) < self.below


def choose(
    rows: Callable[[], Iterable[list[Record] | Refusal]], count: int, share: float, least: int, seed: int
) -> HeldOut:
    """Return the choice for a data set.

    Args:
        rows: Reads all rows; asked only where the share alone may hold out too few.
        count: The number of rows.
        share: Share of the source images, 0 to 1; with 0 only rows that say so themselves are held out.
        least: Edits to hold out, as far as half of the source images allow.
        seed: Seed of the draws.
    """
    below = int(share * RANGE)
    if share == 0 or least == 0 or share * count >= ENOUGH * least:
        return HeldOut(below, seed)

    # A small data set: how many edits each source image has, and how many rows say themselves that they are held out.
    edits: Counter[str] = Counter()
    held = 0
    for row in rows():
        if isinstance(row, Refusal):
            continue
        if row[0].held_out is None:
            edits[row[0].group] += len(row)
        elif row[0].held_out:
            held += len(row)

    # As many more source images, in the order of their draws, as are missing.
    for draw, group in sorted((_draw(group, seed), group) for group in edits)[: len(edits) // 2]:
        if held >= least:
            break
        held += edits[group]
        below = max(below, draw + 1)
    return HeldOut(below, seed)


def _draw(group: str, seed: int) -> int:
    """Return the draw of a group, 0 to 2^63 - 1."""
    return seed_of(seed, "held out", group)
