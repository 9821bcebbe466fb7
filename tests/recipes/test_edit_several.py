"""`edit` with a run in place of a model or a LoRA, and with many prompts and seeds in one load."""

import json
from pathlib import Path

import pytest
from PIL import Image

from firered_lit import editing
from firered_lit.cli import main

FIT = ["fit", "--recipe", "recipes/tiny/sft_lora.yaml", "run.validate_every=null", "callbacks.progress=null"]
DRAW = ["--steps", "2", "--guidance", "1"]


@pytest.fixture(scope="module")
def made(tmp_path_factory, request):
    """A LoRA run of two steps, its export, and a photo."""
    folder = tmp_path_factory.mktemp("edit_several")
    world = request.getfixturevalue("world")
    run = folder / "run"
    fast = ["stage.optimizer.lr=0.05", "stage.schedule=null", "trainer.max_steps=2", "logger=null"]
    assert main([*FIT, f"data.root={world}", f"run.dir={run}", *fast]) == 0
    assert main(["export", "--run", str(run), "--out", str(folder / "lora")]) == 0
    Image.new("RGB", (96, 64), "red").save(folder / "photo.png")
    return folder


def drawn(folder: Path, name: str, *options: str) -> bytes:
    """Return the pixels of an edit of the photo."""
    out = folder / f"{name}.png"
    photo = ["--image", str(folder / "photo.png"), "--prompt", "Make it blue"]
    assert main(["edit", *photo, "--out", str(out), *DRAW, *options]) == 0
    with Image.open(out) as picture:
        return picture.convert("RGB").tobytes()


def test_a_run_draws_what_its_export_draws_as_a_model_and_as_a_lora(made):
    exported = drawn(made, "export", "--model", "tiny", "--lora", str(made / "lora"))
    assert drawn(made, "run_as_model", "--model", str(made / "run")) == exported
    assert drawn(made, "run_as_lora", "--model", "tiny", "--lora", str(made / "run")) == exported
    half = drawn(made, "half", "--model", "tiny", "--lora", f"{made / 'lora'}@0.5")
    assert drawn(made, "half_run", "--model", "tiny", "--lora", f"{made / 'run'}@0.5") == half != exported
    assert drawn(made, "base", "--model", "tiny") != exported


def test_a_file_of_prompts_is_drawn_in_one_load_as_each_alone(made, monkeypatch):
    rows = [
        {"instruction": "Make it blue", "images": ["photo.png"], "seed": 3},
        {"instruction": "一座红房子", "width": 64, "height": 96},
    ]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (made / "prompts.jsonl").write_text(text, encoding="utf-8")
    loads = []
    load = editing.Editor._load_transformer
    monkeypatch.setattr(editing.Editor, "_load_transformer", lambda self: loads.append(1) or load(self))
    out = made / "many"
    assert main(["edit", "--model", "tiny", "--prompts", str(made / "prompts.jsonl"), "--out", str(out), *DRAW]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["01.png", "02.png"]
    assert len(loads) == 1
    with Image.open(out / "01.png") as picture:
        assert picture.convert("RGB").tobytes() == drawn(made, "alone", "--model", "tiny", "--seed", "3")
    with Image.open(out / "02.png") as picture:
        assert picture.size == (64, 96)


def test_several_seeds_go_into_a_folder_each_as_alone(made):
    photo = ["--image", str(made / "photo.png"), "--prompt", "Make it blue"]
    seeds = ["--seed", "0", "--seed", "7"]
    assert main(["edit", "--model", "tiny", *photo, "--out", str(made / "seeds"), *DRAW, *seeds]) == 0
    assert sorted(path.name for path in (made / "seeds").iterdir()) == ["seed0.png", "seed7.png"]
    with Image.open(made / "seeds/seed7.png") as picture:
        assert picture.convert("RGB").tobytes() == drawn(made, "seven", "--model", "tiny", "--seed", "7")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--prompts", "P", "--out", "F", "--image", "photo.png"], "leave those options out"),
        (["--prompts", "nowhere.jsonl", "--out", "F"], "nowhere.jsonl: no such file"),
        (["--prompt", "x", "--seed", "1", "--seed", "2", "--out", "photo.png"], "several pictures go into a folder"),
        (["--prompt", "x", "--out", "F.xyz"], "cannot be written with .xyz"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_before_anything_loads(made, monkeypatch, capsys, options, said):
    monkeypatch.chdir(made)
    (made / "P").write_text('{"instruction": "x"}', encoding="utf-8")
    assert main(["edit", "--model", "tiny", *options]) == 2
    assert said in capsys.readouterr().err
