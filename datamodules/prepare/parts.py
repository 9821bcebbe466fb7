"""The folder that `prepare` fills, part by part, so that it can be killed at any moment and go on.

    chunks/        part-00000-0.bin, ..., index.json    LitData's; `datamodules.chunks.samples` reads them
                   table.npy                            the same list, to be mapped: `datamodules.chunks.listing`
    index/         train/, held_out/                     `datamodules.sampling.index`
    parts/         00000.json, ...                       the manifest of each part: its samples and its refusals
    prepare.json   the options it is made from           refused.jsonl   every refusal
    data.json      its content in numbers; written when everything else is

A part is encoded aside, its samples are put in chunks by bucket, the chunks are moved into place, and the part's
manifest, without which they do not count, is written last.
"""

import contextlib
import errno
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firered_lit.cards.data_card import CARDS, Card
from firered_lit.errors import UserError
from firered_lit.facts import from_meta
from firered_lit.files import put_in_place, replacing, sync, write_json
from firered_lit.process.locks import shard_held
from firered_lit.textfiles import read_object

from ..chunks.listing import INDEX, Listing, write_listing
from ..chunks.samples import Sample
from ..sampling.index import Index, IndexRow
from ..sampling.indexing import write_index
from ..sources.folders import PREPARED
from ..sources.records import Refusal
from .grouping import ChunkWriter

SPLITS = {"train": False, "held_out": True}
MARKS = ("held_out", "pair", "prompt", "regions", "left_crop", "mask", "fixed")  # counted over a folder's samples


@dataclass(frozen=True)
class Parts:
    """The parts of a folder, by number."""

    folder: Path

    def read(self, number: int) -> dict[str, Any] | None:
        """Return a finished part's manifest; None when it, or one of its chunks, is missing or damaged."""
        path = self.folder / "parts" / f"{number:05d}.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            chunks = [(chunk["filename"], chunk["chunk_bytes"]) for chunk in manifest["chunks"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if any(self._lost_chunk(name, size) for name, size in chunks):
            return None
        return manifest

    def lost(self) -> str | None:
        """Return the name of a file that loading needs and a finished folder has lost; None when all are whole."""
        try:
            count = json.loads((self.folder / "data.json").read_text(encoding="utf-8"))["samples"]
            listing = Listing(self.folder / "chunks")
            for split in SPLITS:
                Index.open(self.folder / "index" / split)
        except (OSError, ValueError, KeyError, TypeError) as problem:
            return f"{self.folder / 'data.json'}: cannot be read ({problem})"
        except UserError as problem:
            return str(problem).partition(":")[0]
        if not (self.folder / "chunks" / INDEX).exists() or listing.samples != count:
            return f"the list of chunks in {self.folder / 'chunks'}"
        for number in range(len(listing)):
            name = listing.name(number)
            if self._lost_chunk(name, listing.bytes(number)):
                return f"the chunk {name}"
        return None

    def _lost_chunk(self, name: str, size: int) -> bool:
        """Return whether a chunk is missing, or not of its size."""
        file = self.folder / "chunks" / name
        return not file.exists() or file.stat().st_size != size

    @contextlib.contextmanager
    def writing(self, number: int, rows: int) -> Iterator["PartWriter"]:
        """Open a part, which is put in place when the block ends without an error.

        Args:
            number: Number of the part, from 0.
            rows: Number of its rows, refused ones included.
        """
        staging = self.folder / f".part-{number:05d}"
        shutil.rmtree(staging, ignore_errors=True)
        try:
            with ChunkWriter(staging) as chunks:
                part = PartWriter(chunks)
                yield part
                described, order = chunks.finish()

            # The chunks, then the manifest, without which they do not count.
            (self.folder / "chunks").mkdir(exist_ok=True)
            for i, chunk in enumerate(described["chunks"]):
                written = staging / chunk["filename"]
                chunk["filename"] = f"part-{number:05d}-{i}.bin"
                sync(written)
                put_in_place(written, self.folder / "chunks" / chunk["filename"])
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        manifest = {
            **described,
            "rows": rows,
            "samples": [part.lines[place] for place in order],
            "refused": [asdict(refusal) for refusal in part.refused],
        }
        write_json(self.folder / "parts" / f"{number:05d}.json", manifest, indent=None)

    def write(self, number: int, rows: int, samples: Iterable[Sample], refused: Iterable[Refusal]) -> None:
        """Write a part whose samples are at hand; arguments as in `writing`."""
        with self.writing(number, rows) as part:
            for sample in samples:
                part.add(sample)
            for refusal in refused:
                part.refuse(refusal)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in sorted((self.folder / "parts").glob("*.json"), key=lambda path: int(path.stem)):
            yield json.loads(path.read_text(encoding="utf-8"))

    def samples(self) -> Iterator[dict[str, Any]]:
        """Yield the manifest's line of every sample, in the order of their numbers."""
        for part in self:
            yield from part["samples"]

    def refused(self, in_hand: Iterable[Refusal] = ()) -> Path:
        """Write refused.jsonl: the refusals of the parts that are done, and those `in_hand`. Return its path."""
        path = self.folder / "refused.jsonl"
        with replacing(path) as file:
            for part in self:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part["refused"])
            file.writelines(json.dumps(asdict(refusal), ensure_ascii=False) + "\n" for refusal in in_hand)
        return path

    def finish(self, header: dict[str, Any], cards: Sequence[Card] = ()) -> dict[str, Any]:
        """List the chunks, index the samples and, last, write data.json.

        Args:
            header: Entries that data.json begins with.
            cards: Those of the tables that the samples are from; see `firered_lit.cards.data_card`.

        Returns:
            The content of data.json.
        """
        chunks: list[dict[str, Any]] = []
        config = None
        for part in self:
            chunks += part["chunks"]
            config = config or part["config"]
        if not chunks:
            raise UserError(f"{self.folder}: nothing is left to train on, every row was refused; see {self.refused()}")

        # The list of chunks, and none but those.
        folder = self.folder / "chunks"
        write_json(folder / INDEX, {"chunks": chunks, "config": config, "updated_at": "0"}, indent=1)
        write_listing(folder, chunks)
        listed = {chunk["filename"] for chunk in chunks}
        for path in folder.glob("*.bin"):
            if path.name not in listed:
                path.unlink()

        # The index of each split.
        sizes = [chunk["chunk_size"] for chunk in chunks]
        for split, held_out in SPLITS.items():
            write_index(self.folder / "index" / split, self._rows(held_out), sizes)

        self.refused()
        content = header | self._counts(header)
        if cards:
            content[CARDS] = list(cards)
        write_json(self.folder / "data.json", content, indent=1)
        return content

    def _rows(self, held_out: bool) -> Iterator[IndexRow]:
        """Yield the samples to train on, or those held out, as the index has them."""
        for position, sample in enumerate(self.samples()):
            if sample["held_out"] == held_out:
                yield IndexRow(
                    task=sample["task"],
                    target=tuple(sample["target"]),
                    references=tuple(tuple(shape) for shape in sample["references"]),
                    position=position,
                    cluster=sample["cluster"],
                    droppable=tuple(sample.get("droppable", ())),
                    fixed=bool(sample.get("fixed")),
                )

    def _counts(self, header: dict[str, Any]) -> dict[str, Any]:
        """Return the entries of data.json that count the samples.

        The fingerprint is of everything that decides the samples which a plan shows.
        """
        tasks: Counter[str] = Counter()
        references: Counter[int] = Counter()
        captions: Counter[str] = Counter()
        marks: Counter[str] = Counter()
        digest = hashlib.blake2b(json.dumps(header).encode(), digest_size=12)
        for sample in self.samples():
            tasks[sample["task"]] += 1
            references[len(sample["references"])] += 1
            captions.update(sample["captions"])
            marks.update({name: int(sample.get(name, 0)) for name in MARKS})
            digest.update(json.dumps(sample).encode())
        return {
            "samples": tasks.total(),
            "train": tasks.total() - marks["held_out"],
            "held_out": marks["held_out"],
            "pairs": marks["pair"],
            "prompts": marks["prompt"],
            "tasks": dict(sorted(tasks.items())),
            "references": {str(number): count for number, count in sorted(references.items())},
            "captions": dict(sorted(captions.items())),
            "regions": marks["regions"],
            "regions_left_crop": marks["left_crop"],
            "masks": marks["mask"],
            "fixed": marks["fixed"],
            "fingerprint": digest.hexdigest(),
        }


