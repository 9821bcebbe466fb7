"""Scores of images, each read no further than its score needs.

First close up, where the text should stand; then the whole image; where the words are still not
found, once or twice more, enlarged.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from callbacks.ocr.engine import Picture
from callbacks.ocr.layout import Layout, Reader, Reading, Region, cut, moved
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

EDGE = 0.5  # of its height; a character that is nearer to the border of a close-up may go on behind it
FOUND = 0.5  # R_text from which the words count as found
LOOKS = ((480, 2), (320, 3))  # px of a tile's side, and how many times it is enlarged: finer and finer
OVERLAP = 0.25  # share of a tile that the next one shows too


@dataclass(frozen=True)
class ScoredImage:
    """The score of an image.

    Args:
        score: The score.
        chars: Characters that it is made from.
        region: The part of the image on which they were read; None for all of it.
        looks: Times that it was read again, enlarged, because its words were not found.
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
    text_weight: float = 0.5,
    layout_weight: float = 0.5,
    gate: float = 0.5,
) -> list[ScoredImage | str]:
    """Score images, each read no further than its score needs.

    Where a layout knows the text's place, that is read first, close up. The whole image is read only when the close-up
    may be cut (a line in the text's place touches its border), or when the text could earn more where it does not
    belong. Where the words are not found, the place (or the whole image, in tiles) is read again, enlarged.

    Args:
        read: Return the readings of images.
        images: (n) pictures to score.
        texts: (n) the text that each should show.
        layouts: (n) its layout, where known.
        fold_case: (n) True where upper and lower case count as one; all True when None.
        looks: Sizes of tiles that are read when words are not found, and how many times each is enlarged; none for a
            single look.
        text_weight: See `layout_ocr_reward`.
        layout_weight: See `layout_ocr_reward`.
        gate: See `layout_ocr_reward`.

    Returns:
        (n) scores; for an image that could not be read, the reason.
    """
    tasks = []
    for number, (image, text, layout) in enumerate(zip(images, texts, layouts)):
        folds = fold_case is None or fold_case[number]
        tasks.append(_CloseupTask(image, text, layout, text_weight, layout_weight, gate, folds))
    enough = layout_floor(text_weight, layout_weight, gate)

    # First look: close up, where a layout knows the place.
    regions = [task.region for task in tasks]
    readings = read([cut(task.image, region) for task, region in zip(tasks, regions)])
    scores = [task.scored(reading, region) for task, reading, region in zip(tasks, readings, regions)]

    # The whole image.
    again = [i for i, score in enumerate(scores) if _may_earn_more(score, tasks[i], enough)]
    if again:
        for i, reading in zip(again, read([images[i] for i in again])):
            scores[i] = tasks[i].scored(reading, None)

    # Enlarged, where the words are not found.
    for number, (side, times) in enumerate(looks, start=1):
        for i, score in enumerate(scores):
            if isinstance(score, ScoredImage) and score.score.text < FOUND:
                scores[i] = _look_closer(read, tasks[i], score, side, times, number)
    return scores


@dataclass(frozen=True)
class _CloseupTask:
    """An image to score, with the text and the layout that it should show, and the rule of the score."""

    image: Picture
    text: str
    layout: Layout | None
    text_weight: float
    layout_weight: float
    gate: float
    fold_case: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def region(self) -> Region | None:
        """The place where the text should stand; None without a layout."""
        if self.layout is None:
            return None
        return self.layout.region(self.text, self.size)

    def scored(self, reading: Reading, region: Region | None, looks: int = 0) -> ScoredImage | str:
        """Return the score of a reading of a part of the image; a reason in the place of a reading stays one."""
        if isinstance(reading, str):
            return reading
        chars = moved(reading, region)
        score = score_reading(
            chars,
            self.size,
            self.text,
            self.layout,
            text_weight=self.text_weight,
            layout_weight=self.layout_weight,
            gate=self.gate,
            fold_case=self.fold_case,
        )
        return ScoredImage(score, chars, region, looks)


def _may_earn_more(score: ScoredImage | str, task: _CloseupTask, enough: float) -> bool:
    """Return whether the whole image could have another score than its close-up."""
    if isinstance(score, str) or score.region is None:
        return False
    return float(score.score) < enough or cut_off(score, task.size, task.text, task.layout)


