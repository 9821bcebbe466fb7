"""DPO and DiffusionNFT on two gloo processes: as on one, bit-exact after a stop, with an adapter, sharded and whole."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from firered_lit.checkpoints.sharded import read

SCRIPT = Path(__file__).with_name("ranks.py")
QUICK = ["dpo-lora", "dpo-sharded", "nft-lora", "nft-sharded"]
KINDS = [*QUICK, pytest.param("nft-full", marks=pytest.mark.slow)]


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
    return launch(tmp_path_factory.mktemp("ranks"), *QUICK)


@pytest.fixture(scope="module")
def place(kind, quick, tmp_path_factory):
    return quick if kind in QUICK else launch(tmp_path_factory.mktemp("ranks"), kind)


@pytest.fixture
def ranks(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import ranks

    return ranks


@pytest.mark.parametrize("kind", KINDS, scope="module")
def test_stopped_and_resumed_is_bit_exact(place, kind):
    straight, resumed = (weights(place / kind / name) for name in ("straight", "resumed"))
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[k], resumed[k]) for k in straight)
    before = weights(place / kind / "straight", 2)
    moving = ["transformer."] + ["old."] * kind.startswith("nft")
    for part in moving:
        assert any(not torch.equal(before[k], straight[k]) for k in straight if k.startswith(part))
    first, second = json.loads((place / "found.json").read_text())[kind]
    if kind.startswith("nft"):
        assert first == second
    else:
        assert first["preference"][2:] == second["preference"]


@pytest.mark.parametrize("kind", QUICK[:2], scope="module")
def test_dpo_starts_at_ln_2_and_saves_no_reference(place, kind):
    straight, _ = json.loads((place / "found.json").read_text())[kind]
    assert straight["preference"][0] == pytest.approx(math.log(2), abs=1e-7)
    assert abs(straight["preference"][1] - math.log(2)) > 1e-4
    assert not any("reference" in name for name in weights(place / kind / "straight"))


@pytest.mark.parametrize("kind", KINDS, scope="module")
def test_two_processes_learn_what_one_learns(place, kind, tmp_path, ranks):
    """The same groups, draws, optimality over all of them, and gradient; only the order of sums differs."""
    train, backbone, _ = ranks.KINDS[kind]
    numbers = train(tmp_path, 4, backbone)
    theirs = json.loads((place / "found.json").read_text())[kind][0]
    assert theirs.keys() == numbers.keys()
    if kind.startswith("nft"):
        for name, value in numbers.items():
            assert theirs[name] == pytest.approx(value, rel=2e-2, abs=1e-4), name
    elif kind == "dpo-lora":
        assert theirs["held"] == numbers["held"] == 0  # the reference is the adapter switched off
    else:
        assert theirs["held"] == pytest.approx(numbers["held"] / 2, rel=0.02)
    start = {f"transformer.{k}": v for k, v in backbone.load(5).state_dict().items()}
    alone, together = weights(tmp_path), weights(place / kind / "straight")
    moved = sum(float((alone[k] - start[k]).square().sum()) for k in alone if k in start)
    apart = sum(float((alone[k] - together[k]).square().sum()) for k in alone if k in start)
    assert moved > 0
    assert apart < 1e-4 * moved
