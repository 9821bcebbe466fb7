"""Hostile rows are taken, or refused in one line that names file, row and field, by `prepare` and by `check --data`.

Every table goes through what both do: it is surveyed, read, summed up, its pictures are opened. Some go through the
encoder, and some through the whole of `prepare`.
"""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest
from damage import one_line
from hostile_rows import ROWS, TABLES, pictures, write
from time_limit import within

from datamodules.chunks.samples import Packed
from datamodules.prepare.crops import Cropped, Opening
from datamodules.prepare.encode import Encoder
from datamodules.prepare.write import prepare
from datamodules.sources import tables
from datamodules.sources.records import Record, Refusal, rows
from datamodules.summary import summary
from firered_lit.errors import UserError
from firered_lit.models.family import open_base
from firered_lit.models.sizes import Sizes

QUICK = {"jsonl": 700, "json": 600, "csv": 700, "parquet": 800, "toolkit": 200}  # rows
SLOW = {"jsonl": 25_000, "json": 25_000, "csv": 25_000, "parquet": 3000 * ROWS, "toolkit": 5_000}
SIZES = Sizes(target_area=64 * 64, reference_area=64 * 64, condition_area=56 * 56)
OPENING = Opening(SIZES, lambda row: False, max_pixels=1 << 20)


@dataclass
class Seen:
    """Tables that were gone through: rows and tables counted by how they ended, and rows that may be encoded."""

    rows: Counter[str] = field(default_factory=Counter)
    tables: Counter[str] = field(default_factory=Counter)
    cropped: list[Cropped] = field(default_factory=list)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pictures that hostile rows name."""
    folder = tmp_path_factory.mktemp("hostile")
    pictures(folder)
    return folder


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(open_base("tiny").resized(SIZES), "float32", "cpu", orders=2, batch=4, aligned=True)


def check_refusal(refusal: Refusal, path: Path) -> None:
    """Hold a refusal against what it has to name."""
    assert one_line(str(refusal)), refusal
    assert refusal.where.startswith(str(path)), refusal
    assert len(refusal.where) > len(str(path)), refusal
    assert refusal.field, refusal
    assert refusal.reason, refusal
    json.dumps(asdict(refusal), ensure_ascii=False).encode()
    assert Refusal(**asdict(refusal)) == refusal


def gone_through(path: Path, seen: Seen) -> None:
    """Take one table through survey, reading, summing up and opening."""
    refusal = ""
    try:
        count, _ = tables.survey(path)
        read = list(rows(path))
        total = summary(path)
    except UserError as problem:
        refusal = str(problem)
    if refusal:
        assert one_line(refusal), refusal
        assert str(path) in refusal
        seen.tables["refused"] += 1
        return
    seen.tables["read"] += 1
    assert len(read) == total.rows == count
    assert all(one_line(line[:2000]) for line in total.lines()), list(total.lines())
    for found in read:
        opened = found if isinstance(found, Refusal) else OPENING(found)
        if isinstance(opened, Refusal):
            check_refusal(opened, path)
            seen.rows[opened.reason] += 1
        else:
            assert all(isinstance(record, Record) for record in found)
            seen.cropped += opened
            seen.rows["taken"] += 1
    for problem in total.problems:
        check_refusal(problem, path)


def case(kind: str, number: int, folder: Path, seen: Seen) -> None:
    """Write a table, and take it through. AssertionError names the case."""
    try:
        with within(60):
            path = write(kind, number, folder)
            gone_through(path, seen)
    except BaseException as problem:
        if isinstance(problem, KeyboardInterrupt):
            raise
        raise AssertionError(f"write({kind!r}, {number}): {type(problem).__name__}: {problem}") from problem
    remove(path)


def fuzz(kind: str, numbers: range, folder: Path) -> Seen:
    seen = Seen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in numbers:
            case(kind, number, folder, seen)
            del seen.cropped[400:]
    return seen


@pytest.mark.parametrize("kind", TABLES)
def test_hostile_rows_are_taken_or_refused_in_one_line(folder: Path, encoder: Encoder, kind: str) -> None:
    count = QUICK[kind] // ROWS
    seen = fuzz(kind, range(count), folder)
    assert seen.tables.total() == count
    assert seen.rows["taken"] > count, "some rows are good"
    assert len(seen.rows) > 3, "rows are refused for several reasons"
    encoded(encoder, seen.cropped[:24])


def encoded(encoder: Encoder, some: list[Cropped]) -> Counter[str]:
    """Encode records four at a time, and hold what comes out against what can be stored."""
    counts: Counter[str] = Counter()
    for start in range(0, len(some), 4):
        found = encoder.encode(some[start : start + 4])
        for sample, cropped in zip(found, some[start : start + 4], strict=True):
            if isinstance(sample, Refusal):
                assert one_line(str(sample)), sample
                assert sample.where == cropped.record.where
            else:
                assert isinstance(sample, Packed)
                assert all(leaf.encode() for leaf in sample.leaves.values() if isinstance(leaf, str))
            counts["refused" if isinstance(sample, Refusal) else "encoded"] += 1
    return counts


def prepared(path: Path, out: Path) -> int:
    """Prepare a table as a user does, however many rows are refused. Returns how many were kept."""
    settings = {"model": "tiny", "sizes": SIZES, "device": "cpu", "max_refused": 1.0, "max_orders": 2, "workers": 2}
    prepare(str(path), str(out), **settings)
    lines = [json.loads(line) for line in (out / "refused.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        check_refusal(Refusal(**line), path)
    data = json.loads((out / "data.json").read_text(encoding="utf-8"))
    assert data["kept"] + len(lines) == data["rows"]
    return int(data["kept"])


@pytest.mark.parametrize("kind", TABLES)
def test_prepare_goes_through_hostile_rows(folder: Path, tmp_path: Path, kind: str) -> None:
    number = next(number for number in range(10**5, 10**5 + 100) if readable(kind, number, folder))
    path = write(kind, number, folder)
    assert prepared(path, tmp_path / "out") > 0
    remove(path)


def readable(kind: str, number: int, folder: Path) -> bool:
    """Return whether a table is read and has a good row."""
    seen = Seen()
    case(kind, number, folder, seen)
    return bool(seen.cropped)


def remove(path: Path) -> None:
    """Remove a table, so that another can be written in its place."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def parts(count: int, size: int) -> Iterator[range]:
    return (range(10**6 + start, 10**6 + min(start + size, count)) for start in range(0, count, size))


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", TABLES)
def test_many_hostile_rows_are_taken_or_refused_in_one_line(folder: Path, encoder: Encoder, kind: str) -> None:
    total, through = Seen(), Counter[str]()
    for numbers in parts(SLOW[kind] // ROWS, 50):
        seen = fuzz(kind, numbers, folder)
        total.rows += seen.rows
        total.tables += seen.tables
        through += encoded(encoder, seen.cropped[:40])
    print(kind, dict(total.tables), dict(total.rows), dict(through))
    assert total.tables.total() == SLOW[kind] // ROWS
