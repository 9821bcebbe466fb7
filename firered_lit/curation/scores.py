"""Score files: the columns of one annotator over one shard, as Parquet. A finished file is the checkpoint.

OUT/scores/NAME/00003.parquet has a line for each item, with `row`, the number of its row, and `picture`, which of the
row's pictures it is (0 for the first, which is the target where there is one; 0 for pairs and rows). `failure` says why
the annotator gave nothing for it. What the numbers are made by stands in the file's own metadata.
"""

import json
from collections.abc import Mapping, Sequence
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
_METADATA = b"firered_lit.curation"


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
    table = pa.table({field.name: pa.array(values[field.name], field.type) for field in schema}, schema)
    noted = json.dumps(made_by, sort_keys=True).encode()
    with replacing(path, "wb") as file:
        pq.write_table(table.replace_schema_metadata({_METADATA: noted}), file, compression="zstd")


def is_done(path: Path, made_by: Mapping[str, Any]) -> bool:
    """Return whether a whole score file, made by just this, is there."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return False
    return metadata.get(_METADATA) == json.dumps(made_by, sort_keys=True).encode()


def read(path: Path, columns: Sequence[str]) -> pa.Table:
    """Return some columns of a score file.

    Raises:
        UserError: It is missing, cut short or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns=list(columns))
    except (OSError, pa.ArrowException) as problem:
        said = " ".join(str(problem).split())
        raise UserError(f"{path}: cannot be read ({said}); run the step annotate, which makes it again") from None


def files(folder: Path, name: str, shards: int) -> list[Path]:
    """Return the score files of an annotator.

    Raises:
        UserError: One is missing.
    """
    paths = [path_of(folder, name, shard) for shard in range(shards)]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path}: missing; run the step annotate first")
    return paths
