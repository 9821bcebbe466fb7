"""Rewards for mining: asked for at once, collected later; each by its name, and their mixture."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..batch import EditBatch
from ..errors import UserError
from ..rewards.collect import PendingRewards, rewards_of
from ..rewards.mix import applies_to
from ..rewards.panel import RewardPanel
from ..rewards.protocol import Reward
from ..rewards.scale import refuse_outside

Marks = list[float | None]  # of each image; None where it is missing or does not apply


@dataclass(frozen=True)
class Pending:
    """Images of one sample, their scores under way."""

    asked: PendingRewards | None  # None when no reward scores its task
    count: int  # of images
    meant: frozenset[str]  # the rewards that mean to score it


@dataclass(frozen=True)
class ImageRewards:
    """The rewards of K images of one sample, and whether to ask again."""

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
            raise UserError("rewards: mining needs a reward; add one, as callbacks.rewards.pixel.PixelReward")
        named = rewards_of(given, weights, routes, tasks, place="task")
        self.panel = RewardPanel(named, dict(weights) if weights else None, routes, patience)

    def ask(self, images: Tensor, sample: EditBatch) -> Pending:
        """Start scoring images (K, 3, H, W) of one sample."""
        routed = [name for name in self.panel.rewards if self._is_routed(name, sample)]
        meant = frozenset(name for name in routed if _means_to_score(self.panel.rewards[name], sample))
        if not routed:
            return Pending(None, len(images), meant)
        asked = self.panel.ask(images, sample.repeated(len(images)))
        return Pending(asked, len(images), meant)

    def judged(self, pending: Pending) -> ImageRewards:
        """Wait for the scores.

        Raises:
            UserError: one lies clearly outside of its reward's scale.
        """
        asked = pending.asked
        if asked is None:
            return ImageRewards([None] * pending.count, {}, {}, False)
        until = self.panel.deadline()

        # Each reward alone.
        alone: dict[str, Marks] = {}
        for name in self.panel.rewards:
            alone[name] = self._marks(asked, {name: 1.0}, until)

        # Their mixture.
        weighed = {name: weight for name, weight in self.panel.weights.items() if weight}
        total = self._marks(asked, weighed, until)

        silent = any(_all_missing(alone[name]) for name in pending.meant)
        return ImageRewards(total, alone, asked.failures, again=_all_missing(total) and silent)

    def _marks(self, asked: PendingRewards, weights: Mapping[str, float], until: float) -> Marks:
        """Return the mixture of some rewards, a number of each image; None where it is missing."""
        scores = self.panel.wait(asked, until, weights)
        refuse_outside(asked.outside, asked.ranges)
        values = zip(scores.value.tolist(), scores.valid.tolist())
        return [float(value) if valid else None for value, valid in values]

    def _is_routed(self, name: str, sample: EditBatch) -> bool:
        """Return whether a reward's route, if it has one, leads to the sample's task."""
        return bool(applies_to(name, sample.tasks, self.panel.routes).any())

    def made_from(self) -> dict[str, Any]:
        """Return the settings that decide the mixture, as JSON holds them."""
        routes = {name: sorted(tasks) for name, tasks in (self.panel.routes or {}).items()}
        return {"weights": dict(self.panel.weights), "routes": routes}

    def close(self) -> None:
        """End what rewards keep running."""
        for reward in self.panel.rewards.values():
            close = getattr(reward, "close", None)
            if close is not None:
                close()


def _all_missing(marks: Marks) -> bool:
    """Return whether no image has a score."""
    return all(mark is None for mark in marks)


def _means_to_score(reward: Reward, sample: EditBatch) -> bool:
    """Return whether a reward applies to a sample; one without a method `applies` applies to all."""
    applies = getattr(reward, "applies", None)
    if applies is None:
        return True
    return any(applies(sample))
