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

from .buckets import BatchPlan, Index
from .captions import UNCONDITIONAL, Captions
from .chunks import Chunks
from .encode import DTYPES
from .instruction import Alignment
from .loader import EditLoader, Visits, collate, pictured
from .online import Online
from .references import GRAMMAR
from .remote import open_root


def check_data(root: str | Path, base: Base | None = None) -> dict[str, Any]:
    """Return what data.json says of a prepared folder.

    Args:
        root: the folder.
        base: whose VAE and text encoder must have made its latents and embeddings. Weights of the hub are downloaded
            for the comparison only where the folder was made by another commit.

    Raises:
        UserError: the folder is not finished, or made by another VAE or text encoder.
    """
    folder = Path(root)
    if not (folder / "data.json").exists():
        begun = (folder / "prepare.json").exists()
        state = "is not finished: run prepare again, it goes on" if begun else "holds no data: make it with prepare"
        raise UserError(f"{folder} {state}")
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
    """How orders of the references are drawn, and how their texts are encoded in the step; None where they are not.

    Both ways draw the same orders, as long as `prepare` encoded all of them. UserError when there are no pictures.
    """
    if asked not in (True, False, "online"):
        raise UserError(f"data.alignment={asked}: true, false or online")
    cached = summary.get("orders", 1)  # folders of before have the identity alone
    if not asked or (asked is True and summary.get("alignment") != "online"):
        return (Alignment(cached, drop) if asked and cached > 1 else None), None
    if not summary["keep_images"]:
        raise UserError(
            f"data.alignment=online: {root} holds no pictures for the text encoder; prepare with keep_images=true"
        )
    online = Online(DTYPES[summary["dtype"]], Sizes(**summary["sizes"]).condition_area)
    return Alignment(cached if cached > 1 else None, drop), online


