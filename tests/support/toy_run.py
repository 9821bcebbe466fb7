"""The smallest training that is a real one: a stateful loader, a module with noise, a schedule, validation."""

import lightning as L
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import CSVLogger

from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO
from firered_lit.draws import gaussian, generator
from firered_lit.facts import Facts


class Edits:
    """`length` micro-batches an epoch, each a function of (epoch, place); state = the two numbers."""

    def __init__(self, length=7, size=2, validation=False):
        self.length, self.size, self.validation = length, size, validation
        self.epoch = self.done = 0

    def __len__(self):
        return self.length

    def __iter__(self):
        if self.done >= self.length:
            self.epoch, self.done = self.epoch + 1, 0
        while self.done < self.length:
            self.done += 1
            yield self.batch(self.epoch * self.length + self.done - 1)
        if self.validation:
            self.done = 0

    def batch(self, step):
        slots = tuple(range(self.size))
        target = gaussian((16, 4, 6), slots, "target", step)
        reference = gaussian((16, 4, 6), slots, "reference", step)
        text = Text.pad(list(gaussian((5, 8), slots, "text", step)))
        extra = {}
        if self.validation:
            pixels = torch.rand((self.size, 3, 32, 48), generator=generator("pixels", step)) * 2 - 1
            extra = {"pixels": pixels, "sources": (pixels.flip(-1),), "weight": torch.ones(self.size)}
        ids = tuple(f"{step}.{slot}" for slot in slots)
        facts = tuple(Facts(i, instruction=f"Make number {i} brighter") for i in ids)
        condition = Condition(text, (reference,))
        return EditBatch(target, condition, facts, step, slots, self.size, **extra)

    def state_dict(self):
        return {"epoch": self.epoch, "done": self.done}

    def load_state_dict(self, state):
        self.epoch, self.done = state["epoch"], state["done"]


class Toy(L.LightningModule):
    """A linear map from noisy target and reference to target. `at_step` hooks let a test act in the middle."""

    def __init__(self, act=None, val_loss=None):
        super().__init__()
        self.net = torch.nn.Linear(16, 16)
        with torch.no_grad():
            self.net.weight.copy_(torch.randn(16, 16, generator=generator("weight")) * 0.1)
            self.net.bias.zero_()
        self.act, self.val_loss, self.losses = act or (lambda *_: None), val_loss, {}

    def training_step(self, batch, batch_idx):
        self.act(self, "train", batch_idx)
        x = batch.target + 0.1 * gaussian((16, 4, 6), batch.slots, "noise", batch.step) + batch.condition.references[0]
        loss = (self.net(x.movedim(1, -1)) - batch.target.movedim(1, -1)).square().mean()
        self.losses[self.trainer.fit_loop.epoch_loop.total_batch_idx] = loss.item()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.act(self, "val", batch_idx)
        loss = self.val_loss(self.global_step) if self.val_loss else self.net.weight.square().mean()
        self.log("val/loss", loss, batch_size=len(batch), sync_dist=True)
        return {"output": batch.pixels * 0.5, "loss": loss}

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 10))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def trainer(folder, callbacks, **options):
    """A CPU trainer in `folder`, with our checkpoint files."""
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "accumulate_grad_batches": 2,
        "log_every_n_steps": 1,
        "max_epochs": -1,
        "plugins": [AtomicCheckpointIO()],
        "logger": CSVLogger(folder, name="csv"),
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
    }
    return L.Trainer(default_root_dir=folder, callbacks=callbacks, **defaults | options)


def fit(folder, callbacks, resume=None, module=None, **options):
    """Train a toy; returns (module, trainer)."""
    module, run = module or Toy(), trainer(folder, callbacks, **options)
    run.fit(module, Edits(), Edits(2, validation=True), ckpt_path=resume, weights_only=True)
    return module, run


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
