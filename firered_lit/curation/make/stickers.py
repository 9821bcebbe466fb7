"""Flat shapes on a picture: one to three of a kind, side by side at a place."""

import math
from random import Random

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from firered_lit.curation.rows import Pixels

from .colours import COLOURS, standing_out
from .edit import MadeEdit, changed
from .places import box_at, draw_place

_FINE = 4  # times the size at which shapes are drawn, for smooth edges
_SIDES = (0.11, 0.2)  # of the picture's shorter side
_LEAST_SIDE = 12  # px
_GAP = 0.25  # of a shape's side, between two of them


def add_sticker(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Put shapes onto a picture."""
    shape, place, count = draw.choice(SHAPES), draw_place(draw), draw.choice((1, 1, 2, 3))
    found = _put(picture, shape, place, count, draw)
    if found is None:
        return None
    target, colour = found
    slots = {"shape": shape, "place": place, "count": str(count), "colour": colour}
    return MadeEdit("add_sticker", (picture,), target, changed(picture, target), slots)


def replace_sticker(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Put shapes onto a picture, and others in their place, of one colour and size."""
    old, new = draw.sample(SHAPES, 2)
    place, count = draw_place(draw), draw.choice((1, 1, 2, 3))
    key = draw.getrandbits(64)
    before = _put(picture, old, place, count, Random(key))
    after = _put(picture, new, place, count, Random(key))
    if before is None or after is None:
        return None
    source, target = before[0], after[0]
    slots = {"old": old, "new": new, "place": place, "count": str(count), "colour": before[1]}
    return MadeEdit("replace_sticker", (source,), target, changed(source, target), slots)


def _put(picture: Pixels, shape: str, place: str, count: int, draw: Random) -> tuple[Pixels, str] | None:
    """Return a picture with shapes on it, and their colour; None where they would not fit or not stand out."""
    height, width = picture.shape[:2]
    side = round(draw.uniform(*_SIDES) * min(height, width))
    gap = round(_GAP * side)
    length = count * side + (count - 1) * gap
    if side < _LEAST_SIDE or length > width:
        return None
    row, column = box_at(place, (side, length), (height, width))
    colour = standing_out(picture[row : row + side, column : column + length], draw)
    if colour is None:
        return None
    pixels = picture.copy()
    opacity = _drawn(shape, side)[..., None]
    for number in range(count):
        left = column + number * (side + gap)
        there = pixels[row : row + side, left : left + side]
        there[:] = (opacity * np.array(COLOURS[colour]) + (1 - opacity) * there).round()
    return pixels, colour


def _drawn(shape: str, side: int) -> NDArray[np.float64]:
    """Return the opacity of a shape, (side, side), from 0 to 1."""
    large = side * _FINE
    image = Image.new("L", (large, large), 0)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((0, 0, large - 1, large - 1), fill=255)
    else:
        pen.polygon([(x * (large - 1), y * (large - 1)) for x, y in OUTLINES[shape]], fill=255)
    small = cv2.resize(np.asarray(image), (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float64) / 255.0


def _star() -> list[tuple[float, float]]:
    points = []
    for number in range(10):
        radius = 0.5 if number % 2 == 0 else 0.2
        angle = math.pi * (number / 5 - 0.5)
        points.append((0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)))
    return points


def _heart() -> list[tuple[float, float]]:
    points = []
    for number in range(60):
        angle = 2 * math.pi * number / 60
        x = 16 * math.sin(angle) ** 3
        y = 13 * math.cos(angle) - 5 * math.cos(2 * angle) - 2 * math.cos(3 * angle) - math.cos(4 * angle)
        points.append((0.5 + x / 34, 0.46 - y / 34))
    return points


OUTLINES = {
    "star": _star(),
    "heart": _heart(),
    "triangle": [(0.5, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "square": [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)],
    "diamond": [(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)],
}
SHAPES = ("circle", *OUTLINES)
