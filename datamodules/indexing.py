"""Rows in any order -> the columnar index, in bounded memory: spill to disk, counting sort, cut into blocks."""

import tempfile
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from datamodules import index
from datamodules.index import Key, Row, pieces, save

BLOCK = 64  # rows of a block when the chunks are not known
SCATTERED = 8  # fewer rows per chunk than this on average: the chunks give no locality, blocks are cut by number
LARGEST_BLOCK = 512
SPILL = np.dtype([("segment", "<u4"), ("position", "<u8")])


def write_index(folder: str | Path, rows: Iterable[Row], chunks: Sequence[int] | None = None) -> None:
    """Write the index of `rows`, given in any order. An index that is there is replaced in one step.

    chunks: samples in each LitData chunk, in the order of the chunks, so that the plan can read chunk by chunk.
    Memory does not grow with the number of rows, as long as each bucket's rows come in the order of their positions.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".index-") as name:
        keys = _spill(rows, Path(name) / "spill")
        ordered = sorted(keys)
        buckets = list(dict.fromkeys(key for key, _ in ordered))
        if not keys:
            columns, counts = {name: np.empty(0, np.uint64) for name in ("positions", "blocks")}, []
        else:
            columns, counts = _columns(keys, ordered, chunks, Path(name))
        save(folder, list(zip(buckets, counts)), sorted({cluster for _, cluster in ordered}), columns)


def _spill(rows: Iterable[Row], path: Path) -> dict[tuple[Key, str], int]:
    """Write (segment, position) of every row to `path`; a segment is a (bucket, cluster), numbered as first met."""
    numbers: dict[tuple[Key, str], int] = {}
    rows = iter(rows)
    with path.open("wb") as file:
        while some := list(islice(rows, index.PIECE // 8)):
            out = np.empty(len(some), SPILL)
            keys = [((r.task, len(r.references), r.target, r.references, r.droppable), r.cluster) for r in some]
            out["segment"] = [numbers.setdefault(key, len(numbers)) for key in keys]
            out["position"] = [row.position for row in some]
            out.tofile(file)
    return numbers


def _columns(
    keys: dict[tuple[Key, str], int], ordered: list[tuple[Key, str]], chunks: Sequence[int] | None, scratch: Path
) -> tuple[dict[str, np.ndarray], list[int]]:
    """The sorted columns of the spilled rows, as memory maps in `scratch`, and the rows of each bucket."""
    spill = np.memmap(scratch / "spill", SPILL, "r")
    rank = np.empty(len(keys), np.int64)
    rank[[keys[key] for key in ordered]] = np.arange(len(keys))
    bucket_of = np.cumsum([False] + [a[0] != b[0] for a, b in pairwise(ordered)])
    counts = np.zeros(len(keys), np.int64)
    for piece in pieces(spill):
        counts += np.bincount(rank[piece["segment"]], minlength=len(keys))
    sizes = np.bincount(bucket_of, counts).astype(np.int64)
    positions, segments = _sort(spill, rank, bucket_of, sizes, scratch)
    columns = {"positions": positions, "blocks": _blocks(positions, sizes, chunks)}
    clusters = sorted({cluster for _, cluster in keys})
    if len(clusters) > 1:
        number = {cluster: i for i, cluster in enumerate(clusters)}
        columns["by_cluster"] = _by_cluster(segments, counts, scratch)
        columns["segment_start"] = np.cumsum(counts) - counts
        columns["segment_cluster"] = np.array([number[cluster] for _, cluster in ordered])
    return columns, sizes.tolist()


def _places(keys: np.ndarray, cursor: np.ndarray) -> np.ndarray:
    """Where each row goes in a stable counting sort by key; `cursor` (next free place of each key) moves on."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    counts = np.bincount(keys, minlength=len(cursor))
    within = np.arange(len(keys)) - (np.cumsum(counts) - counts)[ordered]
    places = np.empty(len(keys), np.int64)
    places[order] = cursor[ordered] + within
    cursor += counts
    return places


def _sort(
    spill: np.ndarray, rank: np.ndarray, bucket_of: np.ndarray, sizes: np.ndarray, scratch: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Positions and segments of all rows, by bucket and position, as memory maps in `scratch`."""
    positions = np.memmap(scratch / "positions", np.uint64, "w+", shape=spill.shape)
    segments = np.memmap(scratch / "segments", np.uint32, "w+", shape=spill.shape)
    cursor = np.cumsum(sizes) - sizes
    for piece in pieces(spill):
        segment = rank[piece["segment"]]
        places = _places(bucket_of[segment], cursor)
        positions[places], segments[places] = piece["position"], segment
    for end, size in zip(np.cumsum(sizes), sizes):
        rows = slice(end - size, end)
        if np.any(positions[rows][1:] < positions[rows][:-1]):
            order = np.argsort(positions[rows], kind="stable")
            positions[rows], segments[rows] = positions[rows][order], segments[rows][order]
    return positions, segments


def _by_cluster(segments: np.ndarray, counts: np.ndarray, scratch: Path) -> np.ndarray:
    """All rows ordered by segment, as a memory map in `scratch`."""
    rows = np.memmap(scratch / "by_cluster", np.uint64, "w+", shape=segments.shape)
    cursor, first = np.cumsum(counts) - counts, 0
    for piece in pieces(segments):
        rows[_places(piece.astype(np.int64), cursor)] = np.arange(first, first + len(piece))
        first += len(piece)
    return rows


def _blocks(positions: np.ndarray, sizes: np.ndarray, chunks: Sequence[int] | None) -> np.ndarray:
    """First row of every block: a bucket's rows of one chunk, cut where they are too many."""
    ends = np.cumsum(chunks or [0]).astype(np.uint64)
    blocks = []
    for end, size in zip(np.cumsum(sizes), sizes):
        own = positions[end - size : end]
        inside = ends[(ends > own[0]) & (ends <= own[-1])]
        cuts = np.unique(np.concatenate([[0], np.searchsorted(own, inside)]))
        if not chunks or size < SCATTERED * len(cuts):
            cuts = np.arange(0, size, BLOCK)
        parts = -(np.diff(cuts, append=size) // -LARGEST_BLOCK)
        within = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
        blocks.append(end - size + np.repeat(cuts, parts) + LARGEST_BLOCK * within)
    return np.concatenate(blocks)
