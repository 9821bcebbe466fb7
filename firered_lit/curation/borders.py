"""Borders around a picture, and collages: bars of one colour, and breaks from edge to edge."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .annotator import Annotator, Columns, Of, per_item
from .rows import Picture

_FLAT = 12  # levels between the darkest and the lightest of nearly all pixels of a line of one colour
_TAIL = 0.02  # share of a line's pixels that may lie outside, at either end
_WIDTH = 2  # px on both sides of a break that are compared
_LEAST_STEP = 5  # levels, of the channel that changes most
_AGAINST = 2.0  # times what changes beside the break
_MARGIN = 0.08  # of the side: breaks nearer to the edge are borders


class Borders(Annotator):
    """Bars of one colour along a picture's edges.

    Columns:
        top, bottom, left, right: Their thickness, as a share of the picture's height or width.
        opposite: The thinner one of the pair of opposite bars that is thicker: skies and walls have one side alone.
    """

    columns: ClassVar[dict[str, str]] = dict.fromkeys(("top", "bottom", "left", "right", "opposite"), "number")
    of: ClassVar[Of] = "picture"

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the borders of pictures."""
        return per_item(_borders, tuple(self.columns), batch)


def _borders(picture: Picture) -> tuple[float, float, float, float, float]:
    small = picture.small
    sideways = np.ascontiguousarray(small.transpose(1, 0, 2))
    top, bottom = _bar(small), _bar(small[::-1])
    left, right = _bar(sideways), _bar(sideways[::-1])
    return top, bottom, left, right, max(min(top, bottom), min(left, right))


def _bar(pixels: NDArray[np.uint8]) -> float:
    """Return how thick the bar of one colour is with which a picture begins, as a share of its height; at most 1."""
    height, width = pixels.shape[:2]
    first = int(_TAIL * width)
    count = 0
    colour = np.median(pixels[0], axis=0)
    while count < height:
        ordered = np.sort(pixels[count], axis=0)
        spread = ordered[width - 1 - first].astype(int) - ordered[first]
        away = np.abs(np.median(ordered, axis=0) - colour)
        if spread.max() > _FLAT or away.max() > _FLAT:
            break
        count += 1
    return count / height


class Collage(Annotator):
    """Breaks of colour that run through a whole picture, as between the pictures of a collage.

    Columns:
        length: The share of the picture's height or width along which its straightest break runs, 0 to 1.
    """

    columns: ClassVar[dict[str, str]] = {"length": "number"}
    of: ClassVar[Of] = "picture"

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the longest break of pictures."""
        return {"length": [max(_break(picture.small), _break(_turned(picture.small))) for picture in batch]}


def _turned(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.transpose(1, 0, 2))


def _break(pixels: NDArray[np.uint8]) -> float:
    """Return the share of rows in which one column is a break: a step that is much larger than what is beside it."""
    import cv2

    width = pixels.shape[1]
    if width < 8 * _WIDTH:
        return 0.0
    # The mean of `_WIDTH` columns that begin at each column, and steps between such means that touch.
    means = np.asarray(cv2.blur(pixels, (_WIDTH, 1)))
    steps = cv2.absdiff(np.ascontiguousarray(means[:, _WIDTH:]), np.ascontiguousarray(means[:, :-_WIDTH]))
    steps = np.asarray(cv2.max(cv2.max(steps[:, :, 0], steps[:, :, 1]), steps[:, :, 2]))
    before, here, after = steps[:, : -2 * _WIDTH], steps[:, _WIDTH:-_WIDTH], steps[:, 2 * _WIDTH :]
    limit = cv2.addWeighted(cv2.min(before, after), _AGAINST, here, 0, _LEAST_STEP)
    broken = here > np.asarray(limit)
    shares = broken.mean(axis=0)
    edge = int(_MARGIN * width)
    inner = shares[edge : len(shares) - edge]
    return float(inner.max()) if len(inner) else 0.0
