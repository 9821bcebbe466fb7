"""What an iteration of reinforcement learning holds: groups of edits as drawn, and the points they are learnt at."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..batch import Condition, EditBatch
from ..rewards.collect import Asked


@dataclass(frozen=True)
class Rollout:
    """A group: K edits of one sample, drawn by the old policy, their rewards under way."""

    sample: EditBatch  # the one sample
    latents: Tensor  # (K, 16, h, w) float32, the edits
    images: Tensor  # (K, 3, H, W) uint8 on the host, the same as pictures
    distance: Tensor  # (K,) from the source, see `source_distance`
    asked: Asked


@dataclass
class Points:
    """Some edits of a group, noised: where the policy is compared with the old one in one forward."""

    rows: slice  # which of this process's edits
    update: int  # which optimizer step of the iteration
    condition: Condition
    x_0: Tensor  # (B, 16, h, w)
    eps: Tensor  # like x_0
    sigma: Tensor  # (B,)
    v_old: Tensor | None = None  # like x_0
    v_reference: Tensor | None = None  # like x_0


def pieces(count: int, size: int | None) -> Iterator[slice]:
    """0 .. count in slices of at most `size`."""
    size = size or count
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def source_distance(pixels: Tensor, sources: tuple[Tensor, ...]) -> Tensor:
    """Mean absolute difference of edits (K, 3, H, W) in [-1, 1] to the first source, laid on [0, 1]; NaN without one.

    sources: of the one sample, (1, 3, H', W') each. Falling towards 0 it tells a policy that copies its source.
    """
    if not sources:
        return torch.full((len(pixels),), torch.nan)
    source = F.interpolate(sources[0].to(pixels), size=pixels.shape[-2:], mode="bilinear", antialias=True)
    return ((pixels - source).abs().flatten(1).mean(1) / 2).cpu()


def to_bytes(pixels: Tensor) -> Tensor:
    """(K, 3, H, W) in [-1, 1], clamped, as uint8 on the host."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


class Clock:
    """Seconds by what they were spent on, the device's work included."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, defaultdict(float)

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] += time.perf_counter() - begun

    def shares(self) -> dict[str, float]:
        """The share of each in the whole, and the whole."""
        whole = max(sum(self.seconds.values()), 1e-9)
        return {f"time/{k}": v / whole for k, v in self.seconds.items()} | {"time/iteration_s": whole}
