"""Sizes of an edit's change. Means over a whole picture miss small edits; the largest change of a block does not."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .annotator import Annotator, Columns, Of, per_item
from .rows import PicturePair, Pixels, shrunk

_BLOCK = 16  # px
_SIDE = 512
_CHANGED = 24  # levels, from which on a block counts as changed
_WINDOW = 7  # px of SSIM's uniform window
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


class PairMeasures(Annotator):
    """Differences of an edit's first source and its target, at a longer side of at most 512 px.

    A target of another shape is scaled to the source's; `shape` says by how much it differs.

    Columns:
        largest_block: The largest mean difference of a block of 16 px, in levels of 255, of the channel that changes
            most. Nothing but re-encoding and scaling stays below 35, an object of 32 px comes above.
        changed: The share of blocks that change by more than 24 levels.
        psnr: dB; 100 for equal pictures.
        ssim: Structural similarity of luminance.
        shape: log of the ratio of both width-to-height ratios; 0 for equal shapes.
    """

    columns: ClassVar[dict[str, str]] = dict.fromkeys(("largest_block", "changed", "psnr", "ssim", "shape"), "number")
    of: ClassVar[Of] = "pair"

    def annotate(self, batch: Sequence[PicturePair]) -> Columns:
        """Return the measures of pairs."""
        return per_item(_measures, tuple(self.columns), batch)


def _measures(pair: PicturePair) -> tuple[float, float, float, float, float]:
    import cv2

    source, target = pair.source.pixels, pair.target.pixels
    # Both at the size of the smaller one, so that detail which one of them lacks is no change.
    smaller = source if source.shape[0] * source.shape[1] <= target.shape[0] * target.shape[1] else target
    height, width = shrunk(smaller, _SIDE).shape[:2]
    pixels = [cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA) for picture in (source, target)]
    difference: Pixels = np.asarray(cv2.absdiff(pixels[0], pixels[1]), np.uint8)
    blocks = _block_means(difference)
    mean_square = float(np.square(difference.astype(np.float32)).mean())
    psnr = 100.0 if mean_square == 0 else min(100.0, float(10 * np.log10(255**2 / mean_square)))
    ratio = np.log((source.shape[1] / source.shape[0]) / (target.shape[1] / target.shape[0]))
    first: Pixels = np.asarray(cv2.cvtColor(pixels[0], cv2.COLOR_RGB2GRAY), np.uint8)
    second: Pixels = np.asarray(cv2.cvtColor(pixels[1], cv2.COLOR_RGB2GRAY), np.uint8)
    return float(blocks.max()), float((blocks > _CHANGED).mean()), psnr, ssim(first, second), float(abs(ratio))


def _block_means(difference: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the mean difference of blocks that overlap by half, of the channel that changes most."""
    import cv2

    size = (min(_BLOCK, difference.shape[1]), min(_BLOCK, difference.shape[0]))
    means = np.asarray(cv2.blur(difference.astype(np.float32), size, borderType=cv2.BORDER_REFLECT))
    step = _BLOCK // 2
    return means[step // 2 :: step, step // 2 :: step].max(axis=2)


def ssim(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Return the mean structural similarity of two grey pictures of one size, in windows of 7 px.

    Source: Wang et al., Image quality assessment: from error visibility to structural similarity, 2004.
    """
    import cv2

    window = (min(_WINDOW, one.shape[1]), min(_WINDOW, one.shape[0]))

    def mean(values: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(cv2.blur(values, window))

    first, second = one.astype(np.float32), other.astype(np.float32)
    first_mean, second_mean = mean(first), mean(second)
    first_variance = mean(first * first) - first_mean**2
    second_variance = mean(second * second) - second_mean**2
    covariance = mean(first * second) - first_mean * second_mean
    luminance = (2 * first_mean * second_mean + _C1) / (first_mean**2 + second_mean**2 + _C1)
    structure = (2 * covariance + _C2) / (first_variance + second_variance + _C2)
    return float((luminance * structure).mean())
