"""Raw data for the corpus engine: rows of every layout that `prepare` reads, or a folder of pictures."""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from firered_lit.curation.rows import TARGET, Header, Kind, Picture, RawRow, UnusablePictureError, Wanted
from firered_lit.errors import UserError
from firered_lit.files import replacing
from firered_lit.textfiles import read_text

from . import images, tables
from .images import MAX_PIXELS
from .layouts import Columns, own_names
from .parquet import Embedded
from .picture_folders import PICTURES
from .records import Record, Refusal, Written, named_images, rows_as_written
from .source import Source

SOURCE, LOSER = "source", "loser"
LICENSES = ("license", "licence")
SOURCES = ("source", "dataset")
LONGEST_CAPTION = 1 << 16  # bytes
LONGEST_COMMENT = 1 << 14  # characters of a text in a file's header
COMMENTS = (ExifTags.Base.Software, ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Artist)
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}


class RawRows:
    """The rows of a source.

    Args:
        source: A table (JSONL, JSON, CSV, Parquet), a folder of tables or of one folder per task, or a folder of
            pictures: each is then a text-to-image row, with the text that lies beside it under the same name as
            `.txt`, if there is one.
        layout: Of the rows, when their columns do not tell; see `datamodules.sources.layouts`.
        allow_urls: Fetch pictures that are http(s) addresses.
        max_pixels: Of a picture; a larger one is refused before it is decoded.
        columns: What the rows call source, target, instruction, ..., where no layout has their names.
        target: A folder of pictures, in place of a source (""); see `datamodules.sources.source`.
        control: The folder of their sources.
        control_2: The folder of second sources.
        control_3: The folder of third sources.
        captions: Where the instructions are, when that is not the folder of targets.
    """

    def __init__(
        self,
        source: str,
        layout: str = "",
        allow_urls: bool = False,
        max_pixels: int = MAX_PIXELS,
        columns: dict[str, Any] | None = None,
        target: str = "",
        control: str = "",
        control_2: str = "",
        control_3: str = "",
        captions: str = "",
    ) -> None:
        self.source = source
        self.given = Source(os.fspath(source), layout, columns or {}, target, control, control_2, control_3, captions)
        self.allow_urls = allow_urls
        self.max_pixels = max_pixels

    @cached_property
    def _loose(self) -> list[str]:
        """Return the pictures of a folder, relative to it, in a fixed order; none where it has tables."""
        folder = Path(self.source)
        if not self.source or not folder.is_dir():
            return []
        try:
            tables.files(self.given)
        except UserError:
            if any(path.suffix in tables.ENDINGS for path in (*folder.glob("*.*"), *folder.glob("*/*.*"))):
                return []  # there are tables, and something is wrong with them
            found = [path for path in folder.rglob("*") if path.suffix.lower() in PICTURES and path.is_file()]
            return sorted(str(path.relative_to(folder)) for path in found)
        return []

    @cached_property
    def _survey(self) -> tuple[int, str]:
        if not self._loose:
            return tables.survey(self.given)
        digest = hashlib.blake2b(digest_size=12)
        for name in self._loose:
            digest.update(json.dumps([name, Path(self.source, name).stat().st_size]).encode())
        return len(self._loose), digest.hexdigest()

    @property
    def digest(self) -> str:
        """A hash of what the rows are made from."""
        columns = json.dumps(self.given.given_columns, sort_keys=True) if self.given.given_columns else ""
        return " ".join(filter(None, [self._survey[1], self.given.layout, columns]))

    def __len__(self) -> int:
        return self._survey[0]

    def rows(self, wanted: Wanted) -> Iterator[RawRow]:
        """Yield the wanted rows in order."""
        if self._loose:
            for number, name in enumerate(self._loose):
                if wanted(number):
                    yield self._loose_row(number, name)
            return
        found = rows_as_written(self.given, inverse=False, wanted=wanted)
        for number, (written, records) in enumerate(found):
            if wanted(number):
                yield _row(number, written, records)

    def open(self, path: str, role: str) -> Picture:
        """Decode a picture.

        Raises:
            UnusablePictureError: It cannot be read.
        """
        try:
            file = images.read(path, self.allow_urls)
            original, upright = images.decode(io.BytesIO(file), path, self.max_pixels)
        except images.BadImageError as problem:
            raise UnusablePictureError(problem.reason, problem.detail) from None
        return Picture(np.asarray(upright), file, header_of(original), role, path)

    def line(self, row: RawRow, folder: Path) -> dict[str, Any]:
        """Return a row as it was, with pictures by absolute paths, and with its id, task, source and licence.

        Args:
            row: The row.
            folder: Where the table lies that it goes to; pictures that lay in a table are written to `pictures/`
                below it.
        """
        line = {name: value for name, value in row.content.items() if name != _WRITTEN}
        written = row.content.get(_WRITTEN)
        if written is not None:
            place, columns = written
            for name, value in line.items():
                if _names_pictures(name, columns):
                    line[name] = _absolute(value, place, folder, row.number)
            line = own_names(line, columns)
        for name in ("id", "task", "source", "license", "category"):
            value = getattr(row, name)
            if value and line.get(name) is None:
                line[name] = value
        return line

    def _loose_row(self, number: int, name: str) -> RawRow:
        path = Path(self.source, name)
        caption = path.with_suffix(".txt")
        try:
            text = read_text(caption, LONGEST_CAPTION, "utf-8-sig").strip() if caption.exists() else ""
        except (OSError, UnicodeDecodeError) as problem:
            source, where = self._set_of(name), str(path)
            return RawRow(number, name, source, where, refusal="unreadable caption", detail=f"{caption}: {problem}")
        content = {"source_image": None, "target_image": os.path.abspath(path), "instruction": text}
        return RawRow(
            number=number,
            id=name,
            source=self._set_of(name),
            where=str(path),
            kind="text-to-image",
            task="text-to-image",
            pictures=((TARGET, str(path)),),
            texts={"original/en": text} if text else {},
            content=content,
        )

    def _set_of(self, name: str) -> str:
        first, _, rest = name.partition(os.sep)
        return first if rest else Path(self.source).resolve().name


