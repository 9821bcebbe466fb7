"""Prompts for reinforcement learning without a prepared folder: small random samples, keyed by their number."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint as Saver

from firered_lit.batch import Condition, EditBatch, PromptBatch, Text
from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO
from firered_lit.draws import gaussian, generator
from firered_lit.facts import Facts


def sample(number, step=0, slot=0, num_slots=2, text=None, side=8):
    """One sample with a source, for the tiny base."""
    said = number if text is None else text
    condition = Condition(
        Text.pad(list(gaussian((5, 64), (said,), "text"))), (gaussian((16, side, side), (number,), "reference"),)
    )
    pixels = torch.rand((1, 3, 8 * side, 8 * side), generator=generator("pixels", number)) * 2 - 1
    facts = Facts(f"id{number}", task="odd" if number % 2 else "even", instruction=f"instruction {said}")
    target = gaussian((16, side, side), (number,), "target")
    sources = (pixels.flip(-1),)
    return EditBatch(target, condition, (facts,), step, (slot,), num_slots, pixels=pixels, sources=sources)


class Prompts:
    """`groups` samples an iteration, shared by the processes in turn. Stateful, as the real loader is."""

    def __init__(self, groups=2, rank=0, world=1, length=3):
        self.groups, self.rank, self.world, self.length, self.done = groups, rank, world, length, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        while True:
            self.done += 1
            yield self.batch(self.done - 1)

    def batch(self, step):
        mine = range(self.rank, self.groups, self.world)
        return PromptBatch(tuple(sample(3 * step + i, step, i, self.groups) for i in mine), step)

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


class PromptData(L.LightningDataModule):
    """The same as a data module, which knows the rank."""

    def __init__(self, groups=2):
        super().__init__()
        self.groups = groups

    def train_dataloader(self):
        return Prompts(self.groups, self.trainer.global_rank, self.trainer.world_size)


def trainer(folder, callbacks, **options):
    """A CPU trainer in `folder`, with our checkpoint files."""
    defaults = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False, "enable_model_summary": False}
    defaults |= {
        "log_every_n_steps": 1,
        "max_epochs": -1,
        "plugins": [AtomicCheckpointIO()],
        "logger": False,
        "enable_checkpointing": any(isinstance(c, Saver) for c in callbacks),
    }
    defaults |= {"use_distributed_sampler": False, "limit_val_batches": 0}
    return L.Trainer(default_root_dir=folder, callbacks=callbacks, **defaults | options)
