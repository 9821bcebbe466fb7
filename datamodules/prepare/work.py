"""Encoding of one part after another: images are opened ahead, rows are encoded or refused, refusals are counted."""

import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

from firered_lit.errors import UserError
from firered_lit.sharing.workers import Report, Step

from ..chunks.samples import Sample
from ..sources.records import Record, Refusal
from .crops import Cropped
from .encode import Encoder
from .parts import Parts

SHOWN = 3  # refusals that the error line quotes
ROWS = "rows"  # a step of the work on a part: so many of its rows are done
MODELS = "models"  # another one: they are loaded
MOST_DEATHS = 3  # of processes at one part
T = TypeVar("T")
U = TypeVar("U")
Row = list[Record] | Refusal


@dataclass(frozen=True)
class PartRows:
    """A part that is to be encoded.

    Args:
        number: Its number.
        rows: Its rows; where no other process encodes them, read as they are asked for.
        count: How many there are.
        deaths: Processes that have died at it, or hung.
    """

    number: int
    rows: Iterable[Row]
    count: int
    deaths: int = 0

    @property
    def shard(self) -> int:
        """The part's number."""
        return self.number

    def after_death(self, step: Step, deaths: int) -> "PartRows":
        """Return the part again: no row is to blame for a process that died.

        Raises:
            UserError: Processes die at it again and again.
        """
        if self.deaths + 1 >= MOST_DEATHS:
            raise UserError(
                f"part {self.number}: {MOST_DEATHS} processes died at it, or said nothing for `patience` seconds; out"
                " of memory? Fewer processes may help, or processes=0, which shows why"
            )
        return replace(self, deaths=self.deaths + 1)


@dataclass(frozen=True)
class PartDone:
    """The outcome of a part: rows that are kept, and refusals of the others."""

    number: int
    kept: int
    refused: Sequence[Refusal]


class TooManyRefusedError(UserError):
    """More rows are refused than may be.

    Args:
        part: The counted rows of the part at which that was seen, which is not finished.
    """

    def __init__(self, part: PartDone) -> None:
        super().__init__(f"part {part.number}: more rows are refused than may be")
        self.part = part

    def __reduce__(self) -> tuple[type["TooManyRefusedError"], tuple[PartDone]]:
        return TooManyRefusedError, (self.part,)


