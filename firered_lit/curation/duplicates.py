"""Near duplicates by 64-bit hashes: every pair within a Hamming distance, found by sorting. Exact, with flat memory.

The 64 bits are cut into 2 x distance blocks. A pair that differs in at most `distance` bits differs in at most as many
blocks, so it agrees in some `distance` of them. For each choice of so many blocks the hashes are sorted by them, and
those that agree in them are compared. Distance 3: 20 sorts by keys of 31 to 33 bits.
"""

import contextlib
import mmap
import tempfile
from collections.abc import Iterator
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firered_lit.splitmix import GOLDEN

Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]

CHUNK = 1 << 20  # hashes that are sorted at a time
BITS = 64
MOST_DISTANCE = 5
_INDEX_BITS = 30  # a chunk's index beside a key in 64 bits; keys above 34 bits lose their last ones


def neighbours(hashes: Hashes, distance: int = 3, chunk: int = CHUNK) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield all pairs of hashes that differ in at most `distance` bits, as arrays of the lower and the upper index.

    A pair may come several times. Equal hashes come as a chain, each with the next one, and one of them stands for all
    in the pairs with others: pairs connect what is near, and `groups` joins what they connect.

    Args:
        hashes: (n,) 64-bit numbers; an array that lies on the disk (`numpy.memmap`) is read in pieces.
        distance: Bits, 0 to 5.
        chunk: Hashes in memory at a time, about 60 bytes each.
    """
    if not 0 <= distance <= MOST_DISTANCE:
        raise ValueError(f"distance={distance}: from 0 to {MOST_DISTANCE}")
    with tempfile.TemporaryDirectory(prefix="duplicates.") as place:
        # Equal hashes first; from then on the first of them stands for all.
        different = _Different(Path(place) / "different")
        whole = [(0, BITS)]
        for part, numbers in _parts(_Given(hashes), whole, chunk):
            order = np.lexsort((numbers, part))
            part, numbers = part[order], numbers[order]
            again = np.flatnonzero(part[1:] == part[:-1])
            yield numbers[again], numbers[again + 1]
            first = np.ones(len(part), bool)
            first[1:] = part[1:] != part[:-1]
            different.add(part[first], numbers[first])
        if distance == 0:
            return
        for chosen in combinations(_blocks(2 * distance), distance):
            for part, numbers in _parts(different, list(chosen), chunk):
                yield from _agreeing(part, numbers, list(chosen), distance)


class _Given:
    """The hashes that are given, with their places."""

    def __init__(self, hashes: Hashes) -> None:
        self.hashes = hashes

    def __len__(self) -> int:
        return len(self.hashes)

    def piece(self, start: int, stop: int) -> tuple[Hashes, Numbers]:
        """Return the hashes of some places, and these; what was mapped from a file for that is let go."""
        some = np.array(self.hashes[start:stop])
        mapped = getattr(self.hashes, "_mmap", None)
        if mapped is not None:
            mapped.madvise(mmap.MADV_DONTNEED)
        return some, np.arange(start, start + len(some))


class _Different:
    """Hashes that differ from each other, with their numbers, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def add(self, hashes: Hashes, numbers: Numbers) -> None:
        """Add some more."""
        with self.path.open("ab") as file:
            file.write(_records(hashes, numbers).tobytes())
        self.count += len(hashes)

    def piece(self, start: int, stop: int) -> tuple[Hashes, Numbers]:
        """Return some of them."""
        return _read(self.path, start, min(stop, self.count) - start)


def _records(hashes: Hashes, numbers: Numbers) -> Hashes:
    return np.stack([hashes, numbers.astype(np.uint64)], axis=1)


def _read(path: Path, start: int = 0, count: int = -1) -> tuple[Hashes, Numbers]:
    """Return hashes and numbers from a file of records; all that follow when `count` is -1."""
    records = np.fromfile(path, np.uint64, 2 * count if count >= 0 else -1, offset=16 * start).reshape(-1, 2)
    return records[:, 0].copy(), records[:, 1].astype(np.int64)


def groups(hashes: Hashes, distance: int = 3, chunk: int = CHUNK) -> tuple[Numbers, Numbers]:
    """Return the groups of near duplicates: what is connected by pairs within the distance.

    Args:
        hashes: (n,) 64-bit numbers.
        distance: Bits.
        chunk: Hashes in memory at a time.

    Returns:
        The indices that are in a group with others, sorted, and the group of each: its lowest index.
    """
    lower, upper = [], []
    for low, high in neighbours(hashes, distance, chunk):
        lower.append(low)
        upper.append(high)
    return connected(_joined(lower), _joined(upper))


