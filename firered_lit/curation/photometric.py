"""Lightness, colours, detail, sharpness and noise of a picture. Thresholds are the data's own: see its quantiles."""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from .annotator import Annotator, Columns, Of, per_item
from .rows import Picture

_SMOOTH_SHARE = 0.2  # of a picture's cells, those in which noise is looked for
_CELL = 16  # px, side of such a cell
_ROWS = 128  # px, looked at together; a multiple of a cell


class Photometric(Annotator):
    """Measures of light and detail, on the picture at a longer side of at most 512 px; noise and blur at full size.

    Columns:
        brightness: Mean luminance, 0 to 1.
        brightest, darkest: The 99th and the 1st percentile of luminance, 0 to 1.
        saturation: Mean saturation (HSV), 0 to 1.
        colour: Mean difference of the channels, 0 to 1; a grey picture has less than 0.01.
        entropy: Of a channel's histogram, mean of the three, in bits, 0 to 8.
        texture: Mean length of the Sobel gradient of luminance, in levels per px.
        sharpness: log10 of the variance of the Laplacian of luminance.
        detail: The share of the gradient that is gone when the picture is blurred a little, 0 to 1: blurred pictures
            have little, whatever their contrast.
        noise: Standard deviation of what is left of the smoothest fifth of the picture's cells when planes and edges
            are taken away, in levels of 255 (Immerkaer's mask).
    """

    columns: ClassVar[dict[str, str]] = dict.fromkeys(
        (
            *("brightness", "brightest", "darkest", "saturation", "colour"),
            *("entropy", "texture", "sharpness", "detail", "noise"),
        ),
        "number",
    )
    of: ClassVar[Of] = "picture"

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the measures of pictures."""
        return per_item(_measures, tuple(self.columns), batch)


def _measures(picture: Picture) -> tuple[float, ...]:
    import cv2

    small, grey = picture.small, picture.small_grey
    histogram = np.bincount(grey.ravel(), minlength=256)
    cumulated = np.cumsum(histogram) / grey.size
    levels = np.arange(256)
    brightness = float(histogram @ levels) / grey.size / 255
    darkest = float(np.searchsorted(cumulated, 0.01)) / 255
    brightest = float(np.searchsorted(cumulated, 0.99)) / 255

    highest = cv2.max(cv2.max(small[:, :, 0], small[:, :, 1]), small[:, :, 2])
    lowest = cv2.min(cv2.min(small[:, :, 0], small[:, :, 1]), small[:, :, 2])
    spread = cv2.subtract(highest, lowest)
    colour = float(cv2.mean(spread)[0]) / 255
    saturation = float(np.divide(spread, np.maximum(highest, 1), dtype=np.float32).mean())

    entropy = float(np.mean([_entropy(small, channel) for channel in range(3)]))
    across = cv2.Sobel(grey, cv2.CV_32F, 1, 0)
    down = cv2.Sobel(grey, cv2.CV_32F, 0, 1)
    texture = float(cv2.mean(cv2.magnitude(across, down))[0]) / 8
    deviation = float(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_32F))[1][0, 0])
    sharpness = float(np.log10(max(deviation**2, 1e-3)))
    return (
        *(brightness, brightest, darkest, saturation, colour),
        *(entropy, texture, sharpness, detail(picture.grey), noise(picture.grey)),
    )


def _entropy(pixels: NDArray[np.uint8], channel: int) -> float:
    """Return the entropy of a channel's histogram in bits."""
    import cv2

    counts = cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel()
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def detail(grey: NDArray[np.uint8]) -> float:
    """Return the share of the differences between neighbours that blurring takes away; the smaller of both directions.

    Source: Crete et al., The blur effect: perception and estimation with a new no-reference perceptual blur metric,
        2007; one minus their measure.
    """
    import cv2

    shares = []
    for axis, size in ((1, (9, 1)), (0, (1, 9))):
        blurred: NDArray[np.uint8] = np.asarray(cv2.blur(grey, size), np.uint8)
        before = _steps(grey, axis)
        after = _steps(blurred, axis)
        lost = cv2.subtract(before, after)
        total = float(cv2.sumElems(before)[0])
        shares.append(float(cv2.sumElems(lost)[0]) / total if total > 0 else 0.0)
    return min(shares)


def _steps(grey: NDArray[np.uint8], axis: int) -> NDArray[np.uint8]:
    import cv2

    if axis == 1:
        return np.asarray(cv2.absdiff(grey[:, 1:], grey[:, :-1]))
    return np.asarray(cv2.absdiff(grey[1:], grey[:-1]))


def noise(grey: NDArray[np.uint8]) -> float:
    """Return the noise of luminance in levels: the smoothest fifth of the cells of 16 px, by Immerkaer's mask.

    Source: Immerkaer, Fast noise variance estimation, 1996.
    """
    import cv2

    bend = np.array([1, -2, 1], np.float32)
    rows, columns = (side // _CELL for side in grey.shape)
    if rows == 0 or columns == 0:
        return 0.0
    # Some rows at a time, with their neighbours, so that the arrays stay small.
    parts = []
    for start in range(0, rows * _CELL, _ROWS):
        stop = min(start + _ROWS, rows * _CELL)
        first = max(start - 1, 0)
        bent = cv2.sepFilter2D(grey[first : stop + 1], cv2.CV_16S, bend, bend)[start - first : stop - first]
        left = np.asarray(cv2.convertScaleAbs(bent))[:, : columns * _CELL].astype(np.float32)
        parts.append(cv2.resize(left, (columns, (stop - start) // _CELL), interpolation=cv2.INTER_AREA).ravel())
    means = np.concatenate(parts)
    count = max(1, round(_SMOOTH_SHARE * means.size))
    smoothest = np.partition(means, count - 1)[:count]
    return float(smoothest.mean() * np.sqrt(np.pi / 2) / 6)
