"""What an earlier version made opens, resumes, exports and mines with this one."""

import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).resolve().parents[1] / "old_work"))
from opened import unpack

from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "tiny"
QUICK = ["data.workers=0", "callbacks.progress=null", "run.validate_every=null"]


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture(autouse=True)
def _in_the_old_folder(old: Path, monkeypatch: pytest.MonkeyPatch, _in_the_repository: None) -> None:
    monkeypatch.chdir(old)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("run", ["lora", "full"])
def test_a_run_exports_what_it_exported(run: str, old: Path, tmp_path: Path) -> None:
    assert main(["export", "--run", run, "--out", str(tmp_path / "export")]) == 0
    for kept in (old / f"export_{run}").rglob("*.safetensors"):
        if kept.parent.name in ("vae", "text_encoder"):
            continue
        before = load_file(kept)
        after = load_file(tmp_path / "export" / kept.relative_to(old / f"export_{run}"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("run", ["lora", "full"])
def test_a_run_goes_on_by_its_own_recipe(run: str, old: Path) -> None:
    """Two steps lie there; the third one starts from their weights, moments and place in the data."""
    before = torch.load(newest(old / run), weights_only=True)
    go_on = ["run.resume=last", "trainer.max_steps=3", *QUICK]
    assert main(["fit", "--recipe", f"{run}/recipe.yaml", *go_on]) == 0
    after = torch.load(newest(old / run), weights_only=True)
    assert after["global_step"] == 3
    assert before["state_dict"].keys() == after["state_dict"].keys()
    assert {int(state["step"]) for state in after["optimizer_states"][0]["state"].values()} == {3}
    moved = [not torch.equal(before["state_dict"][k], after["state_dict"][k]) for k in before["state_dict"]]
    assert any(moved)
    kept = [(before["state_dict"][k] - after["state_dict"][k]).abs().max() for k in before["state_dict"]]
    assert max(kept) < 0.02, "the third step starts from the two before"


def test_a_prepared_folder_is_trained_on_and_checked(old: Path, tmp_path: Path) -> None:
    assert main(["check", "--data", "data"]) == 0
    new = ["fit", "--recipe", f"{RECIPES}/sft.yaml", "data.root=data", f"run.dir={tmp_path}"]
    assert main([*new, *QUICK, "logger=null", "trainer.max_steps=1"]) == 0


def test_a_prepared_folder_is_recognised_by_prepare(old: Path, capfd) -> None:
    chunks = {path: path.read_bytes() for path in (old / "data" / "chunks").iterdir()}
    again = ["prepare", "--recipe", f"{RECIPES}/prepare.yaml", "source=source", "out=data"]
    assert main([*again, "keep_images=true", "held_out=0.2"]) == 0
    assert chunks == {path: path.read_bytes() for path in (old / "data" / "chunks").iterdir()}


def test_a_mined_folder_takes_another_rule_without_new_edits(old: Path) -> None:
    edits = (old / "mined" / "found" / "0.jsonl").read_bytes()
    half = statistics.median(row["reward"]["mean"] for row in lines(old / "mined" / "manifest.jsonl"))
    band = f"{{_target_: firered_lit.mine.spread.Band, least_mean: {half}, most_low: 1, least_std: 0}}"
    mine = ["mine", "--recipe", f"{RECIPES}/mine_semi_hard.yaml", "task.data.root=data", "out=mined"]
    mine += ["task.draws=2", "task.steps=1", "task.data.limit=4"]
    assert main([*mine, f"task.band={band}"]) == 0
    assert (old / "mined" / "found" / "0.jsonl").read_bytes() == edits
    assert [row["kept"] for row in lines(old / "mined" / "manifest.jsonl")].count(True) == 2


def test_reinforcement_starts_from_an_old_export_and_old_mining(old: Path, tmp_path: Path) -> None:
    small = ["stage.group_size=2", "stage.rollout_steps=1", "data.groups=1", "trainer.max_steps=1", "logger=null"]
    nft = ["fit", "--recipe", f"{RECIPES}/nft.yaml", "data.root=data", f"run.dir={tmp_path}"]
    assert main([*nft, "run.start_from=export_full", *small, *QUICK]) == 0


def test_an_export_edits_a_picture(old: Path, tmp_path: Path) -> None:
    picture = next((old / "source").rglob("*_source0.png"))
    edit = ["edit", "--image", str(picture), "--prompt", "Make it red", "--steps", "1", "--guidance", "1"]
    assert main([*edit, "--model", "export_full", "--out", str(tmp_path / "full.png")]) == 0
    assert main([*edit, "--model", "tiny", "--lora", "export_lora", "--out", str(tmp_path / "lora.png")]) == 0
    assert (tmp_path / "full.png").read_bytes() != (tmp_path / "lora.png").read_bytes()
