"""The Python interface, from rows to an edited picture in one process, and that it does what the commands do."""

import ast
import inspect
import json
import pkgutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from PIL import Image, ImageChops

import firered_lit
from firered_lit import UserError
from firered_lit.cli import main

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"trainer": {"max_steps": 2}, "run": {"validate_every": None}, "logger": None}
QUIET = {"data.workers": 0, "callbacks.progress": None}


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows, and what `prepare`, `fit` and `export` make of them, by the names of the package alone."""
    folder = tmp_path_factory.mktemp("python")
    rows = []
    for number in range(8):
        for name, colour in (("before", (30 * number, 90, 10)), ("after", (30 * number, 90, 200))):
            Image.new("RGB", (96, 96), colour).save(folder / f"{name}{number}.png")
        files = {"source_image": f"before{number}.png", "target_image": f"after{number}.png"}
        rows.append(json.dumps(files | {"instruction": "Make it blue"}))
    (folder / "edits.jsonl").write_text("\n".join(rows), encoding="utf-8")
    data = firered_lit.prepare("tiny/prepare", source=folder / "edits.jsonl", out=folder / "data", held_out=0.2)
    settings = {**SMALL, **QUIET, "data.root": data, "run.dir": folder / "run", "stage.schedule": None}
    run = firered_lit.fit("tiny/sft_lora", **settings)
    firered_lit.export(run, folder / "lora")
    assert (data, run) == (folder / "data", folder / "run")
    return folder


def test_an_editor_loads_once_and_draws_what_the_command_draws(work, monkeypatch):
    loads = []
    load = firered_lit.Editor._load_transformer
    monkeypatch.setattr(firered_lit.Editor, "_load_transformer", lambda self: loads.append(1) or load(self))
    editor = firered_lit.Editor("tiny", work / "lora")
    draw = {"steps": 2, "guidance": 1.0}
    photo = work / "before3.png"
    edited = editor(photo, "Make it blue", seed=3, **draw)
    assert editor([Image.open(photo)], "Make it blue", seed=3, **draw) == edited
    assert editor([photo], "Make it blue", seed=4, **draw) != edited
    assert editor([], "A blue page", width=64, height=32, **draw).size == (64, 32)
    assert len(loads) == 1

    command = ["edit", "--model", "tiny", "--lora", str(work / "lora"), "--image", str(photo), "--seed", "3"]
    command += ["--prompt", "Make it blue", "--steps", "2", "--guidance", "1", "--out", str(work / "edited.png")]
    assert main(command) == 0
    with Image.open(work / "edited.png") as picture:
        assert ImageChops.difference(picture, edited).getbbox() is None


def test_a_run_of_the_interface_is_one_of_the_command(work):
    command = ["fit", "--recipe", "tiny/sft_lora", f"data.root={work / 'data'}", f"run.dir={work / 'typed'}"]
    command += ["trainer.max_steps=2", "run.validate_every=null", "logger=null", "data.workers=0"]
    assert main([*command, "callbacks.progress=null", "stage.schedule=null"]) == 0
    written = [(work / name / "recipe.yaml").read_text() for name in ("run", "typed")]
    assert written[0].replace(str(work / "run"), str(work / "typed")) == written[1]
    firered_lit.export(work / "typed", work / "typed_lora")
    weights = [(work / name / "comfyui_lora.safetensors").read_bytes() for name in ("lora", "typed_lora")]
    assert weights[0] == weights[1]


def test_findings_say_what_is_wrong_and_what_fits(work):
    (fits,) = firered_lit.check("tiny/sft_lora", **{"data.root": work / "data", "run.dir": work / "run"})
    assert not fits.wrong
    assert fits.line.endswith("tiny/sft_lora.yaml: fits `fit`")
    (wrong,) = firered_lit.check("tiny/sft_lora", trainer={"max_stepz": 3})
    assert wrong.wrong
    assert "did you mean 'max_steps'?" in wrong.line
    lines = [finding.line for finding in firered_lit.check("tiny/sft_lora", gpus=1)]
    assert len(lines) > 3
    assert not any(finding.wrong for finding in firered_lit.check_data(work / "edits.jsonl"))
    assert any("tasks" in finding.line for finding in firered_lit.check_data(work / "data"))


REFUSED = [
    ({"trainer.max_stepz": 3}, "trainer.max_stepz"),
    ({"trainer": 3}, "trainer"),
    ({"nothing": 1}, "fit has no argument 'nothing'"),
    ({"data.root": object()}, "overrides: data.root: a object has no place in a recipe"),
    ({"a..b": 1}, "'a..b' is no dotted key"),
    ({"stage": {"_target_": "os.system"}}, "os.system"),
    ({}, "needs a value"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED, ids=[str(list(case)) for case, _ in REFUSED])
def test_what_does_not_fit_is_one_line_and_writes_nothing(tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as refused:
        firered_lit.fit("tiny/sft_lora", **overrides)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_mapping_changes_a_part_and_replaces_a_plain_mapping(work):
    settings = {"data.root": work / "data", "run.dir": work / "run"}
    captions = {"captions": {"original": 1.0}}
    from firered_lit.config.recipe import load

    plain = load("tiny/sft", settings).root
    changed = load("tiny/sft", {**settings, "data": captions, "stage": {"optimizer": {"lr": 0.5}}}).root
    typed = [f"{key}={value}" for key, value in settings.items()]
    assert changed == load("tiny/sft", [*typed, "data={captions: {original: 1.0}}", "stage.optimizer.lr=0.5"]).root
    assert changed["data"] == plain["data"] | captions
    assert changed["stage"]["optimizer"] == plain["stage"]["optimizer"] | {"lr": 0.5}


@pytest.mark.parametrize(("code", "raised"), [(130, KeyboardInterrupt), (75, SystemExit)])
def test_a_stopped_run_ends_as_python_is_stopped(tmp_path, monkeypatch, code, raised):
    (tmp_path / f"mine_stopped_{code}.py").write_text(f"def run(run):\n    return {code}\n")
    (tmp_path / "r.yaml").write_text(f"_target_: mine_stopped_{code}.run\nrun: {{dir: x}}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    from firered_lit.config import nameable

    ours = patch.dict(nameable.ROOTS, {f"mine_stopped_{code}.run": "fit"}, clear=True)
    with ours, pytest.raises(raised) as stopped:
        firered_lit.fit(tmp_path / "r.yaml", allow=[f"mine_stopped_{code}"])
    assert raised is KeyboardInterrupt or stopped.value.code == code


def test_importing_the_package_loads_nothing_and_names_everything():
    script = (
        "import sys, firered_lit\n"
        "assert set(firered_lit.__all__) <= set(dir(firered_lit))\n"
        "rooms = ('firered_lit', 'callbacks', 'datamodules')\n"
        "ours = {name for name in sys.modules if name.partition('.')[0] in rooms}\n"
        "assert ours == {'firered_lit'}, ours\n"
        "assert not {'torch', 'yaml', 'omegaconf', 'numpy', 'PIL'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(getattr(firered_lit, name) is not None for name in firered_lit.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = firered_lit.nothing


def test_no_name_of_the_interface_is_a_module_whose_import_would_take_its_place():
    modules = {module.name for module in pkgutil.iter_modules(firered_lit.__path__)}
    assert modules.isdisjoint(firered_lit.__all__)


def test_type_checkers_see_the_names_that_python_has():
    stub = ast.parse((ROOT / "firered_lit" / "__init__.pyi").read_text(encoding="utf-8"))
    homes = {
        alias.asname: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert homes == firered_lit._HOMES
    assert sorted(homes) == sorted(firered_lit.__all__)


def test_every_name_of_the_interface_is_described():
    for name in firered_lit.__all__:
        assert inspect.getdoc(getattr(firered_lit, name)), name
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert [name for name in firered_lit.__all__ if f"`firered_lit.{name}" not in page] == []
