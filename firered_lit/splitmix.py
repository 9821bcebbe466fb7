"""Random bits for many numbers at once, each a function of its number and a seed alone: splitmix64.

Source: Steele, Lea and Flood, Fast splittable pseudorandom number generators, 2014.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: the increment of splitmix64


def mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return numbers of which every bit depends on every bit of the given ones: the finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def lots(numbers: NDArray[Any], seed: int) -> NDArray[np.uint64]:
    """Return 64 random bits for every number, of it and the seed alone.

    Args:
        numbers: (n,) whole numbers, as those of rows.
        seed: Of `firered_lit.draws.seed_of`.
    """
    return mix((numbers.astype(np.uint64) + np.uint64(seed + 1)) * GOLDEN)
