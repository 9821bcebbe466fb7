"""A task of SLURM: known by its variables, saved and left with the code that the batch script requeues on."""

import os
import re
import signal
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.plugins.environments import SLURMEnvironment

from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main

TASK = {
    "JOB_ID": "71", "JOB_NAME": "sft", "NTASKS": "1", "NTASKS_PER_NODE": "1", "PROCID": "0", "LOCALID": "0",
    "NODEID": "0", "NODELIST": "localhost", "JOB_NUM_NODES": "1",
}  # fmt: skip


class Preempted(L.Callback):
    """SLURM's signal in the middle of a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert isinstance(trainer._accelerator_connector.cluster_environment, SLURMEnvironment)
        if trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)


@pytest.fixture
def slurm(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in TASK.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def command(world, run, *more):
    quiet = ["logger=null", "callbacks.grid=null", "run.validate_every=null", "data.workers=0", "trainer.max_steps=4"]
    places = [f"data.root={world}", f"run.dir={run}", "run.resume=last"]
    return ["fit", "--recipe", "recipes/tiny/sft.yaml", "--allow", "test_slurm", *places, *quiet, *more]


def test_a_preempted_task_asks_to_be_requeued_and_goes_on(world, tmp_path, slurm):
    """The same command for both attempts; the first one finds no checkpoint and starts from scratch."""
    preempted = "callbacks.preempted={_target_: test_slurm.Preempted}"
    assert main(command(world, tmp_path / "run", preempted)) == 75
    assert newest(tmp_path / "run").name == "step_00000003.ckpt"
    assert main(command(world, tmp_path / "run")) == 0
    assert newest(tmp_path / "run").name == "step_00000004.ckpt"


def test_the_batch_script_requeues_on_that_code(root):
    """What docs/scaling.md shows is a script that bash can read, with the code that `fit` leaves with."""
    from callbacks.signals import REQUEUE

    text = (root / "docs" / "scaling.md").read_text(encoding="utf-8")
    script = re.search(r"```bash\n(.*?)```", text, re.S)[1]
    assert f'"$code" -eq {REQUEUE}' in script
    assert "--signal=USR1@" in script
    assert os.system(f"bash -n <<'END'\n{script}\nEND") == 0
