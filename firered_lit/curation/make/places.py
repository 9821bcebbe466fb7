"""Nine places of a picture, as words name them."""

from random import Random

ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "middle", "right")
PLACES = tuple(f"{row} {column}" for row in ROWS for column in COLUMNS)
_MARGIN = 0.04  # of a side, between what is put there and the picture's edge


def draw_place(draw: Random) -> str:
    """Return one of the nine."""
    return draw.choice(PLACES)


def box_at(place: str, size: tuple[int, int], within: tuple[int, int]) -> tuple[int, int]:
    """Return (top, left) of a box at a place of a picture.

    Args:
        place: One of PLACES.
        size: (height, width) of the box, in pixels; not larger than the picture.
        within: (height, width) of the picture.
    """
    row, column = place.split()
    top = _start(ROWS.index(row), size[0], within[0])
    left = _start(COLUMNS.index(column), size[1], within[1])
    return top, left


def _start(third: int, length: int, whole: int) -> int:
    margin = min(round(_MARGIN * whole), (whole - length) // 2)
    return (margin, (whole - length) // 2, whole - length - margin)[third]