@dataclass
class Tally:
    """Counts of the rows that are kept and refused so far.

    Args:
        rows: All rows there are.
        max_refused: Share of them, 0 to 1, that may be refused.
        kept: Rows whose samples are encoded.
        refused: Refused rows by reason.
        first: The first refusals, which an error quotes.
    """

    rows: int
    max_refused: float
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first: list[Refusal] = field(default_factory=list)

    def add_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Count a part that is done, by its manifest."""
        for row in manifest["refused"]:
            self.refuse(Refusal(**row))
        self.keep(manifest["rows"] - len(manifest["refused"]))

    def add(self, part: PartDone) -> None:
        """Count a part, or what of it is done."""
        for refusal in part.refused:
            self.refuse(refusal)
        self.keep(part.kept)

    def keep(self, count: int = 1) -> None:
        """Count rows whose samples are encoded."""
        self.kept += count

    def refuse(self, refusal: Refusal) -> None:
        """Count a row that is refused."""
        self.refused[refusal.reason] += 1
        if len(self.first) < SHOWN:
            self.first.append(refusal)

    @property
    def seen(self) -> int:
        """Rows that are counted already."""
        return self.kept + self.refused.total()

    @property
    def too_many(self) -> bool:
        """True when more rows are refused than may be."""
        return self.refused.total() > self.max_refused * self.rows

    def stop(self, parts: Parts, in_hand: Sequence[Refusal] = ()) -> UserError:
        """Return the error that too many rows are refused, and write all refusals to refused.jsonl.

        Args:
            parts: The parts that are done.
            in_hand: Refusals of the part that is not.
        """
        print(self.table())
        first = "; ".join(str(refusal) for refusal in self.first)
        return UserError(
            f"stopped: {self.refused.total()} of {self.rows} rows refused, more than max_refused={self.max_refused:g}: "
            f"{first}; all so far are in {parts.refused(in_hand)}"
        )

    def table(self) -> str:
        """Return the counts as lines: rows kept, rows refused, and those by reason."""
        lines = [f"kept     {self.kept:>8} of {self.rows} rows", f"refused  {self.refused.total():>8}"]
        for reason, count in self.refused.most_common():
            lines.append(f"         {count:>8} {reason}")
        return "\n".join(lines)


@dataclass
class Encoding:
    """The encoding of parts, in this process or in others, to which it is sent.

    Args:
        parts: The folder's parts.
        encoder: The frozen models.
        tally: Counts of the rows that were done before; each process adds its own.
        opening: Return a row's crops, or its refusal.
        read: Yield all rows; its argument `wanted` says of a row's number whether the row will be encoded.
        part_rows: Rows of a part.
        threads: Threads of a process that open rows ahead of the encoder.
        sent: Whether parts are sent to other processes, all rows of one at once.
        folder: Folder from which relative paths lead.
    """

    parts: Parts
    encoder: Encoder
    tally: Tally
    opening: Callable[[Row], list[Cropped] | Refusal]
    read: Callable[..., Iterator[Row]]
    part_rows: int
    threads: int
    sent: bool
    folder: str = field(default_factory=os.getcwd)

    def left(self, todo: Mapping[int, Any]) -> dict[int, Any]:
        """Return the parts that are not there yet."""
        return {number: value for number, value in todo.items() if self.parts.read(number) is None}

    def works(self, todo: Mapping[int, Any]) -> Iterator[PartRows]:
        """Yield parts with their rows, as these are read."""
        self._go_there()
        every = self.read(wanted=lambda number: number // self.part_rows in todo)
        for number in range(max(todo, default=-1) + 1):
            rows = islice(every, self.part_rows)
            if number in todo:
                count = min(self.part_rows, self.tally.rows - number * self.part_rows)
                yield PartRows(number, list(rows) if self.sent else rows, count)
            for _ in rows:
                pass  # a row of a part that is there already

    def do(self, work: PartRows, report: Report) -> PartDone:
        """Encode a part's rows, each as a whole or not at all.

        Rows are opened some ahead. The ones that are encoded together depend on their places in the part alone, so that
        a part comes out the same each time.

        Raises:
            TooManyRefusedError: More rows are refused than may be.
        """
        self._go_there()
        report((MODELS, work.number, 0))
        self.encoder.open()
        kept = 0
        most = 2 * max(self.threads, self.encoder.batch)
        opened = _ahead(self.opening, work.rows, self.threads, most)
        with self.parts.writing(work.number, work.count) as part:
            while batch := list(islice(opened, self.encoder.batch)):
                report((ROWS, work.number, kept + len(part.refused)))
                for row in self._encode(batch):
                    if isinstance(row, Refusal):
                        part.refuse(row)
                        self.tally.refuse(row)
                        if self.tally.too_many:
                            raise TooManyRefusedError(PartDone(work.number, kept, part.refused))
                    else:
                        for sample in row:
                            part.add(sample)
                        kept += 1
        self.tally.keep(kept)
        return PartDone(work.number, kept, part.refused)

    def _go_there(self) -> None:
        """Let relative paths mean in this process what they mean in the command.

        Raises:
            UserError: Its folder is not here.
        """
        if os.getcwd() == self.folder:
            return
        try:
            os.chdir(self.folder)
        except OSError as problem:
            said = f"{self.folder}: {problem.strerror}"
            raise UserError(f"{said}; every machine needs the command's folder under the same path") from None

    def _encode(self, rows: list[list[Cropped] | Refusal]) -> Iterator[list[Sample] | Refusal]:
        """Yield the samples of each row, or its refusal; the rows' edits are encoded together."""
        edits = [cropped for row in rows if not isinstance(row, Refusal) for cropped in row]
        encoded = iter(self.encoder.encode(edits))
        for row in rows:
            if isinstance(row, Refusal):
                yield row
                continue
            samples: list[Sample] = []
            refusals: list[Refusal] = []
            for outcome in islice(encoded, len(row)):
                if isinstance(outcome, Refusal):
                    refusals.append(outcome)
                else:
                    samples.append(outcome)
            yield refusals[0] if refusals else samples


def _ahead(function: Callable[[T], U], items: Iterable[T], workers: int, most: int) -> Iterator[U]:
    """Yield function(item) of every item, in order, computed by threads.

    Args:
        function: Called in a thread.
        items: Its arguments.
        workers: Threads at work.
        most: Items that are computed ahead, at most.
    """
    waiting: deque[Future[U]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            for future in waiting:
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)
