"""A model or a run's folder with one damaged file is used all the same, or refused in one line with exit code 2."""

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from commands import ended_well, run

from firered_lit.cli import main
from firered_lit.models.component import LFS_POINTER
from firered_lit.models.tiny import cached_tiny

QUICK, SLOW = 60, 1_500
SECONDS = 120.0  # of one command
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 3, 7, 1000, 10**9, 10**30, 0.5, -1.0, 1e300, float("nan"), float("inf")),
    *("", "x", "1", "cpu", "float32", "é" * 40, "../../x", "\0", [], {}, [1], [1, 2, 3], ["x"], [None], {"a": 1}),
)
QUIET = ("logger=null", "callbacks.progress=null", "callbacks.grid=null", "run.validate_every=null", "data.workers=0")


class Place:
    """Folders that may be damaged, and that are put right again.

    whole: the model and the run as they were made. folder: where the commands find them.
    """

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self.data = folder, data
        self.whole = folder / "whole"
        self.model, self.run = folder / "model", folder / "run"
        shutil.copytree(cached_tiny(), self.whole / "model")
        shutil.copytree(self.whole / "model", self.model)
        assert main([*self.fit("sft_lora", self.run), "trainer.max_steps=2", "checkpoint.every=1"]) == 0
        shutil.copytree(self.run, self.whole / "run")

    def fit(self, name: str, out: Path) -> list[str]:
        base = [f"stage.backbone.name={self.model}", f"data.root={self.data / 'data'}", f"run.dir={out}"]
        return ["fit", "--recipe", f"recipes/tiny/{name}.yaml", *base, *QUIET]

    def restore(self) -> None:
        """Put the whole folders back, and remove what was written."""
        for name in ("model", "run"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.copytree(self.whole / name, self.folder / name, symlinks=True)
        for name in ("out", "new"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def commands(self) -> dict[str, list[str]]:
        """Return every command that uses the model, the run or both, by a name."""
        out, new = str(self.folder / "out"), self.folder / "new"
        mined = [f"task.model={self.model}", f"task.data.root={self.data / 'data'}", "task.draws=2", "task.steps=1"]
        picture = next((self.data / "rows").rglob("*.png"))
        edit = ["--image", str(picture), "--prompt", "x", "--steps", "1", "--guidance", "1"]
        return {
            "fit": [*self.fit("sft", new), "trainer.max_steps=1"],
            "prepare": [
                *("prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={self.data / 'rows'}", f"out={out}"),
                *(f"model={self.model}", "workers=1", "max_orders=1", "held_out=0"),
            ],
            "edit": ["edit", "--model", str(self.model), *edit, "--out", f"{out}/x.png"],
            "mine": ["mine", "--recipe", "recipes/tiny/mine_semi_hard.yaml", *mined, f"out={out}"],
            "check": [
                *("check", "--recipe", "recipes/tiny/sft.yaml", "--gpus", "1"),
                *(f"stage.backbone.name={self.model}", f"run.dir={new}", f"data.root={self.data / 'data'}"),
            ],
            "export": ["export", "--run", str(self.run), "--out", out],
            "merge": ["export", "--run", str(self.run), "--out", out, "--merge"],
            "earlier": ["export", "--run", str(self.run), "--out", out, "--checkpoint", "step_00000001.ckpt"],
            "average": ["average", "--run", str(self.run), "--last", "2", "--out", f"{out}.ckpt"],
            "resume": [*self.fit("sft_lora", self.run), "trainer.max_steps=3", "run.resume=last"],
            "start": [*self.fit("sft", new), "trainer.max_steps=1", f"run.start_from={self.run}"],
        }


OF_MODEL = ("fit", "prepare", "edit", "mine", "check", "merge", "resume")
OF_RUN = ("export", "merge", "earlier", "average", "resume", "start")


def harm(draw: random.Random, path: Path) -> str:
    """Damage one file; returns what was done."""
    raw = path.read_bytes()
    kinds = ["cut", "emptied", "removed", "a pointer", "a folder", "a FIFO", "a flip", "noise", "zeros"]
    if path.suffix == ".json":
        kinds += ["a value"] * 12
    kind = draw.choice(kinds)
    if kind == "cut":
        path.write_bytes(raw[: draw.randrange(len(raw) + 1)])
    elif kind == "emptied":
        path.write_bytes(b"")
    elif kind == "a pointer":
        path.write_bytes(LFS_POINTER + b"/spec/v1\noid sha256:0\nsize 9\n")
    elif kind == "a flip":
        at = draw.randrange(min(len(raw), draw.choice((64, 4096, 1 << 30))) or 1)
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1 << draw.randrange(8)]) + raw[at + 1 :] if raw else b"x")
    elif kind == "noise":
        path.write_bytes(draw.randbytes(draw.choice((1, 100, len(raw)))))
    elif kind == "zeros":
        path.write_bytes(bytes(len(raw)))
    elif kind == "a value":
        kind = f"{kind}: {changed_value(draw, path)}"
    else:
        path.unlink()
        if kind == "a folder":
            path.mkdir()
        elif kind == "a FIFO":
            os.mkfifo(path)
    return kind


