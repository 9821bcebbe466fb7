"""Requests of a table, with the pictures that several models made for them: `Candidates`. Without: `Requests`."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.errors import UserError
from firered_lit.mine.request import Request, Shown
from firered_lit.models.codec import to_pixels
from firered_lit.places import user_path

from . import images, tables
from .images import MAX_PIXELS
from .parquet import Embedded
from .records import Record, Refusal, rows

Wanted = Callable[[int], bool]
COLUMNS = {"original/en": "instruction", "original/cn": "instruction_cn"}


class Requests:
    """The requests of a table of any layout (see `datamodules.layouts`), by the number of their row.

    inverse instructions are not used. allow_urls: fetch source images that are http(s) addresses.
    """

    def __init__(self, source: str, layout: str = "", allow_urls: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        self.source, self.layout, self.allow_urls, self.max_pixels = source, layout, allow_urls, max_pixels
        self.count, self.digest = tables.survey(source)

    def made_from(self) -> dict[str, Any]:
        return {"source": self.digest, "layout": self.layout}

    def __len__(self) -> int:
        return self.count

    def records(self, wanted: Wanted) -> Iterator[tuple[int, Record | Refusal]]:
        """The wanted rows, with their numbers."""
        table = rows(self.source, inverse=False, layout=self.layout, wanted=wanted)
        for number, row in enumerate(table):
            if wanted(number):
                yield number, row if isinstance(row, Refusal) else row[0]

    def items(self, wanted: Wanted) -> Iterator[tuple[int, tuple[dict[str, Any], list[Image.Image]]]]:
        """(number, (line, source images)) of the wanted requests; the line of one that cannot be used has `refused`."""
        for number, record in self.records(wanted):
            try:
                yield number, (line_of(_usable(record)), self.sources(_usable(record)))
            except (UserError, images.BadImageError) as problem:
                yield number, (refused(number, problem), [])

    def sources(self, record: Record) -> list[Image.Image]:
        """A record's source images. BadImageError when one cannot be used."""
        return [self.load(path) for path in record.references]

    def load(self, path: str) -> Image.Image:
        return images.load(path, max_pixels=self.max_pixels, allow_urls=self.allow_urls)


