"""Groups of near duplicates and clusters: they depend on all rows at once, and are made from score files alone.

OUT/state/groups.parquet has (row, group) of the rows that have near duplicates, OUT/state/clusters.parquet (row,
cluster). Each notes what it was made from, and is made again when that has changed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firered_lit.draws import seed_of
from firered_lit.errors import UserError

from . import duplicates, scores, vectors
from .annotator import made_by
from .corpus import STATE, Corpus, shard_numbers, values_of
from .shards import ROW

GROUPS, CLUSTERS = "groups", "clusters"
Direction = Literal["highest", "lowest"]


@dataclass(frozen=True)
class Duplicates:
    """Near duplicates: rows of one kind whose target pictures are near, whose first sources are near, and whose texts
    are the same; of text-to-image rows the text does not count.

    Args:
        column: Of 64-bit hashes; none when null.
        text: Of texts that are equal for equal words.
        distance: Bits in which the hashes of near pictures may differ.
        vectors: A column of vectors: pictures are near as well where these are. None when null.
        cosine: From which on vectors are near.
        best: Which row of a group is kept: columns, each highest or lowest, the first that differs decides. Sharpness
            prefers noisy copies: name a measure of quality first.
    """

    column: str | None = "hashes.perceptual"
    text: str = "words.folded"
    distance: int = 3
    vectors: str | None = None
    cosine: float = 0.97
    best: Mapping[str, Direction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= duplicates.MOST_DISTANCE:
            raise UserError(f"duplicates.distance={self.distance}: from 0 to {duplicates.MOST_DISTANCE} bits")
        if not 0 < self.cosine <= 1:
            raise UserError(f"duplicates.cosine={self.cosine}: above 0, and at most 1")
        if self.column is None and self.vectors is None:
            raise UserError("duplicates: name a column of hashes, vectors, or both")
        for column, direction in self.best.items():
            if direction not in ("highest", "lowest"):
                raise UserError(f"duplicates.best.{column}: expected highest or lowest, got {direction!r}")

    def check(self, corpus: Corpus) -> None:
        """Refuse columns that are not there, or hold something else.

        Raises:
            UserError: With the nearest that is there.
        """
        corpus.check(self.text, "duplicates.text")
        for column in self.best:
            corpus.check_order(column, "duplicates.best")
        if self.column is not None:
            corpus.check_kind(self.column, "duplicates.column", "bits", "hashes")
        if self.vectors is not None:
            corpus.check_kind(self.vectors, "duplicates.vectors", "vector", "vectors")


@dataclass(frozen=True)
class Clusters:
    """K-means clusters of target pictures, and how much those of each weigh.

    Args:
        column: Of vectors.
        count: Clusters; fewer where there are fewer different vectors.
        alpha: A row of a cluster of n rows weighs n ** (alpha - 1): 1 weighs all rows the same, 0 all clusters.
        sample: Rows on which they are fitted.
        seed: Of the sample and of the first centres.
    """

    column: str
    count: int = 64
    alpha: float = 0.5
    sample: int = 100_000
    seed: int = 0

    def check(self, corpus: Corpus) -> None:
        """Refuse a column that is not there, or holds no vectors.

        Raises:
            UserError: With the nearest that is there.
        """
        corpus.check_kind(self.column, "clusters.column", "vector", "vectors")


def fit(corpus: Corpus, near: Duplicates | None, clusters: Clusters | None) -> list[str]:
    """Make groups and clusters where they are not there yet.

    Args:
        corpus: The score files.
        near: What near duplicates are; no groups are made when None.
        clusters: What clusters are; none are made when None.

    Returns:
        What to say of them.

    Raises:
        UserError: A column is missing, or a score file.
    """
    said = []
    if near is not None:
        near.check(corpus)
        options: dict[str, Any] = {"column": near.column, "text": near.text, "distance": near.distance}
        if near.vectors is not None:
            options |= {"vectors": near.vectors, "cosine": near.cosine}
        looked_at = [column for column in (near.column, near.text, near.vectors) if column is not None]
        made_from = _made_from(corpus, options, looked_at)
        if not scores.is_done(path_of(corpus.folder, GROUPS), made_from):
            rows, groups = _groups(corpus, near)
            scores.put(path_of(corpus.folder, GROUPS), _table(GROUPS, rows, groups), made_from)
            count = len(np.unique(groups))
            said.append(f"duplicates {len(rows):>8} rows in {count} groups")
    if clusters is not None:
        clusters.check(corpus)
        made_from = clusters_made_from(corpus, clusters)
        if not scores.is_done(path_of(corpus.folder, CLUSTERS), made_from):
            rows, numbers = _clusters(corpus, clusters)
            scores.put(path_of(corpus.folder, CLUSTERS), _table(CLUSTERS, rows, numbers), made_from)
            said.append(f"clusters   {len(np.unique(numbers)):>8}")
    return said


def clusters_made_from(corpus: Corpus, clusters: Clusters) -> dict[str, Any]:
    """Return all that decides which clusters there are."""
    options = {"column": clusters.column, "count": clusters.count, "sample": clusters.sample, "seed": clusters.seed}
    return _made_from(corpus, options, [clusters.column])


def path_of(folder: Path, name: str) -> Path:
    """Return where groups or clusters lie."""
    return folder / STATE / f"{name}.parquet"


def _groups(corpus: Corpus, near: Duplicates) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that have near duplicates, sorted, and the group of each: its lowest row."""
    # Rows of other kinds, or with other words, are near to nothing.
    apart = np.zeros(corpus.count, np.uint64)
    for shard, first, size in shard_numbers(corpus):
        kinds = values_of(corpus.table(shard, ROW, ["kind"]), "kind")
        texts = corpus.of_rows(shard, near.text)
        codes = [_apart(kind, text) for kind, text in zip(kinds, texts, strict=True)]
        apart[first : first + size] = np.array(codes, np.uint64)

    # Near targets, then of edits near sources too.
    members, labels = _near(corpus, near, 0, apart)
    grouped = np.zeros(corpus.count, bool)
    grouped[members] = True
    has_source = _have(corpus, near, 1) & grouped
    if has_source.any():
        near_sources = _near(corpus, near, 1, apart, has_source)
        members, labels = _also_by_source(members, labels, has_source, *near_sources)
    return members, labels


