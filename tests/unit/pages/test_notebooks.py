"""The notebooks run from top to bottom, define no classes, and are kept with small outputs that hold no path."""

import ast
import base64
import importlib.util
import io
import os
import re
from pathlib import Path

import matplotlib
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from nbclient import NotebookClient
from PIL import Image
from traitlets.config import Config
from warm import Started

FOLDER = Path(__file__).resolve().parents[3] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OF_A_MACHINE = re.compile(r"(?<![\w.])/(home|root|Users|tmp|var|private|opt|usr|mnt|work)/|\b[A-Z]:\\")
VARYING = re.compile(r"\d samples/s|MB are free|\b[0-9a-f]{32}\b|Warning|\x1b")


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def code_cells(path):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_define_no_classes(path):
    cells = code_cells(path)
    assert cells
    assert not [node for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.ClassDef)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_with_what_they_show_small_and_free_of_paths(path):
    """`make notebooks` writes them."""
    assert path.stat().st_size <= 200_000
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output for output in outputs if output.get("name") == "stderr"]

    # Words: there are some, and none that another machine or another time would say otherwise.
    texts = [printed(cell) for cell in cells]
    texts += [output.data.get("text/plain", "") for output in outputs if "data" in output]
    assert any(texts)
    for text in texts:
        assert not OF_A_MACHINE.search(text), OF_A_MACHINE.search(text)
        assert not VARYING.search(text), VARYING.search(text)

    # Pictures: there are some, and each can be opened.
    pictures = [output.data["image/jpeg"] for output in outputs if "image/jpeg" in output.get("data", {})]
    assert pictures
    for picture in pictures:
        assert Image.open(io.BytesIO(base64.b64decode(picture))).width <= 720
    assert not [output for output in outputs if "image/png" in output.get("data", {})]


def test_what_is_kept_of_an_output_has_no_warning_no_path_and_no_speed():
    spec = importlib.util.spec_from_file_location("refresh", FOLDER / "refresh.py")
    refresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(refresh)
    file = io.BytesIO()
    Image.new("RGB", (1440, 100), "red").save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    speed = "step 10/20, loss 1.0, 11.8 samples/s, 1.45k tokens/s, 0:00:45 left\n"
    outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="FutureWarning: soon\n"),
        nbformat.v4.new_output("stream", name="stdout", text=f"run  {refresh.WORK}"),
        nbformat.v4.new_output("stream", name="stdout", text=f"/02_lora/run\n{speed}"),
        nbformat.v4.new_output("display_data", data={"image/png": png, "text/plain": "<Figure>"}),
    ]
    words, picture = refresh.kept(outputs)
    assert words.text == "run  02_lora/run\nstep 10/20, loss 1.0\n"
    assert set(picture.data) == {"image/jpeg", "text/plain"}
    assert Image.open(io.BytesIO(base64.b64decode(picture.data["image/jpeg"]))).size == (720, 50)


def executed(name: str, root: Path) -> str:
    """Return what a notebook prints when a Jupyter kernel runs it."""
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(root / "notebooks")}}).execute()
    return "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")


def run_cells(path: Path) -> None:
    """Run a notebook from top to bottom by IPython, as a kernel does; figures are drawn and not shown."""
    matplotlib.use("Agg")
    shell = InteractiveShell.instance(config=Config({"HistoryManager": {"enabled": False}}))
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code":
            shell.run_cell(cell.source).raise_error()


def said(name: str, root: Path, log: Path) -> str:
    """Return what a notebook prints in a process that need not import the libraries."""
    folder = root / "notebooks"
    with Started(run_cells, folder / f"{name}.ipynb", log=log, folder=folder) as process:
        assert process.wait(200) == 0, log.read_text()
    return log.read_text()


@pytest.fixture
def setting(root, monkeypatch):
    """The notebooks' small setting."""
    monkeypatch.setenv("FIRERED_LIT_COUNT", "42")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])))
    return monkeypatch


def test_the_data_notebook_runs(root, setting, tmp_path):
    text = said("01_data", root, tmp_path / "said")
    assert "Put the hat of image 1 on the man in image 2" in text
    assert "a red hat on the man in image 1" in text
    assert "第二张图的人站在图一的海边" in text
    assert "compose" in text
    assert "42" in text


def test_a_lora_is_trained_and_its_run_is_drawn(root, setting, tmp_path):
    setting.setenv("FIRERED_LIT_STEPS", "6")
    setting.setenv("FIRERED_LIT_FOLDER", str(tmp_path))
    text = said("02_lora", root, tmp_path / "said_02")
    assert "stage.backbone.lora.ranks" in text
    assert "comfyui_lora.safetensors" in text
    assert "step_00000016.ckpt" in text
    assert {path.name for path in tmp_path.glob("edited_*.png")} == {f"edited_{x}.png" for x in (0, 0.5, 1)}
    setting.setenv("FIRERED_LIT_STORE", str(tmp_path))
    text = said("04_runs", root, tmp_path / "said_04")
    assert "FINISHED" in text
    assert "val/loss" in text
    assert "stage.backbone.lora.rank" not in text  # one run differs from no other


def test_the_rewards_notebook_shows_every_term(root, setting, tmp_path):
    text = said("03_rewards", root, tmp_path / "said")
    assert "drawn pages in the expected order" in text
    assert "delta=" in text
    assert "close up" in text


def test_an_evaluation_is_read_and_its_models_are_compared(root, setting, tmp_path):
    setting.setenv("FIRERED_LIT_EVALUATION", str(tmp_path))
    setting.setenv("FIRERED_LIT_EACH", "1")
    text = said("05_evaluation", root, tmp_path / "said")
    assert "15 expected, 15 scored" in text
    assert "world is better than copier" in text or "not distinguishable" in text
    assert "gap +1.00" in text or "gap -1.00" in text
    assert str(tmp_path / "report" / "index.html") in text


def test_a_corpus_is_looked_at_and_its_thresholds_are_moved(root, setting, tmp_path):
    setting.setenv("FIRERED_LIT_CORPUS", str(tmp_path / "out"))
    setting.setenv("FIRERED_LIT_COUNT", "12")
    text = executed("06_corpus", root)
    assert "photometric.detail below 0.4" in text
    assert text.count("dropped by it") == 4
    assert "blurred_00" in text
    assert "duplicates: 2" in text
    assert str(tmp_path / "out" / "report" / "index.html") in text
