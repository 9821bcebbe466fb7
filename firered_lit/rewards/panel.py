"""Rewards that are asked together, waited for, cleaned and mixed: in reinforcement, mining and validation."""

import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping

from torch import Tensor

from firered_lit.batch import EditBatch
from firered_lit.rewards.collect import PendingRewards, answer, answered, ask
from firered_lit.rewards.mix import applies_to
from firered_lit.rewards.protocol import Reward, Scores

log = logging.getLogger(__name__)


class RewardPanel:
    """The rewards of a run, and a record of the scores that they did not give.

    Args:
        rewards: by name.
        weights: of each reward in the mixture, at least 0; None where all weigh the same.
        routes: reward -> the tasks that it scores; a reward without a route scores all that it is able to.
        patience: seconds that answers may take after the last edit is drawn; a late one is missing.
    """

    def __init__(
        self,
        rewards: dict[str, Reward],
        weights: Mapping[str, float] | None,
        routes: Mapping[str, Collection[str]] | None,
        patience: float,
    ) -> None:
        self.rewards = rewards
        self.routes = routes
        self.patience = patience
        self.missing: Counter[str] = Counter()  # reward -> edits that it should have scored and has not
        self.reasons: set[tuple[str, str]] = set()  # (reward, why) of every group without its scores
        self._weights = weights

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each reward in the mixture."""
        return self._weights or dict.fromkeys(self.rewards, 1.0)

    def ask(self, images: Tensor, batch: EditBatch) -> PendingRewards:
        """Start scoring images (K, 3, H, W), made for the samples of `batch` (K). Does not wait.

        Raises:
            UserError: no reward has the task of a sample.
        """
        return ask(self.rewards, images, batch, self.routes)

    def deadline(self) -> float:
        """Return the time (`time.monotonic`) at which patience ends when it begins now."""
        return time.monotonic() + self.patience

    def wait(self, asked: PendingRewards, until: float, weights: Mapping[str, float] | None = None) -> Scores:
        """Return the mixture of the rewards, once all have answered or `until` is over.

        Args:
            asked: the images' pending rewards.
            until: a `deadline`.
            weights: of some of the rewards, in place of those of the panel.
        """
        weights = self.weights if weights is None else weights
        routes = {name: tasks for name, tasks in (self.routes or {}).items() if name in weights}
        return answered(asked, weights, routes, until)

    def wait_for(self, name: str, asked: PendingRewards, until: float) -> Scores:
        """Return the scores of one reward by itself, once it has answered or `until` is over.

        They are on [0, 1]; the terms are as the reward gave them.
        """
        return answer(name, asked, until)

    def note_missing(self, asked: PendingRewards, scores: Scores) -> None:
        """Count the edits of a group that lack a score, by reward, and warn once of each reason."""
        for name, weight in self.weights.items():
            due = applies_to(name, asked.tasks, self.routes, asked.able) & (weight > 0)
            self.missing[name] += int((due & scores.terms[name].isnan()).sum())

        for failure in asked.failures.items() - self.reasons:
            log.warning("reward %s: a group has no scores: %s", *failure)
        self.reasons |= set(asked.failures.items())
