"""Prepared samples one by one, by number, for a program that looks at each of them once: `Prepared`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.facts import from_meta
from firered_lit.models.family import Base

from .chunks.remote import open_root
from .chunks.samples import Chunks, Sample
from .edits import check_data
from .loading.loader import collate, pictured
from .references.instruction import as_in_the_row
from .sampling.index import Index, IndexRow
from .sampling.indexing import write_index

COLUMNS = {"original/en": "instruction", "original/cn": "instruction_cn"}


class Prepared:
    """The samples to train on of a folder that `prepare` wrote, in the order in which they lie on disk.

    Args:
        root: The folder, or an s3:// address of a copy.
        instruction: Key of the text that is shown, "kind/language"; a sample that lacks it shows its first one.
        limit: Take only so many of the samples, the first ones.
        cache: Folder for copies of data in object storage.

    Raises:
        UserError: The data was prepared without its pictures, or holds no samples to train on.
    """

    def __init__(
        self, root: str, instruction: str = "original/en", limit: int | None = None, cache: str | None = None
    ) -> None:
        self.root, remote = open_root(root, cache)
        self.summary = check_data(self.root)
        if not self.summary["keep_images"]:
            raise UserError(f"{root}: prepared without pictures, which rewards look at; prepare with keep_images=true")
        self.index = Index.open(self.root / "index" / "train")
        self.positions = np.sort(self.index.positions)[:limit]
        if not len(self.positions):
            raise UserError(f"{root}: holds no samples to train on")
        self.chunks = Chunks(self.root / "chunks", remote)
        self.instruction = instruction

    def check(self, base: Base) -> None:
        """Raise UserError when the data was encoded by other models than the base's."""
        check_data(self.root, base)

    def made_from(self) -> dict[str, Any]:
        """Return the facts that name the samples: another of them makes another folder."""
        return {"data": self.summary["fingerprint"], "instruction": self.instruction, "samples": len(self)}

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def largest(self) -> int:
        """Visual tokens of the largest sample of the folder."""
        return max(bucket.tokens for bucket in self.index.buckets)

    def __getitem__(self, number: int) -> tuple[dict[str, Any], EditBatch]:
        """Return the line of a manifest about a sample, and the sample with its pictures as a batch of one.

        Step and slot of the batch are 0.
        """
        sample = self._sample(number)
        facts = from_meta(sample.id, sample.meta)
        line = {"id": facts.id, "position": int(self.positions[number]), "task": facts.task}
        _, instructions = as_in_the_row(sample.meta)
        for key, column in COLUMNS.items():
            if key in instructions:
                line[column] = instructions[key]
        shown = self._shown(sample.meta["instructions"])
        return line | facts.columns(), collate([sample], [shown], 0, (0,), 1, **pictured([sample]))

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, tuple[dict[str, Any], EditBatch]]]:
        """Yield the wanted samples, with their numbers."""
        for number in range(len(self)):
            if wanted(number):
                yield number, self[number]

    def pictures(self, number: int, folder: Path) -> dict[str, Any]:
        """Write a sample's pictures, but not masks, to folder/images.

        Returns:
            Columns that name the pictures, for a row that `prepare` reads.
        """
        sample = self._sample(number)
        names = {}
        (folder / "images").mkdir(exist_ok=True)
        for name, file in sample.images.items():
            names[name] = f"images/{number:08d}.{name}.png"
            (folder / names[name]).write_bytes(file)
        places, texts = as_in_the_row(sample.meta)
        sources = [names[f"reference.{place}"] for place in places]
        if "target" in names:
            return {"source_image": sources or None, "target_image": names["target"]}
        prompt = texts[self._shown(texts)]
        return {"image": sources, "prompt": prompt, "requirement": from_meta(sample.id, sample.meta).requirement}

    def _shown(self, texts: Mapping[str, str]) -> str:
        """Return the key of the text that is shown: the wanted one, else the first."""
        return min(texts, key=lambda key: (key != self.instruction, key))

    def select(self, numbers: Iterable[int], folder: Path) -> None:
        """Write an index of these samples alone, for `PromptDataModule`."""
        sizes = self.chunks.listing.sizes
        write_index(folder, self._rows(self.positions[np.fromiter(numbers, np.int64)]), sizes)

    def _rows(self, positions: np.ndarray) -> Iterator[IndexRow]:
        """Yield the samples at positions, as the index has them."""
        clusters = self._clusters()
        names = self.index.clusters or ("",)
        for bucket in self.index.buckets:
            rows = np.arange(bucket.start, bucket.start + bucket.count)
            for row in rows[np.isin(self.index.positions[rows], positions)]:
                cluster = 0 if clusters is None else clusters[row]
                yield IndexRow(
                    task=bucket.task,
                    target=bucket.target,
                    references=bucket.references,
                    position=int(self.index.positions[row]),
                    cluster=names[cluster],
                    droppable=bucket.droppable,
                    fixed=bucket.fixed,
                )

    def _clusters(self) -> np.ndarray | None:
        """Return (N,) the number of every row's cluster; None when the index has one cluster at most."""
        columns = self.index.columns
        if "by_cluster" not in columns:
            return None
        sizes = np.diff(columns["segment_start"].astype(np.int64), append=len(self.index))
        found = np.empty(len(self.index), np.int64)
        found[columns["by_cluster"]] = np.repeat(columns["segment_cluster"], sizes)
        return found

    def _sample(self, number: int) -> Sample:
        """Return a sample with its pictures."""
        return self.chunks.read(int(self.positions[number]), images=True)
