"""Blind quality: how far the statistics of a picture's patches are from those of good pictures, which it is fitted on.

Source: Mittal, Soundararajan and Bovik, Making a completely blind image quality analyzer, 2013.
"""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from firered_lit.errors import UserError, first_line
from firered_lit.evaluation.models import fingerprints
from firered_lit.files import replacing
from firered_lit.places import user_path

from .annotator import Annotator, Columns, Of
from .rows import Picture, shrunk

Floats = NDArray[np.float64]

SIDE = 1024  # px of the longer side at which pictures are measured, at most
PATCH = 96  # px of a patch's side at the first scale; half of it at the second
FEATURES = 36  # 18 of each scale
_SIGMA = 7 / 6  # px of the window of 7 px
_SHARP = 0.75  # of the sharpest patch's sharpness: patches of good pictures that are fitted on
_STABLE = 1.0  # level that is added to the local deviation
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours whose products are looked at
_SHAPES = np.arange(0.2, 10.001, 0.001)  # of the generalised Gaussian


OURS = Path(__file__).with_name("niqe.safetensors")  # fitted by benchmarks/fit_niqe.py


class NIQE(Annotator):
    """The distance of a picture from good ones, at a longer side of at most 1,024 px; lower is better.

    Args:
        fitted: A file that `fit_niqe` wrote from good pictures like yours; ours, from photographs, when null.

    Columns:
        distance: Some 3 to 6 for good photographs, more for blurred, noisy and compressed ones. None for pictures of
            under 192 px a side, and for those of one colour.

    Raises:
        UserError: The file is none.
    """

    columns: ClassVar[dict[str, str]] = {"distance": "number"}
    of: ClassVar[Of] = "picture"

    def __init__(self, fitted: str | None = None) -> None:
        path = OURS if fitted is None else user_path(fitted)
        self.fitted = fingerprints.of_file(path)
        self._mean, self._covariance = read_fitted(path)

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the distances of pictures."""
        return {"distance": [distance(picture.grey, self._mean, self._covariance) for picture in batch]}


def distance(grey: NDArray[np.uint8], mean: Floats, covariance: Floats) -> float | None:
    """Return how far a picture is from good ones.

    Args:
        grey: Luminance (height, width).
        mean: (36,) of the patches of good pictures.
        covariance: (36, 36) of them.

    Returns:
        sqrt((a - b)' inverse((A + B) / 2) (a - b)), of both means and covariances (eq. 10); None for a picture of
        under two patches a side, and for one of one colour.
    """
    found, _ = patch_features(grey)
    if len(found) == 0:
        return None
    own_mean, own_covariance = _moments(found)
    apart = own_mean - mean
    inverse = np.linalg.pinv((own_covariance + covariance) / 2, hermitian=True)
    return float(np.sqrt(max(0.0, float(apart @ inverse @ apart))))


def _moments(features: Floats) -> tuple[Floats, Floats]:
    """Return the mean and the covariance of features (n, 36); no covariance of a single one."""
    mean: Floats = features.mean(0)
    covariance: Floats = np.zeros((FEATURES, FEATURES))
    if len(features) > 1:
        covariance = np.asarray(np.cov(features, rowvar=False), np.float64)
    return mean, covariance


def patch_features(grey: NDArray[np.uint8]) -> tuple[Floats, Floats]:
    """Return the features of a picture's patches (n, 36), and the sharpness of each (n,).

    Patches are 96 px a side and do not overlap; what is left at the right and below is left out, and so are patches in
    which nothing changes.
    """
    import cv2

    grey = shrunk(grey, SIDE)
    rows, columns = (side // PATCH for side in grey.shape)
    if rows < 2 or columns < 2:
        return np.zeros((0, FEATURES)), np.zeros(0)
    scaled = grey[: rows * PATCH, : columns * PATCH].astype(np.float64)
    coefficients, deviation = normalised(scaled)
    first = _statistics(_blocks(coefficients, PATCH))
    sharpness = _blocks(deviation, PATCH).mean((1, 2))
    halved = np.asarray(cv2.resize(scaled, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), np.float64)
    second = _statistics(_blocks(normalised(halved)[0], PATCH // 2))
    found = np.concatenate([first, second], axis=1)
    there = np.isfinite(found).all(1)
    return found[there], sharpness[there]


def normalised(grey: Floats) -> tuple[Floats, Floats]:
    """Return luminance without its local mean and contrast, and its local deviation, of windows of 7 px (eq. 1)."""
    import cv2

    def mean(values: Floats) -> Floats:
        return np.asarray(cv2.GaussianBlur(values, (7, 7), _SIGMA, borderType=cv2.BORDER_REPLICATE), np.float64)

    local = mean(grey)
    deviation: Floats = np.sqrt(np.abs(mean(grey * grey) - local * local))
    return (grey - local) / (deviation + _STABLE), deviation


def _blocks(values: Floats, size: int) -> NDArray[np.float32]:
    """Return the blocks (n, size, size) of an array whose sides are multiples of `size`."""
    rows, columns = (side // size for side in values.shape)
    cut = values.reshape(rows, size, columns, size).transpose(0, 2, 1, 3)
    return cut.reshape(rows * columns, size, size).astype(np.float32)


def _statistics(blocks: NDArray[np.float32]) -> Floats:
    """Return the 18 features of each block at one scale (n, 18); not a number where nothing changes in it."""
    shape, left, right = asymmetric_fit(blocks)
    found = [shape, (left + right) / 2]
    for down, across in _SHIFTS:
        # The neighbour of what stands at an edge is at the block's other side.
        shape, left, right = asymmetric_fit(blocks * np.roll(blocks, (down, across), axis=(1, 2)))
        mean = (right - left) * _gamma_ratio(shape)
        found += [shape, mean, left, right]
    return np.stack(found, axis=1)


def asymmetric_fit(blocks: NDArray[np.float32]) -> tuple[Floats, Floats, Floats]:
    """Fit an asymmetric generalised Gaussian to each block by its moments (eq. 5 to 8).

    Args:
        blocks: (n, height, width).

    Returns:
        Shape, left scale and right scale, (n,) each.

    Source: Lasmar, Stitou and Berthoumieu, Multiscale skewed heavy tailed model for texture analysis, 2009.
    """
    values = blocks.reshape(len(blocks), -1)
    above = np.maximum(values, 0)
    sizes = np.abs(values).mean(1)
    squares = np.einsum("ij,ij->i", values, values)
    squares_above = np.einsum("ij,ij->i", above, above)
    count_above = np.count_nonzero(above, axis=1)
    count_below = np.count_nonzero(values, axis=1) - count_above
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt(np.maximum(squares - squares_above, 0) / count_below)
        right = np.sqrt(squares_above / count_above)
        skew = left / right
        ratio = sizes**2 / (squares / values.shape[1])
        wanted = ratio * (skew**3 + 1) * (skew + 1) / (skew**2 + 1) ** 2
    table, scales = _tables()
    places = np.clip(np.searchsorted(table, np.nan_to_num(wanted, nan=1.0)), 0, len(table) - 1)
    nearer = (places > 0) & (np.abs(table[places - 1] - wanted) < np.abs(table[places] - wanted))
    places = places - nearer
    shape = np.where(np.isfinite(wanted), _SHAPES[places], np.nan)
    return shape, left * scales[places], right * scales[places]


@cache
def _tables() -> tuple[Floats, Floats]:
    """Return, for every shape, the ratio of moments that it has, which grows, and scale / standard deviation."""
    gamma = np.vectorize(math.lgamma)
    ratios = np.exp(2 * gamma(2 / _SHAPES) - gamma(1 / _SHAPES) - gamma(3 / _SHAPES))
    scales = np.exp((gamma(1 / _SHAPES) - gamma(3 / _SHAPES)) / 2)
    return ratios, scales


def _gamma_ratio(shape: Floats) -> Floats:
    """Return gamma(2 / shape) / gamma(1 / shape)."""
    gamma = np.vectorize(math.lgamma, otypes=[np.float64])
    return np.exp(gamma(2 / shape) - gamma(1 / shape))


def fit_niqe(pictures: Iterable[NDArray[np.uint8]], out: str | Path | None = None) -> tuple[Floats, Floats]:
    """Fit what good pictures are like, on their sharp patches.

    Args:
        pictures: RGB (height, width, 3) or grey; some hundred patches of 96 px in all.
        out: A safetensors file for `NIQE` to write; none when None.

    Returns:
        Mean (36,) and covariance (36, 36) of the patches.

    Raises:
        UserError: There are fewer patches than features.
    """
    import cv2

    parts = []
    for pixels in pictures:
        grey = pixels if pixels.ndim == 2 else np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), np.uint8)
        found, sharpness = patch_features(grey)
        if len(found):
            parts.append(found[sharpness > _SHARP * sharpness.max()])
    features = np.concatenate([np.zeros((0, FEATURES)), *parts])
    if len(features) <= FEATURES:
        raise UserError(
            f"niqe: the pictures have {len(features)} sharp patches of {PATCH} px; more than {FEATURES} are needed"
        )
    mean, covariance = _moments(features)
    if out is not None:
        from safetensors.numpy import save

        with replacing(user_path(out), "wb") as file:
            file.write(save({"mean": mean, "covariance": covariance}))
    return mean, covariance


def read_fitted(path: Path) -> tuple[Floats, Floats]:
    """Return mean and covariance from a file that `fit_niqe` wrote.

    Raises:
        UserError: It is another one.
    """
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, Any] = load_file(path)
    except Exception as problem:  # whatever the library calls it
        raise UserError(f"{path}: cannot be read as safetensors ({first_line(problem)})") from None
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    if shapes != {"mean": (FEATURES,), "covariance": (FEATURES, FEATURES)}:
        raise UserError(f"{path}: expected mean ({FEATURES},) and covariance ({FEATURES}, {FEATURES}), got {shapes}")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise UserError(f"{path}: holds numbers that are not finite")
    return tensors["mean"].astype(np.float64), tensors["covariance"].astype(np.float64)
