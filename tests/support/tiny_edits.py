"""Micro-batches that the tiny transformer takes, as a stateful loader; and a trainer's run of a stage on them."""

from functools import partial

import torch
from toy_run import Edits, trainer

from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.draws import gaussian
from firered_lit.facts import Facts
from firered_lit.stages.sft import SFT


class TinyEdits(Edits):
    """One reference, six text tokens, targets of 4 x 6 latents."""

    def batch(self, step):
        slots = tuple(range(self.size))
        target, reference = (gaussian((16, 4, 6), slots, name, step) for name in ("target", "reference"))
        text = Text.pad(list(gaussian((6, 64), slots, "text", step)))
        facts = tuple(Facts(f"{step}.{slot}") for slot in slots)
        return EditBatch(target, Condition(text, (reference,)), facts, step, slots, self.size)


def stage(backbone, seed=3, lr=1e-2):
    return SFT(backbone, partial(torch.optim.AdamW, lr=lr), seed=seed)


def fit(folder, backbone, steps, callbacks, resume=None, **options):
    """Train on endless tiny edits; returns the stage."""
    module = stage(backbone)
    run = trainer(folder, callbacks, max_steps=steps, limit_val_batches=0, accumulate_grad_batches=1, **options)
    run.fit(module, TinyEdits(4), ckpt_path=resume, weights_only=True)
    return module


def adapters(module):
    return {k: v.clone() for k, v in module.transformer.state_dict().items() if ".lora_" in k}
