"""The loader of a training: micro-batches by the plan, read by workers, going on exactly where it stopped."""

import contextlib
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from firered_lit.batch import Condition, EditBatch, PreferenceBatch, Text
from firered_lit.errors import UserError
from firered_lit.models.codec import to_pixels

from . import masks, regions
from .buckets import BatchPlan, Bucket
from .captions import Captions
from .chunks import Chunks, Sample
from .encode import from_png
from .instruction import Alignment, keeps_order, reworded
from .online import Online

SPARES = 16  # samples that may stand in for those of a micro-batch that cannot be read
CHANGED = {  # what it means when a setting is not the one that a run began with
    "batch_weight": "the weights of the loss change",
    "text_drop": "the share of unconditional texts changes",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Address:
    """One micro-batch: its samples' numbers, its place in the global batch, and that one's order of references."""

    step: int  # which global batch since the start of training
    slots: tuple[int, ...]
    num_slots: int
    positions: tuple[int, ...]
    order: tuple[int, ...] = ()  # place i shows reference order[i], counted from 1; () for the identity
    spares: tuple[int, ...] = ()  # others of the bucket, for samples that cannot be read
    scale: float = 1.0  # of the micro-batch's loss in the gradient


@dataclass(frozen=True)
class Failure:
    """What a worker could not read. It travels as a value, so that the message is one line in the main process."""

    message: str


class Visits(Dataset[EditBatch | Failure]):
    """Micro-batches by address, with the captions of this visit; with `images`, also the pictures.

    online: the texts for an order of references are not read from the chunks, but left to the text encoder. checked:
    the chunks are of an earlier version, whose texts for an order may not follow it: a micro-batch with such a text
    shows its references as they are stored.
    """

    def __init__(
        self,
        chunks: Chunks,
        captions: Captions,
        seed: int,
        images: bool = False,
        online: Online | None = None,
        checked: bool = False,
    ) -> None:
        self.chunks, self.captions, self.seed, self.images, self.online = chunks, captions, seed, images, online
        self.checked = checked

    def __getitem__(self, address: Address) -> tuple[EditBatch | Failure, tuple[str, ...]]:
        """A micro-batch, of preference pairs when the samples are pairs; and what of it could not be read."""
        unread: list[str] = []
        return self._batch(address, unread), tuple(unread)

    def _batch(self, address: Address, unread: list[str]) -> EditBatch | Failure:
        try:
            order, spares = self._order(address), iter(address.spares)
            samples = [self._read(position, order, spares, unread) for position in address.positions]
            texts = [
                self.captions.draw(sample.meta["instructions"], self.seed, address.step, slot)
                for sample, slot in zip(samples, address.slots, strict=True)
            ]
            self._one_shape(address, samples)
            more = pictured(samples, order) if self.images else {}
            if self.online and order:
                more["text"] = self.online.text(samples, texts, order)
            more["scale"] = address.scale
            return collate(samples, texts, address.step, address.slots, address.num_slots, order, **more)
        except UserError as problem:
            return Failure(str(problem))

    def _order(self, address: Address) -> tuple[int, ...]:
        """Return the order in which a micro-batch shows its references."""
        order = address.order
        if not order or not self.checked:
            return order
        return order if all(self._follows(position, order) for position in address.positions) else ()

    def _follows(self, position: int, order: tuple[int, ...]) -> bool:
        """Return whether the texts of a sample that an earlier version stored for an order are what they should be."""
        try:
            meta = self.chunks.read(position).meta
            shown = self._sample(position, order).meta["instructions"]
        except UserError:
            return True  # what cannot be read is for `_read` to report
        texts = meta["instructions"]
        count = len(meta["references"])
        if keeps_order(texts.values(), count):
            return False
        return shown == reworded(texts, order, meta.get("captions", ()), count)

    def _read(self, position: int, order: tuple[int, ...], spares: Iterator[int], unread: list[str]) -> Sample:
        """A sample, or the first of the spares that can be read in its place."""
        try:
            return self._sample(position, order)
        except UserError as problem:
            for spare in spares:
                with contextlib.suppress(UserError):
                    sample = self._sample(spare, order)
                    unread.append(str(problem))
                    return sample
            raise

    def _sample(self, position: int, order: tuple[int, ...]) -> Sample:
        """A sample with the instructions, and but for online alignment the texts, of an order of its references."""
        if self.online is None or not order:
            return self.chunks.read(position, self.images, order)
        return self.online.reworded(self.chunks.read(position, images=True), order)

    def _one_shape(self, address: Address, samples: list[Sample]) -> None:
        """The first sample's `img_shapes` rule the whole batch in the transformer: all must be alike."""
        for position, sample in zip(address.positions, samples, strict=True):
            if _shapes(sample) != _shapes(samples[0]):
                raise UserError(f"{self.chunks.where(position)}: has other shapes than its bucket; prepare again")


def _shapes(sample: Sample) -> list[torch.Size]:
    return [image.shape for image in (_target(sample), *_references(sample))]


def _target(sample: Sample) -> Tensor:
    """The target's latents; of a prompt, which has none, zeros of the shape to draw."""
    if "target" in sample.tensors:
        return sample.tensors["target"]
    source, (height, _) = sample.tensors["reference.0"], sample.meta["references"][0]
    return source.new_zeros(len(source), *(side * source.shape[-2] // height for side in sample.meta["target"]))


def _references(sample: Sample, order: Sequence[int] = ()) -> list[Tensor]:
    return [sample.tensors[name] for name in _named(sample, order)]


def _named(sample: Sample, order: Sequence[int]) -> list[str]:
    """The references in an order of them, by name."""
    return [f"reference.{i - 1}" for i in order or range(1, len(sample.meta["references"]) + 1)]


def _places(sample: Sample, order: Sequence[int]) -> tuple[int, ...]:
    """Which of its record's references stands at each place, counted from 1."""
    count = len(sample.meta["references"])
    own = sample.meta.get("order") or range(1, count + 1)  # as it is stored: in the canonical order of shapes
    return tuple(own[number - 1] for number in order or range(1, count + 1))


def pictured(samples: Sequence[Sample], order: Sequence[int] = ()) -> dict[str, Any]:
    """The targets, but of prompts, and sources as pixels. KeyError when they were prepared without pictures."""

    def pixels(name: str) -> Tensor:
        return torch.stack([to_pixels(from_png(sample.images[name])) for sample in samples])

    known = all("target" in sample.tensors for sample in samples)
    sources = tuple(map(pixels, _named(samples[0], order)))
    return {"pixels": pixels("target") if known else None, "sources": sources}


def collate(
    samples: Sequence[Sample],
    texts: Sequence[str],
    step: int,
    slots: tuple[int, ...],
    num_slots: int,
    order: Sequence[int] = (),
    text: Text | None = None,
    **more: Any,
) -> EditBatch:
    """Samples of one list of shapes as a batch, each with the text of that key; of preference pairs as pairs.

    order: of the references, for which the samples' texts were read. text: what stands for those when they were not.
    """
    references = zip(*(_references(sample, order) for sample in samples), strict=True)
    if text is None:
        text = Text.pad([sample.tensors[f"text.{key}"] for sample, key in zip(samples, texts, strict=True)])
    losers = [sample.tensors["loser"] for sample in samples if "loser" in sample.tensors]
    kind = partial(PreferenceBatch, loser=torch.stack(losers)) if len(losers) == len(samples) else EditBatch
    return kind(
        target=torch.stack([_target(sample) for sample in samples]),
        condition=Condition(text, tuple(torch.stack(images) for images in references)),
        ids=tuple(sample.id for sample in samples),
        step=step,
        slots=slots,
        num_slots=num_slots,
        tasks=tuple(sample.meta["task"] for sample in samples),
        instructions=tuple(s.meta["instructions"].get(key, "") for s, key in zip(samples, texts, strict=True)),
        target_texts=tuple(sample.meta.get("target_text") or None for sample in samples),
        replaced_texts=tuple(sample.meta.get("replaced_text") or None for sample in samples),
        requirements=tuple(sample.meta.get("requirement") or None for sample in samples),
        layouts=tuple(sample.meta.get("text_layout") for sample in samples),
        known=all("target" in sample.tensors for sample in samples),
        regions=regions.stacked([sample.meta.get("regions", ()) for sample in samples]),
        mask=masks.stacked([sample.tensors for sample in samples]),
        orders=tuple(_places(sample, order) for sample in samples),
        **more,
    )


class EditLoader:
    """The micro-batches of one process, without end: global batch s is `plan_ranks` micro-batches, shared in turn.

    Its length is that of an epoch; iterating again goes on, as the state {epoch, step} does. The state is the same on
    every rank. `began` is called with the number of processes that wrote a loaded state. alignment: of references, one
    order per global batch; None shows them as they are. skip: show another sample of the bucket in the place of one
    that cannot be read, count that in `skipped` and warn; else it is a UserError. batch_weight: of a micro-batch's
    loss: by "samples", its samples over the plan's mean number, so that every sample weighs as much in the gradient; by
    "steps", 1. settings: what a resumed run may change, by name; a change is said in one line. before: what those were
    in runs whose state does not know them.
    """

    def __init__(
        self,
        visits: Visits,
        plan: BatchPlan,
        identity: Mapping[str, Any],
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        began: Callable[[int], None] | None = None,
        alignment: Alignment | None = None,
        skip: bool = False,
        batch_weight: Literal["samples", "steps"] = "samples",
        settings: Mapping[str, Any] | None = None,
        before: Mapping[str, Any] | None = None,
    ) -> None:
        if plan.ranks % world:
            raise UserError(f"plan_ranks={plan.ranks} cannot be shared by {world} processes; it must be a multiple")
        self.visits, self.plan, self.identity = visits, plan, dict(identity)
        self.rank, self.world, self.workers, self.began, self.alignment = rank, world, workers, began, alignment
        self.share = plan.ranks // world  # micro-batches of a global batch that this process sees
        self.skip, self.skipped = skip, 0
        self.batch_weight = batch_weight
        self.settings, self.before = dict(settings or {}), dict(before or {})
        self.seen = 0  # micro-batches since the start of training
        self._stream: Generator[EditBatch, None, None] | None = None

    def __len__(self) -> int:
        return self.plan.steps() * self.share

    def __iter__(self) -> Iterator[EditBatch]:
        if self._stream is None:
            self._stream = self._batches()
        return self._stream  # one stream over all epochs: no worker is started again between them

    def state_dict(self) -> dict[str, Any]:
        epoch, step = divmod(self.seen // self.share, self.plan.steps())
        return {"epoch": epoch, "step": step, "world": self.world, **self.identity, **self.settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state. UserError when it belongs to other data or to another plan."""
        for name, value in self.identity.items():
            if state.get(name) != value:
                raise UserError(_other(name, state.get(name), value, self.world))
        self._say_changes(state)
        self.seen = (state["epoch"] * self.plan.steps() + state["step"]) * self.share
        self.close()
        if self.began:
            self.began(state["world"])

    def _say_changes(self, state: Mapping[str, Any]) -> None:
        """Name each setting that is not what the run had until here, once for all processes."""
        for name, value in self.settings.items():
            until = state.get(name, self.before.get(name, value))
            if name == "batch_weight" and self.plan.even:
                continue
            if until != value and self.rank == 0:
                log.warning("%s: data.%s=%s until here, %s from now on", CHANGED[name], name, until, value)

    def close(self) -> None:
        """Stop the workers. Iterating again starts new ones, at the same place."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def addresses(self, seen: int) -> Iterator[Address]:
        """This process's micro-batches from the `seen`-th on."""
        steps = self.plan.steps()
        while True:
            step, k = divmod(seen, self.share)
            epoch, within = divmod(step, steps)
            bucket, ranks = self.plan[epoch, within]
            mine = k * self.world + self.rank
            rows, size = ranks[mine], len(ranks[mine])
            positions = tuple(int(self.plan.index.positions[row]) for row in rows)
            slots, order = tuple(range(mine * size, (mine + 1) * size)), self._order(epoch, within, bucket)
            spares = self._spares(bucket, positions) if self.skip else ()
            scale = size / self.plan.mean_batch if self.batch_weight == "samples" else 1.0
            yield Address(step, slots, size * len(ranks), positions, order, spares, scale)
            seen += 1

    def _spares(self, bucket: Bucket, positions: tuple[int, ...]) -> tuple[int, ...]:
        """Samples of the bucket from all over it, so that they do not lie in one broken chunk."""
        rows = bucket.start + np.unique(np.arange(SPARES) * bucket.count // SPARES)
        others = [int(position) for position in self.plan.index.positions[rows] if int(position) not in positions]
        return (*others, *positions)  # the last resort is to show one of the batch twice

    def _order(self, epoch: int, step: int, bucket: Bucket) -> tuple[int, ...]:
        if self.alignment is None or bucket.fixed:
            return ()
        count = len(bucket.references)
        order = self.alignment.order(self.visits.seed, epoch, step, count, bucket.droppable)
        # An earlier version let go of the picture that is edited: nothing of what it stored is dropped.
        if self.visits.checked and len(order) < count:
            return ()
        return order

    def _batches(self) -> Generator[EditBatch, None, None]:
        waiting: deque[Address] = deque()

        def handed_out() -> Iterator[Address]:
            for address in self.addresses(self.seen):
                waiting.append(address)
                yield address

        for batch, unread in _fetch(self.visits, handed_out(), self.workers, lambda: self._where(waiting)):
            waiting.popleft()
            for message in unread:
                self.skipped += 1
                log.warning("skipped, %d so far: %s", self.skipped, message)
            if isinstance(batch, Failure):
                raise UserError(batch.message)
            self.seen += 1
            yield batch

    def _where(self, waiting: deque[Address]) -> str:
        if not waiting:
            return "before the first batch"
        return f"at step {waiting[0].step}, reading {self.visits.chunks.where(waiting[0].positions[0])}"


def _fetch(visits: Visits, addresses: Iterator[Address], workers: int, where: Callable[[], str]) -> Iterator[Any]:
    """Micro-batches in order, read by worker processes. A worker that dies is a UserError that says where."""
    loader = DataLoader(
        visits,
        batch_size=None,
        sampler=_Endless(addresses),
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),  # else it draws from the global random state
    )
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if main else None
    batches = iter(loader)
    if main and before is not None:  # torch would raise out of any line of the program when a worker dies
        signal.signal(signal.SIGCHLD, before)
    try:
        yield from batches
    except (RuntimeError, EOFError, OSError) as problem:
        own = isinstance(problem, RuntimeError) and "DataLoader worker" not in str(problem)
        if not workers or own or str(problem).startswith("Caught"):  # raised by our code, here or in a worker
            raise
        reason = " ".join(str(problem).split()) or type(problem).__name__  # OSError: it died as it handed over a batch
        raise UserError(f"a data worker died {where()}: {reason}; out of memory? Fewer data.workers may help") from None


class _Endless:
    """A sampler around an iterator."""

    def __init__(self, addresses: Iterator[Address]) -> None:
        self.addresses = addresses

    def __iter__(self) -> Iterator[Address]:
        return self.addresses


def _other(name: str, before: Any, now: Any, world: int) -> str:
    if name == "data":
        return "this run was trained on other data; resume it with that data.root, or begin a new run"
    if name == "plan_ranks" and isinstance(before, int) and before % world == 0:
        setting = f"with {world} processes, set trainer.accumulate_grad_batches={before // world}"
        return f"this run began with {before} micro-batches a step: {setting}"
    mend = f"add data.{name}={before}" if isinstance(before, int | float) else "set it back"
    return f"this run began with data.{name}={before}, now {now}: its batches would not go on; {mend}"
