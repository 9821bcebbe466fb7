"""Prepared edits for training and validation: `EditDataModule`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info

from firered_lit.batch import EditBatch, Text
from firered_lit.errors import UserError
from firered_lit.models.family import Base
from firered_lit.models.sizes import Sizes
from firered_lit.textfiles import read_object

from .chunks.remote import open_root
from .chunks.samples import DTYPES, Chunks
from .loading.loader import EditLoader, TrainingLoader, Visits, collate, pictured
from .loading.online import Online
from .references.instruction import Alignment
from .references.prompt import GRAMMAR
from .sampling.buckets import BatchPlan, Index
from .sampling.captions import UNCONDITIONAL, Captions


def check_data(root: str | Path, base: Base | None = None) -> dict[str, Any]:
    """Return what data.json says of a prepared folder.

    Args:
        root: The folder.
        base: Base whose VAE and text encoder must have made its latents and embeddings. Weights of the hub are
            downloaded for the comparison only where the folder was made by another commit.

    Raises:
        UserError: The folder is not finished, or made by another VAE or text encoder.
    """
    folder = Path(root)
    if not (folder / "data.json").exists():
        if (folder / "prepare.json").exists():
            raise UserError(f"{folder} is not finished: run prepare again, it goes on")
        raise UserError(f"{folder} holds no data: make it with prepare")
    try:
        content = read_object(folder / "data.json", "fingerprints", "sizes")
    except UserError as problem:
        raise UserError(f"{problem}; run prepare again") from None
    Sizes.read(content["sizes"], f"{folder / 'data.json'}: sizes")
    made_by = content["fingerprints"]
    if not isinstance(made_by, dict):
        raise UserError(f"{folder / 'data.json'}: fingerprints: expected a mapping, got {made_by!r}; run prepare again")
    if base is None:
        return content

    # Made by the base's own parts.
    for part in ("vae", "text_encoder"):
        origin = base.origin(part)
        same_commit = origin is not None and origin == content.get("origin")
        if not same_commit and made_by.get(part) != base.fingerprint(part):
            raise UserError(f"{folder}: encoded by another {part} than that of {base.name}; prepare it with this model")
    return content


def _alignment(
    asked: bool | Literal["online"], drop: float, summary: Mapping[str, Any], root: str
) -> tuple[Alignment | None, Online | None]:
    """Return the settings by which orders of the references are drawn, and by which their texts are encoded in a step.

    Both ways of encoding draw the same orders, as long as `prepare` encoded all of them.

    Args:
        asked: The setting `data.alignment`.
        drop: Probability with which a reference that may be dropped is.
        summary: The content of data.json.
        root: The folder, for messages.

    Returns:
        None in the first place where references are shown as they are stored, in the second where all texts are
        encoded already.

    Raises:
        UserError: Texts are to be encoded in the step and the folder holds no pictures.
    """
    if asked not in (True, False, "online"):
        raise UserError(f"data.alignment={asked}: true, false or online")
    if not asked:
        return None, None

    # Texts that `prepare` encoded; an earlier version has those of the identity alone.
    cached = summary.get("orders", 1)
    if asked is True and summary.get("alignment") != "online":
        return (Alignment(cached, drop) if cached > 1 else None), None

    # Texts that are encoded in the step.
    if not summary["keep_images"]:
        raise UserError(
            f"data.alignment=online: {root} holds no pictures for the text encoder; prepare with keep_images=true"
        )
    online = Online(DTYPES[summary["dtype"]], Sizes(**summary["sizes"]).condition_area)
    return Alignment(cached if cached > 1 else None, drop), online


class HeldOutEdits:
    """Held-out edits for validation, one sample a batch.

    All ranks have the same number; a sample that only fills up a rank weighs 0.

    Args:
        chunks: The samples.
        positions: Numbers of the held-out samples.
        rank: Number of this process.
        world: The number of processes.
    """

    def __init__(self, chunks: Chunks, positions: Sequence[int], rank: int = 0, world: int = 1) -> None:
        self.chunks = chunks
        self.positions = positions
        self.rank = rank
        self.world = world

    def __len__(self) -> int:
        return -(-len(self.positions) // self.world)

    def __iter__(self) -> Iterator[EditBatch]:
        for i in range(len(self)):
            slot = i * self.world + self.rank
            yield self.batch(slot % len(self.positions), slot, float(slot < len(self.positions)))

    def batch(self, number: int, slot: int, weight: float) -> EditBatch:
        """Return one held-out edit with its pictures and the unconditional text.

        It shows the original English instruction when it has one, else its first text.

        Args:
            number: Number among the held-out edits.
            slot: Number among the batches of all ranks.
            weight: 1, or 0 for an edit that only fills up.
        """
        sample = self.chunks.read(self.positions[number], images=True)
        shown = min(sample.meta["instructions"], key=lambda key: (key != "original/en", key))
        return collate(
            [sample],
            [shown],
            step=0,
            slots=(slot,),
            num_slots=len(self) * self.world,
            weight=torch.tensor([weight]),
            unconditional=Text.pad([sample.tensors[f"text.{UNCONDITIONAL}"]]),
            **pictured([sample]),
        )


class EditDataModule(L.LightningDataModule):
    """Edits that `prepare` encoded, batched by bucket.

    Args:
        root: Folder that `prepare` wrote, or s3://bucket/prefix with a copy of one, see `datamodules.chunks.remote`.
        capacity: Visual tokens of a micro-batch.
        workers: Processes that read.
        seed: Seed of the plan and of all draws.
        text_drop: Probability, 0 to 1, of the unconditional text; None for 0.05, and for preferences 0, as in
            Diffusion-DPO.
        captions: Weights of the kinds of instruction, see `Captions`; None for the original alone.
        languages: Weights of the languages, see `Captions`.
        weights: Frequencies of samples by group, see `datamodules.sampling.frequencies`.
        alignment: Draw an order of the references for each global batch. Its texts are those that `prepare` encoded;
            where that left them to the training, or with "online", they are encoded in the step.
        reference_drop: Probability, from 0 to below 1, that a reference which may be dropped is.
        held_out_max: Held-out edits shown at each validation.
        plan_ranks: Micro-batches of a global batch, processes times accumulation, fixed for the whole run; taken from
            the trainer when None.
        max_batch: Samples of a micro-batch, at most.
        left_out: An epoch may leave out less than this share of the samples, others each time, where they would fill
            little of a step.
        on_error: "raise", or "skip" to show another sample of the bucket in the place of one that cannot be read, with
            a warning that counts them.
        cache: Folder for copies of data in object storage.
        cache_limit: Gigabytes of chunks in that folder; the least used make room for others.
        fetch: Read data in object storage by whole "chunks", or only the "samples" that are shown, of which nothing is
            kept: for one pass over data with pictures or the texts of many orders.
        batch_weight: Weight of a batch's loss, since buckets have batches of different sizes: with "samples" its
            samples over their mean number, so that the gradient has the samples' frequencies, with "steps" 1.

    Raises:
        UserError: `root` is not a finished folder, or holds no samples that the weights name.
    """

    sides = 1  # images of the target's shape, each with its references, that a sample is trained on
    learns_targets = True  # so that prompts without one are refused
    usual_text_drop = 0.05  # where a recipe says nothing: guidance needs the unconditional text to be learnt

    def __init__(
        self,
        root: str,
        *,
        capacity: int,
        workers: int = 2,
        seed: int = 0,
        text_drop: float | None = None,
        captions: Mapping[str, float] | None = None,
        languages: Mapping[str, float] | None = None,
        weights: Mapping[str, Any] | None = None,
        alignment: bool | Literal["online"] = True,
        reference_drop: float = 0.2,
        held_out_max: int = 8,
        plan_ranks: int | None = None,
        max_batch: int | None = None,
        left_out: float = 0.01,
        on_error: Literal["raise", "skip"] = "raise",
        cache: str | None = None,
        cache_limit: float | None = None,
        fetch: Literal["chunks", "samples"] = "chunks",
        batch_weight: Literal["samples", "steps"] = "samples",
    ) -> None:
        super().__init__()
        if batch_weight not in ("samples", "steps"):
            raise UserError(f"data.batch_weight={batch_weight}: samples or steps")
        self.batch_weight = batch_weight
        if on_error not in ("raise", "skip"):
            raise UserError(f"data.on_error={on_error}: raise or skip")
        if fetch not in ("chunks", "samples") or (cache_limit is not None and cache_limit <= 0):
            raise UserError(f"data.fetch={fetch}, cache_limit={cache_limit}: chunks or samples; gigabytes, above 0")
        limit = None if cache_limit is None else int(cache_limit * 1e9)  # bytes
        self.root, self.remote = open_root(root, cache, limit)
        self.whole = fetch == "chunks"
        self.skip = on_error == "skip"
        self.summary = check_data(self.root)
        prompts = self.summary.get("prompts", 0)
        if self.learns_targets and prompts:
            held = f"{prompts} of {self.summary['samples']} samples are prompts without a target"
            raise UserError(f"{root}: {held}, for reinforcement learning: datamodules.prompts.PromptDataModule")
        self.sizes = Sizes(**self.summary["sizes"])
        drop = self.usual_text_drop if text_drop is None else text_drop
        self.captions = Captions(captions or {"original": 1.0}, languages, drop)
        self.captions.refuse_absent(self.summary["captions"])
        self.before: dict[str, Any] = {"batch_weight": "steps"}  # the settings of runs that did not name them
        if text_drop is None:
            self.before["text_drop"] = 0.05
        self.capacity = capacity
        self.max_batch = max_batch
        self.weights = weights
        self.left_out = left_out
        self.alignment, self.online = _alignment(alignment, reference_drop, self.summary, root)
        self.earlier = self.summary.get("mentions", 1) < GRAMMAR  # prepared by an earlier version
        self.loader: EditLoader | None = None
        self.workers = workers
        self.seed = seed
        self.held_out_max = held_out_max
        self.plan_ranks = plan_ranks

    def check(self, base: Base) -> None:
        """Raise UserError when the data was encoded by other models than the base's."""
        check_data(self.root, base)

    def train_dataloader(self) -> TrainingLoader:
        """Return the micro-batches of this process."""
        rank, world, accumulate = self._place()
        ranks = self.plan_ranks or world * accumulate
        if self.trainer is not None and ranks != world * accumulate:
            product = f"{world} processes times trainer.accumulate_grad_batches={accumulate}"
            raise UserError(f"data.plan_ranks={ranks}: must be {product}, {world * accumulate}")
        plan = self._plan(ranks)
        identity = {
            "data": self.summary["fingerprint"],
            "seed": self.seed,
            "plan_ranks": ranks,
            "capacity": self.capacity,
            "max_batch": self.max_batch,
            "left_out": self.left_out,
            "weights": json.dumps(self.weights, default=dict, sort_keys=True),
            "alignment": self.alignment and asdict(self.alignment),
        }
        visits = Visits(self.chunks(), self.captions, self.seed, online=self.online, checked=self.earlier)
        if self.alignment and self.earlier and any(len(bucket.references) > 1 for bucket in plan.index.buckets):
            rank_zero_info(
                f"data: {self.root} was prepared by an earlier version, which misread some prompts: none of its "
                "references is dropped, and batches with such a prompt show theirs as stored; prepare again for more"
            )
        self.loader = EditLoader(
            visits,
            plan,
            identity,
            rank=rank,
            world=world,
            workers=self.workers,
            began=self._rescale,
            alignment=self.alignment,
            skip=self.skip,
            batch_weight=self.batch_weight,
            settings={"batch_weight": self.batch_weight, "text_drop": self.captions.drop},
            before=self.before,
        )
        return self.loader

    def _plan(self, ranks: int) -> BatchPlan:
        """Return the plan of this data for so many plan ranks, and log its size."""
        index = self._index()
        self._refuse_too_large(index, self.capacity, "data.capacity")
        plan = BatchPlan(
            index,
            capacity=self.capacity // self.sides,
            plan_ranks=ranks,
            seed=self.seed,
            weights=self.weights,
            max_batch=self.max_batch,
            left_out=self.left_out,
        )
        left = plan.left_out(0)
        message = f"data: {len(index)} samples in {len(index.buckets)} buckets, {plan.steps()} steps an epoch"
        if len(left.rows):
            message += f"; an epoch leaves out {len(left.rows)} samples, others each time"
        if left.repeated:
            message += f"; {left.repeated} come again, so that all devices have as many"
        rank_zero_info(message)
        return plan

    def _refuse_too_large(self, index: Index, capacity: int, key: str) -> None:
        """Raise UserError when a sample alone has more tokens than the capacity, which the recipe names `key`."""
        large = max(index.buckets, key=lambda bucket: bucket.tokens, default=None)
        if large is None or self.sides * large.tokens <= capacity:
            return
        name = self.chunks().read(int(index.positions[large.start])).id
        needed = self.sides * large.tokens
        counted = ", both sides counted" if self.sides > 1 else ""
        raise UserError(
            f"{key}={capacity}: sample {name!r}, as all of bucket {large}, has {needed} tokens{counted}; "
            f"{key}={needed} takes every sample, or prepare at smaller sizes"
        )

    def _index(self) -> Index:
        """Return the index of the samples to train on."""
        return Index.open(self.root / "index" / "train")

    def val_dataloader(self) -> HeldOutEdits | list[Any]:
        """Return the held-out edits of this process; an empty list when there are none."""
        rank, world, _ = self._place()
        positions = Index.open(self.root / "index" / "held_out").positions
        count = min(len(positions), self.held_out_max)
        if not count:
            return []
        spread = [int(positions[i * len(positions) // count]) for i in range(count)]  # over the buckets, not the first
        return HeldOutEdits(self.chunks(), spread, rank, world)

    def chunks(self) -> Chunks:
        """Return the samples, by number."""
        return Chunks(self.root / "chunks", self.remote, self.whole)

    def teardown(self, stage: str) -> None:
        if self.loader is not None:
            self.loader.close()

    def _place(self) -> tuple[int, int, int]:
        """Return (rank, number of processes, accumulation)."""
        if self.trainer is None:
            return 0, 1, 1
        return self.trainer.global_rank, self.trainer.world_size, self.trainer.accumulate_grad_batches

    def _rescale(self, world: int) -> None:
        """Adapt Lightning's counts to a checkpoint that so many other processes wrote.

        Lightning counts the micro-batches of one process. On another number of processes the same steps are fewer or
        more of them, and accumulation windows would open in the middle.
        """
        if self.trainer is None or world == self.trainer.world_size:
            return
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        for counts in (progress.total, progress.current):
            begun = counts.ready * world // self.trainer.world_size
            for name in ("completed", "processed", "started", "ready"):  # a save at a batch's end stands one before it
                setattr(counts, name, begun - (counts.ready - getattr(counts, name)))