def connected(lower: Numbers, upper: Numbers) -> tuple[Numbers, Numbers]:
    """Return the members of the components that pairs connect, sorted, and the lowest member of each one's component.

    Memory goes with the pairs, not with what they are pairs of.
    """
    members, places = np.unique(np.concatenate([lower, upper]), return_inverse=True)
    first, second = places[: len(lower)], places[len(lower) :]
    labels = np.arange(len(members))
    # Each round, a component's members take the lowest label of their neighbours, and that one's own label.
    while True:
        low = np.minimum(labels[first], labels[second])
        before = labels.copy()
        np.minimum.at(labels, labels[first], low)
        np.minimum.at(labels, labels[second], low)
        labels = _followed(labels)
        if np.array_equal(before, labels):
            return members, members[labels]


def _followed(labels: Numbers) -> Numbers:
    """Return labels with every chain of them followed to its end."""
    while True:
        further = labels[labels]
        if np.array_equal(further, labels):
            return labels
        labels = further


def _blocks(count: int) -> list[tuple[int, int]]:
    """Return (first bit, number of bits) of blocks of nearly equal size that make up the 64 bits."""
    edges = [round(place * BITS / count) for place in range(count + 1)]
    return [(start, stop - start) for start, stop in pairwise(edges)]


def _key(hashes: Hashes, blocks: list[tuple[int, int]]) -> Hashes:
    """Return the bits of some blocks of each hash, one block behind the other."""
    key = np.zeros(len(hashes), np.uint64)
    for start, size in blocks:
        mask = np.uint64((1 << size) - 1)
        key <<= np.uint64(size)
        key |= (hashes >> np.uint64(start)) & mask
    return key


def _parts(given: _Given | _Different, blocks: list[tuple[int, int]], chunk: int) -> Iterator[tuple[Hashes, Numbers]]:
    """Yield all hashes with their numbers in parts of about `chunk`; those that agree in `blocks` are in one part.

    More than a chunk of them is sorted into files by a mixture of the key's bits first.
    """
    if len(given) <= chunk:
        if len(given):
            yield given.piece(0, len(given))
        return
    count = -(-len(given) // chunk) * 2
    with tempfile.TemporaryDirectory(prefix="duplicates.") as place:
        paths = [Path(place, str(number)) for number in range(count)]
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("wb")) for path in paths]
            for start in range(0, len(given), chunk // 4):
                piece, numbers = given.piece(start, start + chunk // 4)
                owner = _spread(_key(piece, blocks), count)
                order = np.argsort(owner, kind="stable")
                records = _records(piece[order], numbers[order])
                edges = np.searchsorted(owner[order], np.arange(count + 1))
                for number in range(count):
                    files[number].write(records[edges[number] : edges[number + 1]].tobytes())
        for path in paths:
            part, numbers = _read(path)
            path.unlink()
            if len(part):
                yield part, numbers


def _spread(key: Hashes, count: int) -> NDArray[np.int16]:
    """Return one of `count` numbers for each key, the same for equal keys, about evenly."""
    mixed = key * GOLDEN
    return ((mixed >> np.uint64(40)) % np.uint64(count)).astype(np.int16)


def _agreeing(
    hashes: Hashes, numbers: Numbers, blocks: list[tuple[int, int]], distance: int
) -> Iterator[tuple[Numbers, Numbers]]:
    """Yield the pairs of a part that agree in `blocks` and differ in at most `distance` bits."""
    # One sort of numbers that hold key and index, which is quicker than sorting indices by keys.
    spare = max(0, sum(size for _, size in blocks) - (BITS - _INDEX_BITS))
    packed = (_key(hashes, blocks) >> np.uint64(spare)) << np.uint64(_INDEX_BITS)
    packed |= np.arange(len(hashes), dtype=np.uint64)
    packed.sort()
    key = packed >> np.uint64(_INDEX_BITS)
    first = np.flatnonzero(key[1:] == key[:-1])
    if not len(first):
        return
    order = (packed & np.uint64((1 << _INDEX_BITS) - 1)).astype(np.int64)
    # Runs of equal keys: the place behind the last one, for every place that has a right neighbour in its run.
    ends = np.flatnonzero(np.append(key[1:] != key[:-1], True)) + 1
    end = ends[np.searchsorted(ends, first, side="right")]
    # In a run, each with its next neighbour, then with the one after that, and so on.
    step = 1
    places = first
    while len(places):
        left, right = order[places], order[places + step]
        near = np.bitwise_count(hashes[left] ^ hashes[right]) <= distance
        yield _ordered(numbers[left[near]], numbers[right[near]])
        step += 1
        going = places + step < end
        places, end = places[going], end[going]


def _ordered(left: Numbers, right: Numbers) -> tuple[Numbers, Numbers]:
    return np.minimum(left, right), np.maximum(left, right)


def _joined(parts: list[Numbers]) -> Numbers:
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)
