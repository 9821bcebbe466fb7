"""The report of a selection: funnel, tables, histograms, dropped pictures and near duplicates.

OUT/report/index.html is one static page without scripts, its pictures in it; OUT/report/report.md has the tables.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.files import write_text
from firered_lit.splitmix import lots
from firered_lit.textfiles import read_object

from . import page, scores
from .changes import Change, read_changes
from .corpus import COSTS, PICTURES, STATE, Corpus, connection, quoted
from .rows import RawRow, RawTable, UnusablePictureError, shrunk
from .rules import Rule, Threshold
from .select import DECISIONS, DUPLICATE, SELECTION
from .shards import FILE, ROW

FOLDER = "report"
SHOWN = 16  # dropped pictures of a reason
GROUPS_SHOWN = 8
MOST_VALUES = 20  # rows of a table of values
BINS = 40
THUMBNAIL = 144  # px
_LANGUAGE = "language"


@dataclass(frozen=True)
class ShownRow:
    """A row as the page shows it: its first picture, its name, its words and its numbers."""

    id: str
    where: str
    text: str
    numbers: Mapping[str, Any]
    picture: bytes  # a JPEG; empty when it cannot be opened
    note: str = ""


@dataclass(frozen=True)
class Histogram:
    """The values of a rule's column, and its bounds."""

    name: str
    column: str
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    bounds: tuple[float, ...]


@dataclass
class Report:
    """All that the page shows."""

    rows: int
    kept: int
    funnel: list[tuple[str, int, int, int, str]] = field(default_factory=list)  # reason, dropped, alone, left, cost
    tables: dict[str, list[tuple[str, int, int, str]]] = field(default_factory=dict)  # value, rows, kept, first reason
    histograms: list[Histogram] = field(default_factory=list)
    dropped: dict[str, list[ShownRow]] = field(default_factory=dict)
    duplicates: list[list[ShownRow]] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)


def report(corpus: Corpus, table: RawTable, rules: Mapping[str, Rule], seed: int = 0) -> Path:
    """Write the page and the tables, and return the page's path.

    Args:
        corpus: The score files.
        table: The raw rows, of which some pictures are opened.
        rules: By name.
        seed: Of the dropped pictures that are shown.

    Raises:
        UserError: There are no decisions.
    """
    path = corpus.folder / STATE / SELECTION
    if not path.exists():
        raise UserError(f"{path}: missing; run the step select first")
    state = read_object(path, "rows", "kept", "reasons", "matched")
    decided = scores.read(corpus.folder / DECISIONS, ["reason", "group"], "select")
    found = Report(state["rows"], state["kept"])
    costs = costs_of(corpus.folder)
    left = found.rows
    for reason, count in state["reasons"].items():
        left -= count
        alone = state["matched"].get(reason, count)
        found.funnel.append((reason, count, alone, left, _cost(rules.get(reason), costs)))
    found.tables = _tables(corpus)
    found.histograms = _histograms(corpus, rules, state.get("bounds", {}))
    _pictures(corpus, table, rules, decided, found, seed)
    found.changes = read_changes(corpus.folder)
    folder = corpus.folder / FOLDER
    write_text(folder / "report.md", page.markdown(found))
    write_text(folder / "index.html", page.html(found))
    return folder / "index.html"


def costs_of(folder: Path) -> dict[str, float]:
    """Return the milliseconds that each annotator took for an item, over all commands that worked here."""
    items: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for path in sorted((folder / STATE).glob(f"{COSTS}-*.json")):
        for name, spent in read_object(path).items():
            items[name] += spent["items"]
            seconds[name] += spent["seconds"]
    return {name: 1000 * seconds[name] / items[name] for name in items if items[name]}


def _cost(rule: Rule | None, costs: Mapping[str, float]) -> str:
    name = rule.columns[0].partition(".")[0] if rule is not None else ""
    return f"{costs[name]:.2f}" if name in costs else ""


def _tables(corpus: Corpus) -> dict[str, list[tuple[str, int, int, str]]]:
    """Return, by source, kind, task, category, licence, language and cluster, the rows, the kept ones and the reason
    that dropped most."""
    decisions = quoted(corpus.folder / DECISIONS)
    rows = f"SELECT file_row_number AS row, * FROM read_parquet({decisions}, file_row_number = true)"  # noqa: S608
    fields = {name: f"facts.{name}" for name in ("kind", "task", "category", "license")}
    values = {"source": "decided.source", **fields, "cluster": "decided.cluster"}
    joined = f"({rows}) decided JOIN {corpus.queried(ROW)} facts USING (row)"
    for name, annotator in corpus.annotators.items():
        if _LANGUAGE in annotator.columns and annotator.of == "row":
            joined += f" LEFT JOIN {corpus.queried(name)} words USING (row)"
            values[_LANGUAGE] = f"words.{_LANGUAGE}"
            break
    tables = {}
    with connection(corpus.folder) as database:
        for name, value in values.items():
            found = database.execute(
                f"SELECT coalesce({value}::VARCHAR, '(none)') AS value, count(*) AS rows,"  # noqa: S608
                " count(*) FILTER (WHERE kept) AS kept, coalesce(mode(reason), '') AS reason"
                f" FROM {joined} GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {MOST_VALUES + 1}"
            ).fetchall()
            if len(found) > 1:
                tables[name] = [tuple(row) for row in found]
    return tables


