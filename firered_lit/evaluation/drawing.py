"""Drawing: every model's picture of every item, none of them twice.

OUT/pictures/MODEL/SUITE/...    the pictures, under the names of the official scripts
OUT/pictures/MODEL/drawn/*.jsonl  a line per item drawn or failed, in a file of each process:
    suite, id   of the item
    item        hash of its instruction and the names of its sources
    seed        of its noise
    model       the model's fingerprint
    sha256      of the picture's file; null where there is none
    failed      why there is none; null where there is one
    seconds     that it took

A picture counts as drawn if a line has its item, seed and model, and its file has the line's hash. Everything else is
drawn (again). A picture is written whole, and before its line, so a killed process loses only what it was drawing.
"""

import contextlib
import errno
import hashlib
import io
import json
import logging
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firered_lit.colours import as_seen
from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.pictures import opened
from firered_lit.evaluation.protocols import Benchmark, EvaluationFolder, Item, Model
from firered_lit.files import replacing
from firered_lit.judges import log as lines
from firered_lit.judges.reply import one_line
from firered_lit.places import make_folder

logger = logging.getLogger(__name__)
MOST_FAILURES = 10  # items that fail before the first one succeeds, after which a model is given up
Key = tuple[str, str]  # suite and id
Line = dict[str, Any]


@dataclass
class DrawingTally:
    """Counts of what became of a process's share of a model's items.

    Attributes:
        drawn: Pictures that were drawn.
        there: Those that lay there whole.
        failed: Items that have none.
        other: Pictures that were there, but damaged, or of another model, seed or instruction.
    """

    drawn: int = 0
    there: int = 0
    failed: int = 0
    other: int = 0

    def __str__(self) -> str:
        other = f" ({self.other} in place of other or damaged ones)" if self.other else ""
        return f"{self.drawn} drawn{other}, {self.there} were there, {self.failed} failed"


def draw(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Mapping[str, Model],
    seed: int,
    shard: int = 0,
    num_shards: int = 1,
) -> dict[str, DrawingTally]:
    """Draw every num_shards-th item, from item `shard` on, with each model.

    Args:
        folder: Where the pictures go.
        benchmarks: Whose items.
        models: Name -> model.
        seed: Of every picture's noise, set anew for each.
        shard: Which of the shares.
        num_shards: Into how many shares the items are divided.

    Returns:
        Model -> what became of its items.

    Raises:
        UserError: A model draws none of the first items, or a picture cannot be written.
    """
    tallies = {}
    for name, model in models.items():
        work = _DrawingShare(folder, name, model, seed, f"{shard}-of-{num_shards}")
        try:
            tallies[name] = work.run(own_items(benchmarks, shard, num_shards))
        finally:
            model.close()
    return tallies


def own_items(benchmarks: Sequence[Benchmark], shard: int, num_shards: int) -> list[tuple[Benchmark, Item]]:
    """Return every num_shards-th item of all benchmarks, from item `shard` on, each with its benchmark."""
    items = [(benchmark, item) for benchmark in benchmarks for item in benchmark.items()]
    return items[shard::num_shards]


def drawn_lines(folder: EvaluationFolder, model: str) -> dict[Key, list[Line]]:
    """Return the lines that all processes have written of a model's items, the newest of each file last."""
    found: dict[Key, list[Line]] = {}
    for path in sorted(folder.drawings(model).glob("*.jsonl")):
        of_file: dict[Key, Line] = {}
        for line in lines.rows(path):
            of_file[str(line.get("suite")), str(line.get("id"))] = line
        for key, line in of_file.items():
            found.setdefault(key, []).append(line)
    return found


def count_missing(
    folder: EvaluationFolder, benchmarks: Sequence[Benchmark], fingerprints: Mapping[str, str], seed: int
) -> int:
    """Return how many items, over all models, no process has drawn or failed at.

    Args:
        folder: The evaluation.
        benchmarks: Whose items.
        fingerprints: Model -> its fingerprint.
        seed: Of the noise.
    """
    missing = 0
    for name, fingerprint in fingerprints.items():
        known = drawn_lines(folder, name)
        for benchmark in benchmarks:
            for item in benchmark.items():
                wanted = origin_of(item, fingerprint, seed)
                found = known.get((item.suite, item.id), [])
                missing += not any(wanted.items() <= line.items() for line in found)
    return missing


def origin_of(item: Item, fingerprint: str, seed: int) -> Line:
    """Return the columns of a line by which a picture is known to be the one that is wanted."""
    return {"item": item_digest(item), "seed": seed, "model": fingerprint}


def count_origins(folder: EvaluationFolder, benchmarks: Sequence[Benchmark], name: str) -> int:
    """Return of how many models and seeds the pictures are that lie under one model's name."""
    known = drawn_lines(folder, name)
    origins = set()
    for benchmark in benchmarks:
        for item in benchmark.items():
            path = folder.picture(name, item)
            digests = {line["sha256"]: (line["model"], line["seed"]) for line in known.get((item.suite, item.id), [])}
            if len(digests) > 1:  # several shards have drawn it, of which one is newer
                origins.add(digests.get(_sha256(path)))
            elif path.is_file():
                origins.update(digests.values())
    return len(origins - {None})


def item_digest(item: Item) -> str:
    """Return a hash of what a model is given of an item."""
    text = json.dumps([item.suite, item.id, item.instruction, list(item.sources)], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:24]


