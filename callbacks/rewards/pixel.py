"""The plainest reward: nearness of an edit to the target of its sample."""

from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from callbacks.rewards.base import RewardCallback
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.rewards.protocol import Scores


class PixelReward(RewardCallback):
    """Reward of 1 - mean absolute difference to the target, pixels on [0, 1]. For laptops and tests: it needs no model.

    Args:
        name: Name in `stage.weights`, `stage.routes` and the log.
    """

    def __init__(self, name: str = "pixel") -> None:
        super().__init__(name)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Score images (B, 3, H, W) in [-1, 1]."""
        if batch.pixels is None:
            why = "prepare with keep_images=true" if batch.known else "prompts without a target need another reward"
            raise UserError(f"reward {self.name}: the batch has no target pictures; {why}")
        return self._pool.submit(score, images, batch.pixels)


def score(images: Tensor, targets: Tensor) -> Scores:
    """Return (B,) 1 - mean |image - target| / 2 of images and targets (B, 3, H, W) in [-1, 1]."""
    value = 1 - (images.float() - targets.to(images)).abs().flatten(1).mean(1).cpu() / 2
    return Scores(value, torch.ones(len(value), dtype=torch.bool))
