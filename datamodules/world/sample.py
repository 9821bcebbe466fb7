"""Sample i of a seed: which family's turn it is, and on which side of the split its combination lies."""

from collections.abc import Iterator, Sequence
from typing import Literal

from firered_lit.draws import chooser, seed_of

from .families import FAMILIES, WorldEdit

Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 8  # one combination of so many is never trained on


def edit(
    seed: int,
    number: int,
    split: Split = "train",
    families: Sequence[str] = tuple(FAMILIES),
    references: int | None = None,
) -> WorldEdit:
    """Return sample `number` of the world of `seed`; the families take turns.

    Combinations (of shape, colour and family; words; looks and what they are done to) belong to one side of the split,
    whatever the seed, so a held-out edit is one whose like was never trained on. references: of a composition, else as
    it is drawn.
    """
    task = families[number % len(families)]
    rng = chooser("learning world", seed, split, task, number)
    while True:
        found = FAMILIES[task](rng)
        if references in (None, len(found.sources)) and (split == "held_out") == held_out(found):
            return found


def held_out(edit: WorldEdit) -> bool:
    """Return whether the edit's combination is kept from training."""
    return seed_of("held out", edit.task, edit.combination) % HELD_OUT_SHARE == 0


def stream(
    seed: int, count: int, split: Split = "train", families: Sequence[str] = tuple(FAMILIES), first: int = 0
) -> Iterator[tuple[int, WorldEdit]]:
    """Yield samples first .. first + count - 1 with their numbers, one at a time."""
    for number in range(first, first + count):
        yield number, edit(seed, number, split, families)
