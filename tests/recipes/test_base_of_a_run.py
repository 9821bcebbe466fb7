"""A run keeps to the base that it began with, and a refused one leaves everything as it was."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file, save_file

from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO, newest, read_facts
from firered_lit.checkpoints.lineage import facts_of, recorded, refuse_other_base
from firered_lit.cli import main
from firered_lit.models.family import open_base
from firered_lit.run.store import read_record

ROOT = Path(__file__).resolve().parents[2]
LORA = ["fit", "--recipe", str(ROOT / "recipes" / "tiny" / "sft_lora.yaml")]
QUICK = ["run.validate_every=null", "callbacks.progress=null", "callbacks.grid=null", "data.workers=0"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of one base: `own`; `flipped`, with another zero_cond_t; `other`, with one weight changed."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("own", "flipped", "other"):
        shutil.copytree(open_base("tiny").folder, folder / name)
    config = folder / "flipped" / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"zero_cond_t": False}))
    (weights,) = (folder / "other" / "transformer").glob("*.safetensors")
    tensors = load_file(weights)
    tensors["proj_out.bias"][0] += 1
    save_file(tensors, weights)
    return folder


@pytest.fixture(scope="module")
def trained(world: Path, models: Path) -> Path:
    """Two steps of a LoRA over a base that is named by a relative path."""
    work = models / "work"
    work.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        base = "stage.backbone.name=../own"
        assert (
            main([*LORA, *QUICK, f"data.root={world}", f"run.dir={models / 'run'}", base, "trainer.max_steps=2"]) == 0
        )
    return models / "run"


def content(folder: Path) -> dict[str, str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def record_of(run: Path) -> tuple[str, dict[str, str], dict[str, str]]:
    facts = read_record(run)
    found = MlflowClient(facts["mlflow_uri"]).get_run(facts["mlflow_run_id"])
    return found.info.status, found.data.tags, found.data.params


REFUSED = {
    "the config": (["flipped"], r"trained over \.\./own, and .*flipped is another model \(its zero_cond_t is False"),
    "the weights": (
        ["other"],
        r"other is another model \(its transformer differs\); set stage\.backbone\.name=\.\./own",
    ),
    "the adapter": (["own", "stage.backbone.lora.alpha=7"], "the checkpoint's LoRA has alpha 16, the recipe's 7"),
    "the shapes": (["own", "stage.backbone.lora.rank=3"], "another architecture"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_resume_that_is_refused_changes_nothing(what: str, world: Path, models: Path, trained: Path, capfd) -> None:
    (name, *more), said = REFUSED[what]
    before, recorded_before = content(trained), record_of(trained)
    assert recorded_before[0] == "FINISHED"
    arguments = [*LORA, *QUICK, f"data.root={world}", f"run.dir={trained}", f"stage.backbone.name={models / name}"]
    assert main([*arguments, *more, "run.resume=last", "trainer.max_steps=4"]) == 2
    (line,) = [text for text in capfd.readouterr().err.splitlines() if "error:" in text]
    assert re.search(said, line), line
    assert content(trained) == before
    assert record_of(trained) == recorded_before


def test_a_new_run_that_is_refused_leaves_no_record(world: Path, models: Path, tmp_path: Path) -> None:
    """The data is planned when the trainer is at work already."""
    arguments = [*LORA, *QUICK, f"data.root={world}", f"run.dir={tmp_path / 'run'}", "data.capacity=1"]
    assert main([*arguments, "trainer.max_steps=1"]) == 2
    assert list((tmp_path / "run").rglob("*")) == []


def test_a_relative_base_is_found_from_any_folder(world: Path, trained: Path, tmp_path: Path, monkeypatch) -> None:
    """By resume, export, export --merge, average and start_from; the checkpoint alone knows it too."""
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    monkeypatch.chdir(tmp_path)
    again = ["fit", "--recipe", str(run / "recipe.yaml"), f"run.dir={run}", f"logger.dir={run}", "logger=null"]
    assert main([*again, "run.resume=last", "trainer.max_steps=3"]) == 0
    assert read_record(run)["base"] == "../own"
    assert main(["average", "--run", str(run), "--last", "2", "--out", "elsewhere/mean.ckpt"]) == 0
    for number, more in enumerate(([], ["--merge"], ["--checkpoint", "elsewhere/mean.ckpt", "--merge"])):
        assert main(["export", "--run", str(run), "--out", f"export{number}", *more]) == 0
    new = [*LORA, *QUICK, f"data.root={world}", "logger=null", "trainer.max_steps=0"]
    for number, start in enumerate((str(run), "elsewhere/mean.ckpt")):
        assert main([*new, f"run.dir=new{number}", f"run.start_from={start}"]) == 0
        assert (tmp_path / f"new{number}" / "start" / "model_index.json").exists()


def test_a_base_that_was_changed_in_its_place_is_not_merged_into(
    trained: Path, models: Path, tmp_path: Path, capfd
) -> None:
    config = models / "own" / "transformer" / "config.json"
    before = config.read_text()
    config.write_text(json.dumps(json.loads(before) | {"zero_cond_t": False}))
    try:
        assert main(["export", "--run", str(trained), "--out", str(tmp_path / "out"), "--merge"]) == 2
    finally:
        config.write_text(before)
    line = capfd.readouterr().err
    assert "is another model (its zero_cond_t is False, not True, its transformer differs)" in line
    assert "put the model back" in line
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_an_earlier_version_is_held_against_its_runs_record(
    trained: Path, models: Path, tmp_path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    path = newest(run)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["base"]
    torch.save(checkpoint, path)
    own = open_base(str(models / "own"))
    found = AtomicCheckpointIO().load_checkpoint(path)["base"]
    assert found == read_facts(path) == recorded(path) == facts_of(own) | {"name": "../own"}
    refuse_other_base(found, own, path)
    with pytest.raises(Exception, match="another model"):
        refuse_other_base(found, open_base(str(models / "other")), path)

    # Its base is gone: nothing to compare by, which is worth a line.
    record = read_record(run) | {"base_folder": str(tmp_path / "gone")}
    (run / "run.json").write_text(json.dumps(record))
    assert read_facts(path) == {"name": "../own", "folder": str(tmp_path / "gone")}
    with pytest.warns(UserWarning, match=r"trained over \.\./own, which is not there to be compared"):
        refuse_other_base(read_facts(path), own, path)


def test_a_start_that_no_checkpoint_was_trained_from_may_be_changed(world: Path, trained: Path, tmp_path: Path) -> None:
    """A run that was refused before its first checkpoint has not begun."""
    run = tmp_path / "run"
    new = [*LORA, *QUICK, f"data.root={world}", f"run.dir={run}", "logger=null", "stage.backbone.name=tiny"]
    first = f"run.start_from={trained / 'checkpoints' / 'step_00000001.ckpt'}"
    assert main([*new, first, "data.capacity=1", "trainer.max_steps=1"]) == 2
    assert main([*new, f"run.start_from={trained}", "trainer.max_steps=1"]) == 0
    note = json.loads((run / "start" / "start.json").read_text())
    assert note["start_from"] == str(trained)
    assert main([*new, first, "run.resume=last", "trainer.max_steps=2"]) == 2
