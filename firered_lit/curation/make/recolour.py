"""One colour of a picture becomes another one, wherever it stands."""

from random import Random

import cv2
import numpy as np

from firered_lit.curation.rows import Pixels

from .edit import MadeEdit, Mask, changed

# First and last hue of a colour, and the hue that it is known by, of OpenCV's 180. Between two of them lie hues that
# people give different names.
HUES = {
    "red": (176, 186, 1),
    "orange": (10, 16, 13),
    "yellow": (24, 32, 28),
    "green": (45, 75, 60),
    "blue": (102, 122, 112),
    "purple": (132, 146, 138),
}
_SATURATION, _VALUE = 90, 60  # from which on a pixel has a colour that one would name
_LEAST, _MOST = 0.02, 0.6  # share of the picture that changes
_ABSENT = 0.004  # share up to which a colour is not there: its name then means the changed part alone


def recolour(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Give everything of one colour another one, with its light and shade as they are."""
    hsv: Pixels = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2HSV), np.uint8)
    areas = {name: _area(hsv, name) for name in HUES}
    shares = {name: float(area.mean()) for name, area in areas.items()}
    there = [name for name, share in shares.items() if _LEAST <= share <= _MOST]
    absent = [name for name, share in shares.items() if share <= _ABSENT]
    if not there or not absent:
        return None
    old, new = draw.choice(there), draw.choice(absent)
    area = areas[old]
    moved = hsv.copy()
    hues = hsv[..., 0].astype(np.int16) + HUES[new][2] - HUES[old][2]
    moved[..., 0] = np.where(area, hues % 180, hsv[..., 0])
    target = np.where(area[..., None], cv2.cvtColor(moved, cv2.COLOR_HSV2RGB), picture)
    return MadeEdit("recolour", (picture,), target, changed(picture, target), {"old": old, "new": new})


def _area(hsv: Pixels, colour: str) -> Mask:
    """Return where a colour stands, without specks."""
    first, last, _ = HUES[colour]
    hues = (hsv[..., 0].astype(np.int16) - first) % 180
    found = (hues <= last - first) & (hsv[..., 1] >= _SATURATION) & (hsv[..., 2] >= _VALUE)
    side = 2 * (max(hsv.shape[:2]) // 256) + 3
    return np.asarray(cv2.medianBlur(found.astype(np.uint8), side) > 0)
