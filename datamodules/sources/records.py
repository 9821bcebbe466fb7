"""Rows of the layouts that users have, as one kind of record. Only the text is opened; memory does not grow with it.

A layout is told by its columns (`datamodules.sources.layouts`) or named by `layout=`; what the rows lie in, by the
file's ending (`datamodules.sources.tables`), or a `datamodules.sources.source.Source`. FireRed's: `source_image` is a
path, a list of paths, or null (text-to-image); the target is `target_image` or `edit_image`; `instruction` (English)
and `instruction_cn`, one of them not empty; optionally
`inverse_instruction`, `inverse_instruction_cn`. Paths are relative to the file's folder. A folder is read as tasks: one
folder per task, which holds tables. Every layout has the optional columns `task`, `id`, `cluster`, `target_text`,
`width` and `height` of the target, `reference_captions` and `reference_captions_cn`, lists of what to say for a
reference that is dropped, `structured`, `instructive` and both with `_cn`, other kinds of caption, and `held_out`,
where that is not for `prepare` to draw; and regions, masks and texts for rewards, see docs/formats.md.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from firered_lit.facts import Facts

from . import tables
from .fields import Fields, captions_of, flag_of, number_of, path_of, size_of, text_of, texts_of
from .ids import Ids
from .images import URL
from .layouts import EDITS, KINDS, Columns, columns_of
from .parquet import Embedded, Wanted
from .picture_folders import PictureFolders
from .refusals import Refusal, Refuse, guarded
from .regions import Region, regions_of
from .source import Named, source_of

__all__ = ["Record", "Refusal", "Written", "named_images", "read", "rows", "rows_as_written"]


@dataclass(frozen=True)
class Record:
    """One edit: references and an instruction in, the target out. Image paths are ready to open."""

    id: str
    task: str
    target: str  # "" for a prompt of reinforcement learning
    references: tuple[str, ...]  # in the order in which the instruction counts them; empty: text-to-image
    instructions: dict[str, str]  # "kind/language" -> text: "original/en", "original/cn"
    where: str  # "file:line", of Parquet "file:row"
    held_out: bool | None = None  # as the row says it, if it does
    group: str = ""  # records of one group are held out together: their first image, relative to the data
    cluster: str = ""
    target_text: str = ""  # words that the target shows, for OCR
    loser: str = ""  # of a preference pair, whose winner is the target
    requirement: str = ""  # what a judge is told to look for
    replaced_text: str = ""  # words of the first source whose place `target_text` takes
    mask: str = ""  # what the edit may change is white or transparent in it
    regions: tuple[Region, ...] = ()  # of the target: what should keep its identity
    region_column: str = "regions"  # that named them
    size: tuple[int, int] = (0, 0)  # (height, width) of the target, as the row says it, if it does
    captions: tuple[dict[str, str], ...] = ()  # of every reference by language: what prompts say where it is dropped
    columns: Columns = EDITS  # that named the images

    def facts(self, instruction: str = "") -> Facts:
        """Return the facts of the edit.

        Args:
            instruction: The one of its instructions that is shown; empty where none is chosen yet.
        """
        return Facts(
            id=self.id,
            task=self.task,
            instruction=instruction,
            target_text=self.target_text,
            replaced_text=self.replaced_text,
            requirement=self.requirement,
            cluster=self.cluster,
        )


@dataclass(frozen=True)
class Written:
    """A row as its table has it.

    Args:
        columns: All of them; none of a row that could not be read.
        place: The folder that its paths lead from.
        where: "file:line", of Parquet "file:row".
    """

    columns: dict[str, Any]
    place: "Place"
    where: str


def rows(
    source: Named,
    *,
    inverse: bool = True,
    layout: str = "",
    wanted: Wanted = lambda number: True,
) -> Iterator[list[Record] | Refusal]:
    """Yield every row, in order: its records, or the refusal of the whole row. Memory holds a few rows.

    Its records are the edit and, when it has an inverse instruction and exactly one reference, the inverted edit, whose
    id ends in ".inverse"; of a row that lists several targets, or several losers, one for each, ".0", ".1", ...

    layout: which one, when the columns do not tell. wanted: by the row's number from 0, whether the images that lie in
    the table itself will be looked at. UserError when the source cannot be read at all.
    """
    for _, found in rows_as_written(source, inverse=inverse, layout=layout, wanted=wanted):
        yield found


def rows_as_written(
    source: Named,
    *,
    inverse: bool = True,
    layout: str = "",
    wanted: Wanted = lambda number: True,
) -> Iterator[tuple[Written, list[Record] | Refusal]]:
    """Yield every row as the table has it, with its records or the refusal of the whole row; see `rows`."""
    source = source_of(source, layout)
    found = tables.files(source)
    base = _base(source.path, found)
    seen = Ids()
    total = 0
    for table in found:
        place = Place(table.home, base, table.group) if isinstance(table, PictureFolders) else Place(table.parent, base)
        for where, row in tables.rows(table, partial(_later, wanted, total), source.image_columns):
            total += 1
            if isinstance(row, Refuse):
                yield Written({}, place, where), row.at(where)
                continue
            fields = Fields(row)
            work = partial(_admitted, fields, place, where, inverse, source.chosen, seen)
            yield Written(row, place, where), guarded(work, where, fields.last_asked)


def _base(path: str, found: list[tables.Table]) -> Path:
    """Return the folder from which images are named wherever the data lies."""
    if path and os.path.isdir(path):
        return Path(path)
    homes = [table.home if isinstance(table, PictureFolders) else table.parent for table in found]
    return homes[0] if len(homes) == 1 else Path(os.path.commonpath(homes))


def _admitted(
    row: Fields, place: "Place", where: str, inverse: bool, layout: str | tuple[Columns, ...], seen: Ids
) -> list[Record]:
    """Return a row's records, whose ids are new. Raises Refuse."""
    records = list(_records(row, place, where, inverse, layout))
    for record in records:
        if not seen.add(record.id):
            raise Refuse("id", "duplicate id", f"{record.id!r} stands in an earlier row too")
    return records


