"""The kept rows as a table that `prepare` reads, each with its licence, its source, its weight and its cluster."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from firered_lit.errors import UserError
from firered_lit.files import replacing

from . import scores
from .rows import RawTable
from .select import DECISIONS

SELECTED = "selected.jsonl"


class Filling(Protocol):
    """A giver of texts to rows."""

    def fill(self, number: int, line: dict[str, Any]) -> None:
        """Put texts into the columns of a row that have none."""
        ...


def write(folder: Path, table: RawTable, texts: Filling | None = None) -> tuple[int, int]:
    """Write selected.jsonl from decisions.parquet.

    Args:
        folder: OUT.
        table: The raw rows.
        texts: What gives texts to rows that lack some; nothing does when None.

    Returns:
        How many rows are written, and how many of them have no text, so that `prepare` refuses them.

    Raises:
        UserError: There are no decisions, or they are of other rows.
    """
    decisions = read_decisions(folder / DECISIONS)
    written = wordless = seen = 0
    kept: dict[int, dict[str, Any]] = {}

    def wanted(number: int) -> bool:
        """Return whether a row is kept; rows are asked for in order, some more than once."""
        nonlocal seen
        while seen <= number:
            decision = next(decisions, None)
            if decision is None:
                raise UserError(f"{folder / DECISIONS}: has fewer rows than the source; run the step select again")
            if decision["kept"]:
                kept[seen] = decision
            seen += 1
        return number in kept

    with replacing(folder / SELECTED) as file:
        for row in table.rows(wanted):
            decision = kept.pop(row.number)
            if decision["id"] != row.id:
                raise UserError(f"{folder / DECISIONS}: {row.where} is not {decision['id']}; run the step select again")
            line = table.line(row, folder)
            line["weight"] = decision["weight"]
            if decision["cluster"] is not None:
                line["cluster"] = str(decision["cluster"])
            if texts is not None:
                texts.fill(row.number, line)
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
            written += 1
            wordless += not (row.instruction or line.get("instruction"))
    return written, wordless


def read_decisions(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the decisions in the order of the rows.

    Raises:
        UserError: The file is missing or damaged.
    """
    with scores.opened(path, "select") as file:
        for batch in file.iter_batches(4096, columns=["id", "kept", "reason", "cluster", "weight"]):
            yield from batch.to_pylist()
