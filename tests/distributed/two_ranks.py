"""A training of two gloo processes, started by test_two_ranks.py: python two_ranks.py FOLDER WHAT RANK."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from toy_run import Edits, Toy, trainer

import callbacks.signals
from callbacks.checkpoint import Checkpoint
from callbacks.grids.sample_grid import SampleGrid
from callbacks.progress import Progress
from callbacks.signals import Signals
from callbacks.throughput import Throughput
from firered_lit.checkpoints.checkpoint import resolve
from firered_lit.run.tracking import MLflow

torch.set_num_threads(1)
folder, what, culprit = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])


class Mine(Edits):
    """Every rank its own samples."""

    def batch(self, step):
        return super().batch(1000 * int(os.environ.get("LOCAL_RANK", 0)) + step)


def act(module, phase, index):
    if module.trainer.global_rank != culprit or module.global_step < 3:
        return
    (folder / "culprit").touch()
    if what == "raise" and phase == "train":
        raise ArithmeticError(f"planted on rank {culprit}")
    if what == "raise-in-validation" and phase == "val":
        raise ArithmeticError(f"planted on rank {culprit}")
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "signal" and phase == "train":
        os.kill(os.getpid(), signal.SIGTERM)
    if what == "signal-in-validation" and phase == "val":
        os.kill(os.getpid(), signal.SIGUSR1)


callbacks.signals._PATIENCE = 3.0
if what == "raise":  # what keeps a failed process alive, and its connections open: a thread that still works
    threading.Thread(target=time.sleep, args=(100,)).start()
signals = Signals()
watchers = [signals, SampleGrid(rows=3, side=32), Throughput(every=2), Progress(every=1), Checkpoint(every=100)]
run = trainer(
    folder,
    watchers,
    devices=2,
    strategy="ddp",
    logger=MLflow(dir=str(folder)),
    max_steps=8,
    num_sanity_val_steps=-1,
    val_check_interval=4,
)
module = Toy(act)
start = resolve(folder, "last")
run.fit(module, Mine(6), Mine(2, validation=True), ckpt_path=start, weights_only=True)
print(
    f"rank {run.global_rank}: {run.global_step} steps, code {signals.exit_code}, stopping {signals.stopping}",
    flush=True,
)
time.sleep(0.5)
sys.exit(signals.exit_code or 0)
