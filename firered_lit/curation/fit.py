"""Groups of near duplicates and clusters: they depend on all rows at once, and are made from score files alone.

OUT/state/groups.parquet has (row, group) of the rows that have near duplicates, OUT/state/clusters.parquet (row,
cluster). Each notes what it was made from, and is made again when that has changed.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.splitmix import lots

from . import duplicates, scores
from .annotator import identity
from .corpus import STATE, Corpus, shard_numbers, values_of
from .shards import ROW

GROUPS, CLUSTERS = "groups", "clusters"
Direction = Literal["highest", "lowest"]


@dataclass(frozen=True)
class Duplicates:
    """Near duplicates: rows of one kind whose target pictures are near, whose first sources are near, and whose texts
    are the same; of text-to-image rows the text does not count.

    Args:
        column: Of 64-bit hashes.
        text: Of texts that are equal for equal words.
        distance: Bits in which the hashes of near pictures may differ.
        best: Which row of a group is kept: columns, each highest or lowest, the first that differs decides. Sharpness
            prefers noisy copies: name a measure of quality first.
    """

    column: str = "hashes.perceptual"
    text: str = "words.folded"
    distance: int = 3
    best: Mapping[str, Direction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 <= self.distance <= duplicates.MOST_DISTANCE:
            raise UserError(f"duplicates.distance={self.distance}: from 0 to {duplicates.MOST_DISTANCE} bits")
        for column, direction in self.best.items():
            if direction not in ("highest", "lowest"):
                raise UserError(f"duplicates.best.{column}: expected highest or lowest, got {direction!r}")

    def check(self, corpus: Corpus) -> None:
        """Refuse columns that are not there.

        Raises:
            UserError: With the nearest that is.
        """
        corpus.check(self.column, "duplicates.column")
        corpus.check(self.text, "duplicates.text")
        for column in self.best:
            corpus.check(column, "duplicates.best")
        if corpus.kinds[self.column] != "bits":
            raise UserError(f"duplicates.column: {self.column} holds {corpus.kinds[self.column]}, not hashes")


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
        options = {"column": near.column, "text": near.text, "distance": near.distance}
        made_from = _made_from(corpus, options, (near.column, near.text))
        if not scores.is_done(path_of(corpus.folder, GROUPS), made_from):
            rows, groups = _groups(corpus, near)
            scores.put(path_of(corpus.folder, GROUPS), _table(GROUPS, rows, groups), made_from)
            count = len(np.unique(groups))
            said.append(f"duplicates {len(rows):>8} rows in {count} groups")
    if clusters is not None:
        corpus.check(clusters.column, "clusters.column")
        options = {"column": clusters.column, "count": clusters.count, "sample": clusters.sample, "seed": clusters.seed}
        made_from = _made_from(corpus, options, (clusters.column,))
        if not scores.is_done(path_of(corpus.folder, CLUSTERS), made_from):
            rows, numbers = _clusters(corpus, clusters)
            scores.put(path_of(corpus.folder, CLUSTERS), _table(CLUSTERS, rows, numbers), made_from)
            said.append(f"clusters   {len(np.unique(numbers)):>8}")
    return said


def path_of(folder: Path, name: str) -> Path:
    """Return where groups or clusters lie."""
    return folder / STATE / f"{name}.parquet"


def _groups(corpus: Corpus, near: Duplicates) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows that have near duplicates, sorted, and the group of each."""
    rows, targets, sources, has_source = [], [], [], []
    for shard, first, size in shard_numbers(corpus):
        kinds = values_of(corpus.table(shard, ROW, ["kind"]), "kind")
        texts = corpus.of_rows(shard, near.text)
        hashes = corpus.table(shard, near.column.partition(".")[0], [near.column.partition(".")[2]])
        bits = hashes.column(near.column.partition(".")[2])
        there = np.asarray(bits.is_valid())
        places = hashes.column("row").to_numpy() - first
        pictures = hashes.column("picture").to_numpy()
        filled = bits.fill_null(0).to_numpy()
        target, is_target = _placed(filled, places, there & (pictures == 0), size)
        source, is_source = _placed(filled, places, there & (pictures == 1), size)
        # Rows of other kinds, or with other words, are moved to where nothing is near them.
        apart = np.array([_apart(kind, text) for kind, text in zip(kinds, texts, strict=True)], np.uint64)
        rows.append(np.flatnonzero(is_target) + first)
        targets.append((target ^ apart)[is_target])
        sources.append((source ^ apart)[is_target])
        has_source.append(is_source[is_target])
    numbers, hashes_of = np.concatenate(rows), np.concatenate(targets)
    members, labels = duplicates.groups(hashes_of, near.distance)
    pairs = np.concatenate(has_source)
    if pairs[members].any():
        members, labels = _also_by_source(members, labels, np.concatenate(sources), pairs, near.distance)
    return numbers[members], numbers[labels]


