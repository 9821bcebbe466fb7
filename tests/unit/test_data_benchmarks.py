"""The benchmarks of the index and of the buckets run, and their figures are possible."""

import runpy
import sys

import pytest


@pytest.fixture
def run(root, monkeypatch, capsys):
    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(root / "benchmarks" / name), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    return run


def test_index(run):
    lines = run("index.py", "--quick")
    rows, shared, _, opened, first, rate, *_ = lines[-1].split()
    assert rows == "200,000"
    assert float(shared) <= 32
    assert float(opened) < 1
    assert float(first) < 2
    assert float(rate) > 0


def test_buckets(run):
    lines = run("buckets.py", "--quick", "--rows", "30000")
    cells = [line.replace("%", "").replace("|", "").split() for line in lines if "targets  " in line]
    assert len(cells) == 8
    for _, _, targets, _, full, _, imbalance, _, _, fixed, *_ in cells:
        assert float(full) >= (97 if targets == "12" else 80) > float(fixed)
        assert float(imbalance) == 0
