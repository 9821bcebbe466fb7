"""Prompts with their sources for reinforcement learning, from the data that `prepare` encoded: `PromptDataModule`."""

import hashlib
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch.utilities import rank_zero_info

from firered_lit.batch import PromptBatch
from firered_lit.errors import UserError
from firered_lit.textfiles import read_object

from .edits import EditDataModule
from .loading.loader import EditLoader, Visits
from .sampling.index import Index


@runtime_checkable
class Budgeted(Protocol):
    """A stage that divides its forwards by itself."""

    capacity: int | None  # visual tokens of a forward; None for no limit


class PromptLoader:
    """The iterations of one process, without end: each is the next `length` global batches of one sample per plan rank.

    Every process gets groups of the same buckets in the same order, so that all run equal forwards. The state is that
    of the inner loader, whole iterations only.

    Args:
        inner: Micro-batches of one sample.
        length: Global batches of an iteration.
    """

    def __init__(self, inner: EditLoader, length: int) -> None:
        self.inner = inner
        self.length = length

    def __len__(self) -> int:
        return max(1, self.inner.plan.steps() // self.length)

    def __iter__(self) -> Iterator[PromptBatch]:
        stream = iter(self.inner)
        share = self.length * self.inner.share  # micro-batches of an iteration on this process
        while True:
            step = self.inner.seen // share
            yield PromptBatch(tuple(islice(stream, share)), step)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict() | {"length": self.length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get("length") != self.length:
            known = f"{state.get('length')} global batches an iteration, now {self.length}"
            raise UserError(f"this run began with {known}: set data.groups and data.plan_ranks back")
        self.inner.load_state_dict(state)

    def close(self) -> None:
        self.inner.close()


class PromptDataModule(EditDataModule):
    """Samples to edit, `groups` of them per iteration over all processes, and held-out edits for validation.

    Each is the start of a group: the stage draws several edits of it. An edit comes with its true target; a prompt
    that has none (Edit-R1) with the shape to draw, and no picture.

    Args:
        root: Folder that `prepare` wrote, pictures included, or an s3:// address.
        groups: Groups of an iteration, over all processes.
        workers: Processes that read.
        seed: Seed of the plan and of all draws.
        captions: Weights of the kinds of instruction, see `EditDataModule`.
        languages: Weights of the languages, see `EditDataModule`.
        weights: Frequencies of samples by group, see `EditDataModule`.
        held_out_max: Held-out edits shown at each validation.
        plan_ranks: Processes that may share the work, at most; so many groups in turn are of one bucket. None for the
            number of processes; a run goes on with any number that divides it.
        mined: Folder that `mine semi-hard` wrote of this data; only its kept samples are drawn from.

    Raises:
        UserError: The data was prepared without its pictures, which rewards look at.
    """

    learns_targets = False

    def __init__(
        self,
        root: str,
        *,
        groups: int,
        workers: int = 2,
        seed: int = 0,
        captions: Mapping[str, float] | None = None,
        languages: Mapping[str, float] | None = None,
        weights: Mapping[str, Any] | None = None,
        held_out_max: int = 8,
        plan_ranks: int | None = None,
        mined: str | None = None,
    ) -> None:
        super().__init__(
            root,
            capacity=1 << 62,  # the stage budgets its forwards itself
            workers=workers,
            seed=seed,
            text_drop=0.0,
            captions=captions,
            languages=languages,
            weights=weights,
            held_out_max=held_out_max,
            plan_ranks=plan_ranks,
            max_batch=1,
        )
        self.groups = groups
        self.mined = None if mined is None else _mined(Path(mined), self.summary["fingerprint"])
        if not self.summary["keep_images"]:
            raise UserError(
                f"{root}: prepared without pictures, which rewards look at; prepare it with keep_images=true"
            )

    def _index(self) -> Index:
        """Return the index of the samples to draw from: those that mining kept, or all."""
        if self.mined is None:
            return super()._index()
        folder, _ = self.mined
        return Index.open(folder / "index" / "train")

    def _refuse_too_large(self, index: Index, capacity: int, key: str) -> None:
        """Raise UserError when an edit alone has more tokens than a forward of the stage, which divides them itself."""
        stage = None if self.trainer is None else self.trainer.lightning_module
        if isinstance(stage, Budgeted) and stage.capacity is not None:
            super()._refuse_too_large(index, stage.capacity, "stage.capacity")

    def train_dataloader(self) -> PromptLoader:
        """Return the iterations of this process."""
        rank, world, _ = self._place()
        ranks = self.plan_ranks or world
        if self.groups < 1 or self.groups % ranks:
            raise UserError(f"data.groups={self.groups}: must be a multiple of {ranks}, the processes that share them")
        identity = {
            "data": self.summary["fingerprint"],
            "seed": self.seed,
            "plan_ranks": ranks,
            "weights": repr(self.weights),
        }
        if self.mined is not None:
            identity["mined"] = self.mined[1]
        visits = Visits(self.chunks(), self.captions, self.seed, images=True)
        self.loader = EditLoader(visits, self._plan(ranks), identity, rank=rank, world=world, workers=self.workers)
        rank_zero_info(f"data: {self.groups} groups an iteration, {self.groups // world} on each process")
        return PromptLoader(self.loader, self.groups // ranks)


def _mined(folder: Path, fingerprint: str) -> tuple[Path, str]:
    """Return a folder that `mine semi-hard` wrote, and a hash of the samples that it kept.

    Raises:
        UserError: The folder is not finished, or mined from other data.
    """
    if not (folder / "mined.json").exists():
        raise UserError(f"data.mined={folder}: not a finished folder of `mine semi-hard`: run that, or run it again")
    if read_object(folder / "mined.json").get("data") != fingerprint:
        raise UserError(f"data.mined={folder}: mined from other data than data.root; mine this one")
    index = Index.open(folder / "index" / "train")
    return folder, hashlib.blake2b(index.positions.tobytes(), digest_size=12).hexdigest()
