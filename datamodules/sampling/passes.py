"""The part of each bucket that an epoch shows: steps are filled, little is left out or shown twice.

A bucket's last global batch may be nearly empty, and takes a step all the same. Shapes differ between buckets, so two
such batches cannot be one.
"""

import numpy as np

from firered_lit.draws import seed_of

GOLDEN = 0.6180339887498949  # (sqrt(5) - 1) / 2: the fractions of its multiples fill [0, 1) evenly


class Passes:
    """The passes that an epoch makes over buckets.

    Rows are left out to save steps, first where the fewest have to be: those after a bucket's last full global batch,
    others each time; and buckets with fewer rows than ranks, which have count / ranks passes in an epoch, so that their
    rows come as often as others.

    Args:
        counts: (buckets,) rows of each bucket.
        sizes: (buckets,) samples of a micro-batch, at most.
        ranks: Micro-batches of a global batch.
        left_out: Share of all rows, from 0 to below 1; less than that is left out in an epoch.
        seed: Seed of all draws.

    Attributes:
        per_rank: (buckets,) rows of a pass on every plan rank; all ranks see as many, so less than `ranks` come twice.
        often: (buckets,) share of the epochs in which there is a pass.
        rare: Numbers of the buckets that few epochs show.
    """

    def __init__(self, counts: np.ndarray, sizes: np.ndarray, ranks: int, left_out: float, seed: int) -> None:
        self.per_rank = -(-counts // ranks)
        self.seed = seed

        # Buckets that could leave rows out, and how many: the rest after full batches, or all of a small one.
        whole = self.per_rank // sizes * sizes
        few = counts < ranks
        can = few | ((whole > 0) & (whole < self.per_rank))
        lost = np.where(few, counts, counts - whole * ranks)

        # Those that do, the cheapest first.
        order = np.flatnonzero(can)[np.argsort(lost[can], kind="stable")]
        chosen = order[np.cumsum(lost[order]) < left_out * counts.sum()]
        cut = chosen[~few[chosen]]
        self.per_rank[cut] = whole[cut]
        self.rare = np.sort(chosen[few[chosen]])

        # Passes in an epoch; of the rare buckets a whole number altogether.
        self.often = np.ones(len(counts))
        if len(self.rare):
            share = counts[self.rare] / ranks
            self.often[self.rare] = share * max(1, int(share.sum())) / share.sum()
        self.edges = np.cumsum(np.append(0, self.often[self.rare]))
        self.edges[-1] = np.round(self.edges[-1])

    @property
    def seldom(self) -> int:
        """Number of the rare buckets that an epoch shows."""
        return int(self.edges[-1])

    def shown(self, epoch: int) -> np.ndarray:
        """Return (buckets,) bool, True for a bucket of which an epoch has a pass.

        The rare ones are chosen by systematic sampling, from a start that goes round.
        """
        start = (seed_of(self.seed, "rare") / (1 << 63) + epoch * GOLDEN) % 1
        places = np.floor(self.edges + start)
        shown = np.ones(len(self.often), bool)
        shown[self.rare] = places[1:] > places[:-1]
        return shown
