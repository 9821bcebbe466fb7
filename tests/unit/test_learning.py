"""The report of what was learned: intervals, tallies, and a model that answers right."""

import json
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest

from benchmarks import learning


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (3, 10), (10, 10), (57, 100), (199, 200)])
def test_intervals_are_wilsons(correct: int, count: int) -> None:
    expected = binomtest(correct, count).proportion_ci(method="wilson")
    assert learning.wilson(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.fixture(scope="module")
def model():
    return learning.Model.open("world-untrained", steps=2)


def test_right_answers_count_and_copies_do_not(model, monkeypatch) -> None:
    families = ["color", "compose", "text"]
    monkeypatch.setattr(learning.Model, "edits", lambda self, batch: batch.pixels)
    found = learning.evaluate(model, 6, 0, families)
    assert {name: (one["correct"], one["count"]) for name, one in found.items()} == dict.fromkeys(families, (6, 6))
    monkeypatch.setattr(learning.Model, "edits", lambda self, batch: batch.sources[0])
    assert not any(one["correct"] for one in learning.evaluate(model, 6, 0, families).values())


def test_the_report_shows_every_family_of_every_model(tmp_path: Path) -> None:
    files = []
    for number, right in enumerate((20, 90)):
        errors = [0.3 - right / 1000] * 90 + [0.1] * 10
        words = dict.fromkeys(("reward", "text", "layout", "glyph_ratio", "dark", "edges"), right / 100)
        words |= {"exact": right, "count": 100}
        families = {
            "color": {"correct": right, "count": 100, "errors": errors},
            "text": {"correct": right // 2, "count": 100, "errors": errors[::-1], "words": words},
        }
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps({"families": families}))
    learning.report(files, ["before", "after"], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| color | 20 (13-29) | 90 (83-94) |" in text
    assert "| all | 15 (11-21) | 68 (61-74) |" in text
    assert "| after against before | 100 (98-100) | 0.1990 |" in text
    assert "| before | 20 (13-29) | 0.200 |" in text
    assert (tmp_path / "out" / "correctness.png").stat().st_size > 5000


def test_pairs_set_what_is_right_beside_what_the_model_drew(model, tmp_path: Path) -> None:
    from datamodules.records import read

    learning.pairs(model, 5, 0, ["color"], tmp_path)
    records = list(read(tmp_path / "pairs.jsonl"))
    assert len(records) == 5
    assert all(Path(record.loser).exists() and record.task == "color" and not record.held_out for record in records)


def test_the_same_noise_every_time(model) -> None:
    ((_, batch),) = learning.batches(model, "color", 2, 0, "held_out")
    assert torch.equal(model.edits(batch), model.edits(batch))


def test_an_edit_wins_when_it_comes_nearer_and_ties_count_for_nobody() -> None:
    before = {"color": {"errors": [0.2, 0.2, 0.2, 0.2]}, "add": {"errors": [0.1]}}
    after = {"color": {"errors": [0.1, 0.3, 0.2005, 0.1]}}
    assert learning.wins(before, after) == (2, 3)
    assert learning.wins(after, before) == (1, 3)


def test_words_are_judged_by_the_reward(model, monkeypatch) -> None:
    monkeypatch.setattr(learning.Model, "edits", lambda self, batch: batch.pixels)
    words = learning.evaluate(model, 4, 0, ["text"])["text"]["words"]
    assert words["exact"] >= 3
    assert words["reward"] > 0.9
    assert words["glyph_ratio"] == pytest.approx(1, abs=0.05)