class _DrawingShare:
    """One process's share of one model's items."""

    def __init__(self, folder: EvaluationFolder, name: str, model: Model, seed: int, share: str) -> None:
        self.folder = folder
        self.name = name
        self.model = model
        self.seed = seed
        self.fingerprint = model.fingerprint()
        self.lines_file = folder.drawings(name) / f"{share}.jsonl"
        self.known = drawn_lines(folder, name)
        self.tally = DrawingTally()

    def run(self, items: Sequence[tuple[Benchmark, Item]]) -> DrawingTally:
        """Draw what is not there."""
        from tqdm import tqdm

        make_folder(self.lines_file.parent)
        often = 0.1 if sys.stderr.isatty() else 60.0  # seconds between two lines where nobody watches
        title = f"draw {self.name}"
        with tqdm(total=len(items), unit="picture", desc=title, smoothing=0.05, mininterval=often) as bar:
            for _ in self._settled(items):
                bar.update()
        return self.tally

    def _settled(self, items: Sequence[tuple[Benchmark, Item]]) -> Iterator[None]:
        """Yield once for each item that is there, drawn or failed."""
        if self.model.parallel == 1:
            for benchmark, item in items:
                self._settle(item, None if self._is_there(item) else self._attempt(benchmark, item))
                yield
            return
        waiting: deque[tuple[Item, Future[Line]]] = deque()
        with ThreadPoolExecutor(self.model.parallel, thread_name_prefix="draw") as pool:
            try:
                for benchmark, item in items:
                    if self._is_there(item):
                        self._settle(item, None)
                        yield
                        continue
                    waiting.append((item, pool.submit(self._attempt, benchmark, item)))
                    if len(waiting) >= 2 * self.model.parallel:
                        first, future = waiting.popleft()
                        self._settle(first, future.result())
                        yield
                for first, future in waiting:
                    self._settle(first, future.result())
                    yield
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _is_there(self, item: Item) -> bool:
        """Return whether an item's picture lies there whole, drawn by this model from this seed."""
        wanted = origin_of(item, self.fingerprint, self.seed)
        for line in self.known.get((item.suite, item.id), []):
            same = wanted.items() <= line.items()
            if same and line.get("sha256") and _sha256(self.folder.picture(self.name, item)) == line["sha256"]:
                return True
        self.tally.other += self.folder.picture(self.name, item).exists()
        return False

    def _attempt(self, benchmark: Benchmark, item: Item) -> Line:
        """Draw one item and write its picture. Returns its line."""
        begin = time.perf_counter()
        path = self.folder.picture(self.name, item)
        failed = None
        digest = None
        try:
            sources = [
                source_picture(name, file) for name, file in zip(item.sources, benchmark.sources(item), strict=True)
            ]
            picture = _file_of(self.model.draw(item, sources, self.seed))
        except UserError as problem:
            failed = one_line(problem, 500)
        except Exception as problem:  # a model may fail at one item in any way; the others go on
            failed = one_line(f"{type(problem).__name__}: {problem}", 500)
            logger.debug("%s: %s", self.name, item.id, exc_info=True)
        if failed is None:
            with _named_disk(path), replacing(path, "wb") as file:
                file.write(picture)
            digest = hashlib.sha256(picture).hexdigest()
        else:
            path.unlink(missing_ok=True)  # one of an earlier model must not pass for this one's
        return {
            "suite": item.suite,
            "id": item.id,
            **origin_of(item, self.fingerprint, self.seed),
            "sha256": digest,
            "failed": failed,
            "seconds": round(time.perf_counter() - begin, 3),
        }

    def _settle(self, item: Item, line: Line | None) -> None:
        """Count an item, and write its line down if it has one.

        Raises:
            UserError: The first items have all failed, or the line cannot be written.
        """
        if line is None:
            self.tally.there += 1
            return
        with _named_disk(self.lines_file):
            lines.append(self.lines_file, line)
        if line["failed"] is None:
            self.tally.drawn += 1
            return
        self.tally.failed += 1
        logger.warning("%s: %s %s: %s", self.name, item.suite, item.id, line["failed"])
        if self.tally.drawn + self.tally.there == 0 and self.tally.failed >= MOST_FAILURES:
            count = self.tally.failed
            raise UserError(f"model {self.name}: none of the first {count} items could be drawn: {line['failed']}")


@contextlib.contextmanager
def _named_disk(path: Path) -> Iterator[None]:
    """Say in one line that a file could not be written, as on a full disk.

    Raises:
        UserError: It could not.
    """
    try:
        yield
    except OSError as problem:
        hint = ""
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "; make room and run again, it goes on from there"
        raise UserError(f"{path}: cannot be written: {problem.strerror}{hint}") from None


def source_picture(name: str, file: bytes) -> Any:
    """Return a source picture as every model gets it, and as `edit` and training see it: upright, in sRGB.

    Raises:
        UserError: It cannot be read.
    """
    return as_seen(opened(file, f"source {name}"))


def _file_of(picture: Any) -> bytes:
    """Return the file of a drawn picture: its own, if it can be read, else a PNG.

    Raises:
        UserError: It cannot be read.
    """
    if not isinstance(picture, bytes):
        file = io.BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()
    opened(picture, "the picture")
    return picture


def _sha256(path: Path) -> str | None:
    """Return the hash of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