class HeldOut:
    """Held-out edits for validation, one sample a batch, as many on every rank; what only fills up weighs 0."""

    def __init__(self, chunks: Chunks, positions: Sequence[int], rank: int = 0, world: int = 1) -> None:
        self.chunks, self.positions, self.rank, self.world = chunks, positions, rank, world

    def __len__(self) -> int:
        return -(-len(self.positions) // self.world)

    def __iter__(self) -> Iterator[EditBatch]:
        for i in range(len(self)):
            slot = i * self.world + self.rank
            yield self.batch(slot % len(self.positions), slot, float(slot < len(self.positions)))

    def batch(self, number: int, slot: int, weight: float) -> EditBatch:
        """One held-out edit with what it is judged by. It shows the original English instruction when it has one."""
        sample = self.chunks.read(self.positions[number], images=True)
        shown = min(sample.meta["instructions"], key=lambda key: (key != "original/en", key))
        more = pictured([sample]) | {"weight": torch.tensor([weight])}
        more["unconditional"] = Text.pad([sample.tensors[f"text.{UNCONDITIONAL}"]])
        return collate([sample], [shown], 0, (slot,), len(self) * self.world, **more)


class EditDataModule(L.LightningDataModule):
    """Edits that `prepare` encoded, batched by bucket.

    capacity: visual tokens of a micro-batch. max_batch: at most so many samples in one. left_out: an epoch may leave
    out less than this share of the samples, others each time, where they would fill little of a step. workers:
    processes that read.
    text_drop: probability of the unconditional text; None for 0.05, and for preferences 0, as in Diffusion-DPO.
    captions, languages: see `Captions`. weights: sample frequencies by group, see
    `datamodules.frequencies`. alignment: draw an order of the references for each global batch, in which one that may
    be dropped is so with probability reference_drop. Its texts are those that `prepare` encoded or, where that left
    them to the training or "online" is asked for here, are encoded in the step. held_out_max: held-out edits shown at
    each validation. plan_ranks: micro-batches of a global batch, processes times accumulation; taken from the trainer
    when None, and fixed for the whole run. on_error: "raise", or "skip" to show another sample of the bucket in the
    place of one that cannot be read, with a warning that counts them. cache: where copies of data in object storage
    are kept; cache_limit: gigabytes of chunks there, the least used of which make room. fetch: of data in object
    storage "chunks" as a whole, or of "samples" only what is shown, where nothing is kept: for one pass over data with
    pictures or the texts of many orders. batch_weight: buckets have batches of different sizes; with "samples" a
    batch's loss weighs its samples over their mean number, so that the gradient has the samples' frequencies, with
    "steps" every batch weighs the same.
    root: a folder that `prepare` wrote, or s3://bucket/prefix with a copy of one, see `datamodules.remote`.
    Raises UserError when `root` is not a finished folder, or does not hold what the weights name.
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
        self.root, self.remote = open_root(root, cache, None if cache_limit is None else int(cache_limit * 1e9))
        self.whole, self.skip = fetch == "chunks", on_error == "skip"
        self.summary = check_data(self.root)
        if self.learns_targets and (prompts := self.summary.get("prompts", 0)):
            held = f"{prompts} of {self.summary['samples']} samples are prompts without a target"
            raise UserError(f"{root}: {held}, for reinforcement learning: datamodules.prompts.PromptDataModule")
        self.sizes = Sizes(**self.summary["sizes"])
        drop = self.usual_text_drop if text_drop is None else text_drop
        self.captions = Captions(captions or {"original": 1.0}, languages, drop)
        self.before: dict[str, Any] = {"batch_weight": "steps"}  # in runs of before, which did not name it
        if text_drop is None:
            self.before["text_drop"] = 0.05
        self.captions.refuse_absent(self.summary["captions"])
        self.capacity, self.max_batch, self.weights, self.left_out = capacity, max_batch, weights, left_out
        self.alignment, self.online = _alignment(alignment, reference_drop, self.summary, root)
        self.earlier = self.summary.get("mentions", 1) < GRAMMAR
        self.loader: EditLoader | None = None
        self.workers, self.seed, self.held_out_max, self.plan_ranks = workers, seed, held_out_max, plan_ranks

    def check(self, base: Base) -> None:
        """UserError when the data was encoded by other models than the base's."""
        check_data(self.root, base)

    def train_dataloader(self) -> EditLoader:
        rank, world, accumulate = self._place()
        ranks = self.plan_ranks or world * accumulate
        if self.trainer is not None and ranks != world * accumulate:
            product = f"{world} processes times trainer.accumulate_grad_batches={accumulate}"
            raise UserError(f"data.plan_ranks={ranks}: must be {product}, {world * accumulate}")
        plan = self._plan(ranks)
        identity = {"data": self.summary["fingerprint"], "seed": self.seed, "plan_ranks": ranks}
        identity |= {"capacity": self.capacity, "max_batch": self.max_batch, "left_out": self.left_out}
        identity["weights"] = json.dumps(self.weights, default=dict, sort_keys=True)
        identity["alignment"] = self.alignment and asdict(self.alignment)
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
        """The plan of this data for so many plan ranks; says what it makes of the data."""
        index = self._index()
        self._refuse_too_large(index, self.capacity, "data.capacity")
        options = {"seed": self.seed, "weights": self.weights, "max_batch": self.max_batch, "left_out": self.left_out}
        plan = BatchPlan(index, capacity=self.capacity // self.sides, plan_ranks=ranks, **options)
        left = plan.left_out(0)
        rank_zero_info(
            f"data: {len(index)} samples in {len(index.buckets)} buckets, {plan.steps()} steps an epoch"
            + (f"; an epoch leaves out {len(left.rows)} samples, others each time" if len(left.rows) else "")
            + (f"; {left.repeated} come again, so that all devices have as many" if left.repeated else "")
        )
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
        """The samples to train on."""
        return Index.open(self.root / "index" / "train")

    def val_dataloader(self) -> HeldOut | list[Any]:
        rank, world, _ = self._place()
        positions = Index.open(self.root / "index" / "held_out").positions
        count = min(len(positions), self.held_out_max)
        if not count:
            return []
        spread = [int(positions[i * len(positions) // count]) for i in range(count)]  # over the buckets, not the first
        return HeldOut(self.chunks(), spread, rank, world)

    def chunks(self) -> Chunks:
        """The samples."""
        return Chunks(self.root / "chunks", self.remote, self.whole)

    def teardown(self, stage: str) -> None:
        if self.loader is not None:
            self.loader.close()

    def _place(self) -> tuple[int, int, int]:
        """(rank, number of processes, accumulation)."""
        if self.trainer is None:
            return 0, 1, 1
        return self.trainer.global_rank, self.trainer.world_size, self.trainer.accumulate_grad_batches

    def _rescale(self, world: int) -> None:
        """Lightning counts micro-batches of a process: on another number of processes, the same steps are fewer or
        more of them, and accumulation windows would open in the middle."""
        if self.trainer is None or world == self.trainer.world_size:
            return
        progress = self.trainer.fit_loop.epoch_loop.batch_progress
        for counts in (progress.total, progress.current):
            begun = counts.ready * world // self.trainer.world_size
            for name in ("completed", "processed", "started", "ready"):  # a save at a batch's end stands one before it
                setattr(counts, name, begun - (counts.ready - getattr(counts, name)))
