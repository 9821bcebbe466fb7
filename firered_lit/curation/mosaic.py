"""Mosaics, as they hide faces and number plates: squares of one size, side by side, each of one colour."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .annotator import Annotator, Columns, Of
from .rows import Picture, shrunk

_SIDE = 1024  # px of the longer side at which pictures are looked at
_TEETH = 4  # edges of cells in a row
_SMALLEST, _LARGEST = 6, 28  # px of a cell
_STRIP = 32  # px over which steps are averaged along an edge
_TILE = 16  # px between strips
_CLIPPED = 40  # levels; a larger step counts as this
_QUIET = 0.5  # levels, added to what is between the edges, that flat areas are none


class Mosaic(Annotator):
    """Squares of one colour and one size.

    Columns:
        contrast: How much steeper the picture is at four edges of equal distance, of the weakest of them, than between
            them, across and down at one place; about 1 for photographs, several for mosaics.
        cell: px of the squares at that place, or a multiple of it.
    """

    columns: ClassVar[dict[str, str]] = {"contrast": "number", "cell": "count"}
    of: ClassVar[Of] = "picture"

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the strongest mosaic of pictures."""
        found = [contrast(shrunk(picture.grey, _SIDE)) for picture in batch]
        return {"contrast": [value for value, _ in found], "cell": [cell for _, cell in found]}


def contrast(grey: NDArray[np.uint8]) -> tuple[float, int]:
    """Return how much the edges of squares stand out where they do so most, and the side of these squares in px."""
    across = _steps(grey)
    down = _steps(np.ascontiguousarray(grey.T))
    sums_across = np.cumsum(across, axis=1, dtype=np.float64)
    sums_down = np.cumsum(down, axis=1, dtype=np.float64)
    best = (0.0, 0)
    for cell in range(_SMALLEST, _LARGEST + 1):
        if min(grey.shape) < (_TEETH + 1) * cell:
            break
        sideways = _pooled(_combs(across, sums_across, cell))
        upright = _pooled(_combs(down, sums_down, cell)).T
        rows = min(sideways.shape[0], upright.shape[0])
        columns = min(sideways.shape[1], upright.shape[1])
        both = np.minimum(sideways[:rows, :columns], upright[:rows, :columns])
        value = float(both.max()) if both.size else 0.0
        if value > best[0]:
            best = (value, cell)
    return best


def _steps(grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean step to the right at every column of strips, one strip for every tile: (tiles, width - 1)."""
    import cv2

    steps = np.minimum(cv2.absdiff(grey[:, 1:], grey[:, :-1]), _CLIPPED)
    height, width = steps.shape
    tiles = height // _TILE
    if tiles < 2:
        return np.zeros((0, width), np.float32)
    size = (width, tiles)
    means = np.asarray(cv2.resize(steps[: tiles * _TILE].astype(np.float32), size, interpolation=cv2.INTER_AREA))
    count = _STRIP // _TILE
    return np.asarray(sum(means[start : tiles - count + 1 + start] for start in range(count)) / count)


def _combs(steps: NDArray[np.float32], sums: NDArray[np.float64], cell: int) -> NDArray[np.float32]:
    """Return, for a comb of edges that begins at each column, its weakest edge over what lies between its edges.

    Args:
        steps: (tiles, columns).
        sums: The sums of the steps up to each column.
        cell: px between the edges of the comb.
    """
    reach = _TEETH * cell
    count = steps.shape[1] - reach
    if count <= 0 or not len(steps):
        return np.zeros((len(steps), 0), np.float32)
    edges = [steps[:, tooth * cell : tooth * cell + count] for tooth in range(_TEETH)]
    weakest = np.minimum.reduce(edges)
    # What lies between the first edge and the last one, but for the columns that touch an edge.
    between = np.zeros_like(weakest, dtype=np.float64)
    for tooth in range(_TEETH - 1):
        first = tooth * cell + 1
        last = (tooth + 1) * cell - 2
        between += sums[:, last : last + count] - sums[:, first : first + count]
    mean = between / ((_TEETH - 1) * (cell - 3))
    return np.asarray(weakest / (mean + _QUIET), np.float32)


def _pooled(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the highest value of each tile and its neighbours, where the comb's middle lies on the tile."""
    import cv2

    tiles = values.shape[1] // _TILE
    if tiles == 0 or not len(values):
        return np.zeros((len(values), 0), np.float32)
    highest = values[:, : tiles * _TILE].reshape(len(values), tiles, _TILE).max(axis=2)
    return np.asarray(cv2.dilate(highest, np.ones((3, 3), np.uint8)))
