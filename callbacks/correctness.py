"""Is an edit right? For data whose targets are known exactly: a score of validation images, and a reward."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from callbacks.reward import RewardCallback
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.rewards import correctness
from firered_lit.rewards.protocol import Scores


class Correctness(RewardCallback):
    """1 for an edit that is right by `firered_lit.rewards.correctness`, else 0; with `soft`, the mean of its terms.

    Terms: `correct/<task>`, and each term of the score. Landmarks are the first five-point region of a sample.

    Args:
        name: what it is called in `stage.weights`, `stage.routes` and the log.
        soft: a value that says how near a wrong edit is, for reinforcement.
        read: words of a picture (H, W, 3) on [0, 1]; without it, words are compared as pixels alone.
    """

    def __init__(
        self,
        name: str = "correctness",
        soft: bool = False,
        read: Callable[[NDArray[np.floating]], str] | None = None,
    ) -> None:
        super().__init__(name)
        self.soft, self.read = soft, read
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Score images (B, 3, H, W) in [-1, 1]. UserError without the true pictures."""
        if batch.pixels is None:
            raise UserError(f"reward {self.name}: the batch has no target pictures; prepare with keep_images=true")
        return self._pool.submit(self._score, images.detach().cpu(), batch.to("cpu"))

    def _score(self, images: Tensor, batch: EditBatch) -> Scores:
        found = [self._one(images, batch, i) for i in range(len(images))]
        names = sorted({name for one in found for name in one.terms})
        columns = {name: [one.terms.get(name, float("nan")) for one in found] for name in names}
        for task in sorted(set(batch.tasks)):
            of_task = zip(found, batch.tasks, strict=True)
            columns[f"correct/{task}"] = [float(one.correct) if own == task else float("nan") for one, own in of_task]
        value = [float(np.mean([*one.terms.values()])) if self.soft else float(one.correct) for one in found]
        terms = {name: torch.tensor(column) for name, column in columns.items()}
        return Scores(torch.tensor(value), torch.ones(len(found), dtype=torch.bool), terms)

    def _one(self, images: Tensor, batch: EditBatch, i: int) -> correctness.Correctness:
        regions = None if batch.regions is None else batch.regions[i]
        faces = [
            points for points in ([] if regions is None else regions) if len(points) == 5 and points.isfinite().all()
        ]
        assert batch.pixels is not None  # noqa: S101
        return correctness.score(
            picture(images[i]),
            picture(batch.pixels[i]),
            [picture(source[i]) for source in batch.sources],
            batch.tasks[i] if batch.tasks else "",
            landmarks=faces[0].numpy() + 0.5 if faces else None,
            target_text=(batch.target_texts[i] or "") if batch.target_texts else "",
            read=self.read,
        )


def picture(pixels: Tensor) -> NDArray[np.floating]:
    """(3, H, W) in [-1, 1] -> (H, W, 3) on [0, 1]."""
    return (pixels.float().permute(1, 2, 0).clamp(-1, 1).numpy() + 1) / 2