def _near(
    corpus: Corpus,
    near: Duplicates,
    picture: int,
    apart: NDArray[np.uint64],
    only: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows of which one picture is near to another row's by hash or by vector, and the lowest such row."""
    lower: list[NDArray[np.int64]] = []
    upper: list[NDArray[np.int64]] = []
    if near.column is not None:
        hashes = [corpus.of_picture(shard, near.column, picture) for shard in range(corpus.shards)]
        rows = np.concatenate([rows for rows, _ in hashes])
        bits = np.concatenate([bits.to_numpy() for _, bits in hashes])
        if only is not None:
            rows, bits = rows[only[rows]], bits[only[rows]]
        members, labels = duplicates.groups(bits ^ apart[rows], near.distance)
        lower.append(rows[labels])
        upper.append(rows[members])
    if near.vectors is not None:
        members, labels = vectors.near_groups(corpus, near.vectors, picture, near.cosine, apart, only)
        lower.append(labels)
        upper.append(members)
    return duplicates.connected(np.concatenate(lower), np.concatenate(upper))


def _have(corpus: Corpus, near: Duplicates, picture: int) -> NDArray[np.bool_]:
    """Return which rows have a hash or a vector of a picture."""
    there = np.zeros(corpus.count, bool)
    for column in (near.column, near.vectors):
        if column is None:
            continue
        for shard in range(corpus.shards):
            rows, _ = corpus.of_picture(shard, column, picture)
            there[rows] = True
    return there


def _also_by_source(
    members: NDArray[np.int64],
    labels: NDArray[np.int64],
    has_source: NDArray[np.bool_],
    near: NDArray[np.int64],
    near_labels: NDArray[np.int64],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split groups by those of the first sources; what has no source stays together."""
    label_of = np.full(len(has_source), -1, np.int64)
    edits = np.flatnonzero(has_source)
    label_of[edits] = edits  # alone, unless it is near another one
    label_of[near] = near_labels
    both = np.stack([labels, label_of[members]], axis=1)
    _, first, inverse, counts = np.unique(both, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    kept = counts[inverse] > 1
    return members[kept], members[first[inverse[kept]]]


def _apart(kind: Any, text: Any) -> int:
    """Return 64 bits that are the same for rows which may be duplicates of each other."""
    if kind == "text-to-image":
        return 0
    content = json.dumps([kind, text], ensure_ascii=False).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _clusters(corpus: Corpus, clusters: Clusters) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows whose target has a vector, and the cluster of each."""
    found = vectors.pieces(corpus, clusters.column)
    sample, total = vectors.sample_of(found, clusters.sample, seed_of(clusters.seed, "lots"))
    if not total:
        raise UserError(f"clusters.column: {clusters.column} has no value at all")
    means = vectors.fitted(sample, clusters.count, seed_of(clusters.seed, "clusters"), starts=3)
    rows: list[NDArray[np.int64]] = []
    numbers: list[NDArray[np.int64]] = []
    for some, own in vectors.pieces(corpus, clusters.column):
        rows.append(some)
        numbers.append(means.predict(own).astype(np.int64))
    return np.concatenate(rows), np.concatenate(numbers)


def _made_from(corpus: Corpus, options: Mapping[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """Return all that decides a result."""
    names = sorted({column.partition(".")[0] for column in columns})
    annotators = {name: made_by(name, corpus.annotators) for name in names if name in corpus.annotators}
    return {"options": options, "annotators": annotators, "rows": corpus.count, "shard_rows": corpus.shard_rows}


def _table(name: str, rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> pa.Table:
    """Return rows with their groups or clusters."""
    return pa.table({"row": rows, name.removesuffix("s"): numbers})


def read(folder: Path, name: str) -> pa.Table:
    """Return groups or clusters.

    Raises:
        UserError: They were not made, or the file is damaged.
    """
    return scores.read(path_of(folder, name), ["row", name.removesuffix("s")], "fit")


def nothing(name: str) -> pa.Table:
    """Return a table of groups or clusters without a row."""
    empty: NDArray[np.int64] = np.zeros(0, np.int64)
    return _table(name, empty, empty)
