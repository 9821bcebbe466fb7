"""The notebooks run from top to bottom, define no classes and are kept without what they printed."""

import ast
import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stripped_and_define_no_classes(path):
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    assert cells
    assert not [cell for cell in cells if cell.outputs or cell.execution_count is not None]
    assert not [node for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.ClassDef)]


def executed(name: str, root: Path) -> str:
    """What a notebook prints."""
    notebook = nbformat.read(root / "notebooks" / f"{name}.ipynb", 4)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(root / "notebooks")}}).execute()
    return "".join(printed(cell) for cell in notebook.cells if cell.cell_type == "code")


@pytest.fixture
def setting(root, monkeypatch):
    """The notebooks' small setting."""
    monkeypatch.setenv("FIRERED_LIT_COUNT", "42")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])))
    return monkeypatch


def test_the_data_notebook_runs(root, setting):
    text = executed("01_data", root)
    assert "Put the hat of image 1 on the man in image 2" in text
    assert "a red hat on the man in image 1" in text
    assert "第二张图的人站在图一的海边" in text
    assert "compose" in text
    assert "42" in text


def test_a_lora_is_trained_and_its_run_is_drawn(root, setting, tmp_path):
    setting.setenv("FIRERED_LIT_STEPS", "6")
    setting.setenv("FIRERED_LIT_FOLDER", str(tmp_path))
    text = executed("02_lora", root)
    assert "stage.backbone.lora.ranks" in text
    assert "comfyui_lora.safetensors" in text
    assert "step_00000016.ckpt" in text
    assert {path.name for path in tmp_path.glob("edited_*.png")} == {f"edited_{x}.png" for x in (0, 0.5, 1)}
    setting.setenv("FIRERED_LIT_STORE", str(tmp_path))
    text = executed("04_runs", root)
    assert "FINISHED" in text
    assert "val/loss" in text
    assert "stage.backbone.lora.rank" not in text  # one run differs from no other


def test_the_rewards_notebook_shows_every_term(root, setting):
    text = executed("03_rewards", root)
    assert "drawn pages in the expected order" in text
    assert "delta=" in text
    assert "close up" in text


def test_an_evaluation_is_read_and_its_models_are_compared(root, setting, tmp_path):
    setting.setenv("FIRERED_LIT_EVALUATION", str(tmp_path))
    setting.setenv("FIRERED_LIT_EACH", "1")
    text = executed("05_evaluation", root)
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