def _later(wanted: Wanted, first: int, number: int) -> bool:
    """Return whether a row is wanted, by its number in its table and that of the table's first row."""
    return wanted(first + number)


def read(source: Named, *, inverse: bool = True, layout: str = "") -> Iterator[Record | Refusal]:
    """Yield the records and refusals of `rows`, one by one."""
    for row in rows(source, inverse=inverse, layout=layout):
        if isinstance(row, Refusal):
            yield row
        else:
            yield from row


def named_images(record: Record) -> Iterator[tuple[str, str]]:
    """Yield (column, path) of every image: the references, the target, and of a pair the loser."""
    columns = record.columns
    many = len(record.references) > 1
    for number, path in enumerate(record.references):
        if columns.more:
            yield (columns.source, *columns.more)[number], path
        else:
            yield (f"{columns.source}[{number}]" if many else columns.source), path
    if record.target:
        yield columns.target, record.target
    if record.loser:
        yield columns.loser, record.loser


class Place:
    """The folder that a table's paths lead from, and its name wherever the data lies."""

    def __init__(self, folder: Path, base: Path, task: str = "") -> None:
        self.folder = str(folder)
        self.task = task or folder.resolve().name
        self.relative = str(folder.relative_to(base))

    def open(self, name: str) -> str:
        """Return an image as it is opened: a URL as it is, a path relative to the folder of its table."""
        return self._in(self.folder, name)

    def call(self, name: str) -> str:
        """Return the name of an image that does not depend on where the data lies."""
        return str(self._in(self.relative, name))

    @staticmethod
    def _in(folder: str, name: str) -> str:
        if URL.match(name):
            return name
        path = os.path.normpath(os.path.join(folder, name))
        return name.renamed(path) if isinstance(name, Embedded) else path


def _records(
    row: Fields, place: Place, where: str, inverse: bool, layout: str | tuple[Columns, ...]
) -> Iterator[Record]:
    """Yield the edits of a row and, where it asks for that, the inverted one."""
    columns = columns_of(row, layout)

    # Images.
    references = [path_of(name, value, many=True) for name, value in _sources(row, columns)]
    listed = [[path_of(*column) for column in edit] for edit in _edits(row, columns)]
    if not references and not columns.target:
        raise Refuse(columns.source, "no source", f"{columns.source} is empty; a prompt's first source gives its shape")
    sources = [place.open(name) for name in references]
    edits = [[place.open(name) for name in edit] for edit in listed]
    _once(columns, sources)
    for edit in edits:
        _different(columns, sources, edit)
    mask = row.get(columns.mask)

    # Texts.
    forward = texts_of(row, columns.texts)
    backward = texts_of(row, columns.inverse)
    if not forward:
        are = "are both" if len(columns.texts) > 1 else "is"
        raise Refuse(next(iter(columns.texts)), "empty instruction", f"{' and '.join(columns.texts)} {are} empty")
    task = text_of(row, columns.task) or text_of(row, "task") or place.task

    # What an edit and its inverse share.
    images = [*references, *dict.fromkeys(name for edit in listed for name in edit)]
    shared = Record(
        id=_identity(row, columns, task, [place.call(name) for name in images], forward),
        task=task,
        target="",
        references=(),
        instructions={},
        where=where,
        held_out=flag_of(row, "held_out"),
        group=_group(row, columns, place, images),
        cluster=text_of(row, "cluster"),
        mask="" if mask is None else place.open(path_of(columns.mask, mask)),
        columns=columns,
    )

    # The edits.
    regions, region_column = _regions(row)
    for number, edit in enumerate(edits):
        yield replace(
            shared,
            id=f"{shared.id}.{number}" if len(edits) > 1 else shared.id,
            target=edit[0] if edit else "",
            loser=edit[1] if len(edit) > 1 else "",
            references=tuple(sources),
            instructions=forward | texts_of(row, KINDS),
            size=size_of(row),
            captions=captions_of(row, len(references)),
            regions=regions,
            region_column=region_column,
            target_text=text_of(row, "target_text"),
            replaced_text=text_of(row, "replaced_text"),
            requirement=text_of(row, "requirement"),
        )

    # The edit back.
    if inverse and backward and len(references) == 1 and len(edits) == len(edits[0]) == 1:
        regions, region_column = _regions(row, "inverse_")
        yield replace(
            shared,
            id=f"{shared.id}.inverse",
            target=sources[0],
            references=tuple(edits[0]),
            instructions=backward,
            regions=regions,
            region_column=region_column,
        )


