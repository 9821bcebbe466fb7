"""The report of `check --data`: lines that say what a source or a prepared folder holds."""

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from firered_lit.models.sizes import Shape, Sizes, assign, shape_table

from .sampling.buckets import BatchPlan
from .sampling.index import FILE, Index, IndexRow
from .sources import images
from .sources.parquet import Embedded
from .sources.records import Record, Refusal, named_images, rows
from .sources.refusals import Refuse, guarded, one_line
from .sources.regions import check_inside
from .sources.source import Named
from .sources.tables import notes

URL_TOTAL = 120.0  # seconds in which all addresses together are fetched
LONGEST_LINE = 10_000  # characters of the report
SHAPES = 12  # that are listed
FULL = 4  # the largest targets that a device holds, when no capacity is said


@dataclass
class Addresses:
    """Images that are http(s) addresses: whether they are fetched, and how many seconds are left to do so."""

    allowed: bool = False
    seconds: float = 0.0
    fetched: int = 0
    passed_over: int = 0

    def size(self, url: str) -> Shape:
        """Return (height, width) of an image; (0, 0) when no time is left. Raises BadImageError."""
        if self.allowed and self.seconds <= 0:
            self.passed_over += 1
            return 0, 0
        begun = time.monotonic()
        try:
            return images.size(url, allow_urls=self.allowed, url_seconds=min(self.seconds, images.URL_SECONDS))
        finally:
            self.fetched += 1
            self.seconds -= time.monotonic() - begun


@dataclass
class Summary:
    """The content of a source, counted before anything is encoded."""

    rows: int = 0
    layouts: Counter[str] = field(default_factory=Counter)
    tasks: Counter[str] = field(default_factory=Counter)
    references: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    shapes: Counter[Shape] = field(default_factory=Counter)  # (height, width) of the target, before any crop
    carried: Counter[str] = field(default_factory=Counter)  # edits that have marks or texts beside the instruction
    polarity: dict[str, str] = field(default_factory=dict)  # of each layout: which image is which
    inverted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[Refusal] = field(default_factory=list)  # the first ones
    first: list[Record] = field(default_factory=list)
    addresses: Addresses = field(default_factory=Addresses)
    notes: list[str] = field(default_factory=list)  # remarks on the source, and on files that are left aside

    def problem(self) -> str:
        """Return the reason why nothing can be prepared from the source; "" when something can."""
        if not self.rows:
            return "it holds no rows"
        if self.refused.total() >= self.rows:
            return f"none of its {self.rows} rows is good"
        return ""

    def add(self, row: list[Record]) -> None:
        """Count a row that is good."""
        columns = row[0].columns
        self.layouts[columns.name] += 1
        self.polarity[columns.name] = columns.polarity
        for record in row:
            if record.id.endswith(".inverse"):
                self.inverted += 1
            self.carried.update(name for name, carried in _carried(record).items() if carried)
            self.tasks[record.task] += 1
            self.references[len(record.references)] += 1
            self.languages.update({key.partition("/")[2] for key in record.instructions})

    def lines(self) -> Iterator[str]:
        """Yield the report, whatever line ends the rows hold."""
        for line in self._lines():
            yield one_line(line, LONGEST_LINE)

    def _lines(self) -> Iterator[str]:
        """Yield the report; a line may hold line ends of the rows."""
        # Counts.
        refused = self.refused.total()
        yield f"rows        {self.rows}: {self.rows - refused} good, {refused} refused; {self.inverted} inverted edits"
        for name, polarity in sorted(self.polarity.items()):
            yield f"layout      {name} {self.layouts[name]}: {polarity}"
        counters: dict[str, Counter[Any]] = {
            "tasks": self.tasks,
            "references": self.references,
            "languages": self.languages,
            "carried": self.carried,
        }
        for name, counter in counters.items():
            counts = ", ".join(f"{key} {count}" for key, count in sorted(counter.items()))
            yield f"{name:<11} {counts or 'nothing'}"

        # Images.
        if self.shapes:
            listed = ", ".join(f"{w}x{h} {count}" for (h, w), count in self.shapes.most_common(SHAPES))
            if len(self.shapes) > SHAPES:
                listed += f", {len(self.shapes) - SHAPES} others"
            yield f"shapes      {listed} ({self.shapes.total()} targets seen)"
        if self.addresses.allowed:
            rest = f"{self.addresses.passed_over} passed over after {URL_TOTAL:g} s"
            yield f"addresses   {self.addresses.fetched} fetched, {rest}"

        # Notes, refusals, and the first records.
        for note in self.notes:
            yield f"note        {note}"
        for reason, count in self.refused.most_common():
            yield f"refused     {count:>6} {reason}"
        for problem in self.problems:
            yield f"  {problem}"
        for record in self.first:
            sources = ", ".join(record.references) or "text"
            rather = f" rather than {record.loser}" if record.loser else ""
            yield f"e.g. {record.where}: {sources} -> {record.target or 'to be drawn'}{rather}: {record.instructions}"


