"""The score files of a corpus as tables: a shard's for rules, all of them for quantiles."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firered_lit.errors import UserError

from . import scores
from .annotator import Annotator
from .rules import Values, nearest
from .shards import FILE, LABEL, OWN, ROW

STATE = "state"
PHRASES = "phrases"  # how common a row's words are, in the step `fit`
COSTS = "costs"  # in STATE, a file for each command that shares the work
PICTURES = {"any": "true", "target": "picture = 0", "source": "picture > 0"}
_STEPS = {LABEL: "label", PHRASES: "fit"}  # that write score files, beside annotate
_NUMERIC = ("number", "count")


@dataclass(frozen=True)
class Corpus:
    """The score files that the step `annotate` has written.

    Args:
        folder: OUT.
        count: Rows of the source.
        shard_rows: Rows of a shard; the last one may have fewer.
        annotators: By name.
    """

    folder: Path
    count: int
    shard_rows: int
    annotators: Mapping[str, Annotator]

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.count // self.shard_rows)

    def size(self, shard: int) -> int:
        """Return how many rows a shard has."""
        return min(self.shard_rows, self.count - shard * self.shard_rows)

    @property
    def kinds(self) -> dict[str, str]:
        """The kind of every column, by ANNOTATOR.COLUMN."""
        tables = OWN | {name: annotator.columns for name, annotator in self.annotators.items()}
        return {f"{name}.{column}": kind for name, columns in tables.items() for column, kind in columns.items()}

    def is_numeric(self, column: str) -> bool:
        """Return whether quantiles of a column make sense."""
        return self.kinds[column] in _NUMERIC

    def check(self, column: str, place: str) -> None:
        """Refuse a column that nothing makes.

        Raises:
            UserError: With the nearest one that there is.
        """
        if column not in self.kinds:
            raise UserError(f"{place}: no annotator makes the column {column!r}{nearest(column, self.kinds)}")

    def check_kind(self, column: str, place: str, kind: str, said: str) -> None:
        """Refuse a column that nothing makes, or that holds something else.

        Args:
            column: ANNOTATOR.COLUMN.
            place: Where the recipe names it.
            kind: What it has to hold.
            said: The same in words.

        Raises:
            UserError: With the nearest column that there is, or with what this one holds.
        """
        self.check(column, place)
        if self.kinds[column] != kind:
            raise UserError(f"{place}: {column} holds {self.kinds[column]}, not {said}")

    def check_order(self, column: str, place: str) -> None:
        """Refuse a column that nothing makes, or by which rows have no order.

        Raises:
            UserError: With the nearest column that there is, or with what this one holds.
        """
        self.check(column, place)
        if not self.is_numeric(column):
            raise UserError(f"{place}: {column} holds {self.kinds[column]}, which has no highest and lowest")

    def is_of_pictures(self, name: str) -> bool:
        """Return whether an annotator has a line for each picture, not for each row or pair."""
        return name == FILE or (name in self.annotators and self.annotators[name].of == "picture")

    def table(self, shard: int, name: str, columns: Collection[str]) -> pa.Table:
        """Return columns of an annotator over a shard, with `row`, `picture` and `failure`.

        Raises:
            UserError: The score file is missing or damaged.
        """
        path = scores.path_of(self.folder, name, shard)
        wanted = dict.fromkeys((*scores.KEYS, scores.FAILURE, *columns))
        table = scores.read(path, list(wanted), _STEPS.get(name, "annotate"))
        if name == ROW and table.num_rows != self.size(shard):
            raise UserError(f"{path}: has {table.num_rows} rows in place of {self.size(shard)}; annotate again")
        return table

    def of_rows(self, shard: int, column: str) -> Values:
        """Return a column with a value for each row of a shard, that of the first picture; NaN or None without one."""
        name, _, field = column.partition(".")
        table = self.table(shard, name, [field])
        values = values_of(table, field)
        first_pictures = table.column("picture").to_numpy() == 0
        places = table.column("row").to_numpy() - shard * self.shard_rows
        placed = np.full(self.size(shard), None if values.dtype == object else np.nan, values.dtype)
        placed[places[first_pictures]] = values[first_pictures]
        return placed

    def of_picture(self, shard: int, column: str, picture: int) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
        """Return the rows of a shard of which a picture has a value in a column, and these values.

        Args:
            shard: Its number.
            column: ANNOTATOR.COLUMN.
            picture: 0 for the targets, 1 for the first sources.
        """
        name, _, field = column.partition(".")
        table = self.table(shard, name, [field])
        wanted = np.asarray(table.column(field).is_valid()) & (table.column("picture").to_numpy() == picture)
        table = table.filter(pa.array(wanted))
        return table.column("row").to_numpy(), table.column(field)

    def quantiles(self, column: str, shares: Sequence[float], of: str = "any") -> list[float]:
        """Return quantiles of a column, linear between its values.

        Args:
            column: ANNOTATOR.COLUMN, of numbers.
            shares: Each from 0 to 1.
            of: Which pictures: any, target or source.

        Raises:
            UserError: It holds text, or no value at all.
        """
        if not self.is_numeric(column):
            raise UserError(f"{column}: holds {self.kinds[column]}, which has no quantiles")
        name, _, field = column.partition(".")
        query = f'SELECT quantile_cont("{field}"::DOUBLE, $shares) FROM {self.queried(name)} WHERE {PICTURES[of]}'  # noqa: S608, names of columns that there are
        with connection(self.folder) as database:
            found = database.execute(query, {"shares": list(shares)}).fetchall()[0][0]
        if found is None:
            raise UserError(f"{column}: has no value at all, so it has no quantiles; is its annotator for such rows?")
        return [float(value) for value in found]

    def queried(self, name: str) -> str:
        """Return an annotator's score files as a table of a query."""
        step = _STEPS.get(name, "annotate")
        return f"read_parquet([{', '.join(map(quoted, scores.files(self.folder, name, self.shards, step)))}])"


