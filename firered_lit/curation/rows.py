"""A row of a raw data set, the pictures that it names, and what gives them: readers are handed in by recipes."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (height, width, 3) RGB, or (height, width) grey
Kind = Literal["text-to-image", "edit", "prompt", ""]
Wanted = Callable[[int], bool]  # whether a row will be looked at, by its number

TARGET = "target"
SMALL_SIDE = 512  # px of the longer side of `Picture.small`


class UnusablePictureError(Exception):
    """A picture that cannot be used.

    Args:
        reason: The category, for counting.
        detail: One line for whoever mends it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class RawRow:
    """A row as it was read.

    Args:
        number: Its place in the whole source, from 0.
        id: Unique in the source; of a refused row, where it stands.
        source: The data set that it comes from, as the row or its folder names it.
        where: File and line.
        kind: "" for a refused row.
        task: As `prepare` names it.
        pictures: (role, path): the target first, if there is one, then the references, "source" each.
        texts: By "kind/language", as "original/en".
        license: As the row says; "" when it does not.
        category: As the row says; "" when it does not.
        refusal: Why the row cannot be used; "" when it can.
        detail: The same for whoever mends it.
        content: All columns, for what is written at the end.
    """

    number: int
    id: str
    source: str
    where: str
    kind: Kind = ""
    task: str = ""
    pictures: tuple[tuple[str, str], ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    license: str = ""
    category: str = ""
    refusal: str = ""
    detail: str = ""
    content: Mapping[str, Any] = field(default_factory=dict)

    @property
    def instruction(self) -> str:
        """The first text, which is the original one where there is one."""
        return next(iter(self.texts.values()), "")


@dataclass(frozen=True)
class Header:
    """Facts of a picture's file beside its pixels.

    Args:
        format: As Pillow names it.
        orientation: The EXIF tag; 1 is upright.
        comments: Texts by name, from PNG chunks, EXIF and XMP.
        quantization: The smallest and the mean entry of a JPEG's luminance table; (0, 0) without one.
    """

    format: str = ""
    orientation: int = 1
    comments: Mapping[str, str] = field(default_factory=dict)
    quantization: tuple[float, float] = (0.0, 0.0)


@dataclass
class Picture:
    """A decoded picture. Smaller and grey views of it are made once, whoever asks for them first.

    Args:
        pixels: (height, width, 3) RGB, upright.
        file: The bytes that it was decoded from.
        header: What the file says beside its pixels.
        role: "target" or "source".
        path: Its name, for messages.
    """

    pixels: Pixels
    file: bytes = b""
    header: Header = field(default_factory=Header)
    role: str = TARGET
    path: str = ""

    @cached_property
    def grey(self) -> Pixels:
        """Luminance (height, width)."""
        import cv2

        return np.asarray(cv2.cvtColor(self.pixels, cv2.COLOR_RGB2GRAY))

    @cached_property
    def small(self) -> Pixels:
        """The picture with a longer side of at most 512 px: measures then mean the same for all sizes."""
        return shrunk(self.pixels, SMALL_SIDE)

    @cached_property
    def small_grey(self) -> Pixels:
        """Luminance of `small`."""
        import cv2

        return np.asarray(cv2.cvtColor(self.small, cv2.COLOR_RGB2GRAY))


def shrunk(pixels: Pixels, longest: int) -> Pixels:
    """Return pixels with a longer side of at most `longest`, by areas; smaller ones stay as they are."""
    import cv2

    height, width = pixels.shape[:2]
    scale = longest / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))


@dataclass(frozen=True)
class PicturePair:
    """An edit's first source and its target."""

    source: Picture
    target: Picture


def in_shards(rows: Iterable[RawRow], size: int) -> Iterator[tuple[int, list[RawRow]]]:
    """Yield (shard, its rows) of rows in their order, where a shard is so many numbers."""
    for shard, some in itertools.groupby(rows, lambda row: row.number // size):
        yield shard, list(some)


class RawTable(Protocol):
    """The rows of a raw data set. `datamodules.sources.raw.RawRows` reads every layout that `prepare` knows."""

    digest: str  # of what the rows are made from

    def __len__(self) -> int: ...

    def rows(self, wanted: Wanted) -> Iterator[RawRow]:
        """Yield the wanted rows in order, each with its number."""
        ...

    def open(self, path: str, role: str) -> Picture:
        """Decode a picture.

        Raises:
            UnusablePictureError: It cannot be read.
        """
        ...

    def line(self, row: RawRow, folder: Path) -> dict[str, Any]:
        """Return a row as a table in `folder` holds it, so that `prepare` reads it.

        Args:
            row: The row.
            folder: Where the table lies; pictures that have no file of their own are written below it.
        """
        ...
