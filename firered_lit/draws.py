"""Randomness as a function: every draw is keyed by what it is for, so a resumed run repeats itself bit for bit."""

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*key: object) -> int:
    """A 63-bit seed from any key of ints, strings and tuples of them. Stable across processes, unlike `hash()`."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little") >> 1


def chooser(*key: object) -> random.Random:
    """A `random.Random` keyed by `key`: for captions, languages, drops."""
    return random.Random(seed_of(*key))


def generator(*key: object) -> "torch.Generator":
    """A CPU `torch.Generator` keyed by `key`. CPU, so that the numbers do not depend on the device."""
    import torch

    return torch.Generator().manual_seed(seed_of(*key))


def gaussian(shape: tuple[int, ...], slots: tuple[int, ...], *key: object) -> "torch.Tensor":
    """Standard normal noise (len(slots), *shape), float32: row i depends on `key` and `slots[i]` alone.

    One process that holds all slots and N processes that share them draw the same numbers.
    """
    import torch

    return torch.stack([torch.randn(shape, generator=generator(*key, slot)) for slot in slots])
