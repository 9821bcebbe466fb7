"""Edits that a model's answers rejected, as losers of pairs: a kept edit of the same source and words wins."""

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from firered_lit.files import replacing

from .rows import TARGET, RawRow, RawTable
from .select import DECISIONS
from .write import read_decisions

LOSERS = "losers.jsonl"


def write_losers(folder: Path, table: RawTable, reasons: Collection[str]) -> int:
    """Write losers.jsonl, a table of the layout `preferences`.

    Args:
        folder: OUT.
        table: The raw rows.
        reasons: Of the rows that lose.

    Returns:
        How many pairs there are.
    """
    rejected: set[int] = set()
    kept: set[int] = set()
    for number, decision in enumerate(read_decisions(folder / DECISIONS)):
        if decision["kept"]:
            kept.add(number)
        elif decision["reason"] in reasons:
            rejected.add(number)
    losers: dict[str, list[str]] = {}
    for row in table.rows(rejected.__contains__) if rejected else ():
        if row.kind == "edit":
            losers.setdefault(_question(row), []).append(_target(row))
    count = 0
    with replacing(folder / LOSERS) as file:
        for row in table.rows(kept.__contains__) if losers else ():
            if row.kind != "edit":
                continue
            for place, loser in enumerate(losers.get(_question(row), ())):
                file.write(json.dumps(_pair(row, loser, place), ensure_ascii=False) + "\n")
                count += 1
    return count


def _pair(row: RawRow, loser: str, place: int) -> dict[str, Any]:
    sources = _sources(row)
    pair: dict[str, Any] = {
        "id": f"{row.id}.pair.{place}",
        "source_image": sources if len(sources) > 1 else sources[0],
        "chosen_image": _target(row),
        "rejected_image": loser,
        "instruction": row.texts.get("original/en", ""),
        "instruction_cn": row.texts.get("original/cn", ""),
    }
    more = {"task": row.task, "source": row.source, "license": row.license, "category": row.category}
    return pair | {name: value for name, value in more.items() if value}


def _question(row: RawRow) -> str:
    """Return a hash of an edit's sources and words."""
    asked = json.dumps([_sources(row), dict(row.texts)], sort_keys=True)
    return hashlib.blake2b(asked.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _sources(row: RawRow) -> list[str]:
    return [os.path.abspath(path) for role, path in row.pictures if role == "source"]


def _target(row: RawRow) -> str:
    return next(os.path.abspath(path) for role, path in row.pictures if role == TARGET)
