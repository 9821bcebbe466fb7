"""The folder that `prepare` fills, part by part, so that it can be killed at any moment and go on.

    chunks/        part-00000-0.bin, ..., index.json    LitData's; `datamodules.chunks` reads them
                   table.npy                            the same list of chunks, to be mapped: `datamodules.listing`
    index/         train/, held_out/                     `datamodules.index`
    parts/         00000.json, ...                       what each part holds and what it refused
    prepare.json   what the folder is made from          refused.jsonl   every refusal
    data.json      what it holds; written when everything else is

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

from firered_lit.errors import UserError
from firered_lit.files import put_in_place, replacing, sync, write_json
from firered_lit.locks import shard_held
from firered_lit.textfiles import read_object

from .chunks import Sample
from .folders import PREPARED
from .grouping import write_chunks
from .index import Index, Row
from .indexing import write_index
from .listing import INDEX, Listing, write_listing
from .records import Refusal

SPLITS = {"train": False, "held_out": True}


@dataclass(frozen=True)
class Parts:
    """The parts of a folder, by number."""

    folder: Path

    def read(self, number: int) -> dict[str, Any] | None:
        """A finished part's manifest; None when it is not there or damaged, or when one of its chunks is."""
        path = self.folder / "parts" / f"{number:05d}.json"
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            chunks = [(chunk["filename"], chunk["chunk_bytes"]) for chunk in manifest["chunks"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if any(self._lost_chunk(*chunk) for chunk in chunks) else manifest

    def lost(self) -> str | None:
        """Return what a finished folder has lost of what loading needs; None when all is there, in its full size."""
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
        chunks = ((listing.name(number), listing.bytes(number)) for number in range(len(listing)))
        return next((f"the chunk {name}" for name, size in chunks if self._lost_chunk(name, size)), None)

    def _lost_chunk(self, name: str, size: int) -> bool:
        """Return whether a chunk is missing, or not of its size."""
        file = self.folder / "chunks" / name
        return not file.exists() or file.stat().st_size != size

    def write(self, number: int, rows: int, samples: Iterable[Sample], refused: list[Refusal]) -> None:
        """Encode a part by running through `samples`, which adds to `refused` on the way, and put it in place."""
        staging, noted = self.folder / f".part-{number:05d}", []
        shutil.rmtree(staging, ignore_errors=True)
        try:
            described, order = write_chunks(staging, _noting(samples, noted))
            (self.folder / "chunks").mkdir(exist_ok=True)
            for i, chunk in enumerate(described["chunks"]):
                source, chunk["filename"] = staging / chunk["filename"], f"part-{number:05d}-{i}.bin"
                sync(source)
                put_in_place(source, self.folder / "chunks" / chunk["filename"])
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        manifest = described | {"rows": rows, "samples": [noted[number] for number in order]}
        manifest["refused"] = [asdict(refusal) for refusal in refused]
        write_json(self.folder / "parts" / f"{number:05d}.json", manifest, indent=None)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for path in sorted((self.folder / "parts").glob("*.json"), key=lambda path: int(path.stem)):
            yield json.loads(path.read_text(encoding="utf-8"))

    def samples(self) -> Iterator[dict[str, Any]]:
        """What is noted of every sample, in the order of their numbers."""
        for part in self:
            yield from part["samples"]

    def refused(self, in_hand: Iterable[Refusal] = ()) -> Path:
        """Write refused.jsonl: the refusals of the parts that are done, and of the one in hand. Returns its path."""
        path = self.folder / "refused.jsonl"
        with replacing(path) as file:
            for part in self:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part["refused"])
            file.writelines(json.dumps(asdict(refusal), ensure_ascii=False) + "\n" for refusal in in_hand)
        return path

    def finish(self, header: dict[str, Any]) -> dict[str, Any]:
        """List the chunks, index the samples and, last, write data.json, which is returned. It begins with `header`."""
        listed, config = [], None
        for part in self:
            listed += part["chunks"]
            config = config or part["config"]
        if not listed:
            raise UserError(f"{self.folder}: nothing is left to train on, every row was refused; see {self.refused()}")
        index = {"chunks": listed, "config": config, "updated_at": "0"}
        write_json(self.folder / "chunks" / INDEX, index, indent=1)
        write_listing(self.folder / "chunks", listed)
        for path in set((self.folder / "chunks").glob("*.bin")) - {
            self.folder / "chunks" / c["filename"] for c in listed
        }:
            path.unlink()
        for split, held_out in SPLITS.items():
            chosen = (row for row, sample in self._rows() if sample["held_out"] == held_out)
            write_index(self.folder / "index" / split, chosen, [chunk["chunk_size"] for chunk in listed])
        self.refused()
        content = header | self._counts(header)
        write_json(self.folder / "data.json", content, indent=1)
        return content

    def _rows(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        for position, sample in enumerate(self.samples()):
            references = tuple(map(tuple, sample["references"]))
            row = Row(
                task=sample["task"],
                target=tuple(sample["target"]),
                references=references,
                position=position,
                cluster=sample["cluster"],
                droppable=tuple(sample.get("droppable", ())),
                fixed=bool(sample.get("fixed")),
            )
            yield row, sample

    def _counts(self, header: dict[str, Any]) -> dict[str, Any]:
        """What data.json says of the samples. The fingerprint is of everything that decides what a plan shows."""
        tasks, references, captions, marks, pairs = Counter(), Counter(), Counter(), Counter(), 0
        digest, held_out = hashlib.blake2b(json.dumps(header).encode(), digest_size=12), 0
        for sample in self.samples():
            tasks[sample["task"]] += 1
            references[len(sample["references"])] += 1
            captions.update(sample["captions"])
            held_out += sample["held_out"]
            pairs += sample.get("pair", False)
            names = ("prompt", "regions", "left_crop", "mask", "fixed")
            marks.update({name: int(sample.get(name, 0)) for name in names})
            digest.update(json.dumps(sample).encode())
        return {
            "samples": tasks.total(),
            "train": tasks.total() - held_out,
            "held_out": held_out,
            "pairs": pairs,
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


def _noting(samples: Iterable[Sample], noted: list[dict[str, Any]]) -> Iterator[Sample]:
    """The samples, as they are; what the index and the counts need of each is noted."""
    for sample in samples:
        kept = {name: sample.meta[name] for name in ("task", "target", "references", "cluster", "held_out")}
        kept |= {"pair": True} if sample.meta.get("pair") else {}
        kept |= {"prompt": True} if "target" not in sample.tensors else {}
        kept |= {"mask": True} if "mask" in sample.tensors else {}
        kept |= {"regions": len(sample.meta["regions"])} if sample.meta.get("regions") else {}
        kept |= {"left_crop": sample.meta["left_crop"]} if sample.meta.get("left_crop") else {}
        kept |= {"droppable": sample.meta["droppable"]} if sample.meta.get("droppable") else {}
        kept |= {"fixed": True} if sample.meta.get("fixed") else {}
        noted.append({"id": sample.id, **kept, "captions": list(sample.meta["instructions"])})
        yield sample


@contextlib.contextmanager
def at_work(folder: Path, shard: int = 0, shards: int = 1) -> Iterator[None]:
    """One `prepare` a shard works in a folder, all with one number of shards; a full disk is one clear error."""
    with shard_held(folder, "prepare", shard, shards):
        try:
            yield
        except OSError as problem:
            if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise UserError(f"{folder}: the disk is full; make room and run again, it goes on from there") from None


def made_from(folder: Path, options: dict[str, Any], inherited: Sequence[str] = ()) -> dict[str, Any]:
    """Note in prepare.json what a folder is made from, and return it.

    Args:
        folder: What prepare writes.
        options: What it is to be made from.
        inherited: Options that a folder keeps as it was begun with them, or without them.

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
