"""Each stage starts from the last one's output: pretraining, continued pretraining, SFT, DPO, NFT."""

import csv
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from datamodules.synthetic import write_pairs
from firered_lit import build, recipe
from firered_lit.checkpoint import newest
from firered_lit.cli import main
from firered_lit.draws import gaussian
from firered_lit.models import qwen_image
from firered_lit.models.family import open_base
from firered_lit.stages.nft import NFT

QUICK = ["run.validate_every=null", "logger=null", "callbacks.progress=null", "data.workers=0"]


def fit(recipe: str, data: Path, run: Path, *more: str) -> dict[str, torch.Tensor]:
    code = main(
        ["fit", "--recipe", f"recipes/tiny/{recipe}.yaml", f"data.root={data}", f"run.dir={run}", *QUICK, *more]
    )
    assert code == 0
    return torch.load(newest(run), weights_only=True)["state_dict"]


def test_the_supervised_chain(world: Path, tmp_path: Path) -> None:
    first = fit("pretrain", world, tmp_path / "pretrain", "trainer.max_steps=3")
    started = fit(
        "continued_pretrain", world, tmp_path / "zero", "trainer.max_steps=0", f"run.start_from={tmp_path / 'pretrain'}"
    )
    assert all(torch.equal(started[k], first[k]) for k in first)
    second = fit(
        "continued_pretrain", world, tmp_path / "ct", "trainer.max_steps=3", f"run.start_from={tmp_path / 'pretrain'}"
    )
    assert not all(torch.equal(second[k], first[k]) for k in first)
    third = fit("sft", world, tmp_path / "sft", "trainer.max_steps=0", f"run.start_from={tmp_path / 'ct'}")
    assert all(torch.equal(third[k], second[k]) for k in second)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "source", 8)
    made = [f"source={folder / 'source' / 'pairs.jsonl'}", f"out={folder / 'data'}", "held_out=0"]
    assert main(["prepare", "--recipe", "recipes/tiny/prepare.yaml", *made]) == 0
    return folder / "data"


def logged(folder: Path) -> list[str]:
    return [
        f"logger={{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: {folder}, flush_logs_every_n_steps: 1}}"
    ]


@pytest.mark.parametrize("kind", ["", "_lora"])
def test_dpo_starts_from_sft_and_nft_from_dpo(kind: str, world: Path, pairs: Path, tmp_path: Path) -> None:
    """ln 2 at DPO's first step; NFT's old policy, new policy and reference all are what DPO has left."""
    fit(f"sft{kind}", world, tmp_path / "sft", "trainer.max_steps=2", "stage.optimizer.lr=1e-2")
    more = ["stage.optimizer.lr=1e-2", *logged(tmp_path / "log")]
    fit(f"dpo{kind}", pairs, tmp_path / "dpo", "trainer.max_steps=2", f"run.start_from={tmp_path / 'sft'}", *more)
    with next((tmp_path / "log").rglob("metrics.csv")).open() as file:
        terms = [float(row["train/preference"]) for row in csv.DictReader(file) if row["train/preference"]]
    assert terms[0] == pytest.approx(math.log(2), abs=1e-7)
    small = ["stage.group_size=2", "stage.rollout_steps=1", "data.groups=1", "stage.kl=1e-3"]
    fit(f"nft{kind}", world, tmp_path / "nft", "trainer.max_steps=0", f"run.start_from={tmp_path / 'dpo'}", *small)
    start = open_base(str(tmp_path / "nft" / "start"))
    assert (
        main(["export", "--run", str(tmp_path / "dpo"), "--out", str(tmp_path / "model"), *["--merge"] * bool(kind)])
        == 0
    )
    left, base = open_base(str(tmp_path / "model")).transformer(), open_base("tiny").transformer()
    named = [f"stage.backbone.name={start.folder}", f"data.root={world}", f"run.dir={tmp_path / 'x'}", *small]
    stage: NFT = build.build(recipe.load(f"recipes/tiny/nft{kind}.yaml", named).root["stage"])
    stage.configure_model()
    stage.load_state_dict(torch.load(newest(tmp_path / "nft"), weights_only=True)["state_dict"], strict=not kind)
    same_velocity(stage, left, base, world)


@torch.no_grad()
def same_velocity(stage: NFT, left: torch.nn.Module, base: torch.nn.Module, data: Path) -> None:
    """Rollout, training and reference are the model that was left, and not the base."""
    built = build.build({"_target_": "datamodules.prepared.Prepared", "root": str(data)})
    batch = built[0][1]
    x, sigma = gaussian(batch.target.shape[1:], (0,), "x"), torch.tensor([0.6])
    expected = qwen_image.velocity(left, x, sigma, batch.condition)
    with stage.old.swapped_into(stage.transformer):
        torch.testing.assert_close(stage.velocity(x, sigma, batch.condition), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(stage.velocity(x, sigma, batch.condition), expected, rtol=0, atol=1e-6)
    with stage.reference["start"].swapped_into(stage.transformer):
        torch.testing.assert_close(stage.velocity(x, sigma, batch.condition), expected, rtol=0, atol=1e-6)
    assert (qwen_image.velocity(base, x, sigma, batch.condition) - expected).abs().max() > 1e-3


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_chain(root: Path, tmp_path: Path) -> None:
    """The whole chain as users call it, with few steps; the virtual environment is taken as it is."""
    settings = {"DEMO": tmp_path, "CHAIN_STEPS": 4, "CHAIN_DPO": 2, "CHAIN_NFT": 1, "PY": sys.executable}
    command = ["make", "-o", ".venv/.installed", "chain", *(f"{name}={value}" for name, value in settings.items())]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("1_pretrain", "2_continued", "3_sft", "4_dpo", "5_nft"):
        summary = (tmp_path / "chain" / name / "summary.txt").read_text()
        assert summary.strip() in done.stdout.split("edited.png:")[1]
        assert "look " in summary
    assert (tmp_path / "chain" / "edited.png").exists()
    assert "rollout/total/mean" in (tmp_path / "chain" / "5_nft" / "summary.txt").read_text()