def _edits(row: dict[str, Any], columns: Columns) -> list[list[tuple[str, Any]]]:
    """Return (column, value) of the target and of the loser, if there is one; so for each of a list of them."""
    _preferred(row, columns)
    images = {name: row[name] for name in (columns.target, columns.loser) if name}
    listed = images.get(columns.listed)
    if not isinstance(listed, list):
        return [list(images.items())]
    if not listed:
        raise Refuse(columns.listed, "missing image", f"{columns.listed} is an empty list")
    return [list((images | {columns.listed: image}).items()) for image in listed]


def _preferred(row: dict[str, Any], columns: Columns) -> None:
    """Refuse a pair whose scores, where the row has them, do not say that its winner is the better one."""
    if columns.loser and flag_of(row, "tie_case"):
        raise Refuse("tie_case", "no preference", "a tie says nothing of which image is the better one")
    if not all(columns.scores):
        return
    winner, loser = (number_of(row, name) for name in columns.scores)
    if winner is not None and loser is not None and winner <= loser:
        detail = f"{winner} for {columns.target} is not above {loser} for {columns.loser}, which it is preferred to"
        raise Refuse(columns.scores[0], "no preference", detail)


def _regions(row: dict[str, Any], prefix: str = "") -> tuple[tuple[Region, ...], str]:
    """Return the regions of a row, or of its inverse, and the column that names them."""
    names = (f"{prefix}regions", f"{prefix}landmarks")
    column = next((name for name in names if row.get(name) is not None), "regions")
    return regions_of(row, prefix), column


def _sources(row: dict[str, Any], columns: Columns) -> list[tuple[str, Any]]:
    """Return (column, value) of every reference: a path, a list, or numbered columns up to the last one filled."""
    name = columns.source
    value = row.get(name)
    if columns.more:
        return _filled([(column, row.get(column)) for column in (name, *columns.more)])
    if value is not None:
        values = value if isinstance(value, list) else [value]
        return [(name, item) for item in values]
    numbered = [(f"{name}_{i}", row[f"{name}_{i}"]) for i in range(len(row)) if f"{name}_{i}" in row]
    return _filled(numbered)


def _filled(columns: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """Return (column, value) up to the last column that holds something."""
    while columns and columns[-1][1] is None:
        columns.pop()
    return columns


def _different(columns: Columns, references: list[str], edits: list[str]) -> None:
    """Refuse a row in which two columns name one file: it would train nothing, or to copy."""
    if len(edits) > 1 and _same(*edits):
        raise Refuse(columns.loser, "winner is loser", f"{columns.target} and {columns.loser} are the same file")
    roles = ("winner", "loser") if columns.loser else ("target",)
    for role, column, edit in zip(roles, (columns.target, columns.loser), edits):
        if any(_same(name, edit) for name in references):
            detail = f"{columns.source} and {column} are the same file, {edit}"
            raise Refuse(columns.source, f"source is {role}", detail)


def _once(columns: Columns, references: list[str]) -> None:
    """Refuse a row that names one file twice as its source: the instruction would count what is not there."""
    for number, name in enumerate(references):
        if any(_same(name, other) for other in references[:number]):
            detail = f"{columns.source} names one file twice, {name}; name each picture once"
            raise Refuse(columns.source, "source named twice", detail)


def _same(name: str, other: str) -> bool:
    """Return whether two names are of one file, or two images in a table are of equal bytes."""
    if isinstance(name, Embedded) and isinstance(other, Embedded):
        return bool(name.data) and name.data == other.data
    return name == other


def _group(row: dict[str, Any], columns: Columns, place: Place, images: list[str]) -> str:
    """Return what names the source: the layout's column, else the first image, by its bytes if it is in the table."""
    if columns.group and row.get(columns.group) is not None:
        return f"{place.call('.')} {row[columns.group]}"
    if isinstance(images[0], Embedded) and images[0].data:
        return hashlib.blake2b(images[0].data, digest_size=10).hexdigest()
    return place.call(images[0])


def _identity(row: dict[str, Any], columns: Columns, task: str, images: list[str], texts: dict[str, str]) -> str:
    """Return the row's own id, or a hash of what it says; the latter does not depend on where the data lies."""
    name = columns.id if columns.id in row else "id"
    value = row.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if own := text_of(row, name):
        return own
    content = json.dumps([task, images, texts], ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=10).hexdigest()
