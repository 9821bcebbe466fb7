"""One shard of a raw data set: its pictures are opened once, and every annotator that is asked makes its score file.

What goes wrong with one picture, pair or row stays with it: the reason stands in the score file. A step of the work is
reported before it begins, so that whoever watches this process knows what it was at when it died or hung
(`firered_lit.sharing.workers`); a step that has done so before is skipped.
"""

import errno
import math
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from firered_lit.errors import UserError
from firered_lit.sharing.workers import Report, Step

from . import scores
from .annotator import Annotator, columns_of, made_by, tables_needed
from .derived import lines_of
from .rows import TARGET, Picture, PicturePair, RawRow, RawTable, UnusablePictureError, in_shards

ROW = "row"  # what a row says
FILE = "file"  # what a picture's file says
LABEL = "label"  # what a model says of a row, in the step of this name
OWN = {
    ROW: {
        **dict.fromkeys(("id", "source", "where", "kind", "task", "category", "license"), "text"),
        **dict.fromkeys(("refusal", "detail"), "text"),
        "pictures": "count",
    },
    FILE: {
        **dict.fromkeys(("role", "path", "refusal", "detail", "format"), "text"),
        **dict.fromkeys(("bytes", "width", "height", "orientation"), "count"),
    },
}
OWN_VERSION = 1
_LINES = 1024  # that a derived annotator looks at together
DIED = "the process died or hung"
_MACHINE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EROFS})
_DEATHS = 2  # at one item, after which it is left out

T = TypeVar("T")


@dataclass(frozen=True)
class ShardAnnotation:
    """The work on a shard.

    Args:
        shard: Its number.
        rows: All of its rows.
        names: The score files to make; ROW, FILE and annotators.
        one_by_one: Batches that are taken item by item, since a process died at them: annotator, number of the batch.
        skipped: Items that are left out, since a process died at them alone: the same, and the number in the batch.
    """

    shard: int
    rows: Sequence[RawRow]
    names: tuple[str, ...]
    one_by_one: Collection[tuple[str, int]] = frozenset()
    skipped: Collection[Step] = frozenset()

    def after_death(self, step: Step, deaths: int) -> "ShardAnnotation":
        """Return what is to be done now: a batch at which a process died, item by item; such an item, not again."""
        if step[2] < 0:
            return replace(self, one_by_one=frozenset({*self.one_by_one, step[:2]}))
        if deaths >= _DEATHS:
            return replace(self, skipped=frozenset({*self.skipped, step}))
        return self


@dataclass
class Done:
    """The outcome of a shard: how many items each annotator was given, failed at, and the seconds that it took."""

    shard: int
    items: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    first_failure: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Item:
    """Something that an annotator looks at, with the place that it has in the score file."""

    row: int
    picture: int
    thing: Any


