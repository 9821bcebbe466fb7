"""The place of a text on a picture: its reference layout, read once, the text's own place close up."""

import hashlib
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from callbacks.ocr.engine import Picture
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

Reading = list[Char] | str  # the characters on an image, or the reason why it could not be read
Reader = Callable[[Sequence[Picture]], Sequence[Reading]]
Region = tuple[int, int, int, int]  # left, top, right, bottom, in pixels
plainly = partial(fold, case=True, space=True)

WORTH = 0.6  # share of an image above which a close-up saves nothing


@dataclass(frozen=True)
class Layout:
    """The characters on a reference picture.

    Args:
        chars: The characters, in the picture's pixels.
        size: (height, width) of the picture.
        place: The part on which a text was read close up; None for none.
    """

    chars: Sequence[Char]
    size: tuple[int, int]
    place: Region | None = None

    def plain(self) -> dict[str, Any]:
        """Return the layout as JSON holds it, to a tenth of a pixel."""
        rows = []
        for char in self.chars:
            box = [round(value, 1) for value in (char.x, char.y, char.w, char.h)]
            rows.append([char.text, *box, char.line])
        place = None if self.place is None else list(self.place)
        return {"size": list(self.size), "place": place, "chars": rows}

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Layout":
        """Return a layout from its JSON."""
        height, width = plain["size"]
        chars = [Char(*row) for row in plain["chars"]]
        if not plain["place"]:
            return Layout(chars, (height, width))
        left, top, right, bottom = plain["place"]
        return Layout(chars, (height, width), (left, top, right, bottom))

    def shows(self, text: str) -> bool:
        """Return whether the text stands on the picture, at least half right."""
        return self.rightness(text) >= 0.5

    def rightness(self, text: str) -> float:
        """Return R_text of the picture's characters, 0 to 1."""
        return layout_ocr_reward(self.chars, text).text

    def places(self, text: str) -> tuple[list[Char], list[Char]]:
        """Return the characters of the text, and all others."""
        known = folded(self.chars, case=True, space=True)
        places = [char for char in locate(known, plainly(text)) if char is not None]
        return places, [char for char in known if char not in places]

    def region(self, text: str, size: tuple[int, int]) -> Region | None:
        """Return the part of an image in which to look for the text: two character heights around its place.

        Args:
            text: The text.
            size: (height, width) of the image.

        Returns:
            None where the layout does not show the text, or where that part is most of the image.
        """
        height, width = size
        y = height / self.size[0]
        x = width / self.size[1]
        if self.place is not None:
            left, top, right, bottom = self.place
            return round(left * x), round(top * y), round(right * x), round(bottom * y)
        places, _ = self.places(text)
        if not places:
            return None

        # Around the characters, in whole steps of the detector's grid.
        margin = max(char.h for char in places)
        box = enclosing(grow(places))
        left, right = whole_steps((box[0] - margin) * x, (box[2] + margin) * x, width)
        top, bottom = whole_steps((box[1] - margin) * y, (box[3] + margin) * y, height)
        empty = right <= left or bottom <= top
        if empty or (right - left) * (bottom - top) >= WORTH * height * width:
            return None
        return left, top, right, bottom

    def closer(self, region: Region, chars: Sequence[Char]) -> "Layout":
        """Return the layout with the characters of a part replaced by those that were read close up.

        Args:
            region: The part.
            chars: The characters that were read there, in the picture's pixels.
        """
        left, top, right, bottom = region
        far = []
        for char in self.chars:
            x, y = char.centre
            if not (left <= x <= right and top <= y <= bottom):
                far.append(char)

        # Lines that were read close up are numbered after the others.
        first = 1 + max((char.line or 0 for char in far), default=0)
        near = [replace(char, line=first + (char.line or 0)) for char in chars]
        return Layout([*far, *near], self.size, region)


