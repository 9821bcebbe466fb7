"""Annotators that compute from columns that are there already, and open no picture.

Such an annotator has `needs`: the columns that it computes from, each with its kind. Of pictures, an item is a mapping
from column to value. Of rows, it is a mapping from column to the values of the row's pictures in their order, the
target first; a column of rows has one value. A vector is an array; None stands for what there is not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firered_lit.errors import UserError

from .annotator import Annotator, tables_needed
from .rules import nearest


@dataclass(frozen=True)
class DerivedItem:
    """The item of a derived annotator, with the place that it has in the score file."""

    row: int
    picture: int
    values: dict[str, Any]


def check_needs(annotators: Mapping[str, Annotator], own: Mapping[str, Mapping[str, str]]) -> None:
    """Refuse annotators that need a column which is not there before them.

    Args:
        annotators: By name, in their order.
        own: The engine's own tables, each with the kinds of its columns.

    Raises:
        UserError: A column is missing, of another kind, or made by an annotator that comes later.
    """
    kinds = {f"{name}.{column}": kind for name, columns in own.items() for column, kind in columns.items()}
    of = {"row": "row", "file": "picture"}
    for name, annotator in annotators.items():
        for column, kind in annotator.needs.items():
            if column not in kinds:
                later = f"; name {column.partition('.')[0]} before it" if _is_made(column, annotators) else ""
                raise UserError(
                    f"annotators.{name}: needs the column {column!r}, which nothing makes before it"
                    f"{later or nearest(column, kinds)}"
                )
            if kinds[column] != kind:
                raise UserError(f"annotators.{name}: {column} holds {kinds[column]}; it needs {kind}")
            if annotator.of == "pair" or (annotator.of == "picture" and of[column.partition(".")[0]] != "picture"):
                raise UserError(f"annotators.{name}: is of {annotator.of}s, and {column} has no value for each of them")
        kinds |= {f"{name}.{column}": kind for column, kind in annotator.columns.items()}
        of[name] = annotator.of


def _is_made(column: str, annotators: Mapping[str, Annotator]) -> bool:
    name, _, field = column.partition(".")
    return name in annotators and field in annotators[name].columns


def lines_of(annotator: Annotator, tables: Mapping[str, pa.Table]) -> list[DerivedItem]:
    """Return what a derived annotator looks at in a shard.

    Args:
        annotator: It.
        tables: The score files of the annotators that it needs, by name.

    Returns:
        For an annotator of pictures, a line for each picture that has one in all of the tables; for one of rows, a
        line for each row that has one in any.
    """
    found: dict[str, dict[tuple[int, int], Any]] = {}
    for name in tables_needed(annotator):
        table = tables[name]
        keys = list(zip(table.column("row").to_pylist(), table.column("picture").to_pylist(), strict=True))
        for column in annotator.needs:
            if column.partition(".")[0] == name:
                items = items_of(table.column(column.partition(".")[2]))
                found[column] = dict(zip(keys, items, strict=True))
    if annotator.of == "picture":
        shared = set.intersection(*(set(values) for values in found.values()))
        return [DerivedItem(*key, {column: values[key] for column, values in found.items()}) for key in sorted(shared)]
    pictures: dict[int, int] = {}
    for values in found.values():
        for row, picture in values:
            pictures[row] = max(pictures.get(row, 0), picture + 1)
    lines = []
    for row, count in sorted(pictures.items()):
        own = {column: [values.get((row, place)) for place in range(count)] for column, values in found.items()}
        lines.append(DerivedItem(row, 0, own))
    return lines


def items_of(column: pa.ChunkedArray) -> list[Any]:
    """Return the values of a column: a vector as an array of float32, None for what there is not."""
    if not pa.types.is_list(column.type):
        return column.to_pylist()
    values: list[NDArray[np.float32] | None] = []
    for chunk in column.chunks:
        flat = chunk.values.to_numpy(zero_copy_only=False)
        edges = chunk.offsets.to_numpy()
        there = chunk.is_valid().to_numpy(zero_copy_only=False)
        for place, valid in enumerate(there):
            values.append(flat[edges[place] : edges[place + 1]] if valid else None)
    return values
