"""Rows of Parquet files, a few in memory at a time (a page of a column is the least), and the images in them.

A column that a layout takes for an image may hold the image's own bytes; bytes in any other column are text. A value
that cannot be read refuses its row alone, and only where that column is asked for; a damaged page refuses the rest of
its row group.
"""

import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firered_lit.errors import UserError

from .fields import Unreadable
from .layouts import names_image
from .refusals import Refuse, ends_the_work, said

BATCH = 16  # rows at a time, images and all
MOST_ROWS = 64  # of a file, for each of its bytes; a footer that counts more is damaged
BUFFER = 1 << 20  # bytes of a column read ahead; without it Arrow reads a column of a row group at once

Wanted = Callable[[int], bool]  # by its number from 0 in the file: whether a row's embedded images will be looked at
Row = dict[str, Any] | Refuse


class Embedded(str):
    """The name of an image that lies inside a table, with its file's bytes; empty when nobody will look at them."""

    data: bytes

    def __new__(cls, name: str, data: bytes) -> "Embedded":
        self = super().__new__(cls, name)
        self.data = data
        return self

    def renamed(self, name: str) -> "Embedded":
        return Embedded(name, self.data)

    def __reduce__(self) -> tuple[Any, ...]:
        return Embedded, (str(self), self.data)


def rows(path: Path, wanted: Wanted, images: Collection[str] = ()) -> Iterator[tuple[str, Row]]:
    """Yield (where, row), a few read at a time; every row that the footer counts comes, read or refused.

    Row groups in which none is wanted are read without their embedded images.

    Args:
        path: The table.
        wanted: Return whether a row is wanted, by its number from 0.
        images: The columns of images, besides those that layouts name.
    """
    with _opened(path) as file:
        first = 0
        for group in range(file.num_row_groups):
            last = first + file.metadata.row_group(group).num_rows
            done = first
            try:
                for where, row in _group(file, path, group, range(first, last), wanted, images):
                    yield where, row
                    done += 1
                problem = "the file holds fewer rows than its footer counts"
            except Exception as error:
                if ends_the_work(error) and not isinstance(error, pa.ArrowException):
                    raise
                problem = said(error)
            for number in range(done, last):
                yield f"{path}:{number + 1}", Refuse("row", "unreadable Parquet", f"its part is damaged ({problem})")
            first = last


def _group(
    file: pq.ParquetFile, path: Path, group: int, numbers: range, wanted: Wanted, others: Collection[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, row) of a row group, whose rows have these numbers from 0 in the file."""
    schema = file.schema_arrow
    images = [field.name for field in schema if names_image(field.name, others) and _holds_bytes(field.type)]
    rest = [name for name in schema.names if name not in images]
    here = any(map(wanted, numbers))
    number = numbers.start
    for batch in file.iter_batches(BATCH, [group], None if here else rest):
        for row in _values(batch)[: numbers.stop - number]:
            name = f"{path.name}:{number + 1}"
            for column in images:
                row[column] = _embedded(row.get(column, b""), f"{name}:{column}", wanted(number))
            yield f"{path}:{number + 1}", row
            number += 1


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return a batch's rows as Python values; one that Python cannot have is `Unreadable`."""
    try:
        return batch.to_pylist()
    except Exception as problem:  # of one of its values; each alone says which
        if ends_the_work(problem):
            raise
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        return [{name: _value(column, place) for name, column in columns.items()} for place in range(batch.num_rows)]


def _value(column: pa.Array, place: int) -> Any:
    """Return one of a column's values; `Unreadable` when Python cannot have it."""
    try:
        return column[place].as_py()
    except Exception as problem:
        if ends_the_work(problem):
            raise
        return Unreadable(said(problem))


def _holds_bytes(kind: pa.DataType) -> bool:
    """Return whether images can lie in a column of this type: bytes, {bytes, path}, and lists of either."""
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        if place < 0:
            return False
        of_bytes = kind.field(place).type
        return pa.types.is_null(of_bytes) or _holds_bytes(of_bytes)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _holds_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def _embedded(value: Any, name: str, wanted: bool) -> Any:
    """Return an image column's value as a path, or as an image with its bytes; anything else as it is."""
    if isinstance(value, list):
        return [_embedded(item, f"{name}[{i}]", wanted) for i, item in enumerate(value)]
    if isinstance(value, dict) and "bytes" in value:
        if value["bytes"] is None:
            return value.get("path")
        return _embedded(value["bytes"], name, wanted)
    if isinstance(value, bytes):
        return Embedded(name, value if wanted else b"")
    return value


def survey(path: Path, update: Callable[[bytes], None]) -> int:
    """Return the rows of a Parquet file; its footer, which holds all columns' sizes and statistics, is hashed."""
    with _opened(path) as file:
        count = file.metadata.num_rows
    with path.open("rb") as raw:
        raw.seek(-8, os.SEEK_END)
        size = int.from_bytes(raw.read(4), "little")
        raw.seek(-8 - size, os.SEEK_END)
        update(raw.read(size))
    update(str(path.stat().st_size).encode())
    return count


def _opened(path: Path) -> pq.ParquetFile:
    """Open a Parquet file whose footer agrees with itself. Raises UserError."""
    try:
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER)
        problem = _footer_problem(file, path.stat().st_size)
    except Exception as error:
        if ends_the_work(error) and not isinstance(error, pa.ArrowException):
            raise
        raise UserError(f"{path}: cannot be read: {said(error)}") from None
    if problem:
        file.close()
        raise UserError(f"{path}: {problem}")
    return file


def _footer_problem(file: pq.ParquetFile, size: int) -> str:
    """Return what a footer contradicts itself in, or what no row can be read from; "" when it is well.

    The metadata of columns are not asked for: of a damaged footer they end the process, without an exception.

    Args:
        file: The file.
        size: Bytes of the file.
    """
    names = file.schema_arrow.names
    if twice := next((name for name in names if names.count(name) > 1), None):
        return f"two columns are called {twice!r}; keep one"
    counted = file.metadata.num_rows
    rows = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != counted:
        return f"damaged: its footer counts {counted} rows and {sum(rows)} in its parts"
    if counted > MOST_ROWS * size:
        return f"damaged: its footer counts {counted} rows in {size} bytes"
    return ""
