"""Each stage starts from the last one's output: pretraining, continued pretraining, SFT, DPO, NFT."""

import csv
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient

from datamodules.synthetic import write_pairs
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.config import build, recipe
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
    card = (tmp_path / "model" / "README.md").read_text()
    assert "base_model: tiny\nlicense: apache-2.0\n" in card
    assert str(tmp_path) not in card + (tmp_path / "model" / "transformer" / "config.json").read_text()
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


RUNS = ("1_pretrain", "2_continued", "3_sft", "4_dpo", "5_nft")
# A file that a step writes long before it ends, and the one that says that it has.
STEPS = {
    "curate": ("0_corpus/scores/row/00000.parquet", "0_corpus/selected.jsonl"),
    "prepare": ("data/prepare.json", "data/data.json"),
    **{run: (f"{run}/checkpoints/*.ckpt", f"{run}/summary.txt") for run in RUNS},
    "eval": ("eval/pictures/**/*.png", "eval.done"),
}


def started(root: Path, folder: Path) -> subprocess.Popen[str]:
    """Start the whole chain as users call it, with few steps; the virtual environment is taken as it is."""
    settings = {"DEMO": folder, "CHAIN_ROWS": 45, "CHAIN_STEPS": 8, "CHAIN_DPO": 6, "CHAIN_NFT": 4, "CHAIN_EVERY": 1}
    command = ["make", "-o", ".venv/.installed", "chain", f"PY={sys.executable}"]
    return subprocess.Popen(
        [*command, *(f"{name}={value}" for name, value in settings.items())],
        cwd=root,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
    )


def ended(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0, said[-3000:]
    return said


@pytest.fixture(scope="module")
def whole(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A chain that nothing disturbs, and what it says."""
    folder = tmp_path_factory.mktemp("chain")
    said = ended(started(root, folder / "now"))
    (folder / "now").rename(folder / "whole")
    return folder, said


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_chain(whole: tuple[Path, str]) -> None:
    """From raw rows to an evaluation."""
    chain, said = whole[0] / "whole" / "chain", whole[1]
    for name in RUNS:
        summary = (chain / name / "summary.txt").read_text()
        assert summary.strip() in said.split("edited.png:")[1]
        assert "look " in summary
    assert (chain / "edited.png").exists()
    assert "rollout/total/mean" in (chain / "5_nft" / "summary.txt").read_text()
    scores = json.loads(next((chain / "eval").glob("models/*/scores.json")).read_text())
    assert scores["world"]["strict"]["overall"]["scored"] == 30
    card = (chain / "model" / "README.md").read_text()
    assert "How its rows were chosen" in card
    assert str(whole[0]) not in card


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_a_chain_whose_every_step_was_killed_once_comes_to_the_same(root: Path, whole: tuple[Path, str]) -> None:
    """The same decisions, weights and drawn pictures; one MLflow experiment, each run below the one that it is from."""
    chain = whole[0] / "now" / "chain"
    for step, (begun, done) in STEPS.items():
        process = started(root, whole[0] / "now")
        while not list(chain.glob(begun)):
            assert process.poll() is None, process.communicate()[0][-3000:]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (chain / done).exists(), f"{step} was killed too late"
    ended(started(root, whole[0] / "now"))

    # The same as undisturbed.
    before = whole[0] / "whole" / "chain"
    same = ["0_corpus/decisions.parquet", "0_corpus/selected.jsonl", "model/transformer/*.safetensors", "edited.png"]
    for pattern in (*same, "eval/pictures/**/*.png"):
        files = sorted(path.relative_to(before) for path in before.glob(pattern))
        assert files, pattern
        for file in files:
            assert (chain / file).read_bytes() == (before / file).read_bytes(), file

    # Each run names the one that it is from.
    client = MlflowClient(f"sqlite:///{chain / 'mlflow.db'}")
    runs = {run.data.tags["mlflow.runName"]: run for run in client.search_runs(["1"])}
    assert set(runs) == {"0_corpus", *RUNS}, "each was continued, none begun again"
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    for parent, child in itertools.pairwise(["0_corpus", *RUNS]):
        assert runs[child].data.tags["mlflow.parentRunId"] == runs[parent].info.run_id
    assert runs["5_nft"].data.metrics["evaluation/world/strict/items/scored"] == 30
