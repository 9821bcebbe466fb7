"""Where on a picture a text should stand: its reference layout, read once, its own place close up."""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from callbacks.ocr_engine import Picture
from firered_lit.rewards.layout_ocr import (
    Box,
    Char,
    fold,
    grow,
    in_place_of,
    layout_ocr_reward,
    lines,
    locate,
)
from firered_lit.rewards.layout_ocr import characters as folded

Reading = list[Char] | str  # what was read on an image, or why it could not be read
Reader = Callable[[Sequence[Picture]], Sequence[Reading]]
Region = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
plainly = partial(fold, case=True, space=True)

WORTH = 0.6  # share of an image above which a close-up saves nothing


@dataclass(frozen=True)
class Layout:
    """What was read on a reference, the size (height, width) of that image, and where a text was read close up."""

    chars: Sequence[Char]
    size: tuple[int, int]
    place: Region | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON holds it, to a tenth of a pixel."""
        rows = [[c.text, *(round(v, 1) for v in (c.x, c.y, c.w, c.h)), c.line] for c in self.chars]
        return {"size": list(self.size), "place": self.place and list(self.place), "chars": rows}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Layout":
        (height, width), place = plain["size"], plain["place"]
        return Layout([Char(*row) for row in plain["chars"]], (height, width), tuple(place) if place else None)

    def shows(self, text: str) -> bool:
        """Whether the text stands on it, at least half right."""
        return self.rightness(text) >= 0.5

    def rightness(self, text: str) -> float:
        """R_text of what stands on it."""
        return layout_ocr_reward(self.chars, text).text

    def places(self, text: str) -> tuple[list[Char], list[Char]]:
        """The characters of the text, and all others."""
        known = folded(self.chars, case=True, space=True)
        places = [char for char in locate(known, plainly(text)) if char is not None]
        return places, [char for char in known if char not in places]

    def region(self, text: str, size: tuple[int, int]) -> Region | None:
        """Where to look for the text on an image of `size` (height, width): two character heights around its place.

        None where the layout does not show the text, or where that is most of the image.
        """
        y, x = size[0] / self.size[0], size[1] / self.size[1]
        if self.place is not None:
            left, top, right, bottom = self.place
            return round(left * x), round(top * y), round(right * x), round(bottom * y)
        places, _ = self.places(text)
        if not places:
            return None
        margin = max(char.h for char in places)
        box = enclosing(grow(places))
        left, right = whole_steps((box[0] - margin) * x, (box[2] + margin) * x, size[1])
        top, bottom = whole_steps((box[1] - margin) * y, (box[3] + margin) * y, size[0])
        worth = right > left and bottom > top and (right - left) * (bottom - top) < WORTH * size[0] * size[1]
        return (left, top, right, bottom) if worth else None

    def closer(self, region: Region, chars: Sequence[Char]) -> "Layout":
        """With what was read close up, in the image's pixels, in place of what had been read there."""
        left, top, right, bottom = region
        far = [c for c in self.chars if not (left <= c.centre[0] <= right and top <= c.centre[1] <= bottom)]
        first = 1 + max((c.line or 0 for c in far), default=0)
        return Layout([*far, *(replace(c, line=first + (c.line or 0)) for c in chars)], self.size, region)


def read_layouts(read: Reader, images: Sequence[Picture], texts: Sequence[str]) -> list[Layout | str]:
    """The layouts of reference pictures; for one that could not be read, why.

    The text's own place is read close up too, as the images that are compared with it are: what the detector sees
    around a line moves its box by a pixel or two.
    """
    layouts = [
        one if isinstance(one, str) else Layout(one, image.shape[:2]) for one, image in zip(read(images), images)
    ]
    regions = {
        i: region
        for i, (layout, text) in enumerate(zip(layouts, texts))
        if isinstance(layout, Layout) and (region := layout.region(text, layout.size))
    }
    close = read([cut(images[i], region) for i, region in regions.items()]) if regions else ()
    for (i, region), reading in zip(regions.items(), close):
        whole = layouts[i]
        if isinstance(whole, Layout) and not isinstance(reading, str):
            closer = whole.closer(region, moved(reading, region))
            layouts[i] = closer if closer.rightness(texts[i]) >= whole.rightness(texts[i]) else whole
    return layouts


def reference_layout(
    layouts: "Layouts", read: Reader, target: Picture | None, source: Picture | None, text: str, replaced: str | None
) -> Layout | None:
    """Where `text` should stand: as on the target, if that shows it, else in place of the words replaced on the source.

    None when neither tells, or cannot be read.
    """
    layout = None if target is None else layouts.of(target, text, read)
    if replaced and source is not None and not (layout and layout.shows(text)):
        found = layouts.of(source, replaced, read)
        chars = found and replaced_layout(found.chars, replaced, text)
        return Layout(chars, source.shape[:2]) if chars else None
    return layout


def replaced_layout(source: Sequence[Char], replaced: str, text: str) -> list[Char] | None:
    """Where `text` belongs when it takes the place of the words `replaced` in what was read on the source.

    Equal cells, on as many lines as those words stood on; None when the source does not show them.
    """
    found = locate(folded(source, case=True, space=True), plainly(replaced))
    places = [char for char in found if char is not None]
    if not places:
        return None
    return in_place_of(lines(places), text)


def enclosing(boxes: Sequence[Box]) -> Box:
    """The box around boxes."""
    left, top, right, bottom = zip(*boxes)
    return min(left), min(top), max(right), max(bottom)


def whole_steps(low: float, high: float, most: int, step: int = 32) -> tuple[int, int]:
    """The span of whole steps around (low, high), inside of (0, most): where the detector's grid lies on the image."""
    return max(0, int(low // step) * step), min(most, -int(-high // step) * step)


def cut(image: Picture, region: Region | None) -> Picture:
    """That part of an image (H, W, 3); all of it for None."""
    if region is None:
        return image
    left, top, right, bottom = region
    return image[top:bottom, left:right]


def moved(chars: Sequence[Char], region: Region | None) -> list[Char]:
    """Characters read on a part of an image, in the image's pixels."""
    if region is None:
        return list(chars)
    return [replace(c, x=c.x + region[0], y=c.y + region[1]) for c in chars]


class Layouts:
    """Layouts of reference pictures by content and text: the edits of a group share one, an epoch returns to it."""

    def __init__(self, most: int = 4096) -> None:
        self.most, self.read = most, 0
        self._known: OrderedDict[bytes, Layout] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, image: Picture, text: str, reader: Reader) -> Layout | None:
        """The layout; None when `reader` gives a reason instead of characters, which is asked again next time."""
        content = repr((image.shape, text)).encode() + image.tobytes()
        key = hashlib.blake2b(content, digest_size=16).digest()
        with self._lock:
            if key not in self._known:
                self.read += 1
                (layout,) = read_layouts(reader, [image], [text])
                if isinstance(layout, str):
                    return None
                self._known[key] = layout
                if len(self._known) > self.most:
                    self._known.popitem(last=False)
            self._known.move_to_end(key)
            return self._known[key]
