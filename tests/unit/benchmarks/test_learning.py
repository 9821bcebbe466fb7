"""What of a model of the learning world is measured: right answers, copies, words, pairs."""

from pathlib import Path

import pytest
import torch

from benchmarks import learning


@pytest.fixture(scope="module")
def model():
    return learning.LoadedModel.open("world-untrained", steps=2)


def evaluate(model, counts, seed):
    return {family: learning.judged(model, family, range(count), seed).numbers() for family, count in counts.items()}


def test_right_answers_count_and_copies_do_not(model, monkeypatch) -> None:
    families = dict.fromkeys(["color", "compose", "text"], 6)
    monkeypatch.setattr(learning.LoadedModel, "edits", lambda self, batch: batch.pixels)
    found = evaluate(model, families, 0)
    assert {name: (one["correct"], one["count"]) for name, one in found.items()} == dict.fromkeys(families, (6, 6))
    assert all(one["right"] == [1] * 6 for one in found.values())
    monkeypatch.setattr(learning.LoadedModel, "edits", lambda self, batch: batch.sources[0])
    assert not any(one["correct"] for one in evaluate(model, families, 0).values())


@pytest.mark.slow
def test_families_side_by_side_are_measured_as_one_after_another(model, monkeypatch) -> None:
    monkeypatch.setattr(learning, "PIECE", 2)
    counts = {"color": 3, "remove": 5}
    alone, beside = evaluate(model, counts, 0), learning.side_by_side("world-untrained", 2, counts, 0)
    assert list(beside) == list(alone)
    for family, found in beside.items():
        assert found["right"] == alone[family]["right"]
        assert found["errors"] == pytest.approx(alone[family]["errors"], abs=2e-4)


def test_pieces_of_a_family_together_are_the_whole(model, monkeypatch) -> None:
    def every_other(_, batch):
        return batch.pixels * torch.tensor([int(name.rsplit("-")[-1]) % 2 for name in batch.ids]).view(-1, 1, 1, 1)

    monkeypatch.setattr(learning.LoadedModel, "edits", every_other)
    whole, first = (learning.judged(model, "color", range(n), 0) for n in (5, 2))
    first.extend(learning.judged(model, "color", range(2, 5), 0))
    assert first.numbers() == whole.numbers()
    assert whole.right == [0, 1, 0, 1, 0]


def test_what_was_read_in_pieces_is_counted_together() -> None:
    found = learning.FamilyResults([1], [0.0], {"edited": [1.0]}, [0.75], {"text": [1.0], "layout": [0.5]})
    found.extend(
        learning.FamilyResults([0], [0.5], {"edited": [0.5]}, [0.25], {"text": [0.5], "layout": [float("nan")]})
    )
    words = {
        "reward": 0.5,
        "text": 0.75,
        "layout": 0.5,
        "exact": 1,
        "count": 2,
        "rewards": [0.75, 0.25],
        "read": [1, 0],
    }
    numbers = {"count": 2, "correct": 1, "edited": 0.75, "right": [1, 0], "errors": [0.0, 0.5], "words": words}
    assert found.numbers() == numbers


def test_pairs_set_what_is_right_beside_what_the_model_drew(model, tmp_path: Path) -> None:
    from datamodules.sources.records import read

    learning.pairs(model, 5, 0, ["color"], tmp_path)
    records = list(read(tmp_path / "pairs.jsonl"))
    assert len(records) == 5
    assert all(Path(record.loser).exists() and record.task == "color" and not record.held_out for record in records)


def test_the_same_noise_every_time(model) -> None:
    ((_, batch),) = learning.batches(model, "color", range(2), 0, "held_out")
    assert torch.equal(model.edits(batch), model.edits(batch))


def test_words_are_judged_by_the_reward(model, monkeypatch) -> None:
    monkeypatch.setattr(learning.LoadedModel, "edits", lambda self, batch: batch.pixels)
    words = evaluate(model, {"text": 4}, 0)["text"]["words"]
    assert words["exact"] >= 3
    assert sum(words["read"]) == words["exact"]
    assert words["reward"] == pytest.approx(sum(words["rewards"]) / 4, abs=1e-3)
    assert words["reward"] > 0.9
    assert words["glyph_ratio"] == pytest.approx(1, abs=0.05)
