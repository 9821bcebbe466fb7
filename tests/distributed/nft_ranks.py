"""DiffusionNFT in each process of one torchrun, in one go and stopped and resumed: nft_ranks.py FOLDER KIND ..."""

import json
import sys
from functools import partial
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toy_prompts import PromptData, trainer

from callbacks.checkpoint import Checkpoint
from callbacks.pixel_reward import PixelReward
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.stages.nft import NFT
from firered_lit.strategy import FSDP2

torch.set_num_threads(1)


def run(folder, steps, backbone, resume=None, **options):
    """Train; returns the last iteration's numbers."""
    sgd = partial(torch.optim.SGD, lr=1.0)  # linear in the gradient: what differs is seen, and rounding stays rounding
    module = NFT(
        backbone, sgd, group_size=3, rollout_steps=2, points=2, updates=1, kl=0.01, std="batch", gradient_clip=10.0,
        decay=lambda n: min(0.2 * n, 0.9), seed=5,
    )  # fmt: skip
    options = {k: v() if callable(v) else v for k, v in options.items()}  # a trainer wants a strategy of its own
    engine = trainer(folder, [PixelReward(), Checkpoint(every=1, dir=str(folder))], max_steps=steps, **options)
    engine.fit(module, datamodule=PromptData(4), ckpt_path=resume, weights_only=True)
    return {k: float(v) for k, v in engine.logged_metrics.items() if "time/" not in k}


def both_ways(folder, backbone, **options):
    """Four steps in one go, and two and two."""
    straight = run(folder / "straight", 4, backbone, **options)
    run(folder / "begun", 2, backbone, **options)
    again = run(folder / "resumed", 4, backbone, folder / "begun" / "step_00000002.ckpt", **options)
    return [straight, again]


KINDS = {
    "full": {"backbone": Backbone("tiny"), "strategy": "ddp"},
    "lora": {"backbone": Backbone("tiny", lora=LoRA(4, 8)), "strategy": "ddp"},
    "sharded": {"backbone": Backbone("tiny"), "strategy": partial(FSDP2, compute=None)},
}

if __name__ == "__main__":
    place = Path(sys.argv[1])
    found = {kind: both_ways(place / kind, devices=2, **KINDS[kind]) for kind in sys.argv[2:]}
    if torch.distributed.get_rank() == 0:
        (place / "found.json").write_text(json.dumps(found))
