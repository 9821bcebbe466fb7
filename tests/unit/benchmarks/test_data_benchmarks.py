"""The benchmarks of the index, the buckets, reading and evaluation run, and their figures are possible."""

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
    assert "1184x896 with one reference: used 100.0%; by the capacity of as many squares 50.6%" in lines
    for _, _, _, targets, _, full, used, imbalance, left, _, _, fixed, *_ in cells:
        assert float(full) >= (97 if targets == "12" else 85) > float(fixed)
        assert float(used) <= float(full)
        assert float(imbalance) == 0
        assert float(left) < 1


def test_read(run):
    """Every row is read or refused; neither records nor ids are kept."""
    few, many, growth = (line.split() for line in run("read.py", "--quick")[1:])
    assert (few[:2], many[:2]) == (["5,000", "5"], ["20,000", "20"])
    assert float(many[4]) < 100
    assert float(growth[6]) < 6
    assert float(many[5].replace(",", "")) > 0


def test_loader(run):
    lines = run("loader.py", "--quick", "--side", "256")
    assert float(lines[-3].split()[3]) > float(lines[-2].split()[4]) > 0
    assert float(lines[-1].split()[2]) > 1


def test_prepare(run):
    """Rows together are stored as each alone is, but for rounding."""
    *rates, apart = run("prepare.py", "--quick")
    assert [line.split()[0] for line in rates[-3:]] == ["all", "VAE", "text"]
    assert all(float(number) > 0 for line in rates[-3:] for number in line.split()[1:])
    assert float(apart.split()[-1]) < 1e-5


def test_evaluation(run):
    lines = run("evaluation.py", "judge", "--latency", "0.05", "--parallel", "4", "--side", "32", "--waves", "1")
    assert [line.split()[0] for line in lines] == ["benchmark", "rededit", "imgedit", "gedit"]
    for line in lines[1:]:
        numbers = [float(word.rstrip("%")) for word in line.split()[1:] if word != "->"]
        assert min(numbers) > 0
