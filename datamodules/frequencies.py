"""How often each part of the data is drawn: weights by task, by number of references and by cluster, made to agree."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.index import Index
from firered_lit.errors import UserError

TOLERANCE = 1e-3  # relative, on every weight asked for
ROUNDS = 1000

Weights = Mapping[str, Any]  # margin -> "uniform" or {name: weight}; a margin not mentioned stays as the data has it


@dataclass(frozen=True)
class Margin:
    """One property of the cells and the share of samples that each of its values should have."""

    name: str  # "task", "references" or "cluster"
    values: Sequence[Any]
    of_cell: np.ndarray  # (cells,) place in `values`
    wanted: np.ndarray  # (values,) sums to 1

    def totals(self, share: np.ndarray) -> np.ndarray:
        return np.bincount(self.of_cell, share, len(self.values))


def frequencies(index: Index, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """(cells,) the share of samples drawn from each cell, and (cells,) the cell's bucket.

    Cells are the (bucket, cluster) segments of the index when clusters are weighted, else the buckets. The shares are
    the nearest to the data's own (in Kullback-Leibler divergence) that give every margin its weights: iterative
    proportional fitting (Deming and Stephan 1940). UserError when a weight names what the data does not hold, passes
    over what it does hold, or when the weights contradict each other on this data.
    """
    share, bucket, labels = _cells(index, by_cluster="cluster" in weights)
    if unknown := sorted(set(weights) - set(labels)):
        raise UserError(f"weights.{unknown[0]}: weights are by {_known(unknown[0], [*labels, 'cluster'])}")
    margins = [_margin(name, weights[name], labels[name]) for name in weights]
    for _ in range(ROUNDS):
        for margin in margins:
            have = margin.totals(share)
            share = share * np.divide(margin.wanted, have, out=np.zeros_like(have), where=have > 0)[margin.of_cell]
        off = [np.abs(m.totals(share) - m.wanted) / np.maximum(m.wanted, 1e-9) for m in margins]
        if max(map(np.max, off)) < TOLERANCE:
            return share, bucket
    margin, worst = max(zip(margins, off), key=lambda pair: pair[1].max())
    value, weight = margin.values[int(worst.argmax())], margin.wanted[int(worst.argmax())]
    raise UserError(
        f"weights.{margin.name}: {value!r} cannot have its share {weight:.3g} together with the other weights, because "
        "too few kinds of rows satisfy both: change one of them"
    )


def _cells(index: Index, by_cluster: bool) -> tuple[np.ndarray, np.ndarray, dict[str, list[Any]]]:
    """The natural share of each cell, its bucket, and its value for every margin."""
    sizes = np.array([bucket.count for bucket in index.buckets], np.float64)
    bucket = np.arange(len(sizes))
    labels: dict[str, list[Any]] = {}
    if by_cluster:
        if len(index.clusters) < 2:
            raise UserError(f"weights.cluster: the rows of {index.folder} carry no clusters to weigh")
        starts = index.columns["segment_start"].astype(np.int64)
        sizes = np.diff(starts, append=len(index)).astype(np.float64)
        bucket = np.searchsorted([b.start for b in index.buckets], starts, "right") - 1
        labels["cluster"] = [index.clusters[i] for i in index.columns["segment_cluster"]]
    labels["task"] = [index.buckets[i].task for i in bucket]
    labels["references"] = [len(index.buckets[i].references) for i in bucket]
    return sizes / sizes.sum(), bucket, labels


def _margin(name: str, weights: Any, labels: list[Any]) -> Margin:
    values = sorted(set(labels))
    number = {value: i for i, value in enumerate(values)}
    of_cell = np.array([number[label] for label in labels])
    if weights == "uniform":
        return Margin(name, values, of_cell, np.full(len(values), 1 / len(values)))
    if not isinstance(weights, Mapping):
        raise UserError(f"weights.{name}={weights!r}: give 'uniform' or a weight for each of {_some(values)}")
    named = {_as(type(values[0]), key): weight for key, weight in weights.items()}
    for key, weight in named.items():
        if key not in number:
            raise UserError(f"weights.{name}.{key}: the data holds no such rows; it holds {_known(key, values)}")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise UserError(f"weights.{name}.{key}={weight!r}: a weight is a number from 0 up")
    if missing := [value for value in values if value not in named]:
        raise UserError(f"weights.{name} passes over {_some(missing)}: give a weight, 0 to leave those rows out")
    wanted = np.array([named[value] for value in values], np.float64)
    if not wanted.sum():
        raise UserError(f"weights.{name}: all weights are 0, so nothing would be drawn")
    return Margin(name, values, of_cell, wanted / wanted.sum())


def _as(kind: type, key: Any) -> Any:
    """Keys of a recipe or a command line may be texts where numbers are meant."""
    return int(key) if kind is int and str(key).isdecimal() else key


def _some(values: Sequence[Any]) -> str:
    return ", ".join(map(str, values[:12])) + (f" and {len(values) - 12} more" if len(values) > 12 else "")


def _known(key: Any, values: Sequence[Any]) -> str:
    near = difflib.get_close_matches(str(key), list(map(str, values)), 1)
    return _some(values) + (f" (did you mean {near[0]}?)" if near else "")