def _look_closer(
    read: Reader, task: _CloseupTask, before: ScoredImage, side: int, times: int, number: int
) -> ScoredImage:
    """Read the text's place, or the image tile by tile, enlarged; return the score where it finds the words.

    Scraps of other words do not count: of many tiles, one is always a little like the text.

    Args:
        read: Return the readings of images.
        task: The image.
        before: Its score so far.
        side: Pixels of a tile's side.
        times: Times that a tile is enlarged.
        number: Number of this look, from 1.
    """
    height, width = task.size
    parts = tiles(task.region or (0, 0, width, height), side)
    readings = read([enlarged(cut(task.image, part), times) for part in parts])
    best = replace(before, looks=number)
    for part, reading in zip(parts, readings):
        if isinstance(reading, str):
            continue
        chars = [replace(c, x=c.x / times, y=c.y / times, w=c.w / times, h=c.h / times) for c in reading]
        closer = task.scored(chars, part, number)
        if isinstance(closer, ScoredImage) and closer.score.text >= max(FOUND, best.score.text):
            best = closer
    return best


def tiles(region: Region, side: int) -> list[Region]:
    """Return tiles of at most `side` px that cover a region, each sharing a quarter with the next one."""
    left, top, right, bottom = region
    found = []
    for y in _starts(top, bottom, side):
        for x in _starts(left, right, side):
            found.append((x, y, min(x + side, right), min(y + side, bottom)))
    return found


def _starts(low: int, high: int, side: int) -> list[int]:
    """Return the starts of spans of `side` that cover (low, high)."""
    rest = high - low - side
    if rest <= 0:
        return [low]
    count = 1 + math.ceil(rest / (side * (1 - OVERLAP)))
    return [low + round(i * rest / (count - 1)) for i in range(count)]


def enlarged(image: Picture, times: int) -> Picture:
    """Return an image (H, W, 3) so many times as large."""
    import cv2

    large = cv2.resize(image, None, fx=times, fy=times, interpolation=cv2.INTER_CUBIC)
    return np.asarray(large, np.uint8)


def score_reading(
    read: Sequence[Char],
    size: tuple[int, int],
    text: str,
    layout: Layout | None,
    *,
    text_weight: float = 0.5,
    layout_weight: float = 0.5,
    gate: float = 0.5,
    fold_case: bool = True,
) -> LayoutOCRScore:
    """Return the score of the characters that were read on an image.

    Args:
        read: The characters, in the image's pixels.
        size: (height, width) of the image.
        text: The text that it should show.
        layout: The layout of that text, where known.
        text_weight: See `layout_ocr_reward`.
        layout_weight: See `layout_ocr_reward`.
        gate: See `layout_ocr_reward`.
        fold_case: Count upper and lower case as one.
    """
    reference = None
    if layout is not None:
        read = scale(read, size, layout.size)
        reference = layout.chars
    return layout_ocr_reward(
        read,
        text,
        reference,
        text_weight=text_weight,
        layout_weight=layout_weight,
        gate=gate,
        fold_case=fold_case,
    )


def layout_floor(
    text_weight: float = 0.5, layout_weight: float = 0.5, gate: float = 0.5, elsewhere: float = 0.5
) -> float:
    """Return the most that right text earns where it does not belong, see `layout_ocr_reward`."""
    return text_weight * elsewhere + layout_weight * ramp(elsewhere, gate)


def cut_off(scored: ScoredImage, size: tuple[int, int], text: str, layout: Layout | None) -> bool:
    """Return whether a line that stands in the text's place may go on behind the border of the close-up."""
    if layout is None or scored.region is None:
        return False
    places, others = layout.places(text)
    boxes = grow(places)
    for line in lines(scored.chars):
        scaled = scale(line, size, layout.size)
        in_place = any(within(char, boxes) and nearer(char, places, others) for char in scaled)
        if in_place and touches(line, scored.region, size):
            return True
    return False


def touches(chars: Sequence[Char], region: Region, size: tuple[int, int]) -> bool:
    """Return whether one of the characters is near to the region's border, where that is not the image's own."""
    left, top, right, bottom = region
    height, width = size
    for char in chars:
        near = EDGE * char.h
        if left > 0 and char.x < left + near:
            return True
        if top > 0 and char.y < top + near:
            return True
        if right < width and char.x + char.w > right - near:
            return True
        if bottom < height and char.y + char.h > bottom - near:
            return True
    return False


def glyphs(scored: ScoredImage, size: tuple[int, int], text: str, layout: Layout | None) -> tuple[float, float]:
    """Return the size of the letters of a text on an image.

    Args:
        scored: The image's score.
        size: (height, width) of the image in pixels.
        text: The words that are asked for; where they are not found, all letters count.
        layout: Their layout, where known.

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
