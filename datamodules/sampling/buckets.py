"""The plan of global batches: multi-condition aware buckets under a token budget.

The plan is a pure function of (index, capacity, plan_ranks, seed, weights): no rank asks another, and resuming takes
two integers, epoch and step. Nothing is stored per row.

Source:
    FireRed-Image-Edit (2602.13344), section 3.2.
"""

from dataclasses import dataclass

import numpy as np

from datamodules.sampling.frequencies import Weights, frequencies
from datamodules.sampling.index import Bucket, Index, IndexRow
from datamodules.sampling.indexing import write_index
from datamodules.sampling.order import Interleaving, hashes, permuted, shuffled
from datamodules.sampling.passes import Passes
from firered_lit.draws import seed_of
from firered_lit.errors import UserError

__all__ = ["BatchPlan", "Bucket", "Index", "IndexRow", "LeftOut", "Planned", "write_index"]

WHOLE = 1024  # a bucket of at most so many rows is shuffled as a whole, whatever its chunks
WINDOW = 256  # rows of a plan rank that are shuffled together: some blocks, so some chunks are read at a time


@dataclass(frozen=True)
class Planned:
    """A line of the bucket table."""

    bucket: Bucket
    samples: int
    batch: int  # samples of a micro-batch
    tokens: int  # visual tokens of a sample
    waste: float  # share of the token capacity that a full micro-batch leaves empty
    batches: int  # global batches of one pass
    often: float  # passes in an epoch: below 1 for a bucket that fills too little of a batch to be shown each time
    share: float  # of the samples drawn


@dataclass(frozen=True)
class LeftOut:
    """The rows that an epoch leaves out, and the number of those that it shows again."""

    rows: np.ndarray  # index rows of batches that would be nearly empty; another epoch leaves out others
    repeated: int  # times that a row is shown again, so that every plan rank has as many
    unweighted: int  # rows that the weights give no share
    total: int  # rows of the index

    @property
    def share(self) -> float:
        """Share of all rows that the epoch does not show, 0 to 1."""
        return (len(self.rows) + self.unweighted) / self.total


