"""How much of each bucket an epoch shows: steps are filled, little is left out or shown twice.

A bucket's last global batch may be nearly empty, and takes a step all the same. Shapes differ between buckets, so two
such batches cannot be one.
"""

import numpy as np

from firered_lit.draws import seed_of

GOLDEN = 0.6180339887498949  # (sqrt(5) - 1) / 2: the fractions of its multiples fill [0, 1) evenly


class Passes:
    """What an epoch shows of buckets with so many rows and micro-batches of at most so many samples.

    per_rank: (buckets,) rows of a pass on every plan rank; all ranks see as many, so less than `ranks` come twice.
    often: (buckets,) in what share of the epochs there is a pass.
    Rows are left out to save steps, first where the fewest have to be, less than the share `left_out` of all rows in an
    epoch: those after a bucket's last full global batch, others each time; and buckets with fewer rows than ranks,
    which have count / ranks passes in an epoch, so that their rows come as often as others.
    """

    def __init__(self, counts: np.ndarray, sizes: np.ndarray, ranks: int, left_out: float, seed: int) -> None:
        self.per_rank, self.seed = -(-counts // ranks), seed
        whole, few = self.per_rank // sizes * sizes, counts < ranks
        can = few | ((whole > 0) & (whole < self.per_rank))
        lost = np.where(few, counts, counts - whole * ranks)
        order = np.flatnonzero(can)[np.argsort(lost[can], kind="stable")]
        chosen = order[np.cumsum(lost[order]) < left_out * counts.sum()]
        cut, self.rare = chosen[~few[chosen]], np.sort(chosen[few[chosen]])
        self.per_rank[cut] = whole[cut]
        self.often = np.ones(len(counts))
        if len(self.rare):  # a whole number of them in every epoch
            share = counts[self.rare] / ranks
            self.often[self.rare] = share * max(1, int(share.sum())) / share.sum()
        self.edges = np.cumsum(np.append(0, self.often[self.rare]))
        self.edges[-1] = np.round(self.edges[-1])

    @property
    def seldom(self) -> int:
        """How many of the rare buckets an epoch shows."""
        return int(self.edges[-1])

    def shown(self, epoch: int) -> np.ndarray:
        """(buckets,) whether an epoch has a pass of the bucket: systematic sampling, by a start that goes round."""
        start = (seed_of(self.seed, "rare") / (1 << 63) + epoch * GOLDEN) % 1
        places, out = np.floor(self.edges + start), np.ones(len(self.often), bool)
        out[self.rare] = places[1:] > places[:-1]
        return out