class PartWriter:
    """A part that is being written: its samples, its refusals, and a line about each sample for the manifest."""

    def __init__(self, chunks: ChunkWriter) -> None:
        self._chunks = chunks
        self.lines: list[dict[str, Any]] = []
        self.refused: list[Refusal] = []

    def add(self, sample: Sample) -> None:
        """Take a sample, in the order of the rows."""
        self._chunks.add(sample)
        self.lines.append(line_of(sample))

    def refuse(self, refusal: Refusal) -> None:
        """Note a row that has no sample."""
        self.refused.append(refusal)


def line_of(sample: Sample) -> dict[str, Any]:
    """Return a sample's line in the manifest: the facts that the index and the counts need, without empty ones."""
    meta = sample.meta
    facts = from_meta(sample.id, meta)
    marks = {
        "pair": bool(meta.get("pair")),
        "prompt": "target" not in sample.tensors,
        "mask": "mask" in sample.tensors,
        "regions": len(meta.get("regions", ())),
        "left_crop": meta.get("left_crop"),
        "droppable": meta.get("droppable"),
        "fixed": bool(meta.get("fixed")),
    }
    return {
        "id": facts.id,
        "task": facts.task,
        "target": meta["target"],
        "references": meta["references"],
        "cluster": facts.cluster,
        "held_out": meta["held_out"],
        **{name: mark for name, mark in marks.items() if mark},
        "captions": list(meta["instructions"]),
    }


@contextlib.contextmanager
def at_work(folder: Path, shard: int = 0, shards: int = 1) -> Iterator[None]:
    """Hold a shard of a folder, which one `prepare` at a time works on; a full disk is one clear error.

    Raises:
        UserError: Another process holds the shard, or works with another number of shards, or the disk is full.
    """
    with shard_held(folder, "prepare", shard, shards):
        try:
            yield
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"{folder}: the disk is full; make room and run again, it goes on from there") from None


def made_from(folder: Path, options: dict[str, Any], inherited: Sequence[str] = ()) -> dict[str, Any]:
    """Note in prepare.json the options that a folder is made from, and return them.

    Args:
        folder: The folder that prepare writes.
        options: The options that it is to be made from.
        inherited: Names of options that a folder keeps as it was begun with them, or without them.

    Raises:
        UserError: When the folder was begun with other options.
    """
    path = folder / PREPARED
    options = json.loads(json.dumps(options))
    if not path.exists():
        strangers = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
        if strangers:
            raise UserError(f"{folder}: not empty ({strangers[0]}) and not begun by prepare; choose another out")
        write_json(path, options, indent=1)
        return options
    before = read_object(path)
    for name in inherited:
        options.pop(name, None)
        if name in before:
            options[name] = before[name]
    for name in options.keys() | before.keys():
        if options.get(name) != before.get(name):
            change = "" if name == "source" else f" ({before.get(name)}, now {options.get(name)})"
            raise UserError(
                f"{folder}: made with another {name}{change}; choose another out, or remove it to begin again"
            )
    return options
