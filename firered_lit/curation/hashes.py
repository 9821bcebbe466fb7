"""Hashes of pictures: of the file, of the pixels, and one that similar pictures share all but a few bits of."""

import hashlib
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .annotator import Annotator, Columns, Of
from .rows import Picture

_SIDE = 32  # px of the picture that the cosine transform sees
_LOW = 8  # rows and columns of its lowest frequencies
_WEIGHTS = 1 << np.arange(63, -1, -1, dtype=np.uint64)


class Hashes(Annotator):
    """Hashes of the picture.

    Columns:
        exact: SHA-256 of the file, as hexadecimal digits.
        perceptual: 64 bits; copies that were re-encoded or scaled differ in a few of them.
    """

    columns: ClassVar[dict[str, str]] = {"exact": "text", "perceptual": "bits"}
    of: ClassVar[Of] = "picture"

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the hashes of pictures."""
        exact = [hashlib.sha256(picture.file).hexdigest() for picture in batch]
        return {"exact": exact, "perceptual": [perceptual(picture.small_grey) for picture in batch]}


def perceptual(grey: NDArray[np.uint8]) -> int:
    """Return the 64-bit perceptual hash of a grey picture.

    Bit i says whether the i-th of the 64 lowest frequencies of its cosine transform, at 32 x 32 px, is above their
    median; the mean is the first of them.

    Source: Zauner, Implementation and benchmarking of perceptual image hash functions, 2010.
    """
    import cv2

    tiny = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    low = np.asarray(cv2.dct(tiny))[:_LOW, :_LOW].ravel()
    above = low > np.median(low)
    return int(_WEIGHTS[above].sum())
