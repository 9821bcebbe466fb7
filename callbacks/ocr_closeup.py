"""Scores of images, each read no further than its score needs.

First close up, where the text should stand; then the whole image; where the words are still not
found, once or twice more, enlarged.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from callbacks.ocr_engine import Picture
from callbacks.ocr_layout import Layout, Reader, Reading, Region, cut, moved
from firered_lit.rewards.layout_ocr import (
    Char,
    LayoutOCRScore,
    grow,
    layout_ocr_reward,
    lines,
    nearer,
    ramp,
    scale,
    within,
)

EDGE = 0.5  # of its height: a character so near to the border of a close-up may go on behind it


FOUND = 0.5  # R_text from which the words count as found
LOOKS = ((480, 2), (320, 3))  # px of a tile's side, and how many times it is enlarged: finer and finer
OVERLAP = 0.25  # share of a tile that the next one shows too


@dataclass(frozen=True)
class Scored:
    """The score of an image, what was read for it, and on what part of it: None for all.

    looks: how many times it was read again, enlarged, because its words were not found.
    """

    score: LayoutOCRScore
    chars: Sequence[Char]
    region: Region | None
    looks: int = 0


def score_where_due(
    read: Reader,
    images: Sequence[Picture],
    texts: Sequence[str],
    layouts: Sequence[Layout | None],
    *,
    fold_case: Sequence[bool] | None = None,
    looks: Sequence[tuple[int, int]] = LOOKS,
    **weights: float,
) -> list[Scored | str]:
    """Score images, each read no further than its score needs.

    Where a layout knows the text's place, that is read first, close up. The whole image is read only when the close-up
    may be cut (a line in the text's place touches its border), or when the text could earn more where it does not
    belong. Where the words are not found, the place (or the whole image, in tiles) is read again, enlarged.

    Args:
        read: reads images.
        images: (n) pictures to score.
        texts: (n) what each should show.
        layouts: (n) where that should stand, where known.
        fold_case: (n) whether upper and lower case count as one; all true when None.
        looks: the sizes of tiles that are read when words are not found, and how many times each
            is enlarged; none for a single look.
        weights: see `layout_ocr_reward`.

    Returns:
        (n) scores; for an image that could not be read, why.
    """
    fold_case = fold_case or [True] * len(images)
    asked = [
        _ToScore(image, text, layout, {**weights, "fold_case": fold})
        for image, text, layout, fold in zip(images, texts, layouts, fold_case)
    ]
    enough = layout_floor(**weights)

    # First look: close up, where a layout knows the place.
    regions = [one.region for one in asked]
    readings = read([cut(one.image, region) for one, region in zip(asked, regions)])
    found = [one.scored(reading, region) for one, reading, region in zip(asked, readings, regions)]

    # The whole image.
    again = [i for i, one in enumerate(found) if _may_earn_more(one, asked[i], enough)]
    if again:
        for i, reading in zip(again, read([images[i] for i in again])):
            found[i] = asked[i].scored(reading, None)

    # Enlarged, where the words are not found.
    for number, (side, times) in enumerate(looks, start=1):
        for i, one in enumerate(found):
            if isinstance(one, Scored) and one.score.text < FOUND:
                found[i] = _look_closer(read, asked[i], one, side, times, number)
    return found


@dataclass(frozen=True)
class _ToScore:
    """An image, and how it is to be scored."""

    image: Picture
    text: str
    layout: Layout | None
    rule: Mapping[str, Any]

    @property
    def size(self) -> tuple[int, int]:
        return self.image.shape[0], self.image.shape[1]

    @property
    def region(self) -> Region | None:
        """The place where the text should stand; None without a layout."""
        return None if self.layout is None else self.layout.region(self.text, self.size)

    def scored(self, reading: Reading, region: Region | None, looks: int = 0) -> Scored | str:
        """Score what was read on a part of the image; a reason in place of a reading stays one."""
        if isinstance(reading, str):
            return reading
        chars = moved(reading, region)
        return Scored(score_reading(chars, self.size, self.text, self.layout, **self.rule), chars, region, looks)


def _may_earn_more(one: Scored | str, asked: _ToScore, enough: float) -> bool:
    """Return whether the whole image could give another score than its close-up gave."""
    if isinstance(one, str) or one.region is None:
        return False
    return float(one.score) < enough or cut_off(one, asked.size, asked.text, asked.layout)


def _look_closer(read: Reader, asked: _ToScore, before: Scored, side: int, times: int, number: int) -> Scored:
    """Read the text's place, or the image tile by tile, enlarged; return the score where it finds the words.

    Scraps of other words do not count: of many tiles, one is always a little like the text.
    """
    place = asked.region or (0, 0, asked.size[1], asked.size[0])
    best = replace(before, looks=number)
    parts = tiles(place, side)
    for part, reading in zip(parts, read([enlarged(cut(asked.image, part), times) for part in parts])):
        if isinstance(reading, str):
            continue
        chars = [replace(c, x=c.x / times, y=c.y / times, w=c.w / times, h=c.h / times) for c in reading]
        closer = asked.scored(chars, part, number)
        if isinstance(closer, Scored) and closer.score.text >= max(FOUND, best.score.text):
            best = closer
    return best


def tiles(region: Region, side: int) -> list[Region]:
    """Return tiles of at most `side` px that cover a region, each sharing a quarter with the next one."""
    left, top, right, bottom = region
    return [
        (x, y, min(x + side, right), min(y + side, bottom))
        for y in _starts(top, bottom, side)
        for x in _starts(left, right, side)
    ]


def _starts(low: int, high: int, side: int) -> list[int]:
    """Return where spans of `side` begin that cover (low, high)."""
    if high - low <= side:
        return [low]
    count = 1 + math.ceil((high - low - side) / (side * (1 - OVERLAP)))
    return [low + round(i * (high - low - side) / (count - 1)) for i in range(count)]


def enlarged(image: Picture, times: int) -> Picture:
    """Return an image (H, W, 3) so many times as large."""
    import cv2

    return cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)


def score_reading(
    read: Sequence[Char], size: tuple[int, int], text: str, layout: Layout | None, **weights: float
) -> LayoutOCRScore:
    """The score of what was read on an image of `size` (height, width)."""
    if layout is None:
        return layout_ocr_reward(read, text, **weights)
    return layout_ocr_reward(scale(read, size, layout.size), text, layout.chars, **weights)


def layout_floor(
    text_weight: float = 0.5, layout_weight: float = 0.5, gate: float = 0.5, elsewhere: float = 0.5
) -> float:
    """The most that right text earns where it does not belong, see `layout_ocr_reward`."""
    return text_weight * elsewhere + layout_weight * ramp(elsewhere, gate)


def cut_off(scored: Scored, size: tuple[int, int], text: str, layout: Layout | None) -> bool:
    """Return whether a line that stands in the text's place may go on behind the border of the close-up."""
    if layout is None or scored.region is None:
        return False
    places, others = layout.places(text)
    boxes = grow(places)
    for line in lines(scored.chars):
        here = scale(line, size, layout.size)
        if any(within(c, boxes) and nearer(c, places, others) for c in here) and touches(line, scored.region, size):
            return True
    return False


def touches(chars: Sequence[Char], region: Region, size: tuple[int, int]) -> bool:
    """Return whether one of the characters is near to the region's border, where that is not the image's own."""
    left, top, right, bottom = region
    return any(
        (left > 0 and c.x < left + EDGE * c.h)
        or (top > 0 and c.y < top + EDGE * c.h)
        or (right < size[1] and c.x + c.w > right - EDGE * c.h)
        or (bottom < size[0] and c.y + c.h > bottom - EDGE * c.h)
        for c in chars
    )


def glyphs(scored: Scored, size: tuple[int, int], text: str, layout: Layout | None) -> tuple[float, float]:
    """Return how large the letters of `text` stand on an image.

    Args:
        scored: what was read.
        size: height and width of the image, in px.
        text: the words that are asked for; where they are not found, all letters count.
        layout: where and how large they should stand.

    Returns:
        The median height of the letters over the image's height, and over the height that the
        layout gives them; NaN where there is none.
    """
    shown = Layout(scored.chars, size).places(text)[0] or scored.chars
    if not shown:
        return math.nan, math.nan
    height = statistics.median(char.h for char in shown) / size[0]
    if layout is None:
        return height, math.nan
    wanted = layout.places(text)[0]
    if not wanted:
        return height, math.nan
    return height, height / (statistics.median(char.h for char in wanted) / layout.size[0])
