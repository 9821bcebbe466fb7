"""Vectors of a corpus: read in pieces, clustered by k-means, and grouped where they are near. Out of core.

Near duplicates are looked for within cells of some thousand vectors: cells are k-means clusters, and a vector is looked
at in the two that are nearest to it, so that few pairs are lost where cells meet. Fewer than 8,192 vectors are one
cell, and none is lost.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.splitmix import lots

from .corpus import STATE, Corpus
from .derived import items_of
from .duplicates import connected

Numbers = NDArray[np.int64]
Vectors = NDArray[np.float32]

CELL = 4096  # vectors of a cell, about
_MOST_CELLS = 4096
_SAMPLE = 32  # vectors of each cell, on which its centre is fitted
_BLOCK = 1024  # vectors that are compared with as many others at a time


def of_shard(corpus: Corpus, shard: int, column: str, picture: int = 0) -> tuple[Numbers, Vectors]:
    """Return the rows of a shard of which a picture has a vector, and these (n, d).

    Args:
        corpus: The score files.
        shard: Its number.
        column: ANNOTATOR.COLUMN.
        picture: 0 for the targets, 1 for the first sources.
    """
    rows, values = corpus.of_picture(shard, column, picture)
    vectors = items_of(values)
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        raise UserError(f"{column}: holds vectors of {min(sizes)} and of {max(sizes)} numbers; they have no distance")
    width = sizes.pop() if sizes else 0
    return rows, np.array(vectors, np.float32).reshape(len(vectors), width)


def pieces(corpus: Corpus, column: str, picture: int = 0) -> Iterator[tuple[Numbers, Vectors]]:
    """Yield rows and vectors of each shard that has some.

    Raises:
        UserError: Vectors of two lengths are there.
    """
    width = 0
    for shard in range(corpus.shards):
        rows, vectors = of_shard(corpus, shard, column, picture)
        if not len(rows):
            continue
        width = width or vectors.shape[1]
        if vectors.shape[1] != width:
            raise UserError(f"{column}: holds vectors of {width} and of {vectors.shape[1]} numbers; annotate again")
        yield rows, vectors


def sample_of(found: Iterator[tuple[Numbers, Vectors]], size: int, seed: int) -> tuple[Vectors, int]:
    """Return vectors of rows that are spread over all, the same ones for one seed, in the order of rows.

    Args:
        found: See `pieces`.
        size: How many; all, where there are fewer.
        seed: Of `draws.seed_of`.

    Returns:
        The vectors, and how many there are in all.
    """
    rows: Numbers = np.zeros(0, np.int64)
    vectors: Vectors = np.zeros((0, 0), np.float32)
    drawn: NDArray[np.uint64] = np.zeros(0, np.uint64)
    count = 0
    for own_rows, own in found:
        count += len(own_rows)
        rows = np.concatenate([rows, own_rows])
        vectors = np.concatenate([vectors.reshape(-1, own.shape[1]), own])
        drawn = np.concatenate([drawn, lots(own_rows, seed)])
        if len(rows) > size:
            kept = np.sort(np.argpartition(drawn, size - 1)[:size])
            rows, vectors, drawn = rows[kept], vectors[kept], drawn[kept]
    return vectors, count


def near_groups(
    corpus: Corpus,
    column: str,
    picture: int,
    cosine: float,
    apart: NDArray[np.uint64],
    only: NDArray[np.bool_] | None = None,
) -> tuple[Numbers, Numbers]:
    """Return the groups of rows whose vectors are near: what is connected by pairs of at least this cosine.

    Args:
        corpus: The score files.
        column: Of vectors.
        picture: 0 for the targets, 1 for the first sources.
        cosine: From which on two vectors are near.
        apart: (rows,) numbers; rows are near only where theirs are the same.
        only: (rows,) whether a row is looked at; all are when None.

    Returns:
        The rows that are in a group with others, sorted, and the lowest row of the group of each.
    """

    def found() -> Iterator[tuple[Numbers, Vectors]]:
        for rows, vectors in pieces(corpus, column, picture):
            wanted = np.ones(len(rows), bool) if only is None else only[rows]
            lengths = np.linalg.norm(vectors, axis=1)
            wanted &= lengths > 0
            if wanted.any():
                yield rows[wanted], vectors[wanted] / lengths[wanted, None]

    count = sum(len(rows) for rows, _ in found())
    lower: list[Numbers] = []
    upper: list[Numbers] = []
    for rows, vectors in _cells(corpus.folder / STATE, found, count):
        for low, high in _near(rows, vectors, apart[rows], cosine):
            lower.append(low)
            upper.append(high)
    nothing: Numbers = np.zeros(0, np.int64)
    return connected(np.concatenate([nothing, *lower]), np.concatenate([nothing, *upper]))


def _cells(folder: Path, found: Any, count: int) -> Iterator[tuple[Numbers, Vectors]]:
    """Yield rows and vectors in cells, each vector in the two that are nearest; one cell where there are few."""
    cells = min(count // CELL, _MOST_CELLS)
    if cells < 2:
        parts = list(found())
        if parts:
            yield np.concatenate([rows for rows, _ in parts]), np.concatenate([vectors for _, vectors in parts])
        return
    centres = centres_of(sample_of(found(), _SAMPLE * cells, seed_of("near"))[0], cells, seed_of("near", "cells"))

    # How many each cell has, then all of them in a file, cell by cell.
    counts = np.zeros(len(centres), np.int64)
    for _, vectors in found():
        counts += np.bincount(_two_nearest(vectors, centres).ravel(), minlength=len(centres))
    ends = np.cumsum(counts)
    free = ends - counts
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".near.", dir=folder) as place:
        total = int(ends[-1])
        width = centres.shape[1]
        own_rows = np.memmap(Path(place, "rows"), np.int64, "w+", shape=(total,))
        own_vectors = np.memmap(Path(place, "vectors"), np.float32, "w+", shape=(total, width))
        for rows, vectors in found():
            cell = _two_nearest(vectors, centres)
            for nth in range(cell.shape[1]):
                order = np.argsort(cell[:, nth], kind="stable")
                sorted_cells = cell[order, nth]
                within = np.arange(len(order)) - np.searchsorted(sorted_cells, sorted_cells)
                places = free[sorted_cells] + within
                own_rows[places] = rows[order]
                own_vectors[places] = vectors[order]
                free += np.bincount(sorted_cells, minlength=len(centres))
        for start, end in zip(ends - counts, ends, strict=True):
            yield np.array(own_rows[start:end]), np.array(own_vectors[start:end])
        del own_rows, own_vectors


def centres_of(sample: Vectors, count: int, seed: int, starts: int = 1) -> Vectors:
    """Return the centres of k-means clusters (count, d); fewer where there are fewer different vectors."""
    return fitted(sample, count, seed, starts).cluster_centers_.astype(np.float32)


def fitted(sample: Vectors, count: int, seed: int, starts: int) -> Any:
    """Return scikit-learn's k-means, fitted on a sample."""
    from sklearn.cluster import MiniBatchKMeans

    clusters = min(count, len(np.unique(sample, axis=0)))
    state = seed % (1 << 32)
    return MiniBatchKMeans(clusters, random_state=state, n_init=starts, batch_size=4096).fit(sample)


def _two_nearest(vectors: Vectors, centres: Vectors) -> Numbers:
    """Return the numbers of the two centres that are nearest to each vector, (n, 2); (n, 1) when there is one."""
    distances = (centres**2).sum(1) / 2 - vectors @ centres.T
    if len(centres) < 2:
        return np.zeros((len(vectors), 1), np.int64)
    return np.argpartition(distances, 1, axis=1)[:, :2]


def _near(
    rows: Numbers, vectors: Vectors, apart: NDArray[np.uint64], cosine: float
) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield pairs of rows that connect all that is near in a cell."""
    starts = range(0, len(rows), _BLOCK)
    for first in starts:
        one = slice(first, first + _BLOCK)
        for second in range(first, len(rows), _BLOCK):
            other = slice(second, second + _BLOCK)
            near = vectors[one] @ vectors[other].T >= cosine
            near &= apart[one, None] == apart[None, other]
            if first == second:
                near = np.triu(near, 1)
            left, right = np.nonzero(near)
            if len(left):
                # A block of equal vectors has a million pairs; what they connect is said by two thousand.
                members, labels = connected(rows[one][left], rows[other][right])
                yield labels, members