def summary(
    source: Named,
    *,
    layout: str = "",
    allow_urls: bool = False,
    shown: int = 5,
    looked_up: int = 10_000,
    opened: int = 1000,
) -> Summary:
    """Count by task, number of references, language and shape; keep the first problems and the first records.

    No image is decoded: a shape is the one that the row gives, else the one in the header of its target.

    Args:
        source: Table, or folder of tasks.
        layout: Its layout, when the columns do not tell.
        allow_urls: Fetch images that are addresses, in URL_TOTAL seconds in all; else they are refused.
        shown: Problems and records to keep.
        looked_up: The first rows whose images are looked up.
        opened: The first rows whose targets' headers are read, and whose addresses are fetched.
    """
    total = Summary(addresses=Addresses(allow_urls, URL_TOTAL), notes=notes(source))
    for row in rows(source, layout=layout, wanted=lambda number: number < opened):
        total.rows += 1
        if not isinstance(row, Refusal):
            looks = partial(_looked_at, row, total, looked_up=looked_up, opened=opened)
            row = guarded(looks, row[0].where)
        if isinstance(row, Refusal):
            total.refused[row.reason] += 1
            if len(total.problems) < shown:
                total.problems.append(row)
            continue
        total.first += row[: max(0, shown - len(total.first))]
        total.add(row)
    return total


def _carried(record: Record) -> dict[str, bool]:
    """Return True for each thing that a record has beside images and instructions, by the name that is counted."""
    return {
        "regions": bool(record.regions),
        "mask": bool(record.mask),
        "captions": any(record.captions),
        "pair": bool(record.loser),
        "prompt without target": not record.target,
        "target_text": bool(record.target_text),
        "replaced_text": bool(record.replaced_text),
        "requirement": bool(record.requirement),
        "cluster": bool(record.cluster),
    }


def _looked_at(row: list[Record], total: Summary, looked_up: int, opened: int) -> list[Record]:
    """Count the shape of a row's target and return the row. Raises Refuse where an image is missing or unusable."""
    fetched = _fetched(row, total.addresses, total.rows <= opened)
    if total.rows <= looked_up:
        _present(row)
    if total.rows <= opened or any(row[0].size):
        _shape(row, total, fetched)
    return row


def _named(row: list[Record]) -> list[tuple[str, str]]:
    """Return (column, path) of every image of a row, the mask too."""
    named = [image for record in row for image in named_images(record)]
    if row[0].mask:
        named.append((row[0].columns.mask, row[0].mask))
    return list(dict.fromkeys(named))


def _fetched(row: list[Record], addresses: Addresses, opened: bool) -> dict[str, Shape]:
    """Return the sizes of a row's images that are addresses, where they are fetched and the row is to be opened.

    Raises:
        Refuse: addresses are not fetched, or one does not answer with an image.
    """
    found: dict[str, Shape] = {}
    for name, path in _named(row):
        if images.URL.match(path) and (opened or not addresses.allowed):
            with images.refusing_field(name):
                found[path] = addresses.size(path)
    return found


def _present(row: list[Record]) -> None:
    """Refuse a row that names a file that is not there."""
    for name, path in _named(row):
        is_file = not isinstance(path, Embedded) and not images.URL.match(path)
        if is_file and not os.path.exists(path):
            raise Refuse(name, "missing image", f"{path} does not exist")


def _shape(row: list[Record], total: Summary, fetched: dict[str, Shape]) -> None:
    """Count the shape of the row's target, by what the row says or by its header. Raises Refuse."""
    record = row[0]
    path = record.target or next(iter(record.references), "")
    shape = record.size if any(record.size) else fetched.get(path, (0, 0))
    if not any(shape) and path and not images.URL.match(path):
        column = record.columns.target if record.target else record.columns.source
        with images.refusing_field(column):
            shape = images.size(path)
    if any(shape):
        check_inside(record.regions, shape[::-1], record.region_column)
        total.shapes[shape] += 1


def index_row(record: Record, position: int, sizes: Sizes) -> IndexRow:
    """Return a record as the index has it, by the size in its row: references are taken to have the target's size.

    Args:
        record: The record.
        position: Number of its sample.
        sizes: Pixel areas of the crops.
    """
    target = _assigned(record.size, sizes.target_area)
    references = (_assigned(record.size, sizes.reference_area),) * len(record.references)
    return IndexRow(record.task, target, references, position, record.cluster)


@lru_cache(1 << 12)
def _assigned(size: Shape, area: int) -> Shape:
    return assign(*size, _table(area))


_table = lru_cache(shape_table)


def table(folder: str | os.PathLike[str], capacity: int | None = None) -> Iterator[str]:
    """Yield the buckets of a prepared folder: samples, batch size, tokens, and the share of the capacity left empty.

    Args:
        folder: The folder.
        capacity: Visual tokens of a micro-batch; four of the largest samples when None.
    """
    for split in ("train", "held_out"):
        place = Path(folder, "index", split)
        if not (place / FILE).exists():
            continue
        index = Index.open(place)
        if not index.buckets:
            continue
        full = capacity or FULL * max(bucket.tokens for bucket in index.buckets)
        planned = BatchPlan(index, capacity=full, plan_ranks=1, seed=0)
        plan = planned.table()
        left = len(planned.left_out(0).rows)
        empty = 1 - sum(line.samples * line.tokens for line in plan) / (full * sum(line.batches for line in plan))
        yield f"{split}: {len(index)} samples in {len(plan)} buckets, capacity {full} tokens, {empty:.1%} of it unused"
        yield f"  an epoch of one process leaves out {left} of them ({left / len(index):.1%}), others each time"
        yield f"  {'samples':>9} {'batch':>6} {'tokens':>7} {'waste':>6}  bucket"
        for line in sorted(plan, key=lambda line: -line.samples):
            yield f"  {line.samples:>9} {line.batch:>6} {line.tokens:>7} {line.waste:>6.1%}  {line.bucket}"
