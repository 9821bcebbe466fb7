"""Reinforcement learning from the command line: the tiny recipes run, survive kill -9 bit for bit, and export."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from process import Process

from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main

QUICK = ["run.validate_every=null", "logger=null", "callbacks.progress=null", "data.workers=1"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(newest(run), weights_only=True)["state_dict"]


def steps(run: Path) -> int:
    found = newest(run)
    return int(found.stem.removeprefix("step_")) if found else 0


SLOW = [("nft_lora", 1), ("nft", 2), ("nft_lora", 2)]


def kill(process: Process) -> None:
    """SIGKILL to a run and, first, to the processes that it started."""
    children = Path(f"/proc/{process.popen.pid}/task/{process.popen.pid}/children").read_text().split()
    for number in map(int, children):
        os.kill(number, signal.SIGKILL)
    process.send(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(("recipe", "ranks"), [("nft", 1), *(pytest.param(*x, marks=pytest.mark.slow) for x in SLOW)])
def test_killed_at_any_iteration_and_resumed_is_bit_exact(
    recipe: str, ranks: int, world: Path, launch: Callable[..., Process], tmp_path: Path
) -> None:
    arguments = ["fit", "--recipe", f"recipes/tiny/{recipe}.yaml", f"data.root={world}", *QUICK, "checkpoint.every=1"]
    arguments += ["trainer.max_steps=6", "stage.group_size=2", "stage.rollout_steps=2", "data.groups=2"]
    arguments += ["stage.decay={_target_: firered_lit.losses.nft.old_policy_decay, _partial_: true, rate: 0.1}"]
    arguments += [f"trainer.devices={ranks}", "trainer.strategy=ddp"] if ranks > 1 else []
    straight = launch(*arguments, f"run.dir={tmp_path / 'straight'}")
    killed = launch(*arguments, f"run.dir={tmp_path / 'killed'}")
    at = random.Random(f"{recipe} {ranks}").randint(1, 4)
    killed.until(lambda: steps(tmp_path / "killed") >= at)
    kill(killed)
    assert 0 < steps(tmp_path / "killed") < 6, "killed too late to show anything"
    assert straight.wait() == 0, straight.output
    again = launch(*arguments, f"run.dir={tmp_path / 'killed'}", "run.resume=last")
    assert again.wait() == 0, again.output
    first, second = weights(tmp_path / "straight"), weights(tmp_path / "killed")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    policy = {k.removeprefix("transformer.").replace(".", "/"): v for k, v in first.items() if k[:12] == "transformer."}
    old = {k.removeprefix("old.values."): v for k, v in first.items() if k.startswith("old.")}
    assert any(not torch.equal(policy[k], old[k]) for k in old)


def test_the_lora_recipe_runs_with_everything_and_exports(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    fit = ["fit", "--recipe", "recipes/tiny/nft_lora.yaml", f"data.root={world}", f"run.dir={run}"]
    fit += ["trainer.max_steps=2", "run.validate_every=2", "callbacks.reward_grid.every=2", "data.held_out_max=1"]
    fit += ["stage.group_size=2", "data.groups=2", "stage.preview.steps=1", "data.workers=0"]
    assert main(fit) == 0
    assert (run / "rollouts" / "step_00000002.png").exists()
    assert (run / "samples" / "step_00000002.png").exists()
    assert "val/loss" in (run / "summary.txt").read_text()
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "model")]) == 0


REFUSED = {
    "callbacks.reward=null": "needs a reward",
    "stage.group_size=1": "at least 2",
    "stage.weights={ocr: 1.0}": "name each reward once",
    "data.groups=0": "data.groups: expected a number >= 1, got 0",
    "trainer.gradient_clip_val=1.0": "trainer.gradient_clip_val: this stage clips by itself",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_what_cannot_work_is_one_line_and_exit_code_2(
    setting: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    fit = ["fit", "--recipe", "recipes/tiny/nft.yaml", f"data.root={world}", f"run.dir={tmp_path / 'run'}", *QUICK]
    assert main([*fit, setting]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert REFUSED[setting] in error
    assert not (tmp_path / "run" / "checkpoints").exists()
