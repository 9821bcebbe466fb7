"""Regions of a target that should keep their identity: read from a row, carried through the crop, batched.

A region is a face's five points (left eye, right eye, nose, left and right corner of the mouth, as seen: the order of
ArcFace) or a box's two corners. Points are pixel centres, (0, 0) being the middle of the first pixel; corners are
edges, (0, 0) being the picture's own corner, as in `firered_lit.losses.consistency`.
"""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from firered_lit.models.sizes import Shape

from .fields import shown
from .refusals import Refuse

if TYPE_CHECKING:
    from torch import Tensor

Point = tuple[float, float]
Region = tuple[Point, ...]  # five points, or two corners
Window = tuple[float, float, float, float]  # left, top, right, bottom of the part that a crop shows, in image pixels

FACE, BOX = 5, 2
LEAST = 2.0  # pixels that a region spans; less is a slip, such as shares of the sides in place of pixels
LARGEST = 1e9  # pixels; a number that is not below it, NaN and infinity too, is no place in a picture
ROUNDING = 1e-6  # pixels by which a corner may pass the crop's edge
HINT = 'a region is {"points": [[x, y], ... 5]} or {"box": [left, top, right, bottom]}, in pixels of the target'


def regions_of(row: dict[str, Any], prefix: str = "") -> tuple[Region, ...]:
    """Return the regions of a row.

    Args:
        row: Values by column: `regions`, or `landmarks`, a list of lists of five points.
        prefix: Beginning of these columns' names, "inverse_" for those of the edit back.

    Raises:
        Refuse: A region is malformed, or both columns name regions.
    """
    names = (f"{prefix}regions", f"{prefix}landmarks")
    filled = [name for name in names if row.get(name) is not None]
    if not filled:
        return ()
    if len(filled) > 1:
        raise Refuse(filled[0], "bad region", f"{filled[0]} and {filled[1]} both name regions; keep one")

    name = filled[0]
    values = _parsed(row[name])
    if not isinstance(values, list):
        raise Refuse(name, "bad region", f"expected a list, got {shown(values)}")
    read = _points if name.endswith("landmarks") else _region
    return tuple(read(f"{name}[{number}]", value) for number, value in enumerate(values))


def check_inside(regions: Sequence[Region], size: tuple[int, int], name: str) -> None:
    """Refuse regions whose middle lies outside of their image: they belong to another.

    Args:
        regions: Regions in the image's pixels.
        size: (width, height) of the image.
        name: Column that named the regions.

    Raises:
        Refuse: One lies outside.
    """
    width, height = size
    for number, region in enumerate(regions):
        x = sum(point[0] for point in region) / len(region)
        y = sum(point[1] for point in region) / len(region)
        inside = -0.5 <= x <= width and -0.5 <= y <= height
        if not inside:
            detail = f"{_listed(region)} lies outside of the target, which has {width}x{height} pixels"
            raise Refuse(f"{name}[{number}]", "bad region", detail)


def through(regions: Sequence[Region], window: Window, shape: Shape) -> list[Region]:
    """Return regions in the pixels of a crop; those not wholly inside it are left out.

    Args:
        regions: Regions in the image's pixels.
        window: The part of the image that the crop shows.
        shape: (height, width) of the crop.
    """
    height, width = shape
    left, top, right, bottom = window
    x_scale = width / (right - left)
    y_scale = height / (bottom - top)
    kept: list[Region] = []
    for region in regions:
        half = 0.5 if len(region) == FACE else 0.0  # a point is a pixel's centre, half a pixel from its edge
        edges = [((x + half - left) * x_scale, (y + half - top) * y_scale) for x, y in region]
        if all(_within(x, width) and _within(y, height) for x, y in edges):
            kept.append(tuple((x - half, y - half) for x, y in edges))
    return kept


def _within(position: float, side: int) -> bool:
    """Return whether a position lies on a side of so many pixels, up to rounding."""
    return -ROUNDING <= position <= side + ROUNDING


