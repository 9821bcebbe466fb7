"""Correctness of edits whose targets are known exactly: a score of validation images, and a reward."""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from callbacks.rewards.base import RewardCallback
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.rewards import correctness
from firered_lit.rewards.protocol import Scores


class Correctness(RewardCallback):
    """Reward of 1 for an edit that is right by `firered_lit.rewards.correctness`, else 0.

    Terms: `correct/<task>`, and each term of the score. Landmarks are the first five-point region of a sample.

    Args:
        name: Name in `stage.weights`, `stage.routes` and the log.
        soft: Give the mean of the score's terms, which says how near a wrong edit is, for reinforcement.
        read: Return the words on a picture (H, W, 3) on [0, 1]; without it, words are compared as pixels alone.
    """

    def __init__(
        self,
        name: str = "correctness",
        soft: bool = False,
        read: Callable[[NDArray[np.floating]], str] | None = None,
    ) -> None:
        super().__init__(name)
        self.soft = soft
        self.read = read
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Start scoring images.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            batch: The samples that they were made for.

        Raises:
            UserError: The batch has no target pictures.
        """
        if batch.pixels is None:
            raise UserError(f"reward {self.name}: the batch has no target pictures; prepare with keep_images=true")
        return self._pool.submit(self._score, images.detach().cpu(), batch.to("cpu"))

    def _score(self, images: Tensor, batch: EditBatch) -> Scores:
        """Return the scores of a batch; runs in the pool's thread."""
        found = [self._one(images, batch, i) for i in range(len(images))]

        # Terms; NaN for a sample that has none of that name.
        names = sorted({name for one in found for name in one.terms})
        terms = {name: torch.tensor([one.terms.get(name, math.nan) for one in found]) for name in names}
        for task in sorted(set(batch.tasks) - {""}):
            terms[f"correct/{task}"] = torch.tensor(_correct_in(task, found, batch.tasks))

        # The reward.
        if self.soft:
            values = [float(np.mean(list(one.terms.values()))) for one in found]
        else:
            values = [float(one.correct) for one in found]
        return Scores(torch.tensor(values), torch.ones(len(found), dtype=torch.bool), terms)

    def _one(self, images: Tensor, batch: EditBatch, i: int) -> correctness.CorrectnessTerms:
        """Return the score of sample i."""
        if batch.pixels is None:
            raise ValueError("a batch without target pictures has no score")
        facts = batch.facts[i]
        return correctness.score(
            picture(images[i]),
            picture(batch.pixels[i]),
            [picture(source[i]) for source in batch.sources],
            facts.task,
            landmarks=None if batch.regions is None else landmarks_of(batch.regions[i]),
            target_text=facts.target_text,
            read=self.read,
        )


def _correct_in(task: str, scores: Sequence[correctness.CorrectnessTerms], tasks: Sequence[str]) -> list[float]:
    """Return 1 or 0 for each sample of a task, NaN for those of others."""
    return [float(one.correct) if own == task else math.nan for one, own in zip(scores, tasks, strict=True)]


def landmarks_of(regions: Tensor) -> NDArray[np.floating] | None:
    """Return a sample's first five-point region.

    Args:
        regions: (R, P, 2) of one sample, pixel centres; NaN where it has fewer regions or points.

    Returns:
        (5, 2), x and y from the picture's corner, or None.
    """
    for points in regions:
        if len(points) == 5 and points.isfinite().all():
            return points.numpy() + 0.5
    return None


def picture(pixels: Tensor) -> NDArray[np.floating]:
    """Return pixels (3, H, W) in [-1, 1] as (H, W, 3) on [0, 1]."""
    return (pixels.float().permute(1, 2, 0).clamp(-1, 1).numpy() + 1) / 2
