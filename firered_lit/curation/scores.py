"""Score files: the columns of one annotator over one shard, as Parquet. A finished file is the checkpoint.

OUT/scores/NAME/00003.parquet has a line for each item, with `row`, the number of its row, and `picture`, which of the
row's pictures it is (0 for the first, which is the target where there is one; 0 for pairs and rows). `failure` says why
the annotator gave nothing for it. What the numbers are made by stands in the file's own metadata.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from firered_lit.errors import UserError
from firered_lit.files import replacing

from .annotator import KINDS

FOLDER = "scores"
KEYS = {"row": pa.int64(), "picture": pa.int16()}
FAILURE = "failure"
_MADE_BY = b"firered_lit.curation"  # of a file's metadata


def path_of(folder: Path, name: str, shard: int) -> Path:
    """Return where the columns of annotator `name` over a shard lie."""
    return folder / FOLDER / name / f"{shard:05d}.parquet"


def schema_of(columns: Mapping[str, str]) -> pa.Schema:
    """Return the schema of a score file, from the kinds of its columns."""
    fields = [*KEYS.items(), *((name, KINDS[kind]) for name, kind in columns.items()), (FAILURE, pa.string())]
    return pa.schema(fields)


def write(
    path: Path,
    columns: Mapping[str, str],
    values: Mapping[str, Sequence[Any]],
    made_by: Mapping[str, Any],
) -> None:
    """Write a score file, whole or not at all.

    Args:
        path: See `path_of`.
        columns: The kind of every column, without keys and failure.
        values: All columns, of one length.
        made_by: What decides the numbers; see `annotator.identity`.
    """
    schema = schema_of(columns)
    put(path, pa.table({field.name: pa.array(values[field.name], field.type) for field in schema}, schema), made_by)


def put(path: Path, table: pa.Table, made_by: Mapping[str, Any]) -> None:
    """Write a table as Parquet, whole or not at all, and note in it what it is made by."""
    with replacing(path, "wb") as file:
        pq.write_table(table.replace_schema_metadata({_MADE_BY: _noted(made_by)}), file, compression="zstd")


def is_done(path: Path, made_by: Mapping[str, Any]) -> bool:
    """Return whether a whole file, made by just this, is there."""
    return _note_of(path) == _noted(made_by)


def made_by(path: Path) -> dict[str, Any]:
    """Return what is noted in a file; nothing when no whole file is there."""
    note = _note_of(path)
    return dict(json.loads(note)) if note else {}


def read(path: Path, columns: Sequence[str], step: str = "annotate") -> pa.Table:
    """Return some columns of a Parquet file.

    Args:
        path: The file.
        columns: Their names.
        step: The step of `curate` that writes it, for messages.

    Raises:
        UserError: It is missing, cut short or damaged.
    """
    with opened(path, step) as file:
        return file.read(columns=list(columns))


@contextlib.contextmanager
def opened(path: Path, step: str) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file that a step of `curate` writes.

    Raises:
        UserError: It is missing, cut short or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError:
        raise UserError(f"{path}: missing; run the step {step} first") from None
    except (OSError, pa.ArrowException) as problem:
        said = " ".join(str(problem).split())
        raise UserError(f"{path}: cannot be read ({said}); run the step {step} again") from None


def files(folder: Path, name: str, shards: int, step: str = "annotate") -> list[Path]:
    """Return the score files of an annotator, which a step of `curate` writes.

    Raises:
        UserError: One is missing.
    """
    paths = [path_of(folder, name, shard) for shard in range(shards)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: missing; run the step {step} first")
    return paths


def _note_of(path: Path) -> bytes:
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return b""
    return bytes(metadata.get(_MADE_BY, b""))


def _noted(made_by: Mapping[str, Any]) -> bytes:
    return json.dumps(made_by, sort_keys=True).encode()
