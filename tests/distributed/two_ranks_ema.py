"""Two gloo processes for test_two_ranks_ema.py: python two_ranks_ema.py FOLDER. Run by Lightning's launcher."""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit" / "callbacks"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from test_ema import History, drive, flat, slow
from toy_run import Edits, Toy, trainer

from callbacks.checkpoint import Checkpoint
from callbacks.ema import EMA
from firered_lit.checkpoints.checkpoint import newest

torch.set_num_threads(1)
folder = Path(sys.argv[1])


class Mine(Edits):
    """Every rank its own samples."""

    def batch(self, step):
        return super().batch(1000 * int(os.environ.get("LOCAL_RANK", 0)) + step)


def fit(name, steps, resume=None):
    ema, history = EMA(decay=0.9, validate=True), History()
    callbacks = [ema, history, Checkpoint(every=2)]
    run = trainer(folder / name, callbacks, devices=2, strategy="ddp", logger=False, max_steps=steps)
    run.fit(Toy(), Mine(6), Mine(2, validation=True), ckpt_path=resume, weights_only=True)
    return ema, history, run


def same_everywhere(tensor):
    both = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(both, tensor.contiguous())
    return torch.equal(*both)


whole, history, run = fit("whole", 6)
assert torch.allclose(flat(whole.shadow), slow(history, 0.9), atol=1e-7), "formula"
assert same_everywhere(flat(whole.shadow)), "ranks differ"
fit("half", 2)
again, _, _ = fit("half", 6, newest(folder / "half"))
assert all(torch.equal(again.shadow[k], whole.shadow[k]) for k in whole.shadow), "resume"
saved = torch.load(newest(folder / "whole"), weights_only=True)["ema"]["weights"]
assert all(torch.equal(saved[k], whole.shadow[k]) for k in whole.shadow), "saved"

expected = drive(Toy(), EMA(decay=0.9), trainer(folder, [], logger=False), steps=5)["ema"]["weights"]
module, ema = Toy(), EMA(decay=0.9)
fully_shard(module.net, mesh=init_device_mesh("cpu", (2,)))
checkpoint = drive(module, ema, trainer(folder, [], logger=False), steps=5)
shards = ema.shadow["net.weight"]
assert shards._local_tensor.shape == (8, 16), "every rank holds half"
saved = {k: tensor.full_tensor() for k, tensor in checkpoint["ema"]["weights"].items()}
assert all(torch.equal(saved[k], expected[k]) for k in expected), "sharded"
fresh = EMA(decay=0.9)
fresh.on_load_checkpoint(None, module, {"ema": {"updates": 5, "weights": saved}})
fresh.on_train_start(trainer(folder, [], logger=False), module)
assert all(torch.equal(fresh.shadow[k]._local_tensor, ema.shadow[k]._local_tensor) for k in expected), "loaded"
print(f"rank {run.global_rank}: all right", flush=True)
