"""Edits that the rewards like and dislike: source | worst edit | best edit | target of some groups of a rollout."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from callbacks.grids.sample_grid import GridRow, fitted, publish, source_name
from firered_lit.batch import PromptBatch
from firered_lit.errors import UserError
from firered_lit.models.codec import to_image

FOLDER = "rollouts"


class RewardGrid(L.Callback):
    """Draw `rollouts/step_00000020.png` in the run's folder, and a picture in the logger, every `every` steps.

    Args:
        every: Optimizer steps between two pictures.
        rows: Number of groups.
        side: Height of the pictures in the grid, in pixels.
        font: Font file; one that can draw Chinese is looked for when null.
    """

    def __init__(self, every: int = 10, rows: int = 8, side: int = 256, font: str | None = None) -> None:
        if every < 1:
            raise UserError(f"RewardGrid.every={every}: at least 1")
        self.every = every
        self.rows = rows
        self.side = side
        self.font = font
        self._shown = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._shown = trainer.global_step // self.every

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        due = trainer.global_step // self.every
        if due == self._shown or not isinstance(outputs, dict) or "rollouts" not in outputs:
            return
        self._shown = due
        own = [self._row(i, r, outputs["rewards"][i]) for i, r in enumerate(outputs["rollouts"][: self.rows])]
        folder = Path(trainer.default_root_dir) / FOLDER
        publish(own, trainer, self.rows, folder, FOLDER, self.font)

    def _row(self, place: int, rollout: Any, rewards: torch.Tensor) -> GridRow:
        """Return the row of a group: its sample, and the edits of the least and the highest reward.

        Args:
            place: Number of the group.
            rollout: Its sample and its edits.
            rewards: (group,) reward of each edit, NaN for none; the first edit is shown where none has one.
        """
        sample = rollout.sample
        pictures = [(source_name(n, sample), to_image(source[0])) for n, source in enumerate(sample.sources)]
        worst = int(rewards.nan_to_num(2.0).argmin())
        best = int(rewards.nan_to_num(-1.0).argmax())
        for name, number in (("worst", worst), ("best", best)):
            picture = Image.fromarray(rollout.images[number].permute(1, 2, 0).numpy())
            pictures.append((f"{name} {float(rewards[number]):.3f}", picture))
        if sample.pixels is not None:
            pictures.append(("target", to_image(sample.pixels[0])))
        cells = tuple((caption, fitted(picture, self.side)) for caption, picture in pictures)
        facts = sample.facts[0]
        return GridRow((place, sample.slots[0]), cells, facts.instruction or facts.id)
