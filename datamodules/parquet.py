"""Rows of Parquet files, a few in memory at a time (a page of a column is the least), and the images in them."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firered_lit.errors import UserError

BATCH = 16  # rows at a time, images and all
BUFFER = 1 << 20  # bytes of a column read ahead; without it Arrow reads a column of a row group at once

Wanted = Callable[[int], bool]  # by its number from 0 in the file: whether a row's embedded images will be looked at


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


def rows(path: Path, wanted: Wanted) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row), a few read at a time. Row groups in which none is wanted are read without their embedded images."""
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            images = [field.name for field in file.schema_arrow if _holds_bytes(field.type)]
            texts = [name for name in file.schema_arrow.names if name not in images]
            first = 0
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                here = any(map(wanted, range(first, last)))
                for batch in file.iter_batches(BATCH, [group], None if here else texts):
                    for row in batch.to_pylist():
                        name = f"{path.name}:{first + 1}"
                        row |= {c: _embedded(row.get(c, b""), f"{name}:{c}", wanted(first)) for c in images}
                        yield f"{path}:{first + 1}", row
                        first += 1
    except (pa.ArrowException, OSError) as problem:
        raise UserError(f"{path}: cannot be read: {' '.join(str(problem).split())}") from None


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 or any(
            _holds_bytes(kind.field(i).type) for i in range(kind.num_fields)
        )
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _embedded(value: Any, name: str, wanted: bool) -> Any:
    """An image column's value as a path, or as an image with its bytes (Hugging Face's {bytes, path}, or bytes)."""
    if isinstance(value, list):
        return [_embedded(item, f"{name}[{i}]", wanted) for i, item in enumerate(value)]
    if isinstance(value, dict):
        return value.get("path") if value.get("bytes") is None else _embedded(value["bytes"], name, wanted)
    return value if value is None else Embedded(name, value if wanted else b"")


def survey(path: Path, update: Callable[[bytes], None]) -> int:
    """Rows of a Parquet file; its footer, which holds the sizes and statistics of all columns, is hashed."""
    try:
        count = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError) as problem:
        raise UserError(f"{path}: cannot be read: {' '.join(str(problem).split())}") from None
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        size = int.from_bytes(file.read(4), "little")
        file.seek(-8 - size, os.SEEK_END)
        update(file.read(size))
    update(str(path.stat().st_size).encode())
    return count
