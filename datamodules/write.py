"""`prepare`: rows -> encoded samples in LitData chunks, an index of their buckets, and a table of what was refused."""

import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.models.family import open_base
from firered_lit.models.sizes import Sizes

from .chunks import Sample
from .encode import DTYPES, Encoder, Unfit, load
from .images import MAX_PIXELS
from .parts import Parts, at_work, made_from
from .records import Record, Refusal, rows
from .tables import survey

FORMAT = 1
SHOWN = 3  # refusals that the error line quotes
T, U = TypeVar("T"), TypeVar("U")
Row = list[Record] | Refusal


def prepare(
    source: str,
    out: str,
    model: str,
    sizes: Sizes | None = None,
    layout: str = "",
    max_refused: float = 0.01,
    held_out: float = 0.02,
    keep_images: bool = True,
    inverse: bool = True,
    alignment: bool = True,
    max_orders: int = 16,
    part_rows: int = 256,
    dtype: str = "float32",
    device: str = "auto",
    workers: int = 4,
    allow_urls: bool = False,
    max_pixels: int = MAX_PIXELS,
    seed: int = 0,
) -> None:
    """Encode `source`, a table or a folder of tasks, into `out`, with the VAE and text encoder of `model`.

    sizes: pixel areas; the base's own when None. layout: see `datamodules.layouts`, when the columns do not tell.
    max_refused: share of the rows that may be refused before it stops.
    held_out: share of source images whose edits are kept for validation. keep_images: store the crops too (held-out
    ones always are). inverse: use inverse instructions. alignment: encode the texts of an edit with several references
    for every order of them that training may draw, at most max_orders. part_rows: rows that a kill can lose. dtype: of
    the encoders and of what is stored. device: "auto" takes CUDA when there is one. workers: threads that open images.
    Run again, it goes on; a finished folder is left as it is. Raises UserError.
    """
    _check(dtype, max_refused, held_out, part_rows, max_orders)
    base = open_base(model)
    base = base.resized(sizes) if sizes else base
    folder, (count, digest) = Path(out).resolve(), survey(source)
    options = {"format": FORMAT, "source": digest, "fingerprints": base.fingerprints, "sizes": base.sizes.as_dict()}
    options |= {"held_out": held_out, "keep_images": keep_images, "inverse": inverse, "part_rows": part_rows}
    options |= {"layout": layout} if layout else {}
    options |= {"dtype": dtype, "seed": seed, "orders": max_orders if alignment else 1}
    with at_work(folder):
        made_from(folder, options)
        if (folder / "data.json").exists():
            print(f"{folder}: finished already, nothing to do")
            return
        where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
        encoder = Encoder(base, dtype, where, keep_images, options["orders"])
        _say_sizes(source, inverse, layout, count, encoder, folder)
        with tqdm(total=count, unit="row", desc="prepare", smoothing=0.05) as bar:
            tally = Tally(count, max_refused, bar)
            opening = partial(_open, max_pixels=max_pixels, allow_urls=allow_urls)
            work = Work(Parts(folder), encoder, tally, opening, workers, lambda row: _held_out(row, held_out, seed))
            every = rows(source, inverse=inverse, layout=layout)
            for number in range(-(-count // part_rows)):
                work.part(number, list(islice(every, part_rows)))
        header = {"model": model, "name": Path(source).name, "rows": count, "kept": tally.kept}
        content = work.parts.finish(options | header | {"refused": dict(tally.refused)})
    print(tally.table())
    print(
        f"samples  {content['samples']:>8}: {content['train']} to train on, {content['held_out']} held out, in {folder}"
    )
    if not content["held_out"]:
        print("note: no edit is held out, so there is no validation; raise held_out for a small data set")


@dataclass
class Tally:
    """Rows kept and refused so far."""

    rows: int
    max_refused: float
    bar: Any
    kept: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    first: list[Refusal] = field(default_factory=list)

    def keep(self, count: int = 1) -> None:
        self.kept += count
        self.bar.update(count)

    def refuse(self, refusal: Refusal) -> None:
        self.refused[refusal.reason] += 1
        self.first += [refusal] * (len(self.first) < SHOWN)
        self.bar.update(1)

    @property
    def too_many(self) -> bool:
        return self.refused.total() > self.max_refused * self.rows

    def table(self) -> str:
        rows = [f"kept     {self.kept:>8} of {self.rows} rows", f"refused  {self.refused.total():>8}"]
        return "\n".join([*rows, *(f"         {count:>8} {reason}" for reason, count in self.refused.most_common())])


@dataclass
class Work:
    """What encodes one part after another. `held_out` decides over a row."""

    parts: Parts
    encoder: Encoder
    tally: Tally
    opening: Callable[[Row], Any]
    workers: int
    held_out: Callable[[list[Record]], bool]

    def part(self, number: int, part: list[Row]) -> None:
        """Encode a part, or count the one that is there. UserError when too much is refused; what is done stays."""
        manifest = self.parts.read(number)
        if manifest is None:
            refused: list[Refusal] = []
            self.parts.write(number, len(part), self._samples(part, refused), refused)
            return
        for row in manifest["refused"]:
            self.tally.refuse(Refusal(**row))
        self.tally.keep(manifest["rows"] - len(manifest["refused"]))
        self._stop_if_too_many([])

    def _samples(self, part: list[Row], refused: list[Refusal]) -> Iterator[Sample]:
        """The samples of a part's rows; a row is encoded whole or refused. Images are opened some rows ahead."""
        for row, opened in _ahead(self.opening, part, self.workers):
            encoded = row if isinstance(row, Refusal) else self._encode(row, opened)
            if isinstance(encoded, Refusal):
                refused.append(encoded)
                self.tally.refuse(encoded)
                self._stop_if_too_many(refused)
            else:
                yield from encoded
                self.tally.keep()

    def _encode(self, row: list[Record], opened: Any) -> list[Sample] | Refusal:
        if isinstance(opened, Refusal):
            return opened
        try:
            return [self.encoder.encode(record, opened, self.held_out(row)) for record in row]
        except Unfit as problem:
            return problem.refusal

    def _stop_if_too_many(self, in_hand: list[Refusal]) -> None:
        if not self.tally.too_many:
            return
        self.tally.bar.close()
        print(self.tally.table())
        path = self.parts.refused(in_hand)
        raise UserError(
            f"stopped: {self.tally.refused.total()} of {self.tally.rows} rows refused, more than "
            f"max_refused={self.tally.max_refused:g}: {'; '.join(map(str, self.tally.first))}; all so far are in {path}"
        )


def _check(dtype: str, max_refused: float, held_out: float, part_rows: int, max_orders: int) -> None:
    if dtype not in DTYPES:
        raise UserError(f"dtype={dtype}: one of {', '.join(DTYPES)}")
    if not 0 <= max_refused <= 1 or not 0 <= held_out < 1:
        raise UserError(f"max_refused={max_refused}, held_out={held_out}: both are shares, from 0 to 1")
    if part_rows < 1 or max_orders < 1:
        raise UserError(f"part_rows={part_rows}, max_orders={max_orders}: both are at least 1")


def _held_out(row: list[Record], share: float, seed: int) -> bool:
    """By the row's first image: the edits of one source are all to train on, or all held out."""
    return seed_of(seed, "held out", row[0].group) < share * (1 << 63)


def _open(row: Row, max_pixels: int, allow_urls: bool) -> Any:
    """A row's images by path, or why they cannot be used."""
    try:
        return row if isinstance(row, Refusal) else load(row, max_pixels, allow_urls)
    except Unfit as problem:
        return problem.refusal


def _say_sizes(source: str, inverse: bool, layout: str, count: int, encoder: Encoder, folder: Path) -> None:
    some = [row for row in islice(rows(source, inverse=inverse, layout=layout), 256) if not isinstance(row, Refusal)]
    needed = encoder.estimate([record for row in some for record in row]) / max(1, len(some)) * count
    free = shutil.disk_usage(folder).free
    print(f"{count} rows, about {needed / 1e6:,.0f} MB to write; {free / 1e6:,.0f} MB are free in {folder}")
    if needed > free:
        print("warning: that will probably not fit")


def _ahead(function: Callable[[T], U], items: Iterable[T], workers: int) -> Iterator[tuple[T, U]]:
    """(item, function(item)) in order, computed by threads a few items ahead."""
    waiting: deque[tuple[T, Any]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) > 2 * workers:
                    first, future = waiting.popleft()
                    yield first, future.result()
            yield from ((first, future.result()) for first, future in waiting)
        finally:
            pool.shutdown(cancel_futures=True)
