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
from firered_lit.mine.request import MiningRequest, ShownCandidate
from firered_lit.models.codec import to_pixels

from . import images, tables
from .galleries import gallery
from .images import MAX_PIXELS
from .parquet import Embedded
from .records import Record, Refusal, rows
from .refusals import Refuse, guarded

Wanted = Callable[[int], bool]
T = TypeVar("T")
SHOWN = 5  # names of pictures without a request that a message lists
COLUMNS = {"original/en": "instruction", "original/cn": "instruction_cn"}


class RequestTable:
    """A table of requests of any layout (see `datamodules.sources.layouts`), by the number of their row.

    Inverse instructions are not used.

    Args:
        source: The table.
        layout: Its layout, when the columns do not tell.
        allow_urls: Fetch images that are http(s) addresses.
        max_pixels: Pixels of an image, at most.
    """

    def __init__(self, source: str, layout: str = "", allow_urls: bool = False, max_pixels: int = MAX_PIXELS) -> None:
        self.source = source
        self.layout = layout
        self.allow_urls = allow_urls
        self.max_pixels = max_pixels
        self.count, self.digest = tables.survey(source)

    def made_from(self) -> dict[str, Any]:
        """Return the facts that name the requests: another of them makes another folder."""
        return {"source": self.digest, "layout": self.layout}

    def __len__(self) -> int:
        return self.count

    def records(self, wanted: Wanted) -> Iterator[tuple[int, Record | Refusal]]:
        """Yield the wanted rows, with their numbers."""
        table = rows(self.source, inverse=False, layout=self.layout, wanted=wanted)
        for number, row in enumerate(table):
            if wanted(number):
                yield number, row if isinstance(row, Refusal) else row[0]

    def sources(self, record: Record) -> list[Image.Image]:
        """Return a record's source images. Raises Refuse when one cannot be used."""
        return [self.load(path, record.columns.source) for path in record.references]

    def load(self, path: str, field: str) -> Image.Image:
        """Return the image of a field. Raises Refuse when it cannot be used."""
        with images.refusing_field(field):
            return images.load(path, max_pixels=self.max_pixels, allow_urls=self.allow_urls)


class Requests(RequestTable):
    """Requests of a table, with their source images. Arguments: see `RequestTable`."""

    def items(self, wanted: Wanted) -> Iterator[tuple[int, tuple[dict[str, Any], list[Image.Image]]]]:
        """Yield (number, (line, source images)) of the wanted requests.

        The line of a request that cannot be used has `refused`.
        """
        for number, record in self.records(wanted):
            item = unless_refused(record, self._item)
            if isinstance(item, Refusal):
                yield number, (refused(number, item), [])
            else:
                yield number, item

    def _item(self, record: Record) -> tuple[dict[str, Any], list[Image.Image]]:
        """Return a request's line and its source images. Raises Refuse."""
        _in_files(record)
        return line_of(record), self.sources(record)


