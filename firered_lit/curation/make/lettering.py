"""Words on a picture, whose letters and place are known because they are put there."""

from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from firered_lit.curation.rows import Pixels

from .colours import COLOURS, standing_out
from .edit import MadeEdit, changed
from .places import box_at, draw_place

WORDS = (
    "OPEN", "SALE", "HELLO", "WELCOME", "COFFEE", "MUSIC", "SUMMER", "WINTER", "SPRING", "AUTUMN", "FRESH", "LUCKY",
    "DREAM", "SMILE", "LIGHT", "OCEAN", "GARDEN", "BAKERY", "MARKET", "LIBRARY", "STATION", "GALLERY", "Good Morning",
    "Thank You", "Happy Birthday", "New Year", "Grand Opening", "Stay Curious", "Room 204", "Gate 7", "Level 3",
    "No Parking", "Tea Time", "Book Fair", "City Tour", "50% OFF",
)  # fmt: skip
_WIDTH = 0.46  # of the picture's, at most
_HEIGHTS = (0.06, 0.11)  # of the picture's height, of capitals with their line
_LEAST_HEIGHT = 12  # px, below which letters cannot be read


def add_text(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Write words onto a picture."""
    text, place = draw.choice(WORDS), draw_place(draw)
    found = _written(picture, text, place, draw)
    if found is None:
        return None
    target, colour = found
    slots = {"text": text, "place": place, "colour": colour}
    return MadeEdit("add_text", (picture,), target, changed(picture, target), slots)


def replace_text(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Write words onto a picture, and others in their place, both in one colour and size."""
    old, new = draw.sample(WORDS, 2)
    place = draw_place(draw)
    key = draw.getrandbits(64)
    before = _written(picture, old, place, Random(key))
    after = _written(picture, new, place, Random(key))
    if before is None or after is None or before[1] != after[1]:
        return None
    source, target = before[0], after[0]
    slots = {"old": old, "new": new, "place": place, "colour": before[1]}
    return MadeEdit("replace_text", (source,), target, changed(source, target), slots)


def _written(picture: Pixels, text: str, place: str, draw: Random) -> tuple[Pixels, str] | None:
    """Return a picture with words on it, and their colour; None where they would not fit or not stand out."""
    height, width = picture.shape[:2]
    share = draw.uniform(*_HEIGHTS)
    font = _font(round(share * height))
    left, top, right, bottom = font.getbbox(text)
    if right - left > _WIDTH * width:
        font = _font(int(share * height * _WIDTH * width / (right - left)))
        left, top, right, bottom = font.getbbox(text)
    size = (int(bottom - top), int(right - left))
    if font.size < _LEAST_HEIGHT or size[1] > width or size[0] > height:
        return None
    row, column = box_at(place, size, (height, width))
    around = picture[row : row + size[0], column : column + size[1]]
    colour = standing_out(around, draw)
    if colour is None:
        return None
    image = Image.fromarray(picture)
    ImageDraw.Draw(image).text((column - left, row - top), text, fill=COLOURS[colour], font=font)
    return np.asarray(image), colour


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(max(1, size))
    assert isinstance(font, ImageFont.FreeTypeFont)  # noqa: S101, Pillow's wheels bring FreeType
    return font
