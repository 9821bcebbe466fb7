"""Prepared samples one by one, by number, for what looks at each of them once: `Prepared`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.models.family import Base

from .canonical import as_in_the_row
from .chunks import Chunks, Sample
from .edits import check_data
from .index import Index, Row
from .indexing import write_index
from .loader import collate, pictured
from .remote import open_root

COLUMNS = {"original/en": "instruction", "original/cn": "instruction_cn"}
KEPT = ("target_text", "replaced_text", "requirement", "cluster")


class Prepared:
    """The samples to train on of a folder that `prepare` wrote, in the order in which they lie on disk.

    instruction: which of a sample's texts is shown, "kind/language"; the first one there is where a sample lacks it.
    limit: the first so many alone. Raises UserError when the data was prepared without its pictures.
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
        self.chunks, self.instruction = Chunks(self.root / "chunks", remote), instruction

    def check(self, base: Base) -> None:
        """UserError when the data was encoded by other models than the base's."""
        check_data(self.root, base)

    def made_from(self) -> dict[str, Any]:
        return {"data": self.summary["fingerprint"], "instruction": self.instruction, "samples": len(self)}

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def largest(self) -> int:
        """Visual tokens of the largest sample of the folder."""
        return max(bucket.tokens for bucket in self.index.buckets)

    def __getitem__(self, number: int) -> tuple[dict[str, Any], EditBatch]:
        """What is known of a sample, and the sample with its pictures as a batch of one; step and slot are 0."""
        sample = self._sample(number)
        texts = sample.meta["instructions"]
        shown = min(texts, key=lambda key: (key != self.instruction, key))
        line = {"id": sample.id, "position": int(self.positions[number]), "task": sample.meta["task"]}
        _, own = as_in_the_row(sample.meta)
        line |= {column: own[key] for key, column in COLUMNS.items() if key in own}
        line |= {key: sample.meta[key] for key in KEPT if sample.meta.get(key)}
        return line, collate([sample], [shown], 0, (0,), 1, **pictured([sample]))

    def items(self, wanted: Callable[[int], bool]) -> Iterator[tuple[int, tuple[dict[str, Any], EditBatch]]]:
        """The wanted samples, with their numbers."""
        return ((number, self[number]) for number in range(len(self)) if wanted(number))

    def pictures(self, number: int, folder: Path) -> dict[str, Any]:
        """Write a sample's pictures, but not masks, to folder/images; the columns that name them, for `prepare`."""
        sample, names = self._sample(number), {}
        (folder / "images").mkdir(exist_ok=True)
        for name, file in sample.images.items():
            names[name] = f"images/{number:08d}.{name}.png"
            (folder / names[name]).write_bytes(file)
        places, texts = as_in_the_row(sample.meta)
        sources = [names[f"reference.{i}"] for i in places]
        if "target" in names:
            return {"source_image": sources or None, "target_image": names["target"]}
        shown = min(texts, key=lambda key: (key != self.instruction, key))
        return {"image": sources, "prompt": texts[shown], "requirement": sample.meta.get("requirement", "")}

    def select(self, numbers: Iterable[int], folder: Path) -> None:
        """Write an index of these samples alone, for `PromptDataModule`."""
        sizes = self.chunks.listing.sizes
        write_index(folder, self._rows(self.positions[np.fromiter(numbers, np.int64)]), sizes)

    def _rows(self, positions: np.ndarray) -> Iterator[Row]:
        clusters = self._clusters()
        for bucket in self.index.buckets:
            rows = np.arange(bucket.start, bucket.start + bucket.count)
            for row in rows[np.isin(self.index.positions[rows], positions)]:
                position, cluster = int(self.index.positions[row]), clusters[row] if clusters is not None else 0
                named = self.index.clusters[cluster] if self.index.clusters else ""
                yield Row(
                    task=bucket.task,
                    target=bucket.target,
                    references=bucket.references,
                    position=position,
                    cluster=named,
                    droppable=bucket.droppable,
                    fixed=bucket.fixed,
                )

    def _clusters(self) -> np.ndarray | None:
        """The cluster's number of every row of the index; None when there is one at most."""
        columns = self.index.columns
        if "by_cluster" not in columns:
            return None
        sizes = np.diff(columns["segment_start"].astype(np.int64), append=len(self.index))
        found = np.empty(len(self.index), np.int64)
        found[columns["by_cluster"]] = np.repeat(columns["segment_cluster"], sizes)
        return found

    def _sample(self, number: int) -> Sample:
        return self.chunks.read(int(self.positions[number]), images=True)
