"""Regions of a target that should keep their identity: read from a row, carried through the crop, batched.

A region is a face's five points (left eye, right eye, nose, left and right corner of the mouth, as seen: ArcFace's
order) or a box's two corners. Points are pixel centres, (0, 0) being the middle of the first pixel; corners are edges,
(0, 0) being the picture's own corner, as in `firered_lit.losses.consistency`.
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
Window = tuple[float, float, float, float]  # left, top, right, bottom of what a crop shows, in the image's pixels

FACE, BOX = 5, 2
LEAST = 2.0  # pixels that a region spans; less is a slip, such as shares of the sides in place of pixels
LARGEST = 1e9  # pixels; a number that is not below it, NaN and infinity too, is no place in a picture
HINT = 'a region is {"points": [[x, y], ... 5]} or {"box": [left, top, right, bottom]}, in pixels of the target'


def regions_of(row: dict[str, Any], prefix: str = "") -> tuple[Region, ...]:
    """The regions of a row's column `regions`, or of `landmarks`, lists of five points. Raises Refuse."""
    given = [name for name in (f"{prefix}regions", f"{prefix}landmarks") if row.get(name) is not None]
    if not given:
        return ()
    if len(given) > 1:
        raise Refuse(given[0], "bad region", f"{given[0]} and {given[1]} both name regions; keep one")
    name, value = given[0], _parsed(row[given[0]])
    if not isinstance(value, list):
        raise Refuse(name, "bad region", f"expected a list, got {shown(value)}")
    read = _points if name.endswith("landmarks") else _region
    return tuple(read(f"{name}[{i}]", item) for i, item in enumerate(value))


def check_inside(regions: Sequence[Region], size: tuple[int, int], name: str) -> None:
    """Refuse regions whose middle lies outside of the image of `size` (width, height): they belong to another."""
    for number, region in enumerate(regions):
        x, y = (sum(part) / len(region) for part in zip(*region))
        if not (-0.5 <= x <= size[0] and -0.5 <= y <= size[1]):
            where = f"{_listed(region)} lies outside of the target, which has {size[0]}x{size[1]} pixels"
            raise Refuse(f"{name}[{number}]", "bad region", where)


def through(regions: Sequence[Region], window: Window, shape: Shape) -> list[Region]:
    """Regions in the pixels of a crop of `shape` that shows `window`; those not wholly inside it are left out."""
    left, top, right, bottom = window
    x_scale, y_scale = shape[1] / (right - left), shape[0] / (bottom - top)
    kept = []
    for region in regions:
        half = 0.5 if len(region) == FACE else 0.0  # a point is a pixel's centre, half a pixel from its edge
        edges = [((x + half - left) * x_scale, (y + half - top) * y_scale) for x, y in region]
        if all(-1e-6 <= x <= shape[1] + 1e-6 and -1e-6 <= y <= shape[0] + 1e-6 for x, y in edges):
            kept.append(tuple((x - half, y - half) for x, y in edges))
    return kept


def stacked(regions: Sequence[Sequence[Sequence[Sequence[float]]]]) -> "Tensor | None":
    """(B, R, P, 2) of all samples' regions, NaN where a sample has fewer, or a box stands beside faces; None for none.

    P is 5 when a face is among them, else 2; R is the largest number.
    """
    import torch

    most = max(map(len, regions), default=0)
    if not most:
        return None
    points = max(len(region) for own in regions for region in own)
    batch = torch.full((len(regions), most, points, 2), torch.nan)
    for i, own in enumerate(regions):
        for k, region in enumerate(own):
            batch[i, k, : len(region)] = torch.tensor(region)
    return batch


def mirrored(face: Region) -> bool:
    """Whether the left eye and corner of the mouth are the person's own left, which is on the right as seen.

    True however the face is turned in the picture; in profile, where the eyes nearly coincide, it cannot be told.
    """
    (x, y), (x_other, y_other) = face[:2]
    across = x_other - x, y_other - y
    down = sum(p[0] for p in face[3:]) / 2 - (x + x_other) / 2, sum(p[1] for p in face[3:]) / 2 - (y + y_other) / 2
    clear = math.hypot(*across) > 0.5 * math.hypot(*down)
    return clear and across[0] * down[1] - across[1] * down[0] < 0


def _parsed(value: Any) -> Any:
    """A cell of a CSV file, which holds the list as JSON; anything else as it is."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _region(name: str, value: Any) -> Region:
    kinds = [key for key in ("points", "box") if isinstance(value, dict) and value.get(key) is not None]
    if len(kinds) != 1:
        raise Refuse(name, "bad region", f"{HINT}; got {shown(value)}")
    return _points(name, value["points"]) if kinds == ["points"] else _box(name, value["box"])


def _points(name: str, value: Any) -> Region:
    if not isinstance(value, list) or len(value) != FACE or not all(_numbers(point, 2) for point in value):
        detail = f"a face is {FACE} points [x, y] (eyes, nose, corners of the mouth), got {shown(value)}"
        raise Refuse(name, "bad region", detail)
    face = tuple((float(x), float(y)) for x, y in value)
    spans = [max(part) - min(part) for part in zip(*face)]
    if max(spans) < LEAST:
        raise Refuse(name, "bad region", f"its points lie within {LEAST:g} pixels, not a face; pixels are expected")
    if mirrored(face):
        detail = "left and right are swapped: the left eye and the left corner of the mouth are those at the left"
        raise Refuse(name, "bad region", f"{detail} of a face as seen")
    return face


def _box(name: str, value: Any) -> Region:
    if not _numbers(value, 4):
        raise Refuse(name, "bad region", f"a box is [left, top, right, bottom], got {shown(value)}")
    left, top, right, bottom = map(float, value)
    if right - left < LEAST or bottom - top < LEAST:
        detail = f"{shown(value)} spans less than {LEAST:g} pixels; a box is [left, top, right, bottom] in pixels"
        raise Refuse(name, "bad region", detail)
    return (left, top), (right, bottom)


def _numbers(value: Any, count: int) -> bool:
    """Whether it is a list of `count` finite numbers."""
    if not isinstance(value, list) or len(value) != count:
        return False
    return all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) < LARGEST for x in value)


def _listed(region: Region) -> str:
    return json.dumps([[round(x, 1), round(y, 1)] for x, y in region])