class Candidates(RequestTable):
    """Requests with the pictures that models made for them.

    The pictures of a model are a folder, in which those of a request are ID.png, ID_0.png, ID_1.png, ... (or .jpg,
    .webp), or a table of {id, image}, with a row for each picture. Either is listed once; the names are held in memory,
    and those that belong to no request are reported.

    Args:
        requests: Table of the requests.
        experts: Pictures that may win, by their model's name.
        base: Pictures that lose, by their model's name.
        layout: Layout of the table, when the columns do not tell.
        allow_urls: Fetch images that are http(s) addresses.
        max_pixels: Pixels of an image, at most.

    Raises:
        UserError: A model is in both, or there is none.
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
        twice = sorted(set(experts) & set(base))
        if twice:
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
        ids = set()
        for row in table:
            if not isinstance(row, Refusal) and row[0].id in possible:
                ids.add(row[0].id)
        for name, _, pictures in self.models:
            nobody = pictures.assign(ids)
            if nobody:
                more = ", ..." if len(nobody) > SHOWN else ""
                listed = ", ".join(nobody[:SHOWN])
                print(f"{name}: {len(nobody)} pictures belong to no request: {listed}{more}")

    def made_from(self) -> dict[str, Any]:
        """Return the facts that name the requests and their pictures."""
        models = {name: [expert, str(pictures)] for name, expert, pictures in self.models}
        return super().made_from() | {"models": models}

    def items(self, wanted: Wanted) -> Iterator[tuple[int, MiningRequest]]:
        """Yield the wanted requests, with their numbers; the line of one that cannot be used has `refused`."""
        for number, record in self.records(wanted):
            request = unless_refused(record, self._request)
            if isinstance(request, Refusal):
                request = MiningRequest(refused(number, request) | {"candidates": []}, ())
            yield number, request

    def _request(self, record: Record) -> MiningRequest:
        """Return a request with its candidates; those that cannot be used are noted in its line. Raises Refuse."""
        _in_files(record)
        line = line_of(record)
        sources = self.sources(record)
        target = self.load(record.target, record.columns.target) if record.target else None
        unusable: list[str] = []
        shown: list[ShownCandidate] = []
        for model, expert, pictures in self.models:
            for path in pictures.of(record.id):
                try:
                    picture = self.load(path, model)
                except Refuse as problem:
                    unusable.append(f"{problem.reason}: {problem.detail}")
                    continue
                # The target at the picture's size, which rewards compare it with.
                truth = None if target is None else target.resize(picture.size, Image.Resampling.LANCZOS)
                sample = sample_of(record, sources, truth)
                shown.append(ShownCandidate(model, expert, path, to_pixels(picture)[None], sample))
        if unusable:
            line["unusable"] = unusable
        return MiningRequest(line, tuple(shown))


def unless_refused(record: Record | Refusal, work: Callable[[Record], T]) -> T | Refusal:
    """Return what the work on a record returns, or the row's refusal."""
    if isinstance(record, Refusal):
        return record
    return guarded(partial(work, record), record.where)


def line_of(record: Record) -> dict[str, Any]:
    """Return the line of a manifest about a request. Its images are absolute paths or URLs."""
    line: dict[str, Any] = {
        "id": record.id,
        "task": record.task,
        "source_image": [_absolute(path) for path in record.references],
    }
    for key, column in COLUMNS.items():
        if key in record.instructions:
            line[column] = record.instructions[key]
    return line | record.facts().columns()


def _in_files(record: Record) -> None:
    """Refuse a record whose images are no files."""
    if any(isinstance(path, Embedded) for path in record.references):
        detail = "its images lie in the table; mining names files, so write them out first"
        raise Refuse(record.columns.source, "image in the table", detail)


def refused(number: int, refusal: Refusal) -> dict[str, Any]:
    """Return the line of a row that cannot be used."""
    return {"id": f"row {number}", "source_image": [], "refused": str(refusal)}


def sample_of(record: Record, sources: list[Image.Image], target: Image.Image | None) -> EditBatch:
    """Return a request as rewards see it: no latents, its words and pictures.

    Args:
        record: The request.
        sources: Its source images.
        target: The true edit, where there is one.
    """
    instruction = next((record.instructions[key] for key in COLUMNS if key in record.instructions), "")
    if not instruction:
        instruction = next(iter(record.instructions.values()))
    return EditBatch(
        target=torch.zeros(1, 16, 0, 0),
        condition=Condition(Text(torch.zeros(1, 0, 0), None), ()),
        facts=(record.facts(instruction),),
        step=0,
        slots=(0,),
        num_slots=1,
        known=target is not None,
        pixels=None if target is None else _batched(target),
        sources=tuple(_batched(source) for source in sources),
    )


def _batched(image: Image.Image) -> Tensor:
    """Return an image as (1, 3, H, W) in [-1, 1]."""
    return to_pixels(image)[None]


def _absolute(path: str) -> str:
    """Return a path as an absolute one; an address, or an image in a table, as it is."""
    if images.URL.match(path) or isinstance(path, Embedded):
        return path
    return os.path.abspath(path)