def read_layouts(read: Reader, images: Sequence[Picture], texts: Sequence[str]) -> list[Layout | str]:
    """Return the layouts of reference pictures; for one that could not be read, the reason.

    The text's own place is read close up too, as it is on the images that are compared with it: the surroundings of a
    line move its box by a pixel or two.

    Args:
        read: Return the readings of images.
        images: (n) reference pictures.
        texts: (n) the text of each.
    """
    # The whole pictures, and the place of the text on each.
    layouts: list[Layout | str] = []
    regions: dict[int, Region] = {}
    for i, (reading, image, text) in enumerate(zip(read(images), images, texts, strict=True)):
        if isinstance(reading, str):
            layouts.append(reading)
            continue
        layout = Layout(reading, (image.shape[0], image.shape[1]))
        layouts.append(layout)
        region = layout.region(text, layout.size)
        if region is not None:
            regions[i] = region
    if not regions:
        return layouts

    # Close up, where that does not lose the text.
    readings = read([cut(images[i], region) for i, region in regions.items()])
    for (i, region), reading in zip(regions.items(), readings):
        whole = layouts[i]
        if isinstance(whole, str) or isinstance(reading, str):
            continue
        closer = whole.closer(region, moved(reading, region))
        if closer.rightness(texts[i]) >= whole.rightness(texts[i]):
            layouts[i] = closer
    return layouts


def reference_layout(
    layouts: "Layouts", read: Reader, target: Picture | None, source: Picture | None, text: str, replaced: str | None
) -> Layout | None:
    """Return the layout that a text should have: that on the target, else that of the words it replaces on the source.

    Args:
        layouts: Layouts that were read already.
        read: Return the readings of images.
        target: Picture that should show the text; None without one.
        source: Picture that the edit starts from; None without one.
        text: The text.
        replaced: Words of the source that it takes the place of.

    Returns:
        None when neither picture shows the words, or neither can be read.
    """
    layout = None if target is None else layouts.of(target, text, read)
    shown = layout is not None and layout.shows(text)
    if shown or not replaced or source is None:
        return layout
    before = layouts.of(source, replaced, read)
    chars = None if before is None else replaced_layout(before.chars, replaced, text)
    if not chars:
        return None
    return Layout(chars, (source.shape[0], source.shape[1]))


def replaced_layout(source: Sequence[Char], replaced: str, text: str) -> list[Char] | None:
    """Return the layout of a text that takes the place of other words: equal cells, on as many lines as those had.

    Args:
        source: Characters on the source picture.
        replaced: The words.
        text: The text.

    Returns:
        None when the source does not show the words.
    """
    found = locate(folded(source, case=True, space=True), plainly(replaced))
    places = [char for char in found if char is not None]
    if not places:
        return None
    return in_place_of(lines(places), text)


def enclosing(boxes: Sequence[Box]) -> Box:
    """Return the box around boxes."""
    left, top, right, bottom = zip(*boxes)
    return min(left), min(top), max(right), max(bottom)


def whole_steps(low: float, high: float, most: int, step: int = 32) -> tuple[int, int]:
    """Return the span of whole steps of the detector's grid around (low, high), inside of (0, most)."""
    first = math.floor(low / step) * step
    last = math.ceil(high / step) * step
    return max(0, first), min(most, last)


def cut(image: Picture, region: Region | None) -> Picture:
    """Return a part of an image (H, W, 3); all of it for None."""
    if region is None:
        return image
    left, top, right, bottom = region
    return image[top:bottom, left:right]


def moved(chars: Sequence[Char], region: Region | None) -> list[Char]:
    """Return characters that were read on a part of an image in the image's pixels."""
    if region is None:
        return list(chars)
    return [replace(c, x=c.x + region[0], y=c.y + region[1]) for c in chars]


class Layouts:
    """Layouts of reference pictures by content and text: the edits of a group share one, an epoch returns to it."""

    def __init__(self, most: int = 4096) -> None:
        self.most = most
        self.read = 0  # layouts that were not known
        self._known: OrderedDict[bytes, Layout] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, image: Picture, text: str, reader: Reader) -> Layout | None:
        """Return a picture's layout; None when it cannot be read, which is tried again next time.

        Args:
            image: The picture.
            text: The text that is read close up.
            reader: Return the readings of images.
        """
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