def _histograms(corpus: Corpus, rules: Mapping[str, Rule], fitted: Mapping[str, Any]) -> list[Histogram]:
    """Return the histogram of every rule that has a bound: from the 0.2nd to the 99.8th percentile, with the bound."""
    found = []
    for name, rule in rules.items():
        if not isinstance(rule, Threshold) or not corpus.is_numeric(rule.column):
            continue
        given = {"below": rule.below, "above": rule.above, **fitted.get(name, {})}
        bounds = tuple(float(bound) for bound in given.values() if bound is not None)
        try:
            low, high = corpus.quantiles(rule.column, [0.002, 0.998], rule.of)
        except UserError:
            continue  # a column without a value
        low, high = min(low, *bounds, high), max(high, *bounds, low)
        if not bounds or high <= low:
            continue
        annotator, _, column = rule.column.partition(".")
        place = f'floor(("{column}" - $low) / ($high - $low) * {BINS})'
        query = (
            f"SELECT greatest(0, least({BINS - 1}, {place}))::INTEGER, count(*) FROM {corpus.queried(annotator)}"  # noqa: S608
            f' WHERE {PICTURES[rule.of]} AND "{column}" IS NOT NULL GROUP BY 1'
        )
        with connection(corpus.folder) as database:
            counted = dict(database.execute(query, {"low": low, "high": high}).fetchall())
        counts = np.array([counted.get(place, 0) for place in range(BINS)])
        found.append(Histogram(name, rule.column, np.linspace(low, high, BINS + 1), counts, bounds))
    return found


def _pictures(
    corpus: Corpus, table: RawTable, rules: Mapping[str, Rule], decided: pa.Table, found: Report, seed: int
) -> None:
    """Choose the rows that are shown, and open their pictures."""
    reasons = decided.column("reason").combine_chunks().dictionary_encode()
    codes = reasons.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    names = reasons.dictionary.to_pylist()
    order = lots(np.arange(len(codes)), seed_of(seed, "shown"))
    chosen: dict[str, NDArray[np.int64]] = {}
    for code, name in enumerate(names):
        rows = np.flatnonzero(codes == code)
        chosen[name] = np.sort(rows[np.argsort(order[rows], kind="stable")[:SHOWN]])
    groups = _groups(decided, codes, names, order)
    wanted = {int(row) for rows in (*chosen.values(), *groups) for row in rows}
    shown = {row.number: _shown(corpus, table, row, rules) for row in table.rows(lambda number: number in wanted)}
    for name, *_ in found.funnel:
        found.dropped[name] = [shown[int(row)](name) for row in chosen.get(name, ())]
    for rows in groups:
        found.duplicates.append([shown[int(row)](names[codes[row]] if codes[row] >= 0 else "kept") for row in rows])


def _groups(
    decided: pa.Table, codes: NDArray[np.int64], names: Sequence[str], order: NDArray[np.uint64]
) -> list[NDArray[np.int64]]:
    """Return some groups of which a member was dropped as a duplicate, four rows of each at most."""
    if DUPLICATE not in names:
        return []
    labels = decided.column("group").fill_null(-1).to_numpy()
    some = np.unique(labels[codes == names.index(DUPLICATE)])
    some = np.sort(some[np.argsort(order[some], kind="stable")[:GROUPS_SHOWN]])
    return [np.flatnonzero(labels == label)[:4] for label in some]


def _shown(corpus: Corpus, table: RawTable, row: RawRow, rules: Mapping[str, Rule]) -> Callable[[str], ShownRow]:
    """Return a row as the page shows it, once the reason is given for which it is shown."""
    picture, note = b"", row.detail
    refused = _refused(corpus, row.number)
    if refused:
        note = refused  # not opened again: it may end the process
    elif row.pictures:
        role, path = row.pictures[0]
        try:
            picture = thumbnail(table.open(path, role).pixels)
        except UnusablePictureError as problem:
            note = problem.detail
        except Exception as problem:
            note = f"{type(problem).__name__}: {problem}"

    def given(reason: str) -> ShownRow:
        rule = rules.get(reason)
        numbers = _numbers(corpus, row.number, rule) if rule is not None else {}
        why = note if rule is not None or note else reason
        return ShownRow(row.id, row.where, row.instruction, numbers, picture, why)

    return given


def _refused(corpus: Corpus, row: int) -> str:
    """Return why a picture of a row could not be opened; nothing when all could."""
    table = corpus.table(row // corpus.shard_rows, FILE, ["detail"])
    own = table.filter(pc.equal(table.column("row"), row))
    return next((detail for detail in own.column("detail").to_pylist() if detail), "")


def _numbers(corpus: Corpus, row: int, rule: Rule) -> dict[str, Any]:
    """Return what a rule looked at of a row, of all its pictures."""
    name = rule.columns[0].partition(".")[0]
    columns = [column.partition(".")[2] for column in rule.columns]
    table = corpus.table(row // corpus.shard_rows, name, columns)
    own = table.filter(pc.equal(table.column("row"), row)).to_pylist()
    numbers: dict[str, Any] = {}
    for item in own:
        for column in columns:
            place = f" of picture {item['picture']}" if len(own) > 1 else ""
            numbers[f"{name}.{column}{place}"] = item[column]
    return numbers


def thumbnail(pixels: NDArray[np.uint8]) -> bytes:
    """Return a small JPEG of a picture."""
    import cv2

    small = cv2.cvtColor(shrunk(pixels, THUMBNAIL), cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