def _also_by_source(
    members: NDArray[np.int64],
    labels: NDArray[np.int64],
    sources: NDArray[np.uint64],
    has_source: NDArray[np.bool_],
    distance: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split groups by the groups of the first sources; what has no source stays together."""
    edits = members[has_source[members]]
    near, near_labels = duplicates.groups(sources[edits], distance)
    label_of = np.full(len(has_source), -1, np.int64)
    label_of[edits] = edits  # alone, unless it is near another one
    label_of[edits[near]] = edits[near_labels]
    both = np.stack([labels, label_of[members]], axis=1)
    _, first, inverse, counts = np.unique(both, axis=0, return_index=True, return_inverse=True, return_counts=True)
    inverse = inverse.reshape(-1)
    kept = counts[inverse] > 1
    return members[kept], members[first[inverse[kept]]]


def _placed(
    values: NDArray[np.uint64], places: NDArray[np.int64], wanted: NDArray[np.bool_], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the wanted values at their rows' places, and which rows have one."""
    placed = np.zeros(size, np.uint64)
    there = np.zeros(size, bool)
    placed[places[wanted]] = values[wanted]
    there[places[wanted]] = True
    return placed, there


def _apart(kind: Any, text: Any) -> int:
    """Return 64 bits that are the same for rows which may be duplicates of each other."""
    if kind == "text-to-image":
        return 0
    content = json.dumps([kind, text], ensure_ascii=False).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _clusters(corpus: Corpus, clusters: Clusters) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows whose target has a vector, and the cluster of each."""
    from sklearn.cluster import MiniBatchKMeans

    parts = [_vectors(corpus, shard, clusters.column) for shard in range(corpus.shards)]
    total = sum(len(rows) for rows, _ in parts)
    if not total:
        raise UserError(f"clusters.column: {clusters.column} has no value at all")
    # Fitted on rows that are spread over all shards, the same ones for one seed.
    lots_of = [lots(rows, seed_of(clusters.seed, "lots")) for rows, _ in parts]
    last = min(clusters.sample, total) - 1
    limit = np.partition(np.concatenate(lots_of), last)[last]
    sample = np.concatenate([vectors[lot <= limit] for (_, vectors), lot in zip(parts, lots_of)])
    count = min(clusters.count, len(np.unique(sample, axis=0)))
    seed = seed_of(clusters.seed, "clusters") % (1 << 32)
    means = MiniBatchKMeans(count, random_state=seed, n_init=3, batch_size=4096).fit(sample)
    rows = np.concatenate([rows for rows, _ in parts])
    numbers = np.concatenate([means.predict(vectors) for _, vectors in parts if len(vectors)])
    return rows, numbers.astype(np.int64)


def _vectors(corpus: Corpus, shard: int, column: str) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    name, _, field_name = column.partition(".")
    table = corpus.table(shard, name, [field_name])
    wanted = np.asarray(table.column(field_name).is_valid()) & (table.column("picture").to_numpy() == 0)
    table = table.filter(pa.array(wanted))
    rows = table.column("row").to_numpy()
    vectors = np.array(table.column(field_name).to_pylist(), np.float32).reshape(len(rows), -1)
    return rows, vectors


def _made_from(corpus: Corpus, options: Mapping[str, Any], columns: tuple[str, ...]) -> dict[str, Any]:
    """Return all that decides a result."""
    names = sorted({column.partition(".")[0] for column in columns})
    annotators = {name: identity(corpus.annotators[name]) for name in names if name in corpus.annotators}
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
