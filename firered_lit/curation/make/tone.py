"""Light and colour of a whole picture."""

from random import Random

import cv2
import numpy as np

from firered_lit.curation.rows import Pixels

from .edit import MadeEdit, difference, everywhere

LEAST_CHANGE = 8.0  # mean levels, of 255; with less, nobody would see that something happened
_GREY = np.array([0.299, 0.587, 0.114])  # luminance of red, green and blue


def brighten(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Make a picture lighter, by a curve that keeps black and white."""
    return _edit("brighten", picture, curved(picture, draw.uniform(0.45, 0.7)))


def darken(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Make a picture darker, by a curve that keeps black and white."""
    return _edit("darken", picture, curved(picture, draw.uniform(1.5, 2.2)))


def raise_contrast(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Spread the levels of a picture around its mean."""
    return _edit("raise_contrast", picture, _spread(picture, draw.uniform(1.35, 1.7)))


def lower_contrast(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Draw the levels of a picture towards its mean."""
    return _edit("lower_contrast", picture, _spread(picture, draw.uniform(0.4, 0.65)))


def saturate(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Make the colours of a picture stronger."""
    return _edit("saturate", picture, _away_from_grey(picture, draw.uniform(1.5, 2.0)))


def desaturate(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Make the colours of a picture weaker."""
    return _edit("desaturate", picture, _away_from_grey(picture, draw.uniform(0.25, 0.5)))


def warm(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Give a picture more red and less blue."""
    return _edit("warm", picture, _tinted(picture, draw.uniform(0.12, 0.25)))


def cool(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Give a picture less red and more blue."""
    return _edit("cool", picture, _tinted(picture, -draw.uniform(0.12, 0.25)))


def drain(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Turn a picture into black and white."""
    return _edit("drain", picture, grey(picture), least=3.0)


def grey(picture: Pixels) -> Pixels:
    """Return a picture's luminance in all three channels."""
    return np.repeat(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)


def curved(picture: Pixels, exponent: float) -> Pixels:
    """Return a picture whose levels, from 0 to 1, are raised to an exponent."""
    levels = 255 * (np.arange(256) / 255) ** exponent
    return np.asarray(cv2.LUT(picture, levels.round().astype(np.uint8)))


def _spread(picture: Pixels, factor: float) -> Pixels:
    mean = float(picture.mean())
    levels = mean + factor * (np.arange(256) - mean)
    return np.asarray(cv2.LUT(picture, levels.round().clip(0, 255).astype(np.uint8)))


def _away_from_grey(picture: Pixels, factor: float) -> Pixels:
    luminance = (picture @ _GREY)[..., None]
    pixels = luminance + factor * (picture - luminance)
    return np.asarray(pixels.round().clip(0, 255).astype(np.uint8))


def _tinted(picture: Pixels, strength: float) -> Pixels:
    gains = np.array([1 + strength, 1.0, 1 - strength])
    return np.asarray((picture * gains).round().clip(0, 255).astype(np.uint8))


def _edit(name: str, source: Pixels, target: Pixels, least: float = LEAST_CHANGE) -> MadeEdit | None:
    if difference(source, target) < least:
        return None
    return MadeEdit(name, (source,), target, everywhere(target))
