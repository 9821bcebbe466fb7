"""An edit that was made, and how templates say what they did."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from firered_lit.curation.rows import Pixels

Mask = NDArray[np.bool_]  # (height, width), true where an edit may change the picture
Slots = Mapping[str, str]


@dataclass(frozen=True)
class MadeEdit:
    """A source, a target and what happens between them.

    Args:
        template: What was done, a name of `templates.TEMPLATES` or of one of their inverses.
        sources: The pictures that the edit starts from, (height, width, 3) each.
        target: What it comes to.
        mask: Of the target's size, true for every pixel that the edit changes.
        slots: What the words speak of, by name: places, colours, shapes, counts and texts.
        corner: (row, column) of the target at which the first source's corner lies, where the source is a part of it.
        steps: Of a compound edit, the atomic ones in their order; each starts from what the one before it came to.
    """

    template: str
    sources: tuple[Pixels, ...]
    target: Pixels
    mask: Mask
    slots: Slots = field(default_factory=dict)
    corner: tuple[int, int] = (0, 0)
    steps: tuple["MadeEdit", ...] = ()

    @property
    def source(self) -> Pixels:
        """The first source."""
        return self.sources[0]


# Makes an edit of a picture with the draws that it is given; None where the picture does not suit it.
Template = Callable[[Pixels, Random], MadeEdit | None]


def changed(source: Pixels, target: Pixels) -> Mask:
    """Return where two pictures of one size differ."""
    return np.asarray((source != target).any(axis=2))


def everywhere(target: Pixels) -> Mask:
    """Return a mask of all pixels."""
    return np.ones(target.shape[:2], bool)


def difference(source: Pixels, target: Pixels) -> float:
    """Return the mean absolute difference of two pictures of one size, in levels of 255."""
    return float(np.abs(source.astype(np.int16) - target).mean())
