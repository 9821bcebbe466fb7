"""DiffusionNFT on two gloo processes: as on one, bit-exact after a stop, with all weights, an adapter, and sharded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from firered_lit.sharded import read

SCRIPT = Path(__file__).with_name("nft_ranks.py")
KINDS = ["lora", "sharded", pytest.param("full", marks=pytest.mark.slow)]


def weights(folder, step=4):
    path = folder / f"step_{step:08d}.ckpt"
    if path.is_dir():
        return read(path, ["state_dict"])["state_dict"]
    return torch.load(path, weights_only=True)["state_dict"]


def launch(folder, *kinds):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(SCRIPT)]
    with (folder / "said").open("w") as said:
        run = [*command, str(folder), *kinds]
        done = subprocess.run(run, stdout=said, stderr=said, env=environment, timeout=280)
    assert done.returncode == 0, (folder / "said").read_text()[-4000:]
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("ranks"), "lora", "sharded")


@pytest.fixture(scope="module")
def place(kind, quick, tmp_path_factory):
    return launch(tmp_path_factory.mktemp("ranks"), kind) if kind == "full" else quick


@pytest.mark.parametrize("kind", KINDS, scope="module")
def test_stopped_and_resumed_is_bit_exact(place, kind):
    straight, resumed = (weights(place / kind / name) for name in ("straight", "resumed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    before = weights(place / kind / "straight", 2)
    assert any(not torch.equal(before[k], straight[k]) for k in straight if k.startswith("transformer."))
    assert any(not torch.equal(before[k], straight[k]) for k in straight if k.startswith("old."))
    numbers = json.loads((place / "found.json").read_text())[kind]
    assert numbers[0] == numbers[1]


@pytest.mark.parametrize("kind", KINDS, scope="module")
def test_two_processes_learn_what_one_learns(place, kind, tmp_path, monkeypatch):
    """The same groups, draws, optimality over all of them, and gradient; only the order of sums differs."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import nft_ranks

    backbone = nft_ranks.KINDS[kind]["backbone"]
    numbers = nft_ranks.run(tmp_path, 4, backbone)
    theirs = json.loads((place / "found.json").read_text())[kind][0]
    assert theirs.keys() == numbers.keys()
    for name, value in numbers.items():
        assert theirs[name] == pytest.approx(value, rel=2e-2, abs=1e-4), name
    start = {f"transformer.{k}": v for k, v in backbone.load(5).state_dict().items()}
    alone, together = weights(tmp_path), weights(place / kind / "straight")
    moved = sum(float((alone[k] - start[k]).square().sum()) for k in alone if k in start)
    apart = sum(float((alone[k] - together[k]).square().sum()) for k in alone if k in start)
    assert moved > 0
    assert apart < 1e-4 * moved
