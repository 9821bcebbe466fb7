"""DPO on two gloo processes: ln 2 at the start, a reference sharded as the policy is, as on one process, resumed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from firered_lit.sharded import read

SCRIPT = Path(__file__).with_name("dpo_ranks.py")
KINDS = ["lora", "sharded"]


def weights(folder, step=4):
    path = folder / f"step_{step:08d}.ckpt"
    if path.is_dir():
        return read(path, ["state_dict"])["state_dict"]
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(SCRIPT)]
    with (folder / "said").open("w") as said:
        run = [*command, str(folder), *KINDS]
        done = subprocess.run(run, stdout=said, stderr=said, env=environment, timeout=280)
    assert done.returncode == 0, (folder / "said").read_text()[-4000:]
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_it_starts_at_ln_2_and_resumes_bit_for_bit_with_the_same_reference(place, kind):
    straight, resumed = json.loads((place / "found.json").read_text())[kind]
    assert straight["preference"][0] == pytest.approx(math.log(2), abs=1e-7)
    assert abs(straight["preference"][1] - math.log(2)) > 1e-4
    assert resumed["preference"] == straight["preference"][2:]
    first, second = (weights(place / kind / name) for name in ("straight", "resumed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert not any("reference" in name for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_learns(place, kind, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import dpo_ranks

    backbone = dpo_ranks.KINDS[kind]["backbone"]
    found = dpo_ranks.run(tmp_path, 4, backbone)
    held = json.loads((place / "found.json").read_text())[kind][0]["held"]
    if kind == "lora":
        assert held == found["held"] == 0  # the reference is the adapter switched off
    else:
        assert held == pytest.approx(found["held"] / 2, rel=0.02)
    start = {f"transformer.{k}": v for k, v in backbone.load(5).state_dict().items()}
    alone, together = weights(tmp_path), weights(place / kind / "straight")
    moved = sum(float((alone[k] - start[k]).square().sum()) for k in alone if k in start)
    apart = sum(float((alone[k] - together[k]).square().sum()) for k in alone if k in start)
    assert moved > 0
    assert apart < 1e-4 * moved