_WRITTEN = "\0written"  # of a row's content: where its paths lead, and its layout


def header_of(image: Image.Image) -> Header:
    """Return what an opened image's file says beside its pixels."""
    comments: dict[str, str] = {}
    for name, value in image.info.items():
        text = _text(value)
        if text and isinstance(name, str):
            comments[name] = text[:LONGEST_COMMENT]
    exif = image.getexif()
    for tag in COMMENTS:
        if text := _text(exif.get(tag)):
            comments[f"exif {tag.name}"] = text[:LONGEST_COMMENT]
    if text := _text(exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment)):
        comments["exif UserComment"] = text[:LONGEST_COMMENT]
    tables_of = getattr(image, "quantization", None) or {}
    first = tables_of.get(0)
    quantization = (float(min(first)), float(np.mean(first))) if first else (0.0, 0.0)
    orientation = exif.get(images.ORIENTATION, 1)
    known = isinstance(orientation, int) and orientation in range(1, 9)
    return Header(image.format or "", orientation if known else 1, comments, quantization)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "ignore").replace("\0", "")
    return str(value) if isinstance(value, str) else ""


def _row(number: int, written: Written, records: list[Record] | Refusal) -> RawRow:
    source = _first(written.columns, SOURCES) or written.place.relative
    if source == ".":
        source = Path(written.where.rpartition(":")[0]).stem or written.place.task
    license_name = _first(written.columns, LICENSES)
    category = _first(written.columns, ("category",))
    if isinstance(records, Refusal):
        where = written.where
        detail = f"{records.field}: {records.detail}"
        return RawRow(
            number=number,
            id=where,
            source=source,
            where=where,
            license=license_name,
            category=category,
            refusal=records.reason,
            detail=detail,
        )
    first = records[0]
    pictures = dict.fromkeys(picture for record in records for picture in _pictures(record))
    return RawRow(
        number=number,
        id=first.id.removesuffix(".0") if len(records) > 1 else first.id,
        source=source,
        where=written.where,
        kind=_kind(first),
        task=first.task,
        pictures=tuple(pictures),
        texts=first.instructions,
        content={**written.columns, _WRITTEN: (written.place, first.columns)},
        license=license_name,
        category=category,
    )


def _pictures(record: Record) -> Iterator[tuple[str, str]]:
    """Yield (role, path) of a record's pictures, the target first."""
    named = list(named_images(record))
    count = len(record.references)
    roles = [TARGET, LOSER] if record.target else []
    yield from ((role, path) for role, (_, path) in zip(roles, named[count:]))
    yield from ((SOURCE, path) for _, path in named[:count])


def _kind(record: Record) -> Kind:
    if not record.target:
        return "prompt"
    return "edit" if record.references else "text-to-image"


def _first(columns: Mapping[str, Any], names: tuple[str, ...]) -> str:
    """Return the first of some columns that holds text."""
    texts = (columns.get(name) for name in names)
    return next((text.strip() for text in texts if isinstance(text, str) and text.strip()), "")


def _names_pictures(name: str, columns: Columns) -> bool:
    stem, _, number = name.rpartition("_")
    numbered = stem == columns.source and number.isdecimal()
    return numbered or name in (*columns.images, columns.mask, *columns.other)


def _absolute(value: Any, place: Any, folder: Path, number: int) -> Any:
    """Return a path, or a list of them, that leads to the pictures from anywhere."""
    if isinstance(value, list):
        return [_absolute(item, place, folder, number) for item in value]
    if isinstance(value, Embedded):
        return str(_written_out(value, folder, number))
    if not isinstance(value, str) or images.URL.match(value):
        return value
    return os.path.abspath(place.open(value))


def _written_out(picture: Embedded, folder: Path, number: int) -> Path:
    """Write a picture that lies in a table as a file, under a name that is its own, and return that."""
    name = hashlib.blake2b(picture.data, digest_size=8).hexdigest()
    with Image.open(io.BytesIO(picture.data), formats=images.FORMATS) as image:
        ending = ENDINGS.get(image.format or "", ".img")
    path = folder / "pictures" / f"{number // 1000:05d}" / f"{number:08d}-{name}{ending}"
    if not path.exists():
        with replacing(path, "wb") as file:
            file.write(picture.data)
    return path
