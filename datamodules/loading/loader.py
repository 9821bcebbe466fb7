"""The loader of a training: micro-batches by the plan, read by workers, going on exactly where it stopped."""

import contextlib
import logging
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from firered_lit.batch import Condition, EditBatch, PreferenceBatch, Text
from firered_lit.errors import UserError
from firered_lit.facts import Facts, from_meta
from firered_lit.models.codec import to_pixels

from ..chunks.samples import Chunks, Sample
from ..references.instruction import Alignment, keeps_order, reworded
from ..sampling.buckets import BatchPlan, Bucket
from ..sampling.captions import Captions
from ..sources import masks, regions
from ..sources.images import from_png
from .online import Online

SPARES = 16  # samples that may stand in for those of a micro-batch that cannot be read
CHANGED = {  # the consequence of a setting that is not the one which a run began with
    "batch_weight": "the weights of the loss change",
    "text_drop": "the share of unconditional texts changes",
}
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchAddress:
    """The address of one micro-batch: its global batch, and its samples in that one and in the chunks.

    Args:
        step: Number of the global batch since the start of training, from 0.
        slots: Number of each sample in the global batch, from 0.
        num_slots: Samples of the global batch.
        positions: Number of each sample in the chunks; () of samples that are drawn, not read.
        order: Number, from 1, of the reference that each place shows; () for the identity.
        spares: Positions of other samples of the bucket, for those that cannot be read.
        scale: Weight of the micro-batch's loss in the gradient.
    """

    step: int
    slots: tuple[int, ...]
    num_slots: int
    positions: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    spares: tuple[int, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True)
class Failure:
    """A micro-batch that a worker could not read. As a value, its message is one line in the main process."""

    message: str


class Visits(Dataset[tuple[EditBatch | Failure, tuple[str, ...]]]):
    """Micro-batches by address, with the captions of this visit.

    Args:
        chunks: The samples.
        captions: Choice of a sample's text.
        seed: The run's seed.
        images: Read the pictures too.
        online: Leaves the texts for an order of references to the text encoder; None reads them from the chunks.
        checked: The chunks are of an earlier version, whose texts for an order may not follow it: a micro-batch with
            such a text shows its references as they are stored.
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
        self.chunks = chunks
        self.captions = captions
        self.seed = seed
        self.images = images
        self.online = online
        self.checked = checked

    def __getitem__(self, address: BatchAddress) -> tuple[EditBatch | Failure, tuple[str, ...]]:
        """Return a micro-batch, of pairs when the samples are pairs, and a message for each sample not read."""
        unread: list[str] = []
        try:
            return self._batch(address, unread), tuple(unread)
        except UserError as problem:
            return Failure(str(problem)), tuple(unread)

    def _batch(self, address: BatchAddress, unread: list[str]) -> EditBatch:
        """Return a micro-batch; samples that cannot be read are added to `unread`. Raises UserError."""
        # The samples, and the text that each shows.
        order = self._order(address)
        spares = iter(address.spares)
        samples = [self._read(position, order, spares, unread) for position in address.positions]
        texts = []
        for sample, slot in zip(samples, address.slots, strict=True):
            texts.append(self.captions.draw(sample.meta["instructions"], self.seed, address.step, slot))
        self._one_shape(address, samples)

        # As a batch.
        text = self.online.text(samples, texts, order) if self.online and order else None
        pictures = pictured(samples, order) if self.images else {}
        return collate(
            samples,
            texts,
            address.step,
            address.slots,
            address.num_slots,
            order,
            text=text,
            scale=address.scale,
            **pictures,
        )

    def _order(self, address: BatchAddress) -> tuple[int, ...]:
        """Return the order in which a micro-batch shows its references."""
        order = address.order
        if order and self.checked:
            for position in address.positions:
                if not self._follows(position, order):
                    return ()
        return order

    def _follows(self, position: int, order: tuple[int, ...]) -> bool:
        """Return whether a sample's texts for an order, which an earlier version stored, do follow that order."""
        try:
            meta = self.chunks.read(position).meta
            shown = self._sample(position, order).meta["instructions"]
        except UserError:
            return True  # `_read` reports a sample that cannot be read
        texts = meta["instructions"]
        count = len(meta["references"])
        if keeps_order(texts.values(), count):
            return False
        return shown == reworded(texts, order, meta.get("captions", ()), count)

    def _read(self, position: int, order: tuple[int, ...], spares: Iterator[int], unread: list[str]) -> Sample:
        """Return a sample, or in its place the first of the spares that can be read, with a message in `unread`."""
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
        """Return a sample with the instructions and, but for online alignment, the embeddings of an order."""
        if self.online is None or not order:
            return self.chunks.read(position, self.images, order)
        sample = self.chunks.read(position, images=True)
        return self.online.reworded(sample, order)

    def _one_shape(self, address: BatchAddress, samples: list[Sample]) -> None:
        """Refuse samples of different shapes: the first sample's `img_shapes` rule the batch in the transformer."""
        first = _shapes(samples[0])
        for position, sample in zip(address.positions, samples, strict=True):
            if _shapes(sample) != first:
                raise UserError(f"{self.chunks.where(position)}: has other shapes than its bucket; prepare again")