def changed_value(draw: random.Random, path: Path) -> str:
    """Give one entry of a JSON file, at any depth, another value, or take it away."""
    content = json.loads(path.read_text(encoding="utf-8"))
    node: Any = content
    while True:
        names = list(node) if isinstance(node, dict) else list(range(len(node)))
        if not names:
            return "nothing to change"
        name = draw.choice(names)
        if not isinstance(node[name], dict | list) or not node[name] or draw.random() < 0.4:
            break
        node = node[name]
    value = draw.choice(VALUES)
    if draw.random() < 0.2:
        del node[name]
    else:
        node[name] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    return f"{name} = {value!r:.40}"


def fuzz(seeds: range, place: Place, damaged: str, verbs: tuple[str, ...]) -> dict[str, int]:
    """Damage one file of a folder per seed and run a command; returns how often each ending came."""
    endings: dict[str, int] = {}
    for seed in seeds:
        draw = random.Random(f"folder {damaged} {seed}")
        place.restore()
        folder = place.folder / damaged
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = draw.choice(files)
        done = harm(draw, path)
        verb = draw.choice(verbs)
        what = f"seed {seed}: {path.relative_to(place.folder)}: {done}: {verb}"
        code = ended_well(place.commands()[verb], SECONDS, what)
        endings[f"{verb} {code}"] = endings.get(f"{verb} {code}", 0) + 1
    print(dict(sorted(endings.items())))
    return endings


@pytest.fixture(scope="module")
def place(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A model, and a run of two steps over it."""
    return Place(tmp_path_factory.mktemp("folders"), small_data)


def test_every_command_takes_whole_folders(place: Place) -> None:
    for verb, command in place.commands().items():
        place.restore()
        outcome = run(command, SECONDS)
        assert outcome.code == 0, (verb, outcome.stderr)


def test_a_damaged_model_is_used_or_refused_in_one_line(place: Place) -> None:
    endings = fuzz(range(QUICK), place, "model", OF_MODEL)
    assert sum(count for ending, count in endings.items() if ending.endswith(" 2")) > QUICK // 4


def test_a_damaged_run_is_used_or_refused_in_one_line(place: Place) -> None:
    endings = fuzz(range(QUICK // 2), place, "run", OF_RUN)
    assert sum(count for ending, count in endings.items() if ending.endswith(" 2")) > QUICK // 8


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("damaged", "verbs"), [("model", OF_MODEL), ("run", OF_RUN)])
def test_many_damaged_folders_are_used_or_refused(place: Place, damaged: str, verbs: tuple[str, ...]) -> None:
    fuzz(range(QUICK, SLOW), place, damaged, verbs)
