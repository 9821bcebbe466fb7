"""`make demo`, command by command as the Makefile has them, with few rows and two steps."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import photo_edits
from datamodules import photos
from firered_lit.cli import main

FEWER = {
    "datamodules.photos": ["--count", "8", "--held-out", "2"],
    "benchmarks/photo_edits.py": ["--crops", "2", "--steps", "2"],
    "fit": ["trainer.max_steps=2", "logger=null"],
    "edit": ["--steps", "1"],
}


def commands(demo: Path, seed: int) -> list[list[str]]:
    """Return the arguments of every Python command that `make demo` would run."""
    settings = [f"DEMO={demo}", f"SEED={seed}", "PY=python"]
    printed = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "demo", *settings],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"MAKEFLAGS": ""},
    )
    lines = printed.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("python ")]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_the_demo_goes_from_photographs_to_a_picture_before_and_after(tmp_path, monkeypatch, capsys) -> None:
    verbs = []
    for command in commands(tmp_path, seed=5):
        arguments = command[1:] if command[0] == "-m" else command
        name = arguments[0]
        if name == "firered_lit":
            verb = arguments[1]
            verbs.append(verb)
            assert main([*arguments[1:], *FEWER.get(verb, [])]) == 0
            continue
        verbs.append(name)
        monkeypatch.setattr(sys, "argv", [name, *arguments[1:], *FEWER[name]])
        {"datamodules.photos": photos.main, "benchmarks/photo_edits.py": photo_edits.main}[name]()
    assert verbs == ["datamodules.photos", "prepare", "fit", "export", "edit", "benchmarks/photo_edits.py"]
    *_, grid, before, after = capsys.readouterr().out.splitlines()
    picture = Path(grid.split()[-1])
    assert Image.open(picture).width > 900
    assert before.startswith("right before 0 %")
    assert after.startswith("right after 0 %")
    assert Image.open(tmp_path / "photos" / "edited.png").size == (64, 64)
    recipe = (tmp_path / "photos" / "run" / "recipe.yaml").read_text()
    assert recipe.count("seed: 5") == 2
