"""Frequencies of samples: weights by task, by number of references and by cluster, made to agree."""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.sampling.index import Index
from firered_lit.errors import UserError

TOLERANCE = 1e-3  # relative, on every weight asked for
ROUNDS = 1000
LISTED = 12  # values that a message lists

Weights = Mapping[str, Any]  # margin -> "uniform" or {name: weight}; a margin not mentioned stays as the data has it


@dataclass(frozen=True)
class Margin:
    """One property of the cells and the share of samples that each of its values should have."""

    name: str  # "task", "references" or "cluster"
    values: Sequence[Any]
    of_cell: np.ndarray  # (cells,) place in `values`
    wanted: np.ndarray  # (values,) sums to 1

    def totals(self, share: np.ndarray) -> np.ndarray:
        """Return (values,) the share of each value, from that of each cell."""
        return np.bincount(self.of_cell, share, len(self.values))


def frequencies(index: Index, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of samples that is drawn from each cell.

    Cells are the (bucket, cluster) segments of the index when clusters are weighted, else the buckets. The shares are
    the nearest to those of the data (in Kullback-Leibler divergence) that give every margin its weights.

    Args:
        index: The samples.
        weights: Weights by margin.

    Returns:
        (cells,) the share of each, and (cells,) its bucket.

    Raises:
        UserError: A weight is for a value that the data does not hold, a value has no weight, or the weights
            contradict each other on this data.

    Source:
        Iterative proportional fitting, Deming and Stephan 1940.
    """
    share, bucket, labels = _cells(index, by_cluster="cluster" in weights)
    unknown = sorted(set(weights) - set(labels))
    if unknown:
        raise UserError(f"weights.{unknown[0]}: weights are by {_known(unknown[0], [*labels, 'cluster'])}")
    margins = [_margin(name, weights[name], labels[name]) for name in weights]

    # Scale each margin to its weights, in turn, until all agree.
    for _ in range(ROUNDS):
        for margin in margins:
            totals = margin.totals(share)
            factors = np.divide(margin.wanted, totals, out=np.zeros_like(totals), where=totals > 0)
            share = share * factors[margin.of_cell]
        errors = [_relative_errors(margin, share) for margin in margins]
        if max(error.max() for error in errors) < TOLERANCE:
            return share, bucket

    # They do not: the value that is furthest off.
    worst = max(range(len(margins)), key=lambda number: errors[number].max())
    margin = margins[worst]
    place = int(errors[worst].argmax())
    raise UserError(
        f"weights.{margin.name}: {margin.values[place]!r} cannot have its share {margin.wanted[place]:.3g} together "
        "with the other weights, because too few kinds of rows satisfy both: change one of them"
    )


def _relative_errors(margin: Margin, share: np.ndarray) -> np.ndarray:
    """Return (values,) the relative errors of the shares of a margin's values."""
    return np.abs(margin.totals(share) - margin.wanted) / np.maximum(margin.wanted, 1e-9)


def _cells(index: Index, by_cluster: bool) -> tuple[np.ndarray, np.ndarray, dict[str, list[Any]]]:
    """Return the natural share of each cell, its bucket, and its value for every margin."""
    labels: dict[str, list[Any]] = {}
    if by_cluster:
        if len(index.clusters) < 2:
            raise UserError(f"weights.cluster: the rows of {index.folder} carry no clusters to weigh")
        starts = index.columns["segment_start"].astype(np.int64)
        sizes = np.diff(starts, append=len(index)).astype(np.float64)
        bucket = np.searchsorted([of_index.start for of_index in index.buckets], starts, "right") - 1
        labels["cluster"] = [index.clusters[number] for number in index.columns["segment_cluster"]]
    else:
        sizes = np.array([of_index.count for of_index in index.buckets], np.float64)
        bucket = np.arange(len(sizes))
    labels["task"] = [index.buckets[number].task for number in bucket]
    labels["references"] = [len(index.buckets[number].references) for number in bucket]
    return sizes / sizes.sum(), bucket, labels


def _margin(name: str, weights: Any, labels: list[Any]) -> Margin:
    """Return a margin with its weights.

    Args:
        name: Name of the margin.
        weights: "uniform", or a weight by value.
        labels: Value of each cell.
    """
    values = sorted(set(labels))
    numbers = {value: number for number, value in enumerate(values)}
    of_cell = np.array([numbers[label] for label in labels])
    if weights == "uniform":
        return Margin(name, values, of_cell, np.full(len(values), 1 / len(values)))
    if not isinstance(weights, Mapping):
        raise UserError(f"weights.{name}={weights!r}: give 'uniform' or a weight for each of {_some(values)}")

    # A weight for every value, and for no other.
    by_value = {_as(type(values[0]), key): weight for key, weight in weights.items()}
    for key, weight in by_value.items():
        if key not in numbers:
            raise UserError(f"weights.{name}.{key}: the data holds no such rows; it holds {_known(key, values)}")
        number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise UserError(f"weights.{name}.{key}={weight!r}: a weight is a number from 0 up")
    missing = [value for value in values if value not in by_value]
    if missing:
        raise UserError(f"weights.{name} passes over {_some(missing)}: give a weight, 0 to leave those rows out")

    wanted = np.array([by_value[value] for value in values], np.float64)
    total = wanted.sum()
    if total == 0:
        raise UserError(f"weights.{name}: all weights are 0, so nothing would be drawn")
    return Margin(name, values, of_cell, wanted / total)


def _as(kind: type, key: Any) -> Any:
    """Return the key of a weight as a number where numbers are meant: a recipe may write it as text."""
    if kind is int and str(key).isdecimal():
        return int(key)
    return key


def _some(values: Sequence[Any]) -> str:
    """Return the first values, and the number of the others, for messages."""
    text = ", ".join(str(value) for value in values[:LISTED])
    if len(values) > LISTED:
        text += f" and {len(values) - LISTED} more"
    return text


def _known(key: Any, values: Sequence[Any]) -> str:
    """Return values for messages, with the one that may be meant by a key."""
    near = difflib.get_close_matches(str(key), [str(value) for value in values], 1)
    if near:
        return f"{_some(values)} (did you mean {near[0]}?)"
    return _some(values)
