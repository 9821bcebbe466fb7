"""Scores of images, each read no further than its score needs: first close up, where the text should stand."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from callbacks.ocr_engine import Picture
from callbacks.ocr_layout import Layout, Reader, Region, cut, moved
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


@dataclass(frozen=True)
class Scored:
    """The score of an image, what was read for it, and on what part of it: None for all."""

    score: LayoutOCRScore
    chars: Sequence[Char]
    region: Region | None


def score_where_due(
    read: Reader,
    images: Sequence[Picture],
    texts: Sequence[str],
    layouts: Sequence[Layout | None],
    **weights: float,
) -> list[Scored | str]:
    """Scores of images, each read no further than its score needs; for one that could not be read, why.

    Where a layout tells the text's place, that is read first, close up. The whole image is read only when the close-up
    may be cut (a line in the text's place touches its border), or when the text could earn more where it does not
    belong.
    """
    regions = [layout and layout.region(text, image.shape[:2]) for image, text, layout in zip(images, texts, layouts)]
    first = read([cut(image, region) for image, region in zip(images, regions)])
    enough = layout_floor(**weights)
    found: list[Scored | str] = []
    for image, text, layout, region, reading in zip(images, texts, layouts, regions, first):
        if isinstance(reading, str):
            found.append(reading)
            continue
        chars = moved(reading, region)
        found.append(Scored(score_reading(chars, image.shape[:2], text, layout, **weights), chars, region))
    again = [
        i
        for i, one in enumerate(found)
        if isinstance(one, Scored)
        and one.region
        and (float(one.score) < enough or cut_off(one, images[i].shape[:2], texts[i], layouts[i]))
    ]
    for i, reading in zip(again, read([images[i] for i in again]) if again else ()):
        found[i] = reading if isinstance(reading, str) else _whole(reading, images[i], texts[i], layouts[i], weights)
    return found


def _whole(
    reading: list[Char], image: Picture, text: str, layout: Layout | None, weights: Mapping[str, float]
) -> Scored:
    return Scored(score_reading(reading, image.shape[:2], text, layout, **weights), reading, None)


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
    """Whether a line that stands in the text's place may go on behind the border of the close-up."""
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
    """Whether one of the characters is near to the region's border, where that is not the image's own."""
    left, top, right, bottom = region
    return any(
        (left > 0 and c.x < left + EDGE * c.h)
        or (top > 0 and c.y < top + EDGE * c.h)
        or (right < size[1] and c.x + c.w > right - EDGE * c.h)
        or (bottom < size[0] and c.y + c.h > bottom - EDGE * c.h)
        for c in chars
    )


def glyphs(scored: Scored, size: tuple[int, int], layout: Layout | None) -> tuple[float, float]:
    """Median height of the characters, over the image's and over the reference's there; NaN where there is none."""
    if not scored.chars:
        return torch.nan, torch.nan
    height = statistics.median(char.h for char in scored.chars) / size[0]
    if layout is None:
        return height, torch.nan
    known = layout.chars
    if scored.region is not None:
        left, top, right, bottom = scored.region
        y, x = size[0] / layout.size[0], size[1] / layout.size[1]
        known = [c for c in known if left <= c.centre[0] * x <= right and top <= c.centre[1] * y <= bottom]
    if not known:
        return height, torch.nan
    return height, height / (statistics.median(char.h for char in known) / layout.size[0])
