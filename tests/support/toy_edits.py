"""Edits and pairs for the tiny base without a prepared folder: micro-batches keyed by their number, and a training."""

import torch
from toy_prompts import trainer

from callbacks.checkpoint import Checkpoint
from firered_lit.batch import Condition, EditBatch, PreferenceBatch, Text
from firered_lit.draws import gaussian
from firered_lit.facts import Facts


class Edits:
    """`length` micro-batches an epoch of two edits each, or of two pairs. Stateful, as the real loader is."""

    def __init__(self, pairs=False, length=1000):
        self.pairs, self.length, self.done = pairs, length, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        while True:
            self.done += 1
            yield self.batch(self.done - 1)

    def batch(self, step):
        numbers = (2 * step, 2 * step + 1)
        target, loser, source = (gaussian((16, 8, 8), numbers, what) for what in ("target", "loser", "source"))
        condition = Condition(Text.pad(list(gaussian((5, 64), numbers, "text"))), (source,))
        fields = (target, condition, tuple(Facts(str(number)) for number in numbers), step, (0, 1), 2)
        return PreferenceBatch(*fields, loser=loser) if self.pairs else EditBatch(*fields)

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


def train(folder, stage, steps, resume=None, pairs=False, callbacks=(), **options):
    """Train a stage for so many steps with a checkpoint at the end; returns (stage, trainer)."""
    saver = Checkpoint(every=1000, dir=str(folder))
    engine = trainer(folder, [*callbacks, saver], max_steps=steps, **options)
    engine.fit(stage, Edits(pairs), ckpt_path=resume, weights_only=True)
    return stage, engine


def weights(stage):
    return {name: value.clone() for name, value in stage.transformer.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
