"""The protocol of a reward: images and their batch go in, a score per sample comes back when it is ready."""

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """One reward of B samples."""

    value: Tensor  # (B,) in [0, 1] where valid, or in the range of the reward that gave it
    valid: Tensor  # (B,) bool; False = missing: the engine failed, came late or returned nonsense
    terms: dict[str, Tensor] = field(default_factory=dict)  # what to log beside it, each (B,)

    def __post_init__(self) -> None:
        shapes = {tuple(t.shape) for t in (self.value, self.valid, *self.terms.values())}
        if len(shapes) != 1 or self.value.ndim != 1:
            raise ValueError(f"Scores: value, valid and terms must share one shape (B,), not {sorted(shapes)}")

    def __len__(self) -> int:
        return len(self.value)


@runtime_checkable
class Reward(Protocol):
    """The protocol of reward callbacks: what a stage finds among its callbacks and asks for scores.

    Values lie in [0, 1]. One with a scale of its own says so by an attribute `range`, its lowest and highest value.
    """

    name: str

    def submit(self, images: Tensor, batch: Any) -> "Future[Scores]":
        """Start scoring images (B, 3, H, W) in [-1, 1], made for the samples of `batch`. Does not wait."""
        ...


@runtime_checkable
class Choosy(Protocol):
    """A reward that can tell which samples it is able to score."""

    def applies(self, batch: Any) -> list[bool]:
        """Return (B,), which samples of a batch it scores."""
        ...
