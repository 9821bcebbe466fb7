"""Rewards for mining: asked for at once, collected later; each by its name, and their mixture."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..batch import EditBatch
from ..errors import UserError
from ..rewards.collect import Asked, answered, ask, rewards_of
from ..rewards.mix import applies_to
from ..rewards.protocol import Reward, Scores
from ..rewards.scale import refuse_outside

Marks = list[float | None]  # of each image; None where it is missing or does not apply


@dataclass(frozen=True)
class Pending:
    """Images of one sample, their scores under way."""

    asked: Asked | None  # None when no reward scores its task
    count: int  # of images
    meant: frozenset[str]  # the rewards that mean to score it


@dataclass(frozen=True)
class Judged:
    """The rewards of K images of one sample."""

    total: Marks
    rewards: dict[str, Marks]
    failures: dict[str, str]  # reward -> why it gave nothing
    again: bool  # there is no total at all, and a reward that means to score the sample gave nothing: try another time


class Scorer:
    """Rewards by the names that callbacks have.

    Args:
        rewards: by any key; an entry that is None is left out.
        weights: of the mixture, as in `stages.nft.NFT`; a reward of weight 0 is noted by its name alone.
        routes: of the mixture: reward -> the tasks that it scores.
        patience: seconds that an answer may take from the moment it is waited for.
        tasks: that the data has; None where they are not known.

    Raises:
        UserError: see `rewards_of`.
    """

    def __init__(
        self,
        rewards: Mapping[str, Reward],
        weights: Mapping[str, float] | None = None,
        routes: Mapping[str, Collection[str]] | None = None,
        patience: float = 300.0,
        tasks: Collection[str] | None = None,
    ) -> None:
        given = [reward for reward in rewards.values() if reward is not None]
        if not given:
            raise UserError("rewards: mining needs a reward; add one, as callbacks.pixel_reward.PixelReward")
        self.rewards = rewards_of(given, weights, routes, tasks, place="task")
        self.weights = dict(weights) if weights else dict.fromkeys(self.rewards, 1.0)
        self.routes = routes
        self.patience = patience

    def ask(self, images: Tensor, sample: EditBatch) -> Pending:
        """Start scoring images (K, 3, H, W) of one sample."""
        routed = {name for name in self.rewards if bool(applies_to(name, sample.tasks, self.routes).any())}
        meant = frozenset(name for name in routed if _means(self.rewards[name], sample))
        asked = ask(self.rewards, images, sample.repeated(len(images)), self.routes) if routed else None
        return Pending(asked, len(images), meant)

    def judged(self, pending: Pending) -> Judged:
        """Wait for the scores. UserError when one lies clearly outside of its reward's scale."""
        if pending.asked is None:
            return Judged([None] * pending.count, {}, {}, False)
        until = time.monotonic() + self.patience
        alone = {name: _marks(self._answered(pending.asked, {name: 1.0}, until)) for name in self.rewards}
        weighed = {name: weight for name, weight in self.weights.items() if weight}
        total = _marks(self._answered(pending.asked, weighed, until))
        silent = any(_empty(alone[name]) for name in pending.meant)
        return Judged(total, alone, pending.asked.failures, _empty(total) and silent)

    def _answered(self, asked: Asked, weights: Mapping[str, float], until: float) -> Scores:
        routes = {name: tasks for name, tasks in (self.routes or {}).items() if name in weights}
        scores = answered(asked, weights, routes, until)
        refuse_outside(asked.outside, asked.ranges)
        return scores

    def made_from(self) -> dict[str, Any]:
        routes = {name: sorted(tasks) for name, tasks in (self.routes or {}).items()}
        return {"weights": self.weights, "routes": routes}

    def close(self) -> None:
        """End what rewards keep running."""
        for reward in self.rewards.values():
            getattr(reward, "close", lambda: None)()


def _marks(scores: Scores) -> Marks:
    return [float(v) if ok else None for v, ok in zip(scores.value.tolist(), scores.valid.tolist())]


def _empty(marks: Marks) -> bool:
    return all(mark is None for mark in marks)


def _means(reward: Reward, sample: EditBatch) -> bool:
    """Return whether a reward applies to a sample; one without a method `applies` applies to all."""
    applies = getattr(reward, "applies", None)
    return applies is None or any(applies(sample))
