"""Faults that photographs suffer from. Their inverses are what is wanted of an editor: sharp, clean, detailed again."""

from random import Random

import cv2
import numpy as np

from firered_lit.curation.rows import Pixels

from .edit import MadeEdit, difference, everywhere

_LEAST_CHANGE = 1.5  # mean levels: a picture without detail loses nothing by blur
_REFERENCE = 512.0  # px of the longer side at which strengths are as drawn


def blur(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Blur a picture by a Gaussian."""
    sigma = draw.uniform(1.5, 3.5) * max(picture.shape[:2]) / _REFERENCE
    return _edit("blur", picture, cv2.GaussianBlur(picture, (0, 0), max(0.8, sigma)))


def grain(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Add Gaussian noise, the same for all three channels or one for each."""
    generator = np.random.default_rng(draw.getrandbits(64))
    channels = draw.choice((1, 3))
    noise = generator.normal(0.0, draw.uniform(14, 32), (*picture.shape[:2], channels))
    return _edit("grain", picture, (picture + noise).round().clip(0, 255))


def compress(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Leave the blocks and the rings of a JPEG file of low quality."""
    _, file = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, draw.randint(6, 18)])
    return _edit("compress", picture, cv2.imdecode(file, cv2.IMREAD_COLOR)[..., ::-1])


def shrink(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Take away the detail that a small copy of a picture cannot hold."""
    height, width = picture.shape[:2]
    factor = draw.uniform(3.0, 6.0)
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    pixels = cv2.resize(picture, small, interpolation=cv2.INTER_AREA)
    return _edit("shrink", picture, cv2.resize(pixels, (width, height), interpolation=cv2.INTER_CUBIC))


def _edit(name: str, source: Pixels, target: np.ndarray) -> MadeEdit | None:
    pixels = np.ascontiguousarray(target, np.uint8)
    if difference(source, pixels) < _LEAST_CHANGE:
        return None
    return MadeEdit(name, (source,), pixels, everywhere(pixels))
