"""DPO by its recipes: from another stage's run, ln 2 at the first step, resumed to the last bit, exported, edited."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from datamodules.synthetic import write_pairs
from firered_lit.checkpoints.average import average
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.config import build, recipe
from firered_lit.models.family import open_base

QUICK = ["run.validate_every=null", "callbacks.progress=null", "data.workers=0"]
LN2 = math.log(2)
BOTH = pytest.mark.parametrize("kind", ["dpo", "dpo_lora"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four preference pairs of one and two references, prepared for the tiny base."""
    folder = tmp_path_factory.mktemp("pairs")
    write_pairs(folder / "source", 24)
    made = [f"source={folder / 'source' / 'pairs.jsonl'}", f"out={folder / 'data'}"]
    assert main(["prepare", "--recipe", "recipes/tiny/prepare.yaml", *made, "held_out=0.25"]) == 0
    return folder / "data"


def fit(kind: str, data: Path, run: Path, steps: int, *overrides: str, code: int = 0) -> list[dict[str, float]]:
    """Train in this process by a tiny recipe; the numbers of every step."""
    log = run.parent / f"{run.name}_log"
    shutil.rmtree(log, ignore_errors=True)
    logger = f"logger={{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: {log}, flush_logs_every_n_steps: 1}}"
    given = [f"data.root={data}", f"run.dir={run}", f"trainer.max_steps={steps}", logger]
    assert main(["fit", "--recipe", f"recipes/tiny/{kind}.yaml", *given, *QUICK, *overrides]) == code
    if code:
        return []
    with next(log.rglob("metrics.csv")).open() as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def column(rows: list[dict[str, float]], name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(newest(run), weights_only=True)["state_dict"]


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def tuned(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs of supervised fine-tuning, on the winners, of all weights and of a LoRA."""
    folder = tmp_path_factory.mktemp("tuned")
    for kind in ("sft", "sft_lora"):
        fit(kind, pairs, folder / kind, 4, "stage.optimizer.lr=1e-2", "data.capacity=1024")
    return lambda kind: folder / kind


@BOTH
@pytest.mark.parametrize("start", ["sft", "sft_lora"])
def test_the_preference_is_ln_2_at_the_start_whatever_it_starts_from(kind, start, pairs, tuned, tmp_path):
    base = open_base("tiny").transformer().state_dict()
    rows = fit(kind, pairs, tmp_path / "run", 3, f"run.start_from={tuned(start)}", "stage.optimizer.lr=1e-2")
    found = column(rows, "train/preference")
    assert found[0] == pytest.approx(LN2, abs=1e-7)
    assert column(rows, "train/win_diff")[0] == column(rows, "train/lose_diff")[0] == 0
    assert abs(found[2] - LN2) > 1e-4
    begun = open_base(str(tmp_path / "run" / "start")).transformer().state_dict()
    assert not equal(base, begun)
    if start == "sft":
        assert equal({f"transformer.{k}": v for k, v in begun.items()}, weights(tuned("sft")))


def test_every_term_is_logged_and_validated(pairs, tuned, tmp_path):
    more = [f"run.start_from={tuned('sft')}", "run.validate_every=2", "stage.preview.steps=1", "data.held_out_max=2"]
    rows = fit("dpo", pairs, tmp_path / "run", 2, *more)
    terms = ("loss", "preference", "accuracy", "win_diff", "lose_diff", "winner", "loser")
    for name in (*terms, "margin", "grad_norm"):
        assert len(column(rows, f"train/{name}")) == 2
    for name in (*terms, "psnr", "ssim"):
        assert math.isfinite(column(rows, f"val/{name}")[0])
    at_the_start, *_, at_the_end = column(rows, "val/preference")
    assert at_the_start == pytest.approx(LN2, abs=1e-6)
    assert at_the_end != pytest.approx(LN2, abs=1e-6)
    assert (tmp_path / "run" / "samples" / "step_00000002.png").exists()


def test_plain_dpo_is_two_overrides(pairs, tmp_path):
    asymmetric = fit("dpo", pairs, tmp_path / "a", 2)
    plain = fit("dpo", pairs, tmp_path / "b", 2, "stage.omega=1", "stage.sft_weight=0")
    assert column(plain, "train/loss")[0] == pytest.approx(LN2, abs=1e-7)
    first = asymmetric[0]
    assert first["train/loss"] == pytest.approx(LN2 + first["train/winner"], rel=1e-5)


@BOTH
def test_resumed_is_bit_exact(kind, pairs, tuned, tmp_path):
    """Also when the run that it started from has gone on, or has gone."""
    started = tmp_path / "sft"
    shutil.copytree(tuned("sft_lora"), started)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    options = [f"run.start_from={started}", "checkpoint.every=2", "data.workers=1"]
    expected = fit(kind, pairs, straight, 6, *options)
    fit(kind, pairs, stopped, 4, *options)
    shutil.rmtree(started)
    rest = fit(kind, pairs, stopped, 6, *options, "run.resume=last")
    assert column(rest, "train/preference") == column(expected, "train/preference")[4:]
    assert equal(weights(stopped), weights(straight))
    assert not equal(weights(stopped), weights(tuned("sft_lora")))


def test_another_start_is_refused_when_resuming(pairs, tuned, tmp_path, capfd):
    fit("dpo_lora", pairs, tmp_path / "run", 1, f"run.start_from={tuned('sft')}")
    again = [f"run.start_from={tuned('sft_lora')}", "run.resume=last"]
    fit("dpo_lora", pairs, tmp_path / "run", 2, *again, code=2)
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"this run began from {tuned('sft')}" in error


@pytest.mark.parametrize("start", ["run", "checkpoint", "average", "folder"])
def test_a_stage_starts_from_a_run_a_checkpoint_or_a_folder(start, pairs, tuned, tmp_path):
    at = {"run": tuned("sft_lora"), "checkpoint": newest(tuned("sft_lora"))}
    if start == "folder":
        at["folder"] = tmp_path / "model"
        assert main(["export", "--run", str(tuned("sft_lora")), "--out", str(at["folder"]), "--merge"]) == 0
    if start == "average":
        at["average"] = tmp_path / "mean.ckpt"
        average(str(tuned("sft_lora")), str(at["average"]), last=1)
    rows = fit("dpo", pairs, tmp_path / "run", 1, f"run.start_from={at[start]}")
    assert column(rows, "train/preference")[0] == pytest.approx(LN2, abs=1e-7)
    folder = at["folder"] if start == "folder" else tmp_path / "run" / "start"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["base_folder"] == str(folder)


@pytest.mark.parametrize(("make", "message"), [(False, "no such run"), (True, "neither a diffusers folder nor a run")])
def test_a_start_that_is_none_is_refused(make, message, pairs, tmp_path, capfd):
    if make:
        (tmp_path / "x").mkdir()
    fit("dpo", pairs, tmp_path / "run", 1, f"run.start_from={tmp_path / 'x'}", code=2)
    assert message in capfd.readouterr().err
    assert not (tmp_path / "run" / "start").exists()


def test_a_second_lora_is_exported_with_the_first_in_the_weights(pairs, tuned, tmp_path):
    """SFT LoRA -> DPO LoRA -> export --merge: base + first + second, and the edit verb takes it."""
    run, out = tmp_path / "run", tmp_path / "model"
    fit("dpo_lora", pairs, run, 2, f"run.start_from={tuned('sft_lora')}", "stage.optimizer.lr=1e-2")
    assert main(["export", "--run", str(run), "--out", str(out), "--merge"]) == 0
    stage = build.build(
        recipe.load("recipes/tiny/dpo_lora.yaml", [f"stage.backbone.name={run / 'start'}"]).root["stage"]
    )
    stage.configure_model()
    stage.load_state_dict(weights(run), strict=False)
    merged = open_base(str(out)).transformer().state_dict()
    layer = stage.transformer.transformer_blocks[0].attn.to_q
    expected = layer.base_layer.weight + layer.get_delta_weight("default")
    torch.testing.assert_close(merged["transformer_blocks.0.attn.to_q.weight"], expected)
    begun = open_base(str(run / "start")).transformer().state_dict()
    assert not equal(begun, merged)


def test_edits_without_losers_are_refused(world, tmp_path, capfd):
    fit("dpo", world, tmp_path / "run", 1, code=2)
    assert "have no loser; DPO needs pairs alone" in capfd.readouterr().err