def stacked(regions: Sequence[Sequence[Sequence[Sequence[float]]]]) -> "Tensor | None":
    """Return all samples' regions as one tensor.

    Args:
        regions: Regions of each of the B samples.

    Returns:
        (B, R, P, 2): R is the largest number of a sample, P is 5 when a face is among them, else 2. NaN where a sample
        has fewer regions, or a box stands beside faces. None when no sample has a region.
    """
    import torch

    most = max((len(of_sample) for of_sample in regions), default=0)
    if most == 0:
        return None
    points = max(len(region) for of_sample in regions for region in of_sample)
    batch = torch.full((len(regions), most, points, 2), torch.nan)
    for i, of_sample in enumerate(regions):
        for k, region in enumerate(of_sample):
            batch[i, k, : len(region)] = torch.tensor(region)
    return batch


def mirrored(face: Region) -> bool:
    """Return whether a face's left eye and corner of the mouth are the person's own left, on the right as seen.

    That shows however the face is turned in the picture, but in profile, where the eyes nearly coincide: False there.

    Args:
        face: Five points, (x, y) in pixels.
    """
    left_eye, right_eye, _, left_corner, right_corner = face

    # From one eye to the other, and from between the eyes down to the mouth.
    across_x = right_eye[0] - left_eye[0]
    across_y = right_eye[1] - left_eye[1]
    down_x = (left_corner[0] + right_corner[0]) / 2 - (left_eye[0] + right_eye[0]) / 2
    down_y = (left_corner[1] + right_corner[1]) / 2 - (left_eye[1] + right_eye[1]) / 2
    profile = math.hypot(across_x, across_y) <= 0.5 * math.hypot(down_x, down_y)
    if profile:
        return False

    # Seen upright, down is clockwise of across.
    return across_x * down_y - across_y * down_x < 0


def _parsed(value: Any) -> Any:
    """Return the list that a cell of a CSV file holds as JSON; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _region(name: str, value: Any) -> Region:
    """Return the region that a mapping with either `points` or `box` gives."""
    given = value if isinstance(value, dict) else {}
    points = given.get("points")
    box = given.get("box")
    if (points is None) == (box is None):
        raise Refuse(name, "bad region", f"{HINT}; got {shown(value)}")
    if box is None:
        return _points(name, points)
    return _box(name, box)


def _points(name: str, value: Any) -> Region:
    """Return the five points of a face."""
    listed = isinstance(value, list) and len(value) == FACE
    if not listed or not all(_is_numbers(point, 2) for point in value):
        detail = f"a face is {FACE} points [x, y] (eyes, nose, corners of the mouth), got {shown(value)}"
        raise Refuse(name, "bad region", detail)
    face = tuple((float(x), float(y)) for x, y in value)
    columns, rows = zip(*face)
    width = max(columns) - min(columns)
    height = max(rows) - min(rows)
    if max(width, height) < LEAST:
        raise Refuse(name, "bad region", f"its points lie within {LEAST:g} pixels, not a face; pixels are expected")
    if mirrored(face):
        detail = "left and right are swapped: the left eye and the left corner of the mouth are those at the left"
        raise Refuse(name, "bad region", f"{detail} of a face as seen")
    return face


def _box(name: str, value: Any) -> Region:
    """Return the two corners of a box."""
    if not _is_numbers(value, 4):
        raise Refuse(name, "bad region", f"a box is [left, top, right, bottom], got {shown(value)}")
    left, top, right, bottom = (float(edge) for edge in value)
    if right - left < LEAST or bottom - top < LEAST:
        detail = f"{shown(value)} spans less than {LEAST:g} pixels; a box is [left, top, right, bottom] in pixels"
        raise Refuse(name, "bad region", detail)
    return (left, top), (right, bottom)


def _is_numbers(value: Any, count: int) -> bool:
    """Return whether a value is a list of `count` numbers, none of them beyond the size of a picture."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(_is_number(item) and abs(item) < LARGEST for item in value)


def _is_number(item: Any) -> bool:
    return isinstance(item, int | float) and not isinstance(item, bool)


def _listed(region: Region) -> str:
    """Return a region's points as a refusal shows them, rounded to a tenth of a pixel."""
    return json.dumps([[round(x, 1), round(y, 1)] for x, y in region])
