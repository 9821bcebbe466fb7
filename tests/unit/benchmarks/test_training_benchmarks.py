"""The benchmarks of a training step run, and what they print is possible."""

import json
import runpy
import sys

import pytest
import torch


@pytest.fixture
def run(root, monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(root / "benchmarks" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_gpu_step_in_its_tiny_setting(run, tmp_path, monkeypatch):
    """Both modes, another reference is more tokens and more operations, and all of it is in the JSON."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # of torchao's step: each shape takes seconds
    lines = run("gpu_step.py", "--cpu", "--layers", "1", "--references", "0", "1", "--out", str(tmp_path / "out.json"))
    written = json.loads((tmp_path / "out.json").read_text())
    rows = written["rows"]
    assert [(row["mode"], row["references"]) for row in rows] == [("lora", 0), ("lora", 1), ("full", 0), ("full", 1)]
    assert written["layers"] == 1
    assert len([line for line in lines if line.startswith(("| lora", "| full"))]) == 4
    for row in rows:
        assert row["tokens"] == 64 * (1 + row["references"])
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["step_s"])
        assert 0 < row["tflops"] < row["hardware_tflops"]
    work = [row["tflops"] * row["step_s"] for row in rows]
    assert work[1] > 1.5 * work[0]
    assert work[2] > 1.2 * work[0]  # frozen weights have no gradients
