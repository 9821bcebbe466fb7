"""The pieces of an iteration of reinforcement learning: groups of edits, points to learn at, advantages."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..batch import Condition, EditBatch
from ..losses.nft import group_optimality, policy_mask
from ..rewards.collect import PendingRewards
from ..rewards.panel import RewardPanel
from ..rewards.statistics import ScoredEdits


@dataclass(frozen=True)
class Rollout:
    """A group: K edits of one sample, drawn by the old policy. Their rewards are still being computed."""

    sample: EditBatch  # the one sample
    latents: Tensor  # (K, 16, h, w) float32, the edits
    images: Tensor  # (K, 3, H, W) uint8 on the host, the same as pictures
    distance: Tensor  # (K,) from the source, see `source_distance`
    asked: PendingRewards


@dataclass
class Points:
    """Some edits of a group, noised: here the policy is compared with the old one in one forward."""

    place: int  # which of this process's groups
    rows: slice  # which of its edits
    update: int  # which optimizer step of the iteration
    condition: Condition
    x_0: Tensor  # (B, 16, h, w)
    eps: Tensor  # like x_0
    sigma: Tensor  # (B,)
    v_old: Tensor | None = None  # like x_0; None: the old policy is the policy itself
    v_reference: Tensor | None = None  # like x_0; None: no KL term


class Advantages(NamedTuple):
    """The advantages of N edits, as DiffusionNFT takes them."""

    optimality: Tensor  # (N,) float32 in [0, 1]: the advantage within the group, clipped, laid on [0, 1]
    used: Tensor  # (N,) bool: the policy term learns from it


@dataclass(frozen=True)
class AdvantageRule:
    """From rewards to advantages; see `group_optimality` for clip and std, `policy_mask` for the rest."""

    clip: float
    std: Literal["group", "batch"]
    min_std: float
    max_mean: float

    def __call__(self, scored: ScoredEdits) -> Advantages:
        """Return the advantages of edits, each within its own group."""
        optimality = group_optimality(scored.reward, scored.groups, clip=self.clip, std=self.std, valid=scored.valid)
        used = policy_mask(
            scored.reward, scored.groups, min_std=self.min_std, max_mean=self.max_mean, valid=scored.valid
        )
        return Advantages(optimality, used)


class GroupAdvantages:
    """The advantages of this process's groups. A group's rewards are waited for when they are first needed.

    Args:
        rollouts: the groups.
        panel: waits for their rewards; the patience for all of them begins now.
        rule: makes advantages of rewards.
        clock: counts the time of waiting as "reward".
        over_all: the rule must see the edits of all processes at once. Otherwise a group is judged alone, and learnt
            while the next one's rewards are being computed.
    """

    def __init__(
        self,
        rollouts: Sequence[Rollout],
        panel: RewardPanel,
        rule: Callable[[ScoredEdits], Advantages],
        clock: "Clock",
        over_all: bool,
    ) -> None:
        self.rollouts = rollouts
        self.panel = panel
        self.rule = rule
        self.clock = clock
        self.over_all = over_all
        self.until = panel.deadline()
        self._scored: dict[int, ScoredEdits] = {}
        self._advantages: dict[int, Advantages] = {}
        self._everyone: list[ScoredEdits] | None = None

    def of(self, place: int) -> Advantages:
        """Return the advantages (K,) of the group at `place`."""
        if place not in self._advantages:
            if self.over_all:
                self._judge_all()
            else:
                self._advantages[place] = self.rule(self._wait(place))
        return self._advantages[place]

    def rewards(self) -> Tensor:
        """Return the rewards (groups, K) of this process, NaN where missing."""
        groups = [self._wait(place) for place in range(len(self.rollouts))]
        return torch.stack([torch.where(group.valid, group.reward, torch.nan) for group in groups])

    def everyone(self) -> list[ScoredEdits]:
        """Return the scored edits of each process, by rank. Every process must call it."""
        if self._everyone is None:
            own = ScoredEdits.join([self._wait(place) for place in range(len(self.rollouts))])
            self._everyone = [own]
            if dist.is_initialized() and dist.get_world_size() > 1:
                self._everyone = [own] * dist.get_world_size()
                dist.all_gather_object(self._everyone, own)
        return self._everyone

    def _wait(self, place: int) -> ScoredEdits:
        """Return the rewards of one group of this process."""
        if place in self._scored:
            return self._scored[place]
        rollout = self.rollouts[place]
        with self.clock.on("reward"):
            scores = self.panel.wait(rollout.asked, self.until)
            self.panel.note_missing(rollout.asked, scores)
            self._scored[place] = ScoredEdits(
                tasks=rollout.asked.tasks,
                groups=torch.zeros(len(scores), dtype=torch.long),
                reward=scores.value,
                valid=scores.valid,
                terms=scores.terms,
                distance=rollout.distance,
                outside=rollout.asked.outside,
            )
        return self._scored[place]

    def _judge_all(self) -> None:
        """Judge the edits of all processes together, and keep the advantages of this process's groups."""
        everyone = self.everyone()
        rank = dist.get_rank() if dist.is_initialized() else 0
        begin = sum(len(part.reward) for part in everyone[:rank])
        size = len(self.rollouts[0].latents)
        optimality, used = self.rule(ScoredEdits.join(everyone))
        for place in range(len(self.rollouts)):
            rows = slice(begin + place * size, begin + (place + 1) * size)
            self._advantages[place] = Advantages(optimality[rows], used[rows])


def slices(count: int, size: int | None) -> Iterator[slice]:
    """Yield 0 .. count in slices of at most `size`; None: one slice."""
    size = size or count
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))


def source_distance(pixels: Tensor, source: Tensor | None) -> Tensor:
    """Return the mean absolute difference (K,) of edits to their source, on [0, 1]; NaN without a source.

    A distance that falls towards 0 shows a policy that copies its source.

    Args:
        pixels: edits (K, 3, H, W) in [-1, 1].
        source: (1, 3, H', W') in [-1, 1].
    """
    if source is None:
        return torch.full((len(pixels),), torch.nan)
    source = F.interpolate(source.to(pixels), size=pixels.shape[-2:], mode="bilinear", antialias=True)
    return ((pixels - source).abs().flatten(1).mean(1) / 2).cpu()


def to_bytes(pixels: Tensor) -> Tensor:
    """Return pixels (K, 3, H, W) in [-1, 1], clamped, as uint8 on the host."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


class Clock:
    """Seconds by activity, the device's work included; time inside an inner activity counts there alone."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self.inner = 0.0  # seconds of the activities inside the present one

    @contextmanager
    def on(self, name: str) -> Iterator[None]:
        """Count the time inside the `with` block as `name`."""
        begun = time.perf_counter()
        outer = self.inner
        self.inner = 0.0
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        spent = time.perf_counter() - begun
        self.seconds[name] += spent - self.inner
        self.inner = outer + spent

    def shares(self) -> dict[str, float]:
        """Return each activity's share of the whole time, and the whole in seconds."""
        whole = max(sum(self.seconds.values()), 1e-9)
        shares = {f"time/{name}_share": seconds / whole for name, seconds in self.seconds.items()}
        return shares | {"time/iteration_s": whole}