class Candidates(Requests):
    """Requests with candidate pictures.

    requests: their table. experts, base: by a model's name, its pictures: a folder, in which those of a request are
    ID.png, ID_0.png, ID_1.png, ... (or .jpg, .webp), or a table of {id, image}, as many rows a request as there are
    pictures, whose names are held in memory. Pictures of `experts` may win, those of `base` lose.
    """

    def __init__(
        self,
        requests: str,
        experts: Mapping[str, str],
        base: Mapping[str, str],
        layout: str = "",
        allow_urls: bool = False,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__(requests, layout, allow_urls, max_pixels)
        if twice := sorted(set(experts) & set(base)):
            raise UserError(f"task.candidates: {twice[0]} stands in experts and in base; a model is one of them")
        if not experts and not base:
            raise UserError("task.candidates: name the models' pictures in experts and base")
        self.models = [(name, True, _gallery(path)) for name, path in experts.items()]
        self.models += [(name, False, _gallery(path)) for name, path in base.items()]

    def made_from(self) -> dict[str, Any]:
        models = {name: [expert, str(gallery)] for name, expert, gallery in self.models}
        return super().made_from() | {"models": models}

    def items(self, wanted: Wanted) -> Iterator[tuple[int, Request]]:
        for number, record in self.records(wanted):
            try:
                yield number, self._request(_usable(record))
            except (UserError, images.BadImageError) as problem:
                yield number, Request(refused(number, problem) | {"candidates": []}, ())

    def _request(self, record: Record) -> Request:
        line, unusable, shown = line_of(record), [], []
        sources = self.sources(record)
        target = self.load(record.target) if record.target else None
        for model, expert, gallery in self.models:
            for path in gallery.of(record.id):
                try:
                    picture = self.load(path)
                except images.BadImageError as problem:
                    unusable.append(str(problem))
                    continue
                sample = sample_of(record, sources, target and target.resize(picture.size, Image.Resampling.LANCZOS))
                shown.append(Shown(model, expert, path, to_pixels(picture)[None], sample))
        return Request(line | ({"unusable": unusable} if unusable else {}), tuple(shown))


def line_of(record: Record) -> dict[str, Any]:
    """What a manifest says of a request. Its images are absolute paths or URLs."""
    line = {"id": record.id, "task": record.task, "source_image": [_absolute(path) for path in record.references]}
    line |= {column: record.instructions[key] for key, column in COLUMNS.items() if key in record.instructions}
    more = ("target_text", "replaced_text", "requirement", "cluster")
    return line | {name: getattr(record, name) for name in more if getattr(record, name)}


def _usable(record: Record | Refusal) -> Record:
    """The record of a row. UserError when it has none, or when its images are no files."""
    if isinstance(record, Refusal):
        raise UserError(str(record))
    if any(isinstance(path, Embedded) for path in record.references):
        raise UserError(f"{record.where}: its images lie in the table; mining names files, so write them out first")
    return record


def refused(number: int, problem: Exception) -> dict[str, Any]:
    """The line of a row that cannot be used."""
    return {"id": f"row {number}", "source_image": [], "refused": " ".join(str(problem).split())}


def sample_of(record: Record, sources: list[Image.Image], target: Image.Image | None) -> EditBatch:
    """A request as rewards see it: no latents, its words and pictures."""
    shown = next((record.instructions[key] for key in COLUMNS if key in record.instructions), "")
    shown = shown or next(iter(record.instructions.values()))
    return EditBatch(
        torch.zeros(1, 16, 0, 0), Condition(Text(torch.zeros(1, 0, 0), None), ()), (record.id,), 0, (0,), 1,
        tasks=(record.task,), instructions=(shown,), target_texts=(record.target_text or None,),
        replaced_texts=(record.replaced_text or None,), requirements=(record.requirement or None,),
        known=target is not None,
        pixels=None if target is None else _batched(target), sources=tuple(map(_batched, sources)),
    )  # fmt: skip


def _batched(image: Image.Image) -> Tensor:
    return to_pixels(image)[None]


def _absolute(path: str) -> str:
    return path if images.URL.match(path) or isinstance(path, Embedded) else os.path.abspath(path)


class _Folder:
    """Pictures named by their request."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return f"folder {self.path.name}"

    def of(self, name: str) -> list[str]:
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise UserError(f"the id {name!r} is no file name; list {self.path}'s pictures in a table of id and image")
        found = [*self._named(name)]
        number = 0
        while some := self._named(f"{name}_{number}"):
            found += some
            number += 1
        return found

    def _named(self, stem: str) -> list[str]:
        there = (self.path / f"{stem}{ending}" for ending in tables.PICTURES)
        return [str(path.resolve()) for path in there if path.is_file()]


class _Table:
    """Pictures listed by a table of {id, image}."""

    def __init__(self, path: Path) -> None:
        self.path, self.images = path, dict[str, list[str]]()
        digest = hashlib.blake2b(digest_size=8)
        for where, row in tables.rows(path):
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("id", "image")):
                raise UserError(f"{where}: a list of candidates has the columns id and image, both text")
            place = row["image"] if images.URL.match(row["image"]) else str((path.parent / row["image"]).resolve())
            self.images.setdefault(row["id"], []).append(place)
            digest.update(json.dumps([row["id"], row["image"]]).encode())
        self.digest = digest.hexdigest()

    def __str__(self) -> str:
        return f"table {self.digest}"

    def of(self, name: str) -> list[str]:
        return self.images.get(name, [])


def _gallery(name: str) -> _Folder | _Table:
    path = user_path(name)
    if path.is_dir():
        return _Folder(path)
    if not path.is_file() or not tables.kind_of(path):
        raise UserError(f"task.candidates: {name}: neither a folder of pictures nor a table of id and image")
    return _Table(path)
