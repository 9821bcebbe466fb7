"""Callbacks for the tests: what every process computed, as JSON lines, and on demand what it holds; and mischief."""

import json
from pathlib import Path

import lightning as L
import torch

from firered_lit.models.shard import local, whole


class Record(L.Callback):
    def __init__(self, path: str, dump: str | None = None):
        self.path, self.dump = Path(path), dump

    def write(self, **facts):
        with self.path.open("a") as file:
            file.write(json.dumps(facts) + "\n")

    def on_train_start(self, trainer, stage):
        self.seen = trainer.global_step

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if self.dump and not Path(f"{self.dump}.{trainer.global_rank}").exists():
            held = {name: whole(parameter).detach() for name, parameter in stage.named_parameters()}
            (optimizer,) = trainer.strategy.optimizers
            for name, parameter in stage.named_parameters():
                for key, value in optimizer.state.get(parameter, {}).items():
                    held[f"{key} of {name}"] = whole(value)
            held["ema"] = {k: whole(v) for c in trainer.callbacks for k, v in getattr(c, "shadow", {}).items()}
            torch.save(held, f"{self.dump}.{trainer.global_rank}")

    def on_train_batch_end(self, trainer, stage, outputs, batch, batch_idx):
        loss = float(outputs["loss"]) * trainer.accumulate_grad_batches
        self.write(step=batch.step, slot=batch.slots[0], loss=loss)
        if trainer.global_step > self.seen and trainer.is_global_zero:
            self.seen = trainer.global_step
            self.write(step=batch.step, norm=float(trainer.callback_metrics["train/grad_norm"]))

    def on_train_end(self, trainer, stage):
        held = [local(p) for p in stage.transformer.parameters()]
        self.write(share=sum(p.numel() for p in held), of=sum(p.numel() for p in stage.transformer.parameters()))


class Spoil(L.Callback):
    """Makes no numbers of a step's targets, but for the first slots: one process of two has them, or one in two."""

    def __init__(self, step: int):
        self.step = step

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if batch.step == self.step and batch.slots[0] > 0:
            batch.target.fill_(float("nan"))


class Regions(L.Callback):
    """Gives every sample a region, but for the first slots: one process of two has none to compare."""

    def on_train_batch_start(self, trainer, stage, batch, batch_idx):
        if batch.slots[0] > 0:
            box = torch.tensor([[8.0, 8.0], [72.0, 72.0]])
            object.__setattr__(batch, "regions", box.expand(len(batch), 1, 2, 2))