class Shards:
    """Annotates shards into a folder.

    Args:
        folder: OUT.
        table: The raw rows.
        annotators: By name.
        shard_rows: Rows of a shard.
        batch: Rows whose pictures are in memory at a time.
    """

    def __init__(
        self, folder: Path, table: RawTable, annotators: Mapping[str, Annotator], shard_rows: int, batch: int
    ) -> None:
        self.folder = folder
        self.table = table
        self.annotators = dict(annotators)
        self.shard_rows = shard_rows
        self.batch = batch
        self._opened: set[str] = set()

    def made_by(self, name: str) -> dict[str, Any]:
        """Return what decides the numbers of a score file."""
        if name in OWN:
            return {"class": name, "version": OWN_VERSION}
        return made_by(name, self.annotators)

    def todo(self, shard: int) -> tuple[str, ...]:
        """Return the score files of a shard that are not there, or were made by something else."""
        names = (*OWN, *self.annotators)
        paths = {name: scores.path_of(self.folder, name, shard) for name in names}
        return tuple(name for name in names if not scores.is_done(paths[name], self.made_by(name)))

    def left(self, todo: Mapping[int, Any]) -> dict[int, tuple[str, ...]]:
        """Return the score files that are still to be made of some shards."""
        return {number: names for number in todo if (names := self.todo(number))}

    def works(self, todo: Mapping[int, tuple[str, ...]]) -> Iterator[ShardAnnotation]:
        """Yield shards with their rows and the score files to make, as the rows are read."""
        rows = self.table.rows(lambda number: number // self.shard_rows in todo)
        for shard, some in in_shards(rows, self.shard_rows):
            # The other columns would only be sent to another process.
            yield ShardAnnotation(shard, [replace(row, content={}) for row in some], todo[shard])

    def do(self, work: ShardAnnotation, report: Report) -> Done:
        """Make the score files that are asked for, and return what came of them."""
        done = Done(work.shard)
        names = [name for name in work.names if name not in OWN]
        for name in names:
            self._open(name)
        looking = [name for name in names if not self.annotators[name].needs]
        derived = [name for name in names if self.annotators[name].needs]

        # What looks at rows and pictures.
        columns = {name: _Values(self.annotators[name].columns) for name in looking}
        files = _Values(OWN[FILE])
        rows = _Values(OWN[ROW])
        for number, some in enumerate(_batches(work.rows, self.batch)):
            for row in some:
                rows.add(row.number, 0, _row_columns(row))
            pictures = self._pictures(work, number, some, files, done, report)
            for name in looking:
                items = _items(self.annotators[name].of, some, pictures)
                self._columns(work, number, name, items, columns[name], done, report)
        made = {ROW: rows, FILE: files, **columns}
        for name in work.names:
            if name in made:
                self._write(work.shard, name, made[name])

        # What computes from the columns of others, each written before the next one.
        for name in derived:
            values = _Values(self.annotators[name].columns)
            for number, some_items in enumerate(_batches(self._lines(work.shard, name), _LINES)):
                self._columns(work, number, name, some_items, values, done, report)
            self._write(work.shard, name, values)
        return done

    def _write(self, shard: int, name: str, values: "_Values") -> None:
        path = scores.path_of(self.folder, name, shard)
        kinds = OWN[name] if name in OWN else self.annotators[name].columns
        scores.write(path, kinds, values.values, self.made_by(name))

    def _lines(self, shard: int, name: str) -> list[_Item]:
        """Return what a derived annotator looks at in a shard."""
        annotator = self.annotators[name]
        tables = {}
        for other in tables_needed(annotator):
            own = [column.partition(".")[2] for column in annotator.needs if column.startswith(f"{other}.")]
            tables[other] = scores.read(scores.path_of(self.folder, other, shard), [*scores.KEYS, *own])
        return [_Item(line.row, line.picture, line.values) for line in lines_of(annotator, tables)]

    def _open(self, name: str) -> None:
        if name not in self._opened:
            self.annotators[name].open()
            self._opened.add(name)

    def _pictures(
        self, work: ShardAnnotation, number: int, rows: Sequence[RawRow], files: "_Values", done: Done, report: Report
    ) -> dict[int, list[Picture | None]]:
        """Open the pictures of some rows, each file once; None stands for one that cannot be used."""
        begun = time.perf_counter()
        opened: dict[tuple[str, str], Picture | UnusablePictureError] = {}
        pictures: dict[int, list[Picture | None]] = {}
        wants_pictures = any(self._looks_at_pictures(name) for name in work.names)
        for row in rows if wants_pictures else ():
            pictures[row.number] = []
            for place, (role, path) in enumerate(row.pictures):
                step = (FILE, number, len(opened))
                if (role, path) not in opened:
                    opened[role, path] = self._picture(work, step, role, path, report)
                found = opened[role, path]
                picture = found if isinstance(found, Picture) else None
                files.add(row.number, place, _file_columns(role, path, found))
                pictures[row.number].append(picture)
        done.items[FILE] += sum(map(len, pictures.values()))
        _spend(done, FILE, begun)
        return pictures

    def _looks_at_pictures(self, name: str) -> bool:
        if name in OWN:
            return name == FILE
        annotator = self.annotators[name]
        return annotator.of != "row" and not annotator.needs

    def _picture(
        self, work: ShardAnnotation, step: Step, role: str, path: str, report: Report
    ) -> Picture | UnusablePictureError:
        if step in work.skipped:
            return UnusablePictureError("unreadable image", f"{path}: {DIED} while it was opened")
        report(step)
        try:
            return self.table.open(path, role)
        except UnusablePictureError as problem:
            return problem
        except Exception as problem:
            if _ends_the_work(problem):
                raise
            return UnusablePictureError("unreadable image", f"{path}: {_said(problem)}")

    def _columns(
        self,
        work: ShardAnnotation,
        number: int,
        name: str,
        items: Sequence[_Item],
        values: "_Values",
        done: Done,
        report: Report,
    ) -> None:
        """Have an annotator look at a batch; where it fails at that, at each item of it."""
        begun = time.perf_counter()
        annotator = self.annotators[name]
        done.items[name] += len(items)
        found = None
        if items and (name, number) not in work.one_by_one:
            report((name, number, -1))
            try:
                found = columns_of(annotator, [item.thing for item in items])
                values.extend(items, found)
            except Exception as problem:
                if _ends_the_work(problem):
                    raise
                found = None
        if items and found is None:
            for place, item in enumerate(items):
                self._one(work, (name, number, place), item, values, done, report)
        _spend(done, name, begun)

    def _one(
        self, work: ShardAnnotation, step: Step, item: _Item, values: "_Values", done: Done, report: Report
    ) -> None:
        name = step[0]
        failure = DIED
        if step not in work.skipped:
            report(step)
            try:
                values.extend([item], columns_of(self.annotators[name], [item.thing]))
                return
            except Exception as problem:
                if _ends_the_work(problem):
                    raise
                failure = _said(problem)
        values.fail(item.row, item.picture, failure)
        done.failed[name] += 1
        done.first_failure.setdefault(name, f"{_named(item.thing)}: {failure}")


class _Values:
    """The columns of a score file as they grow."""

    def __init__(self, columns: Mapping[str, str]) -> None:
        self.columns = tuple(columns)
        self.schema = scores.schema_of(columns)
        self.values: dict[str, list[Any]] = {name: [] for name in self.schema.names}

    def add(self, row: int, picture: int, found: Mapping[str, Any]) -> None:
        """Add an item with its values."""
        self._key(row, picture, None)
        for name in self.columns:
            self.values[name].append(found[name])

    def extend(self, items: Sequence[_Item], found: Mapping[str, Sequence[Any]]) -> None:
        """Add items with their columns, if all values are of the kinds that were named.

        Raises:
            Exception: A value is not; nothing is added.
        """
        import pyarrow as pa

        plain = {}
        for name in self.columns:
            kind = self.schema.field(name).type
            plain[name] = pa.array([_scalar(value) for value in found[name]], kind).to_pylist()
        for item in items:
            self._key(item.row, item.picture, None)
        for name in self.columns:
            self.values[name] += plain[name]

    def fail(self, row: int, picture: int, failure: str) -> None:
        """Add an item for which there are no values."""
        self._key(row, picture, failure)
        for name in self.columns:
            self.values[name].append(None)

    def _key(self, row: int, picture: int, failure: str | None) -> None:
        self.values["row"].append(row)
        self.values["picture"].append(picture)
        self.values[scores.FAILURE].append(failure)


def _scalar(value: Any) -> Any:
    """Return a value of NumPy as Python's own; a number that is not finite is none, and so is a vector with one."""
    plain = value.tolist() if hasattr(value, "tolist") else value
    numbers = plain if isinstance(plain, list | tuple) else [plain]
    if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        return None
    return plain


def _items(of: str, rows: Sequence[RawRow], pictures: Mapping[int, Sequence[Picture | None]]) -> list[_Item]:
    """Return what an annotator looks at: the rows, their usable pictures, or their pairs of usable pictures."""
    usable = [row for row in rows if not row.refusal]
    if of == "row":
        return [_Item(row.number, 0, row) for row in usable]
    if of == "pair":
        pairs = [(row.number, _pair(pictures[row.number])) for row in usable]
        return [_Item(number, 0, pair) for number, pair in pairs if pair is not None]
    items = []
    for row in usable:
        for place, picture in enumerate(pictures[row.number]):
            if picture is not None:
                items.append(_Item(row.number, place, picture))
    return items


def _pair(pictures: Sequence[Picture | None]) -> PicturePair | None:
    """Return the target with the first source, where both can be used."""
    if len(pictures) < 2:
        return None
    target, source = pictures[:2]
    if target is None or source is None or target.role != TARGET:
        return None
    return PicturePair(source, target)


def _batches(items: Sequence[T], size: int) -> list[Sequence[T]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def _row_columns(row: RawRow) -> dict[str, Any]:
    columns = {name: getattr(row, name) or None for name in OWN[ROW] if name != "pictures"}
    return columns | {"pictures": len(row.pictures)}


def _file_columns(role: str, path: str, found: Picture | UnusablePictureError) -> dict[str, Any]:
    columns = dict.fromkeys(OWN[FILE]) | {"role": role, "path": path}
    if isinstance(found, UnusablePictureError):
        return columns | {"refusal": found.reason, "detail": found.detail}
    height, width = found.pixels.shape[:2]
    header = found.header
    sizes = {"bytes": len(found.file), "width": width, "height": height}
    return columns | sizes | {"format": header.format, "orientation": header.orientation}


def _spend(done: Done, name: str, begun: float) -> None:
    done.seconds[name] = done.seconds.get(name, 0.0) + time.perf_counter() - begun


def _ends_the_work(problem: Exception) -> bool:
    """Return whether what was raised is for the user or the machine to mend, and not of one item."""
    return isinstance(problem, UserError) or (isinstance(problem, OSError) and problem.errno in _MACHINE)


def _said(problem: BaseException) -> str:
    said = " ".join(str(problem).split())
    return f"{type(problem).__name__}: {said}"[:500]


def _named(thing: Any) -> str:
    """Return a name for an item in a message."""
    if isinstance(thing, PicturePair):
        return thing.target.path
    return thing.path if isinstance(thing, Picture) else str(getattr(thing, "where", ""))
