"""The pieces of an iteration of reinforcement learning: groups of edits, points to learn at, advantages."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..batch import Condition, EditBatch
from ..rewards.collect import Asked
from ..rewards.statistics import Scored


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

    place: int  # which of this process's groups
    rows: slice  # which of its edits
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


def source_distance(pixels: Tensor, source: Tensor | None) -> Tensor:
    """Mean absolute difference of edits (K, 3, H, W) in [-1, 1] to their source, laid on [0, 1]; NaN without one.

    source: (1, 3, H', W'). Falling towards 0 it tells a policy that copies its source.
    """
    if source is None:
        return torch.full((len(pixels),), torch.nan)
    source = F.interpolate(source.to(pixels), size=pixels.shape[-2:], mode="bilinear", antialias=True)
    return ((pixels - source).abs().flatten(1).mean(1) / 2).cpu()


def to_bytes(pixels: Tensor) -> Tensor:
    """(K, 3, H, W) in [-1, 1], clamped, as uint8 on the host."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


class Clock:
    """Seconds by what they were spent on, the device's work included; inside another, they count once."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self.inner = device, defaultdict(float), 0.0

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        begun, outer, self.inner = time.perf_counter(), self.inner, 0.0
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = time.perf_counter() - begun
        self.seconds[name] += spent - self.inner
        self.inner = outer + spent

    def shares(self) -> dict[str, float]:
        """The share of each in the whole, and the whole."""
        whole = max(sum(self.seconds.values()), 1e-9)
        return {f"time/{k}": v / whole for k, v in self.seconds.items()} | {"time/iteration_s": whole}


class Verdicts:
    """The rewards of this process's groups, each waited for when it is needed, and what they make of the edits.

    score: waits for a group's rewards. judge: optimality (N,) and use (N,) bool of edits. whole: it must see the edits
    of all processes at once; otherwise a group is judged alone, and learnt while the next one's rewards are under way.
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        score: Callable[[Rollout], Scored],
        judge: Callable[[Scored], tuple[Tensor, Tensor]],
        clock: Clock,
        whole: bool,
    ) -> None:
        self.rollouts, self.score, self.judge, self.clock, self.whole = rollouts, score, judge, clock, whole
        self.scored: dict[int, Scored] = {}
        self.judged: dict[int, tuple[Tensor, Tensor]] = {}
        self.all: list[Scored] | None = None

    def of(self, place: int) -> tuple[Tensor, Tensor]:
        """Optimality (K,) and use (K,) of the group at `place`."""
        if place not in self.judged:
            if self.whole:
                self._judge_all()
            else:
                self.judged[place] = self.judge(self._wait(place))
        return self.judged[place]

    def rewards(self) -> Tensor:
        """(groups, K) of this process, NaN where missing."""
        groups = [self._wait(place) for place in range(len(self.rollouts))]
        return torch.stack([torch.where(group.valid, group.reward, torch.nan) for group in groups])

    def everyone(self) -> list[Scored]:
        """Return the scored edits of each process, by rank. Every process must call it."""
        if self.all is None:
            mine = Scored.join([self._wait(place) for place in range(len(self.rollouts))])
            self.all = [mine]
            if dist.is_initialized() and dist.get_world_size() > 1:
                self.all = [mine] * dist.get_world_size()
                dist.all_gather_object(self.all, mine)
        return self.all

    def _wait(self, place: int) -> Scored:
        if place not in self.scored:
            with self.clock.on("reward"):
                self.scored[place] = self.score(self.rollouts[place])
        return self.scored[place]

    def _judge_all(self) -> None:
        everyone = self.everyone()
        rank = dist.get_rank() if dist.is_initialized() else 0
        start, size = sum(len(part.reward) for part in everyone[:rank]), len(self.rollouts[0].latents)
        optimality, used = self.judge(Scored.join(everyone))
        for place in range(len(self.rollouts)):
            rows = slice(start + place * size, start + (place + 1) * size)
            self.judged[place] = optimality[rows], used[rows]