def quoted(path: Path) -> str:
    """Return a path as a text of a query."""
    return "'" + str(path).replace("'", "''") + "'"


def connection(folder: Path, file: str = ":memory:", memory: str = "3GB") -> Any:
    """Return a DuckDB connection that spills into the corpus' folder and reaches nothing else.

    Raises:
        UserError: DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise UserError("curate needs DuckDB, of this package's extra `curate`: pip install duckdb zxing-cpp") from None
    spill = folder / STATE / ".spill"
    spill.parent.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {
        "memory_limit": memory,
        "temp_directory": str(spill),
        "autoinstall_known_extensions": "false",
    }
    return duckdb.connect(file, config=options)


def values_of(table: pa.Table, column: str) -> Values:
    """Return a column as rules see it: numbers as float64 with NaN, texts as objects with None."""
    found = table.column(column)
    if pa.types.is_string(found.type) or pa.types.is_list(found.type):
        return np.array([*found.to_pylist(), None], dtype=object)[:-1]
    if pa.types.is_boolean(found.type):
        found = found.cast(pa.int8())
    if pa.types.is_uint64(found.type):
        return found.to_numpy(zero_copy_only=False)
    return found.cast(pa.float64()).to_numpy(zero_copy_only=False)


def shard_numbers(corpus: Corpus) -> Iterator[tuple[int, int, int]]:
    """Yield (shard, its first row, its rows)."""
    for shard in range(corpus.shards):
        yield shard, shard * corpus.shard_rows, corpus.size(shard)


class Sized:
    """Record batches of any size, as tables of the sizes that are asked for."""

    def __init__(self, reader: Any) -> None:
        self.reader = iter(reader)
        self.left: pa.Table | None = None

    def next(self, size: int) -> pa.Table:
        """Return the next `size` rows."""
        while self.left is None or self.left.num_rows < size:
            batch = pa.Table.from_batches([next(self.reader)])
            self.left = batch if self.left is None else pa.concat_tables([self.left, batch])
        found, self.left = self.left.slice(0, size), self.left.slice(size)
        return found
