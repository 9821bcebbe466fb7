"""Parts of a scene as pictures, and several pictures on one."""

from collections.abc import Sequence
from random import Random

import cv2
import numpy as np

from firered_lit.curation.rows import Pixels

from .edit import MadeEdit, everywhere

SIDES = ("left", "right", "top", "bottom", "all")
LAYOUTS = {"row": (1, 2), "column": (2, 1), "grid": (2, 2)}  # rows and columns of panels
_SHARES = (0.15, 0.35)  # of a side, that is cut away
_LEAST_SIDE = 32  # px of what is left


def crop(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Cut away a strip at one side of a picture, or at all of them."""
    height, width = picture.shape[:2]
    side, share = draw.choice(SIDES), draw.uniform(*_SHARES)
    if side == "all":
        share /= 2
    rows, columns = round(share * height), round(share * width)
    top = rows if side in ("top", "all") else 0
    bottom = height - rows if side in ("bottom", "all") else height
    left = columns if side in ("left", "all") else 0
    right = width - columns if side in ("right", "all") else width
    if min(bottom - top, right - left) < _LEAST_SIDE:
        return None
    target = picture[top:bottom, left:right].copy()
    return MadeEdit("crop", (picture,), target, everywhere(target), {"side": side}, corner=(-top, -left))


def extended(edit: MadeEdit) -> MadeEdit:
    """Return the way back from a crop: what was cut away has to be painted, and nothing else changes."""
    top, left = -edit.corner[0], -edit.corner[1]
    height, width = edit.target.shape[:2]
    mask = everywhere(edit.source)
    mask[top : top + height, left : left + width] = False
    return MadeEdit("extend", (edit.target,), edit.source, mask, edit.slots, corner=(top, left))


def compose(pictures: Sequence[Pixels], draw: Random) -> MadeEdit | None:
    """Lay two or four pictures side by side, in the order in which they are given."""
    fitting = [name for name, (rows, columns) in LAYOUTS.items() if rows * columns <= len(pictures)]
    if not fitting:
        return None
    layout = draw.choice(fitting)
    rows, columns = LAYOUTS[layout]
    some = tuple(pictures[: rows * columns])
    height = min(picture.shape[0] for picture in some) // rows
    width = min(picture.shape[1] for picture in some) // columns
    if min(height, width) < _LEAST_SIDE:
        return None
    panels = [_filling(picture, height, width) for picture in some]
    lines = [np.concatenate(panels[row * columns : (row + 1) * columns], axis=1) for row in range(rows)]
    target = np.concatenate(lines, axis=0)
    return MadeEdit("compose", some, target, everywhere(target), {"layout": layout})


def extract(pictures: Sequence[Pixels], draw: Random) -> MadeEdit | None:
    """Take one picture out of several that lie side by side."""
    made = compose(pictures, draw)
    if made is None:
        return None
    rows, columns = LAYOUTS[made.slots["layout"]]
    number = draw.randrange(rows * columns)
    height, width = made.target.shape[0] // rows, made.target.shape[1] // columns
    top, left = number // columns * height, number % columns * width
    target = made.target[top : top + height, left : left + width].copy()
    slots = {"layout": made.slots["layout"], "panel": PANELS[made.slots["layout"]][number]}
    return MadeEdit("extract", (made.target,), target, everywhere(target), slots, corner=(-top, -left))


PANELS = {
    "row": ("left", "right"),
    "column": ("top", "bottom"),
    "grid": ("top left", "top right", "bottom left", "bottom right"),
}


def _filling(picture: Pixels, height: int, width: int) -> Pixels:
    """Return the middle of a picture, scaled to fill a panel."""
    scale = max(height / picture.shape[0], width / picture.shape[1])
    size = (max(width, round(picture.shape[1] * scale)), max(height, round(picture.shape[0] * scale)))
    scaled = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    top, left = (scaled.shape[0] - height) // 2, (scaled.shape[1] - width) // 2
    return np.asarray(scaled[top : top + height, left : left + width])


def cropped(edit: MadeEdit) -> MadeEdit:
    """Return the way back from an extension."""
    top, left = edit.corner
    return MadeEdit("crop", (edit.target,), edit.source, everywhere(edit.source), edit.slots, corner=(-top, -left))
