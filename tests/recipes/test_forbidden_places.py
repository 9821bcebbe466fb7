"""Where nothing can be written, and where a record is damaged: one line, exit code 2, before any work is lost."""

import json
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from callbacks.checkpoint import Checkpoint
from datamodules.synthetic import write
from firered_lit.checkpoints.checkpoint import resolve
from firered_lit.cli import main
from firered_lit.errors import UserError
from firered_lit.run.store import read_record

FORBIDDEN = ["/proc/nothing/out", "/dev/null/out", "under a file"]


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture):
    """Runs a command that must end with exit code 2; returns its last line."""

    def run(*arguments: str) -> str:
        capfd.readouterr()
        assert main([*arguments]) == 2, capfd.readouterr().err
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert said.startswith("error: ")
        return said

    return run


def at(place: str, folder: Path) -> str:
    """The forbidden place; one under a file is made."""
    if place.startswith("/"):
        return place
    (folder / "file").touch()
    return str(folder / "file" / "out")


@pytest.mark.parametrize("place", FORBIDDEN)
@pytest.mark.parametrize("logger", ["with the store beside it", "logger=null"])
def test_fit_refuses_a_forbidden_folder(refused, world: Path, tmp_path: Path, place: str, logger: str) -> None:
    out = at(place, tmp_path)
    options = [logger] if "=" in logger else []
    given = ["fit", "--recipe", "recipes/tiny/sft.yaml", f"data.root={world}", f"run.dir={out}", *options]
    assert str(Path(out).parent) in refused(*given)


@pytest.mark.parametrize("place", FORBIDDEN)
def test_prepare_and_mine_refuse_a_forbidden_folder(refused, tmp_path: Path, place: str) -> None:
    write(tmp_path / "source", 2)
    out = at(place, tmp_path)
    assert out in refused(
        "prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={tmp_path / 'source'}", f"out={out}"
    )
    (tmp_path / "expert").mkdir()
    given = ["mine", "--recipe", "recipes/tiny/mine_preferences.yaml", f"out={out}"]
    given += [f"task.candidates.requests={tmp_path / 'source'}"]
    given += [f"task.candidates.{who}={{{who}: {tmp_path / 'expert'}}}" for who in ("base", "experts")]
    assert out in refused(*given)


@pytest.mark.parametrize("place", FORBIDDEN)
def test_export_and_edit_refuse_a_forbidden_folder(refused, tmp_path: Path, place: str) -> None:
    out = at(place, tmp_path)
    (tmp_path / "run").mkdir()
    assert str(Path(out).parent) in refused("export", "--run", str(tmp_path / "run"), "--out", out)
    edit = ["edit", "--model", str(tmp_path / "no model"), "--prompt", "x"]
    assert out in refused(*edit, "--out", f"{out}/picture.png")


@pytest.mark.parametrize("name", ["x.xyz", "x", "x.mp4"])
def test_a_picture_of_an_unknown_ending_is_refused_before_the_model_is_looked_for(refused, tmp_path, name) -> None:
    edit = ["edit", "--model", str(tmp_path / "no model"), "--prompt", "x"]
    said = refused(*edit, "--out", str(tmp_path / name))
    assert f"--out {tmp_path / name}: a picture cannot be written" in said


DAMAGED = ['{"base": "tiny", ', "", "[]", "{}", "\x00\x00"]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_one_line_that_names_the_file(refused, tmp_path: Path, text: str) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for path in (tmp_path / "run" / "run.json", folder / "best.json"):
        path.write_text(text)
    with pytest.raises(UserError, match=r"best\.json: "):
        resolve(tmp_path / "run", "best")
    best = Checkpoint(every=1, monitor="val/loss", dir=str(folder))
    with pytest.warns(UserWarning, match=r"best\.json: .*the best so far is not known"):
        best._read_best(Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False))
    assert best.best_score is None, "training goes on, and the next best one is written"
    if text != "{}":
        with pytest.raises(UserError, match=r"run\.json: "):
            read_record(tmp_path / "run")


def test_a_run_whose_record_is_damaged_is_exported_by_no_guess(refused, world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    given = ["fit", "--recipe", "recipes/tiny/sft.yaml", f"data.root={world}", f"run.dir={run}", "logger=null"]
    assert main([*given, "trainer.max_steps=0"]) == 0
    record = json.loads((run / "run.json").read_text())
    for text in (json.dumps(record)[:-20], "{}"):
        (run / "run.json").write_text(text)
        assert f"{run / 'run.json'}: " in refused("export", "--run", str(run), "--out", str(tmp_path / "out"))
    (run / "run.json").write_text(json.dumps(record)[:-20])
    assert f"{run / 'run.json'}: " in refused(*given, "trainer.max_steps=0", "run.resume=last")
