"""Changes by another selection: which rows came, which went, and by which reasons.

OUT/changes.parquet has a line for each row that is decided otherwise than in the selection before: `row`, `id`, and the
reasons `before` and `now`, null for a kept row. A selection that decides the same leaves it as it is.
"""

import filecmp
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from firered_lit.files import put_in_place, staging_name

from .corpus import STATE, connection, quoted
from .select import DECISIONS

CHANGES = "changes.parquet"
_LAST = "last.parquet"  # in STATE, the last selection
KEPT = "kept"
_LINES = 12  # that are printed
_SHOWN = 3  # rows of a change that are named


@dataclass(frozen=True)
class Change:
    """Rows that one selection decided so and the next one otherwise.

    Args:
        before: Their reason, or "kept".
        now: The same, of the later selection.
        rows: Their number.
        ids: Those of some of them.
    """

    before: str
    now: str
    rows: int
    ids: tuple[str, ...]


def follow(folder: Path) -> list[str]:
    """Compare the decisions with those of the selection before, and write what changed.

    Args:
        folder: OUT.

    Returns:
        What to print; nothing where nothing changed.
    """
    decisions = folder / DECISIONS
    last = folder / STATE / _LAST
    changed = 0
    if last.exists() and not filecmp.cmp(last, decisions, shallow=False):
        changed = _write(folder, last, decisions)
    staging = staging_name(last)
    _copy(decisions, staging)
    put_in_place(staging, last)
    if not changed:
        return []
    lines = [f"changed    {one.rows:>8} {one.before} -> {one.now}" for one in read_changes(folder)[:_LINES]]
    return [*lines, f"changed    {changed:>8} rows since the selection before, in {folder / CHANGES}"]


def _write(folder: Path, last: Path, decisions: Path) -> int:
    """Write the rows that two selections decide otherwise, if there are any, and return how many."""
    query = (
        "SELECT now.file_row_number AS row, now.id, before.reason AS before, now.reason AS now"  # noqa: S608
        f" FROM read_parquet({quoted(decisions)}, file_row_number = true) now"
        f" JOIN read_parquet({quoted(last)}, file_row_number = true) before USING (file_row_number)"
        " WHERE now.kept != before.kept OR now.reason IS DISTINCT FROM before.reason ORDER BY row"
    )
    staging = staging_name(folder / CHANGES)
    with connection(folder) as database:
        copied = database.execute(f"COPY ({query}) TO {quoted(staging)} (FORMAT parquet, COMPRESSION zstd)")
        changed = int(copied.fetchall()[0][0])
    if changed:
        put_in_place(staging, folder / CHANGES)
    else:
        staging.unlink()
    return changed


def _copy(source: Path, target: Path) -> None:
    """Give a file, which is only ever replaced, a second name; copy it where that cannot be."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_changes(folder: Path) -> list[Change]:
    """Return what the last selection that changed something changed, the most rows first; nothing without one."""
    path = folder / CHANGES
    if not path.exists():
        return []
    query = (
        f"SELECT coalesce(before, '{KEPT}'), coalesce(now, '{KEPT}'), count(*), arg_min(id, row, {_SHOWN})"  # noqa: S608
        f" FROM read_parquet({quoted(path)}) GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
    )
    with connection(folder) as database:
        found = database.execute(query).fetchall()
    return [Change(before, now, rows, tuple(ids)) for before, now, rows, ids in found]
