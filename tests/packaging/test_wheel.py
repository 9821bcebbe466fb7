"""The installation without a checkout: a wheel with its recipes, and with no folder of a common name."""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def build(out: Path, *options: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), *options, str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist and the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    build(out)
    return out


@pytest.fixture(scope="module")
def wheel(built):
    return next(built.glob("*.whl"))


def test_a_wheel_holds_every_recipe_and_no_folder_of_a_common_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"firered_lit", "datamodules", "callbacks"}
    recipes = {str(path.relative_to(ROOT)) for path in (ROOT / "recipes").rglob("*.yaml")}
    packed = {name.removeprefix("firered_lit/") for name in names if name.startswith("firered_lit/recipes/")}
    assert recipes == {name for name in packed if name.endswith(".yaml")}


def test_a_wheel_holds_weights_prompts_licence_and_notices(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("models/world.safetensors", "mine/evolve.txt", "serve/assets/page.js", "py.typed"):
        assert f"firered_lit/{name}" in names
    endings = {name.rpartition("/")[2] for name in names}
    assert {"edit.txt", "LICENSE", "THIRD_PARTY_NOTICES.md", "entry_points.txt"} <= endings


def test_an_sdist_holds_what_the_two_commands_need(built):
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    needed = {"Makefile", "constraints.txt", "pyproject.toml", "tests/conftest.py", "README.md", "docs/demo.jpg"}
    assert needed <= inside


def test_an_unpacked_wheel_finds_its_recipes_from_an_empty_folder(wheel, tmp_path):
    place = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(place)
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "firered_lit", "recipes", "sft_lora"],
        cwd=tmp_path / "empty",
        env=os.environ | {"PYTHONPATH": str(place)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "_target_: firered_lit.training.fit" in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_an_installed_wheel_works_in_a_fresh_environment_without_the_checkout(built, wheel, tmp_path):
    # The environment, with the tested versions.
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    python = str(place / "bin/python")
    constraints = ["--constraint", str(ROOT / "constraints.txt")]
    install = [python, "-m", "pip", "install", "--quiet", *constraints, str(wheel), "nbclient", "ipykernel"]
    subprocess.run(install, check=True)

    # From an empty folder: from rows to an edited picture, by the module and by the console script.
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"HF_HUB_OFFLINE": "1", "PATH": f"{place / 'bin'}:{environment['PATH']}"}

    def run(*command: str, code: int = 0) -> str:
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == code, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout if code == 0 else done.stderr

    assert str(ROOT) not in run("python", "-c", "import firered_lit; print(firered_lit.__file__)")
    run("python", "-m", "datamodules.synthetic", "--out", "rows", "--count", "12")
    run("firered-lit", "recipes", "tiny/sft_lora", "--out", "mine.yaml")
    run("firered-lit", "prepare", "--recipe", "tiny/prepare", "source=rows", "out=data")
    run("firered-lit", "fit", "--recipe", "mine.yaml", "data.root=data", "run.dir=run", "trainer.max_steps=4")
    run("firered-lit", "export", "--run", "run", "--out", "lora")
    edit = ["edit", "--model", "tiny", "--lora", "lora", "--image", "rows/color/images/00000_source0.png"]
    run("firered-lit", *edit, "--prompt", "Make it red", "--out", "edited.png", "--steps", "2", "--guidance", "1")
    assert (empty / "edited.png").is_file()
    run("firered-lit", "check")
    assert "sft_lora" in run("firered-lit", "recipes")

    # Models are scored, on the learning world that the package holds.
    few = "benchmarks.world.rows.each=1"
    run("firered-lit", "eval", "--recipe", "eval/world", "out=eval", few, "drawing.steps=2")
    assert (empty / "eval" / "report" / "index.html").is_file()

    # Raw rows are curated once the extra is there; before, one line says what is missing.
    curate = ["firered-lit", "curate", "--recipe", "tiny/curate", "source=rows", "out=corpus", "workers=0"]
    assert "extra `curate`" in run(*curate, code=2)
    extra = [python, "-m", "pip", "install", "--quiet", *constraints, f"{wheel}[curate]"]
    subprocess.run(extra, check=True)
    run(*curate)
    assert (empty / "corpus" / "selected.jsonl").is_file()

    # A notebook that was copied out.
    (empty / "01_data.ipynb").write_bytes((ROOT / "notebooks/01_data.ipynb").read_bytes())
    execute = "import nbformat, nbclient; nbclient.NotebookClient(nbformat.read('01_data.ipynb', 4)).execute()"
    run("python", "-c", execute)
