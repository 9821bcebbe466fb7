"""Stages in each process of one torchrun, in one go and stopped and resumed: ranks.py FOLDER KIND ..."""

import json
import sys
from functools import partial
from pathlib import Path

import lightning as L
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toy_prompts import PromptData, Prompts, trainer

from callbacks.checkpoint import Checkpoint
from callbacks.rewards.pixel import PixelReward
from firered_lit.batch import Condition, PreferenceBatch, Text
from firered_lit.distributed.strategy import FSDP2
from firered_lit.draws import gaussian
from firered_lit.facts import Facts
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.models.weight_swap import WeightSwap
from firered_lit.stages.dpo import DPO
from firered_lit.stages.nft import NFT

torch.set_num_threads(1)


class Pairs(Prompts):
    """Two pairs a step over all processes, drawn by their numbers."""

    def batch(self, step):
        slots = tuple(range(self.rank, 2, self.world))
        numbers = tuple(2 * step + slot for slot in slots)
        winner, loser, source = (gaussian((16, 8, 8), numbers, what) for what in ("winner", "loser", "source"))
        condition = Condition(Text.pad(list(gaussian((5, 64), numbers, "text"))), (source,))
        facts = tuple(Facts(str(number)) for number in numbers)
        return PreferenceBatch(winner, condition, facts, step, slots, 2, loser=loser)


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


def _held(shadow: WeightSwap) -> int:
    values = shadow.values.values()
    return sum((v.to_local() if hasattr(v, "to_local") else v).numel() for v in values)


def preferences(folder, steps, backbone, resume=None, **options):
    """Train by DPO; what `Watch` has seen."""
    module = DPO(backbone, partial(torch.optim.SGD, lr=0.1), beta=20.0, omega=2.0, sft_weight=0.5, seed=5)
    watch = Watch()
    _train(folder, steps, module, PairData(), [Checkpoint(every=1, dir=str(folder)), watch], resume, options)
    return {"preference": watch.preference, "held": watch.held}


def rewards(folder, steps, backbone, resume=None, **options):
    """Train by DiffusionNFT; the last iteration's numbers."""
    sgd = partial(torch.optim.SGD, lr=1.0)  # linear in the gradient: what differs is seen, and rounding stays rounding
    module = NFT(
        backbone, sgd, group_size=3, rollout_steps=2, points=2, updates=1, kl=0.01, std="batch", gradient_clip=10.0,
        decay=lambda n: min(0.2 * n, 0.9), seed=5,
    )  # fmt: skip
    watchers = [PixelReward(), Checkpoint(every=1, dir=str(folder))]
    engine = _train(folder, steps, module, PromptData(4), watchers, resume, options)
    return {k: float(v) for k, v in engine.logged_metrics.items() if "time/" not in k}


def _train(folder, steps, module, data, watchers, resume, options):
    options = {k: v() if callable(v) else v for k, v in options.items()}  # a trainer wants a strategy of its own
    engine = trainer(folder, watchers, max_steps=steps, **options)
    engine.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return engine


FULL, LORA = Backbone("tiny"), Backbone("tiny", lora=LoRA(4, 8))
SHARDED = partial(FSDP2, compute=None)
KINDS = {  # name -> (how to train, what, over processes)
    "dpo-lora": (preferences, LORA, "ddp"),
    "dpo-sharded": (preferences, FULL, SHARDED),
    "nft-lora": (rewards, LORA, "ddp"),
    "nft-sharded": (rewards, FULL, SHARDED),
    "nft-full": (rewards, FULL, "ddp"),
}


def both_ways(folder, kind):
    """Four steps in one go, and two and two."""
    train, backbone, strategy = KINDS[kind]
    wide = {"devices": 2, "strategy": strategy}
    straight = train(folder / "straight", 4, backbone, **wide)
    train(folder / "begun", 2, backbone, **wide)
    again = train(folder / "resumed", 4, backbone, folder / "begun" / "step_00000002.ckpt", **wide)
    return [straight, again]


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = {kind: both_ways(place / kind, kind) for kind in sys.argv[2:]}
    if torch.distributed.get_rank() == 0:
        (place / "found.json").write_text(json.dumps(found))