class BatchPlan:
    """The global batches of a training: `plan[epoch, step]` is a bucket and the index rows for each plan rank.

    Without weights an epoch is one pass over the rows. With weights an epoch has the same number of steps, but each
    bucket goes through its rows at its own pace, and starts again only when it has shown all.

    A pass of a bucket gives full batches, then a smaller one, in which rows repeat when the ranks cannot share them
    evenly. When clusters are weighted, a batch mixes a bucket's clusters, and each cluster shows all its rows before
    one comes again (a cluster with less rows than its part of a global batch repeats them within it).

    Args:
        index: The samples.
        capacity: Visual tokens of a micro-batch, which one device holds.
        plan_ranks: Micro-batches of a global batch, fixed for the whole training.
        seed: Seed of all draws.
        weights: Frequencies of samples, see `frequencies`; None for the mixture that the data has.
        max_batch: Samples of a micro-batch, at most.
        left_out: To save steps, an epoch leaves out less than this share of the rows, others each time, see `Passes`.

    Raises:
        UserError: A setting is out of range, the index is empty, or a sample alone is larger than the capacity.
    """

    def __init__(
        self,
        index: Index,
        *,
        capacity: int,
        plan_ranks: int,
        seed: int,
        weights: Weights | None = None,
        max_batch: int | None = None,
        left_out: float = 0.01,
    ) -> None:
        if not 0 <= left_out < 1:
            raise UserError(f"left_out={left_out}: a share of the rows, from 0 to below 1")
        if plan_ranks < 1 or (max_batch is not None and max_batch < 1):
            raise UserError(f"plan_ranks={plan_ranks}, max_batch={max_batch}: both must be at least 1")
        if not index.buckets:
            raise UserError(f"the index in {index.folder} holds no rows")
        self.index = index
        self.capacity = capacity
        self.ranks = plan_ranks
        self.seed = seed

        # (buckets,) rows, samples of a micro-batch, rows of a pass on a plan rank, and global batches of a pass.
        tokens = np.array([bucket.tokens for bucket in index.buckets])
        for bucket in index.buckets:
            if bucket.tokens > capacity:
                raise UserError(
                    f"capacity={capacity}: bucket {bucket} has {bucket.tokens} tokens a sample; "
                    f"capacity={tokens.max()} takes every bucket"
                )
        self.counts = np.array([bucket.count for bucket in index.buckets])
        self.sizes = np.minimum(capacity // tokens, max_batch or 1 << 62)
        self.passes = Passes(self.counts, self.sizes, plan_ranks, left_out, seed)
        self.per_rank = self.passes.per_rank
        self.sizes = np.minimum(self.sizes, self.per_rank)
        self.batches = -(-self.per_rank // self.sizes)

        # (buckets,) share of the samples drawn, and the mean number of samples of a micro-batch.
        samples = self.per_rank * self.passes.often
        self.share = samples / samples.sum()
        self.mean_batch = float(samples.sum() / (self.batches * self.passes.often).sum())

        # The order of batches, of blocks within a bucket and of clusters within a batch; computed where it is needed.
        self.weighted = bool(weights)
        self.clustered = weights is not None and "cluster" in weights
        self._schedule: tuple[int, Interleaving] = -1, Interleaving.once(self.batches)
        self._orders: dict[int, tuple[int, np.ndarray, np.ndarray]] = {}
        self._mixtures: dict[int, tuple[np.ndarray, Interleaving]] = {}
        if weights:
            self._weigh(weights)

    def _weigh(self, weights: Weights) -> None:
        """Set the share of samples of every bucket, and of steps: smaller batches need more steps for one share."""
        cells, of_cell = frequencies(self.index, weights)
        self._cells = np.split(cells, np.searchsorted(of_cell, np.arange(1, len(self.counts))))
        self._first_cell = np.searchsorted(of_cell, np.arange(len(self.counts)))
        self.share = np.bincount(of_cell, cells, len(self.counts))
        drawn = self.sizes if self.clustered else self.per_rank / self.batches
        steps = self.share / drawn
        self.mean_batch = float(self.share.sum() / steps.sum())
        self._schedule = 0, Interleaving.endless(steps, self.seed, "schedule")

    @property
    def even(self) -> bool:
        """True when all micro-batches have the same number of samples."""
        one_size = (self.sizes == self.sizes[0]).all()
        full = (self.per_rank % self.sizes == 0).all()
        return bool(one_size and full)

    def steps(self, epoch: int = 0) -> int:
        """Return the number of global batches of an epoch, the same for every epoch."""
        return int(self.batches.sum()) - len(self.passes.rare) + self.passes.seldom

    def __getitem__(self, at: tuple[int, int]) -> tuple[Bucket, list[np.ndarray]]:
        """Return the bucket of a global batch and, for each plan rank, the index rows (B,) of its micro-batch."""
        epoch, step = at
        if epoch < 0 or not 0 <= step < self.steps():
            raise IndexError(f"no global batch at epoch {epoch}, step {step}: an epoch has {self.steps()} steps")
        if not self.weighted:
            # Every epoch has an order of its own.
            if self._schedule[0] != epoch:
                batches = self.batches * self.passes.shown(epoch)
                self._schedule = epoch, Interleaving.once(batches, self.seed, "schedule", epoch)
            number, batch = self._schedule[1][step]
            rows = self._in_order(number, epoch, batch)
        else:
            # One order without end, in which a bucket makes its passes at its own pace.
            number, batch = self._schedule[1][epoch * self.steps() + step]
            if self.clustered:
                rows = self._mixed(number, batch)
            else:
                turn, batch = divmod(batch, int(self.batches[number]))
                rows = self._in_order(number, turn, batch)
        return self.index.buckets[number], list(rows)

    def _in_order(self, number: int, turn: int, batch: int) -> np.ndarray:
        """Return (plan_ranks, B) rows of a bucket's batch in its pass `turn`.

        Each plan rank reads its own part of the shuffled blocks and shuffles rows inside windows of it, so that few
        chunks are open at a time and each is read by one rank (but for those at the parts' borders).
        """
        starts, ends = self._blocks(number, turn)
        first, own = self._parts(int(ends[-1]))
        size = int(self.sizes[number])

        # Places in a rank's part; a rank whose part is a row shorter ends with its first one again.
        place = np.arange(batch * size, min((batch + 1) * size, int(self.per_rank[number])))
        place = np.where(place < own, place, 0)

        # Shuffled inside of windows.
        rank = np.arange(self.ranks)[:, None]
        window = place // WINDOW
        keys = hashes(1, self.seed, "window", number, turn) + (rank << 32 | window).astype(np.uint64)
        in_window = np.minimum(WINDOW, own - window * WINDOW)
        at = first + window * WINDOW + permuted(place % WINDOW, in_window, keys)

        # As rows of the index.
        block = np.searchsorted(ends, at, "right")
        before = np.where(block, ends[block - 1], 0)
        return self.index.buckets[number].start + starts[block] + at - before

    def _parts(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (plan_ranks, 1) the first of each rank's rows and their number, of `count` rows shared evenly."""
        rank = np.arange(self.ranks)[:, None]
        each, more = divmod(count, self.ranks)
        if each == 0:
            return rank % count, np.ones_like(rank)
        return rank * each + np.minimum(rank, more), each + (rank < more)

    def _blocks(self, number: int, turn: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (blocks,) first row within the bucket, and running end, of the blocks of a pass in their order."""
        if number in self._orders and self._orders[number][0] == turn:
            return self._orders[number][1:]

        # The bucket cut into blocks, and at the borders of the rows that the pass leaves out.
        count = int(self.counts[number])
        first, missing = self._remainder(number, turn)
        blocks = np.arange(count) if count <= WHOLE else self.index.blocks(self.index.buckets[number])
        cuts = np.unique(np.concatenate([blocks, [first, (first + missing) % count]]))
        sizes = np.diff(cuts, append=count)

        # Those that it shows, shuffled.
        kept = np.flatnonzero((cuts - first) % count >= missing)
        kept = kept[shuffled(len(kept), self.seed, "blocks", number, turn)]
        self._orders[number] = turn, cuts[kept], np.cumsum(sizes[kept])
        return self._orders[number][1:]

    def _remainder(self, number: int, turn: int) -> tuple[int, int]:
        """Return the rows that a pass leaves out, as (first, number), going round the bucket from pass to pass."""
        count = int(self.counts[number])
        missing = max(0, count - self.ranks * int(self.per_rank[number]))
        return (seed_of(self.seed, "remainder", number) + turn * missing) % count, missing

    def _mixed(self, number: int, batch: int) -> np.ndarray:
        """Return (plan_ranks, B) rows of a bucket's batch when clusters are weighted."""
        starts, mixture = self._mixture(number)
        size = self.ranks * int(self.sizes[number])
        cell, ordinal = mixture.span(batch * size, (batch + 1) * size)
        count = (starts[1:] - starts[:-1])[cell]
        keys = hashes(1, self.seed, "cluster", number) + (cell << 32 | ordinal // count).astype(np.uint64)
        rows = self.index.columns["by_cluster"][starts[cell] + permuted(ordinal % count, count, keys)]
        return rows.astype(np.int64).reshape(self.ranks, -1)

    def _mixture(self, number: int) -> tuple[np.ndarray, Interleaving]:
        """Return the order in which a bucket's clusters mix.

        Returns:
            (clusters + 1,) the start of each cluster in the column `by_cluster`, and the last one's end; and the order.
        """
        if number not in self._mixtures:
            first = self._first_cell[number]
            bucket = self.index.buckets[number]
            starts = self.index.columns["segment_start"][first : first + len(self._cells[number])].astype(np.int64)
            mixture = Interleaving.endless(self._cells[number], self.seed, "clusters", number)
            self._mixtures[number] = np.append(starts, bucket.start + bucket.count), mixture
        return self._mixtures[number]

    def left_out(self, epoch: int) -> LeftOut:
        """Return the rows that an epoch leaves out or repeats; with weights, each bucket's pass of that number."""
        shown = np.ones(len(self.counts), bool) if self.weighted else self.passes.shown(epoch)
        rows = [np.empty(0, np.int64)]
        for number, bucket in enumerate(self.index.buckets):
            first, missing = self._remainder(number, epoch) if shown[number] else (0, bucket.count)
            rows.append(bucket.start + (first + np.arange(missing)) % bucket.count)
        repeated = np.maximum(0, self.ranks * self.per_rank - self.counts)
        unweighted = self.counts[self.share == 0]
        return LeftOut(
            rows=np.concatenate(rows),
            repeated=int(repeated[shown].sum()),
            unweighted=int(unweighted.sum()),
            total=len(self.index),
        )

    def table(self) -> list[Planned]:
        """Return a line per bucket, for printing."""
        often = np.ones(len(self.counts)) if self.weighted else self.passes.often
        lines = []
        for number, bucket in enumerate(self.index.buckets):
            batch = int(self.sizes[number])
            line = Planned(
                bucket=bucket,
                samples=bucket.count,
                batch=batch,
                tokens=bucket.tokens,
                waste=1 - batch * bucket.tokens / self.capacity,
                batches=int(self.batches[number]),
                often=float(often[number]),
                share=float(self.share[number]),
            )
            lines.append(line)
        return lines