def _shapes(sample: Sample) -> list[torch.Size]:
    """Return the shapes of the target's and the references' latents."""
    return [image.shape for image in (_target(sample), *_references(sample))]


def _target(sample: Sample) -> Tensor:
    """Return the target's latents (C, h, w); of a prompt, which has none, zeros of the shape to draw."""
    if "target" in sample.tensors:
        return sample.tensors["target"]
    source = sample.tensors["reference.0"]
    source_height, _ = sample.meta["references"][0]
    height, width = sample.meta["target"]
    channels, rows, _ = source.shape  # the source shows how many pixels a row of latents stands for
    return source.new_zeros(channels, height * rows // source_height, width * rows // source_height)


def _references(sample: Sample, order: Sequence[int] = ()) -> list[Tensor]:
    """Return the references' latents in an order."""
    return [sample.tensors[name] for name in _named(sample, order)]


def _named(sample: Sample, order: Sequence[int]) -> list[str]:
    """Return the names of a sample's references in an order; () is the one in which they are stored."""
    numbers = order or range(1, len(sample.meta["references"]) + 1)
    return [f"reference.{number - 1}" for number in numbers]


def _facts(sample: Sample, key: str, order: Sequence[int]) -> Facts:
    """Return the facts of a sample in a batch.

    Args:
        sample: The sample.
        key: Key of the text that it shows.
        order: Order of the references as they are stored; () for that one.
    """
    facts = from_meta(sample.id, sample.meta)
    numbers = range(1, len(sample.meta["references"]) + 1)
    stored = facts.order or numbers  # in the canonical order of shapes
    shown = tuple(stored[number - 1] for number in order or numbers)
    return replace(facts, instruction=sample.meta["instructions"].get(key, ""), order=shown)


def pictured(samples: Sequence[Sample], order: Sequence[int] = ()) -> dict[str, Any]:
    """Return the pictures of samples of one list of shapes, as arguments of `collate`.

    Args:
        samples: B samples, read with their images.
        order: Order of the references.

    Returns:
        `pixels`, the targets, None of prompts, and `sources`, the references: each (B, 3, H, W) in [-1, 1].

    Raises:
        KeyError: The samples were prepared without pictures.
    """
    known = all("target" in sample.tensors for sample in samples)
    return {
        "pixels": _pixels(samples, "target") if known else None,
        "sources": tuple(_pixels(samples, name) for name in _named(samples[0], order)),
    }


def _pixels(samples: Sequence[Sample], name: str) -> Tensor:
    """Return one picture of every sample, by its name, as (B, 3, H, W) in [-1, 1]."""
    return torch.stack([to_pixels(from_png(sample.images[name])) for sample in samples])


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
    """Return samples of one list of shapes as a batch; pairs as a `PreferenceBatch`.

    Args:
        samples: B samples.
        texts: Key of the text that each shows.
        step: Number of the global batch.
        slots: Number of each sample in the global batch.
        num_slots: Samples of the global batch.
        order: Order of the references for which the samples were read.
        text: Takes the place of the samples' embeddings, for texts that are encoded in the step.
        more: Further fields of the batch.
    """
    # Tensors.
    references = zip(*(_references(sample, order) for sample in samples), strict=True)
    if text is None:
        text = Text.pad([sample.tensors[f"text.{key}"] for sample, key in zip(samples, texts, strict=True)])
    losers = [sample.tensors["loser"] for sample in samples if "loser" in sample.tensors]
    make: Callable[..., EditBatch] = EditBatch
    if len(losers) == len(samples):
        make = partial(PreferenceBatch, loser=torch.stack(losers))

    # With the facts of each sample.
    facts = tuple(_facts(sample, key, order) for sample, key in zip(samples, texts, strict=True))
    return make(
        target=torch.stack([_target(sample) for sample in samples]),
        condition=Condition(text, tuple(torch.stack(images) for images in references)),
        facts=facts,
        step=step,
        slots=slots,
        num_slots=num_slots,
        known=all("target" in sample.tensors for sample in samples),
        regions=regions.stacked([sample.meta.get("regions", ()) for sample in samples]),
        mask=masks.stacked([sample.tensors for sample in samples]),
        **more,
    )


class TrainingLoader(Protocol):
    """Protocol of what a training reads from: it has an epoch's length, and goes on exactly where it stopped."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class EditLoader:
    """The micro-batches of one process, without end: global batch s is `plan_ranks` micro-batches, shared in turn.

    Its length is that of an epoch; iterating again goes on, as the state {epoch, step} does. The state is the same on
    every rank.

    Args:
        visits: Micro-batches by address.
        plan: The global batches.
        identity: Settings that a resumed run must share, by name.
        rank: Number of this process.
        world: The number of processes; it divides the plan's ranks.
        workers: Processes that read.
        began: Called with the number of processes that wrote a loaded state.
        alignment: Draws one order of the references per global batch; None shows them as they are stored.
        skip: Show another sample of the bucket in the place of one that cannot be read, count that in `skipped` and
            warn. Else an unreadable sample is a UserError.
        batch_weight: Weight of a micro-batch's loss: with "samples" its samples over the plan's mean number, so that
            every sample weighs the same in the gradient; with "steps" 1.
        settings: Settings that a resumed run may change, by name; a change is one line in the log.
        before: Values of those in runs whose state does not hold them.
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
        self.visits = visits
        self.plan = plan
        self.identity = dict(identity)
        self.rank = rank
        self.world = world
        self.workers = workers
        self.began = began
        self.alignment = alignment
        self.share = plan.ranks // world  # micro-batches of a global batch that this process sees
        self.skip = skip
        self.skipped = 0
        self.batch_weight = batch_weight
        self.settings = dict(settings or {})
        self.before = dict(before or {})
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
        """Go on from a state.

        Raises:
            UserError: The state belongs to other data or to another plan.
        """
        for name, value in self.identity.items():
            if state.get(name) != value:
                raise UserError(_differs(name, state.get(name), value, self.world))
        self._log_changes(state)
        self.seen = (state["epoch"] * self.plan.steps() + state["step"]) * self.share
        self.close()
        if self.began:
            self.began(state["world"])

    def _log_changes(self, state: Mapping[str, Any]) -> None:
        """Log each setting that differs from the one which the run had until here, once for all processes."""
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

    def addresses(self, seen: int) -> Iterator[BatchAddress]:
        """Yield the addresses of this process's micro-batches, from number `seen` on."""
        steps = self.plan.steps()
        while True:
            # The global batch, and this process's turn in it.
            step, turn = divmod(seen, self.share)
            epoch, within = divmod(step, steps)
            bucket, ranks = self.plan[epoch, within]
            rank = turn * self.world + self.rank

            # The micro-batch.
            rows = ranks[rank]
            size = len(rows)
            positions = tuple(int(self.plan.index.positions[row]) for row in rows)
            yield BatchAddress(
                step=step,
                slots=tuple(range(rank * size, (rank + 1) * size)),
                num_slots=size * len(ranks),
                positions=positions,
                order=self._order(epoch, within, bucket),
                spares=self._spares(bucket, positions) if self.skip else (),
                scale=size / self.plan.mean_batch if self.batch_weight == "samples" else 1.0,
            )
            seen += 1

    def _spares(self, bucket: Bucket, positions: tuple[int, ...]) -> tuple[int, ...]:
        """Return samples from all over the bucket, so that they do not lie in one broken chunk."""
        rows = bucket.start + np.unique(np.arange(SPARES) * bucket.count // SPARES)
        others = [int(position) for position in self.plan.index.positions[rows]]
        spares = [position for position in others if position not in positions]
        return (*spares, *positions)  # the last resort is to show one of the batch twice

    def _order(self, epoch: int, step: int, bucket: Bucket) -> tuple[int, ...]:
        """Return the order of the references of a global batch; () for the one in which they are stored."""
        if self.alignment is None or bucket.fixed:
            return ()
        count = len(bucket.references)
        order = self.alignment.order(self.visits.seed, epoch, step, count, bucket.droppable)
        # An earlier version dropped the picture that is edited: none of the references that it stored is dropped.
        if self.visits.checked and len(order) < count:
            return ()
        return order

    def _batches(self) -> Generator[EditBatch, None, None]:
        """Yield the micro-batches, as the workers read them."""
        waiting: deque[BatchAddress] = deque()  # addresses that workers have and whose batch has not come

        def handed_out() -> Iterator[BatchAddress]:
            for address in self.addresses(self.seen):
                waiting.append(address)
                yield address

        for batch, unread in fetched(self.visits, handed_out(), self.workers, lambda: self._where(waiting)):
            waiting.popleft()
            for message in unread:
                self.skipped += 1
                log.warning("skipped, %d so far: %s", self.skipped, message)
            if isinstance(batch, Failure):
                raise UserError(batch.message)
            self.seen += 1
            yield batch

    def _where(self, waiting: deque[BatchAddress]) -> str:
        """Return the step and the sample that a worker was at, for messages."""
        if not waiting:
            return "before the first batch"
        address = waiting[0]
        return f"at step {address.step}, reading {self.visits.chunks.where(address.positions[0])}"


def fetched(visits: Dataset[Any], addresses: Iterator[Any], workers: int, where: Callable[[], str]) -> Iterator[Any]:
    """Yield micro-batches in the order of their addresses, read by worker processes.

    Args:
        visits: Micro-batches by address.
        addresses: Addresses, without end.
        workers: The number of processes; 0 reads in this one.
        where: Return the place in the data that the workers are at.

    Raises:
        UserError: A worker died; the message has the place.
    """
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
        # Errors of the program, raised here or in a worker.
        own = isinstance(problem, RuntimeError) and "DataLoader worker" not in str(problem)
        if not workers or own or str(problem).startswith("Caught"):
            raise
        reason = " ".join(str(problem).split()) or type(problem).__name__  # OSError: it died as it handed over a batch
        raise UserError(f"a data worker died {where()}: {reason}; out of memory? Fewer data.workers may help") from None


class _Endless:
    """A sampler around an iterator."""

    def __init__(self, addresses: Iterator[Any]) -> None:
        self.addresses = addresses

    def __iter__(self) -> Iterator[Any]:
        return self.addresses


def _differs(name: str, before: Any, now: Any, world: int) -> str:
    """Return the message that a resumed run cannot have another value of a setting.

    Args:
        name: The setting.
        before: Its value in the run so far.
        now: Its value now.
        world: The number of processes.
    """
    if name == "data":
        return "this run was trained on other data; resume it with that data.root, or begin a new run"
    if name == "plan_ranks" and isinstance(before, int) and before % world == 0:
        setting = f"with {world} processes, set trainer.accumulate_grad_batches={before // world}"
        return f"this run began with {before} micro-batches a step: {setting}"
    mend = f"add data.{name}={before}" if isinstance(before, int | float) else "set it back"
    return f"this run began with data.{name}={before}, now {now}: its batches would not go on; {mend}"
