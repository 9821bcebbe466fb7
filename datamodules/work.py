"""Encoding one part after another: images are opened ahead, rows are encoded or refused, refusals are counted."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
T, U = TypeVar("T"), TypeVar("U")
Row = list[Record] | Refusal


@dataclass
class Tally:
    """Rows kept and refused so far."""

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
        self.kept += count
        if self.bar is not None:
            self.bar.update(count)

    def refuse(self, refusal: Refusal) -> None:
        self.refused[refusal.reason] += 1
        self.first += [refusal] * (len(self.first) < SHOWN)
        if self.bar is not None:
            self.bar.update(1)

    @property
    def seen(self) -> int:
        return self.kept + self.refused.total()

    @property
    def too_many(self) -> bool:
        return self.refused.total() > self.max_refused * self.rows

    def stop(self, parts: Parts, in_hand: list[Refusal]) -> UserError:
        """The UserError that more than the share is refused; refused.jsonl then holds all, `in_hand` too."""
        if self.bar is not None:
            self.bar.close()
        print(self.table())
        share = f"more than max_refused={self.max_refused:g}"
        return UserError(
            f"stopped: {self.refused.total()} of {self.rows} rows refused, {share}: "
            f"{'; '.join(map(str, self.first))}; all so far are in {parts.refused(in_hand)}"
        )

    def table(self) -> str:
        rows = [f"kept     {self.kept:>8} of {self.rows} rows", f"refused  {self.refused.total():>8}"]
        return "\n".join([*rows, *(f"         {count:>8} {reason}" for reason, count in self.refused.most_common())])


@dataclass
class Work:
    """What encodes one part after another. opening: a row's crops, or why it is refused."""

    parts: Parts
    encoder: Encoder
    tally: Tally
    opening: Callable[[Row], list[Cropped] | Refusal]
    workers: int

    def parts_of(self, read: Callable[..., Iterator[Row]], todo: Sequence[int], part_rows: int) -> None:
        """Encode the parts `todo` of what `read` gives. UserError when too much is refused; what is done stays."""
        self._stop_if_too_many([])
        wanted = set(todo)
        every = read(wanted=lambda number: number // part_rows in wanted)
        for number in range(max(todo, default=-1) + 1):
            part, rows = islice(every, part_rows), min(part_rows, self.tally.rows - number * part_rows)
            if number in wanted:
                refused: list[Refusal] = []
                self.parts.write(number, rows, self._samples(part, refused), refused)
            deque(part, 0)  # the rows of a part that is there already

    def _samples(self, part: Iterable[Row], refused: list[Refusal]) -> Iterator[Sample]:
        """The samples of a part's rows; a row is encoded whole or refused. Images are opened some rows ahead.

        Which rows are encoded together is told by their places in the part alone, so that a part is always the same.
        """
        ahead = _ahead(self.opening, part, self.workers, 2 * max(self.workers, self.encoder.batch))
        while some := list(islice(ahead, self.encoder.batch)):
            for encoded in self._encode(some):
                if isinstance(encoded, Refusal):
                    refused.append(encoded)
                    self.tally.refuse(encoded)
                    self._stop_if_too_many(refused)
                else:
                    yield from encoded
                    self.tally.keep()

    def _encode(self, rows: list[list[Cropped] | Refusal]) -> Iterator[list[Sample] | Refusal]:
        """Rows, encoded together: the samples of each, or why it is refused."""
        encoded = iter(self.encoder.encode([cropped for row in rows if isinstance(row, list) for cropped in row]))
        for row in rows:
            own = [row] if isinstance(row, Refusal) else list(islice(encoded, len(row)))
            bad = [found for found in own if isinstance(found, Refusal)]
            yield bad[0] if bad else [found for found in own if isinstance(found, Sample)]

    def _stop_if_too_many(self, in_hand: list[Refusal]) -> None:
        if self.tally.too_many:
            with in_turn(self.parts.folder):
                raise self.tally.stop(self.parts, in_hand)


def _ahead(function: Callable[[T], U], items: Iterable[T], workers: int, most: int) -> Iterator[U]:
    """function(item) of every item, in order, computed by threads at most so many items ahead."""
    waiting: deque[Any] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > most:
                    yield waiting.popleft().result()
            yield from (future.result() for future in waiting)
        finally:
            pool.shutdown(cancel_futures=True)
