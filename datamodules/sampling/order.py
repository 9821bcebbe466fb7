"""Orders as functions: permutations and interleavings that are computed where they are read, never stored whole."""

import numpy as np

from firered_lit.draws import seed_of
from firered_lit.splitmix import GOLDEN, mix

ROUNDS = 6
WINDOW = 1024  # items of an interleaving that are laid out together
UNIT = 1 << 24  # denominators of rates that are not whole numbers


def hashes(n: int, *key: object) -> np.ndarray:
    """Return (n,) uint64, a function of `key` alone, the same on every machine and version of numpy."""
    return mix(np.arange(1, n + 1, dtype=np.uint64) * GOLDEN + np.uint64(seed_of(*key)))


def shuffled(n: int, *key: object) -> np.ndarray:
    """Return (n,) a permutation of range(n), a function of `key` alone."""
    return np.argsort(hashes(n, *key), kind="stable")


def permuted(places: np.ndarray, size: np.ndarray | int, key: np.ndarray | int) -> np.ndarray:
    """Return the images of places under a permutation: any of them in O(1), nothing stored.

    A Feistel network over [0, a) x [0, b), a * b >= size, walked until it falls inside.

    Args:
        places: Places, from 0 to size - 1.
        size: The permutation is one of range(size).
        key: Names the permutation. The arguments broadcast.

    Returns:
        int64, of the shape to which the arguments broadcast.

    Source:
        Black and Rogaway, "Ciphers with arbitrary finite domains", 2002, methods 2 and 3.
    """
    arrays = np.broadcast_arrays(np.asarray(places, np.uint64), np.asarray(size, np.uint64), np.asarray(key, np.uint64))
    x, n, k = (array.ravel() for array in arrays)
    a = np.ceil(np.sqrt(n)).astype(np.uint64)
    b = (n + a - np.uint64(1)) // a
    out = _feistel(x, a, b, k)
    while len(outside := np.flatnonzero(out >= n)):
        out[outside] = _feistel(out[outside], a[outside], b[outside], k[outside])
    return out.astype(np.int64).reshape(arrays[0].shape)


def _feistel(x: np.ndarray, a: np.ndarray, b: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Return a permutation of [0, a * b) at x."""
    left = x // b
    right = x % b
    for i in range(0, ROUNDS, 2):
        left = (left + (mix(key + right * GOLDEN + np.uint64(i << 40)) >> np.uint64(32))) % a
        right = (right + (mix(key + left * GOLDEN + np.uint64(i + 1 << 40)) >> np.uint64(32))) % b
    return left * b + right


class Interleaving:
    """An order of the items of several cells: mixed at random, each cell at an even rate and in its own order.

    Item t is the `ordinal`-th of cell `cell`, both found in O(cells) from t alone. The stream is laid out in windows;
    cell c has had `(w * rates[c] + phase[c]) // unit` items before window w, and a window's items are shuffled.
    So a cell is never more than one item away from its rate at the window's ends, and over `unit` windows it has
    exactly `rates[c]` items.
    """

    def __init__(self, rates: np.ndarray, unit: int, *key: object) -> None:
        self.rates = rates.astype(np.int64)
        self.unit = unit
        self.key = key
        self.phase = (hashes(len(rates), "phase", *key) % np.uint64(unit)).astype(np.int64)
        self._window = (-1, 0, np.empty(0, np.int64), np.empty(0, np.int64))

    @classmethod
    def once(cls, counts: np.ndarray, *key: object) -> "Interleaving":
        """Return an order of `counts[c]` items of every cell c, then the end."""
        window = max(WINDOW, 2 * len(counts))
        windows = -(-int(counts.sum()) // window)
        return cls(counts, max(1, windows), *key)

    @classmethod
    def endless(cls, shares: np.ndarray, *key: object) -> "Interleaving":
        """Return an order of items of every cell in proportion to `shares`, without end."""
        window = max(WINDOW, 2 * len(shares))
        return cls(np.round(shares / shares.sum() * window * UNIT), UNIT, *key)

    def before(self, window: int) -> np.ndarray:
        """Return (cells,) the number of items of every cell before a window."""
        return (window * self.rates + self.phase) // self.unit

    def __getitem__(self, t: int) -> tuple[int, int]:
        """Return (cell, ordinal within the cell) of item t."""
        _, start, cells, ordinals = self._lay_out(t)
        return int(cells[t - start]), int(ordinals[t - start])

    def span(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (cells, ordinals) of the items start to stop - 1."""
        parts = []
        while start < stop:
            _, first, cells, ordinals = self._lay_out(start)
            part = slice(start - first, stop - first)
            parts.append((cells[part], ordinals[part]))
            start += len(parts[-1][0])
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _lay_out(self, t: int) -> tuple[int, int, np.ndarray, np.ndarray]:
        """Return the window that holds item t: (number, first item, cells, ordinals). The last one is kept."""
        window, start, cells, _ = self._window
        if window >= 0 and start <= t < start + len(cells):
            return self._window

        # Its number, and the items of every cell before it and after it.
        window = int(t * self.unit // int(self.rates.sum()))  # at most a step or two off, see `before`
        while (before := self.before(window)).sum() > t:
            window -= 1
        while (after := self.before(window + 1)).sum() <= t:
            window += 1
            before = after

        # Its items, shuffled.
        counts = after - before
        cells = np.repeat(np.arange(len(counts)), counts)
        cells = cells[shuffled(int(counts.sum()), "window", window, *self.key)]

        # The place of each among its cell's.
        firsts = np.cumsum(counts) - counts
        ordinals = np.empty_like(cells)
        ordinals[np.argsort(cells, kind="stable")] = np.arange(len(cells)) - np.repeat(firsts, counts)
        ordinals += before[cells]
        self._window = window, int(before.sum()), cells, ordinals
        return self._window
