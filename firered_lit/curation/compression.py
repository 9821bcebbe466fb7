"""Traces of a lossy file that was too small: the blocks of JPEG, in the pixels and in the file's own table."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .annotator import Annotator, Columns, Of, per_item
from .rows import Picture

_BLOCK = 8  # px
_CLIPPED = 40  # levels; a larger bend counts as this
_QUIET = 0.2  # levels, added to both, that smooth pictures with faint blocks do not stand out


class Compression(Annotator):
    """The loss of a JPEG.

    Columns:
        blocks: How much more the picture bends at the edges of blocks of 8 px than within them, as a ratio; 1 in a
            picture that never was a JPEG. Stays after the file was saved again, as long as it was not scaled.
        quality: Of the file itself, 1 to 100, from its table; 100 for other formats.
        bits: Of the file for each pixel.
    """

    columns: ClassVar[dict[str, str]] = {"blocks": "number", "quality": "number", "bits": "number"}
    of: ClassVar[Of] = "picture"

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the traces of compression of pictures."""
        return per_item(_traces, tuple(self.columns), batch)


def _traces(picture: Picture) -> tuple[float, float, float]:
    bits = 8 * len(picture.file) / (picture.grey.size or 1)
    return blocks(picture.grey), quality(*picture.header.quantization), bits


def blocks(grey: NDArray[np.uint8]) -> float:
    """Return by how much the edges of blocks of 8 px stand out; the geometric mean of both directions."""
    return float(np.sqrt(_blocks_across(grey) * _blocks_across(np.ascontiguousarray(grey.T))))


def _blocks_across(grey: NDArray[np.uint8]) -> float:
    """Return the mean bend of luminance at the columns of one phase of 8, the highest, over the median of the others.

    A bend is how much a step exceeds the mean of the steps beside it, so that slopes count for nothing.
    """
    import cv2

    width = grey.shape[1]
    if width < 4 * _BLOCK:
        return 1.0
    steps = np.asarray(cv2.absdiff(grey[:, 1:], grey[:, :-1]))
    beside = cv2.addWeighted(steps[:, :-2], 0.5, steps[:, 2:], 0.5, 0)
    bends = np.asarray(cv2.subtract(steps[:, 1:-1], beside))
    by_column = np.asarray(cv2.reduce(np.minimum(bends, _CLIPPED), 0, cv2.REDUCE_AVG, dtype=cv2.CV_64F)).ravel()
    whole = len(by_column) // _BLOCK * _BLOCK
    by_phase = by_column[:whole].reshape(-1, _BLOCK).mean(axis=0)
    highest = int(by_phase.argmax())
    others = np.delete(by_phase, highest)
    return float((by_phase[highest] + _QUIET) / (np.median(others) + _QUIET))


def quality(smallest: float, mean: float) -> float:
    """Return the quality, 1 to 100, to which a luminance table belongs; 100 without a table.

    Args:
        smallest: Entry of the table. The JPEG group's library has 10 at quality 50.
        mean: Of its entries; 57.6 at quality 50. Entries are 50 / q times as large below 50, 2 - q / 50 times from
            there on, but at least 1 and at most 255: so the mean tells high qualities, the smallest entry low ones.
    """
    if mean <= 0:
        return 100.0
    scale = mean / 57.625 if mean < 100 else smallest / 10
    return float(np.clip(100 - 50 * scale if scale <= 1 else 50 / scale, 1, 100))
