"""The benchmarks of the rewards and of reinforcement run: both sides agree, as they assert, and print their ratio."""

import re
import runpy
import sys

import pytest
import torch


@pytest.fixture
def run(root, monkeypatch, capsys):
    threads = torch.get_num_threads()

    def run(name, *arguments):
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        runpy.run_path(str(root / "benchmarks" / name), run_name="__main__")
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_ocr_scores_agree_and_the_ratio_is_told_with_and_without_a_layout(run):
    said = run("ocr_reward.py", "--threads", "1", "--rounds", "1", "--images", "4")
    rows = dict(re.findall(r"^(\S.*?) {2,}[\d.]+ +([\d.]+) ", said, re.M))
    assert len(rows) == 6
    assert float(rows["plain"]) == 1
    known, unknown = map(float, re.search(r"read ahead: ([\d.]+) times .* without any: ([\d.]+)", said).groups())
    assert (known, unknown) == (float(rows["ours"]), float(rows["ours, without a layout"]))
    assert known > 1


@pytest.mark.slow
def test_the_plain_loop_learns_what_the_stage_learns(run):
    """Losses and rewards of both are compared in every iteration."""
    said = run("nft_iteration.py", "--judge", "--local", "pixel", "--rounds", "1")
    assert "local pixel: 8 groups of 4 edits in 6 steps, 1 rounds" in said
    ratios = dict(re.findall(r"^ {2}(\S.*?) {2,}[\d.]+ .*? ([\d.]+)x", said, re.M))
    assert ratios.keys() == {
        "ours",
        "plain",
        *(f"plain, {x}" for x in ("prompts encoded once", "rewards while drawing", "both")),
    }
    assert float(ratios["plain"]) == 1
