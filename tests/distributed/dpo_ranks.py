"""DPO in each process of one torchrun, in one go and stopped and resumed: dpo_ranks.py FOLDER KIND ..."""

import json
import sys
from functools import partial
from pathlib import Path

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toy_prompts import PromptData, Prompts, trainer

from callbacks.checkpoint import Checkpoint
from firered_lit.batch import Condition, PreferenceBatch, Text
from firered_lit.draws import gaussian
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.models.shadow import Shadow
from firered_lit.stages.dpo import DPO
from firered_lit.strategy import FSDP2

torch.set_num_threads(1)


class Pairs(Prompts):
    """Two pairs a step over all processes, drawn by their numbers."""

    def batch(self, step):
        slots = tuple(range(self.rank, 2, self.world))
        numbers = tuple(2 * step + slot for slot in slots)
        winner, loser, source = (gaussian((16, 8, 8), numbers, what) for what in ("winner", "loser", "source"))
        condition = Condition(Text.pad(list(gaussian((5, 64), numbers, "text"))), (source,))
        return PreferenceBatch(winner, condition, tuple(map(str, numbers)), step, slots, 2, loser=loser)


class PairData(PromptData):
    def train_dataloader(self):
        return Pairs(2, self.trainer.global_rank, self.trainer.world_size)


class Watch(L.Callback):
    """Every step's preference term, and how many numbers of the reference this process holds."""

    def __init__(self):
        self.preference, self.held = [], 0

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self.preference.append(float(trainer.logged_metrics["train/preference"]))
        self.held = sum(map(_held, module.reference.values()))


def _held(shadow: Shadow) -> int:
    values = shadow.values.values()
    return sum((v.to_local() if hasattr(v, "to_local") else v).numel() for v in values)


def run(folder, steps, backbone, resume=None, **options):
    """Train; what `Watch` has seen."""
    module = DPO(backbone, partial(torch.optim.SGD, lr=0.1), beta=20.0, omega=2.0, sft_weight=0.5, seed=5)
    options, watch = {k: v() if callable(v) else v for k, v in options.items()}, Watch()
    engine = trainer(folder, [Checkpoint(every=1, dir=str(folder)), watch], max_steps=steps, **options)
    engine.fit(module, datamodule=PairData(), ckpt_path=resume, weights_only=True)
    return {"preference": watch.preference, "held": watch.held}


def both_ways(folder, backbone, **options):
    """Four steps in one go, and two and two."""
    straight = run(folder / "straight", 4, backbone, **options)
    run(folder / "begun", 2, backbone, **options)
    again = run(folder / "resumed", 4, backbone, folder / "begun" / "step_00000002.ckpt", **options)
    return [straight, again]


KINDS = {
    "lora": {"backbone": Backbone("tiny", lora=LoRA(4, 8)), "strategy": "ddp"},
    "sharded": {"backbone": Backbone("tiny"), "strategy": partial(FSDP2, compute=None)},
}

if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = {kind: both_ways(place / kind, devices=2, **KINDS[kind]) for kind in sys.argv[2:]}
    if torch.distributed.get_rank() == 0:
        (place / "found.json").write_text(json.dumps(found))
