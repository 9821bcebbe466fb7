"""Encoding one part after another: images are opened ahead, rows are encoded or refused, refusals are counted."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

from firered_lit.errors import UserError
from firered_lit.locks import in_turn

from .chunks import Sample
from .crops import Cropped
from .encode import Encoder
from .parts import Parts
from .records import Record, Refusal

SHOWN = 3  # refusals that the error line quotes
T = TypeVar("T")
U = TypeVar("U")
Row = list[Record] | Refusal


@dataclass
class Tally:
    """Counts of the rows that are kept and refused so far.

    Args:
        rows: All rows there are.
        max_refused: Share of them, 0 to 1, that may be refused.
        bar: Progress bar, moved by each row.
        kept: Rows whose samples are encoded.
        refused: Refused rows by reason.
        first: The first refusals, which an error quotes.
    """

    rows: int
    max_refused: float
    bar: Any = None
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first: list[Refusal] = field(default_factory=list)

    def add(self, manifest: dict[str, Any]) -> None:
        """Count a part that is done."""
        for row in manifest["refused"]:
            self.refuse(Refusal(**row))
        self.keep(manifest["rows"] - len(manifest["refused"]))

    def keep(self, count: int = 1) -> None:
        """Count rows whose samples are encoded."""
        self.kept += count
        if self.bar is not None:
            self.bar.update(count)

    def refuse(self, refusal: Refusal) -> None:
        """Count a row that is refused."""
        self.refused[refusal.reason] += 1
        if len(self.first) < SHOWN:
            self.first.append(refusal)
        if self.bar is not None:
            self.bar.update(1)

    @property
    def seen(self) -> int:
        """Rows that are counted already."""
        return self.kept + self.refused.total()

    @property
    def too_many(self) -> bool:
        """True when more rows are refused than may be."""
        return self.refused.total() > self.max_refused * self.rows

    def stop(self, parts: Parts, in_hand: list[Refusal]) -> UserError:
        """Return the error that too many rows are refused, and write all refusals to refused.jsonl.

        Args:
            parts: The parts that are done.
            in_hand: Refusals of the part that is not.
        """
        if self.bar is not None:
            self.bar.close()
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
class Work:
    """The encoding of one part after another.

    Args:
        parts: The folder's parts.
        encoder: The frozen models.
        tally: Counts of the rows.
        opening: Return a row's crops, or its refusal.
        workers: Threads that open rows ahead of the encoder.
    """

    parts: Parts
    encoder: Encoder
    tally: Tally
    opening: Callable[[Row], list[Cropped] | Refusal]
    workers: int

    def encode_parts(self, read: Callable[..., Iterator[Row]], todo: Sequence[int], part_rows: int) -> None:
        """Encode parts; those that are done stay when the work is stopped.

        Args:
            read: Yield all rows; its argument `wanted` says of a row's number whether the row will be encoded.
            todo: Numbers of the parts to encode.
            part_rows: Rows of a part.

        Raises:
            UserError: Too many rows are refused.
        """
        self._stop_if_too_many([])
        wanted = set(todo)
        every = read(wanted=lambda number: number // part_rows in wanted)
        for number in range(max(todo, default=-1) + 1):
            rows = islice(every, part_rows)
            if number in wanted:
                self._encode_part(number, rows, min(part_rows, self.tally.rows - number * part_rows))
            for _ in rows:
                pass  # a row of a part that is there already

    def _encode_part(self, number: int, rows: Iterable[Row], count: int) -> None:
        """Encode a part's rows, each as a whole or not at all.

        Rows are opened some ahead. The ones that are encoded together depend on their places in the part alone, so that
        a part comes out the same each time.
        """
        most = 2 * max(self.workers, self.encoder.batch)
        opened = _ahead(self.opening, rows, self.workers, most)
        with self.parts.writing(number, count) as part:
            while batch := list(islice(opened, self.encoder.batch)):
                for row in self._encode(batch):
                    if isinstance(row, Refusal):
                        part.refuse(row)
                        self.tally.refuse(row)
                        self._stop_if_too_many(part.refused)
                    else:
                        for sample in row:
                            part.add(sample)
                        self.tally.keep()

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

    def _stop_if_too_many(self, in_hand: list[Refusal]) -> None:
        """Raise UserError when more rows are refused than may be; `in_hand`: those of the part at work."""
        if self.tally.too_many:
            with in_turn(self.parts.folder):
                raise self.tally.stop(self.parts, in_hand)


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
