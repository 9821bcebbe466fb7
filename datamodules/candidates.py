"""Requests of a table, with the pictures that several models made for them: `Candidates`. Without: `Requests`."""

import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from PIL import Image
from torch import Tensor

from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.errors import UserError
from firered_lit.mine.request import Request, Shown
from firered_lit.models.codec import to_pixels

from . import images, tables
from .galleries import gallery
from .images import MAX_PIXELS
from .parquet import Embedded
from .records import Record, Refusal, rows
from .refusals import Refuse, guarded

Wanted = Callable[[int], bool]
T = TypeVar("T")
SHOWN = 5  # pictures of nobody that are named
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
            item = unless_refused(record, self._item)
            if isinstance(item, Refusal):
                item = (refused(number, item), [])
            yield number, item

    def _item(self, record: Record) -> tuple[dict[str, Any], list[Image.Image]]:
        """Return a request's line and its source images. Raises Refuse."""
        _in_files(record)
        return line_of(record), self.sources(record)

    def sources(self, record: Record) -> list[Image.Image]:
        """Return a record's source images. Raises Refuse when one cannot be used."""
        return [self.load(path, record.columns.source) for path in record.references]

    def load(self, path: str, field: str) -> Image.Image:
        """Return the image of a field. Raises Refuse when it cannot be used."""
        with images.refusing_field(field):
            return images.load(path, max_pixels=self.max_pixels, allow_urls=self.allow_urls)


class Candidates(Requests):
    """Requests with candidate pictures.

    requests: their table. experts, base: by a model's name, its pictures: a folder, in which those of a request are
    ID.png, ID_0.png, ID_1.png, ... (or .jpg, .webp), or a table of {id, image}, as many rows a request as there are
    pictures. Either is listed once; the names are held in memory, and those that belong to no request are reported.
    Pictures of `experts` may win, those of `base` lose.
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
        self.models = [(name, True, gallery(path)) for name, path in experts.items()]
        self.models += [(name, False, gallery(path)) for name, path in base.items()]
        self._assign()

    def _assign(self) -> None:
        """Give every picture to its request, and report those that belong to none."""
        possible = set().union(*(pictures.possible() for _, _, pictures in self.models))
        table = rows(self.source, inverse=False, layout=self.layout, wanted=lambda number: False)
        ids = {row[0].id for row in table if not isinstance(row, Refusal) and row[0].id in possible}
        for name, _, pictures in self.models:
            nobody = pictures.assign(ids)
            if nobody:
                more = ", ..." if len(nobody) > SHOWN else ""
                listed = ", ".join(nobody[:SHOWN])
                print(f"{name}: {len(nobody)} pictures belong to no request: {listed}{more}")

    def made_from(self) -> dict[str, Any]:
        models = {name: [expert, str(pictures)] for name, expert, pictures in self.models}
        return super().made_from() | {"models": models}

    def items(self, wanted: Wanted) -> Iterator[tuple[int, Request]]:
        for number, record in self.records(wanted):
            request = unless_refused(record, self._request)
            if isinstance(request, Refusal):
                request = Request(refused(number, request) | {"candidates": []}, ())
            yield number, request

    def _request(self, record: Record) -> Request:
        """Return a request with its candidates; those that cannot be used are noted in its line. Raises Refuse."""
        _in_files(record)
        line = line_of(record)
        sources = self.sources(record)
        target = self.load(record.target, record.columns.target) if record.target else None
        unusable: list[str] = []
        shown: list[Shown] = []
        for model, expert, pictures in self.models:
            for path in pictures.of(record.id):
                try:
                    picture = self.load(path, model)
                except Refuse as problem:
                    unusable.append(f"{problem.reason}: {problem.detail}")
                    continue
                like = target and target.resize(picture.size, Image.Resampling.LANCZOS)
                sample = sample_of(record, sources, like)
                shown.append(Shown(model, expert, path, to_pixels(picture)[None], sample))
        if unusable:
            line["unusable"] = unusable
        return Request(line, tuple(shown))


def unless_refused(record: Record | Refusal, work: Callable[[Record], T]) -> T | Refusal:
    """Return what the work on a record returns, or the row's refusal."""
    if isinstance(record, Refusal):
        return record
    return guarded(partial(work, record), record.where)


def line_of(record: Record) -> dict[str, Any]:
    """Return the line of a manifest about a request. Its images are absolute paths or URLs."""
    line = {"id": record.id, "task": record.task, "source_image": [_absolute(path) for path in record.references]}
    line |= {column: record.instructions[key] for key, column in COLUMNS.items() if key in record.instructions}
    more = ("target_text", "replaced_text", "requirement", "cluster")
    return line | {name: getattr(record, name) for name in more if getattr(record, name)}


def _in_files(record: Record) -> None:
    """Refuse a record whose images are no files."""
    if any(isinstance(path, Embedded) for path in record.references):
        detail = "its images lie in the table; mining names files, so write them out first"
        raise Refuse(record.columns.source, "image in the table", detail)


def refused(number: int, refusal: Refusal) -> dict[str, Any]:
    """Return the line of a row that cannot be used."""
    return {"id": f"row {number}", "source_image": [], "refused": str(refusal)}


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
