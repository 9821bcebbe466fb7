"""The report of what was learned: intervals, tallies, wins, agreement with an earlier one, pictures and curves."""

import json
from pathlib import Path

import numpy as np
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from scipy.stats import binomtest

from benchmarks import report

WORDS = dict.fromkeys(("reward", "text", "layout", "glyph_ratio", "dark", "edges"), 0.5)


def result(color: int, text: int, rewards: list[float] | None = None) -> dict:
    errors = [0.3 - color / 1000] * 90 + [0.1] * 10
    words = WORDS | {"exact": color, "count": 100, "rewards": rewards or [color / 100] * 100}
    words["read"] = [int(i < color) for i in range(100)]
    families = {
        "color": {"correct": color, "count": 100, "errors": errors, "edited": color / 100, "kept": 0.9},
        "text": {"correct": text, "count": 50, "errors": errors[::-1][:50], "words": words},
    }
    for one in families.values():
        one["right"] = [int(i < one["correct"]) for i in range(one["count"])]
    return {"families": families}


@pytest.mark.parametrize(("correct", "count"), [(0, 10), (3, 10), (10, 10), (57, 100), (199, 200)])
def test_intervals_are_wilsons(correct: int, count: int) -> None:
    expected = binomtest(correct, count).proportion_ci(method="wilson")
    assert report.wilson(correct, count) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_families_count_alike_and_the_interval_holds_the_truth() -> None:
    middle, low, high = report.over_families(result(90, 10)["families"])
    assert middle == pytest.approx((0.9 + 0.2) / 2)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        drawn = {"a": {"correct": int(rng.binomial(60, 0.97)), "count": 60}}
        drawn |= {"b": {"correct": int(rng.binomial(200, 0.3)), "count": 200}}
        _, low, high = report.over_families(drawn)
        inside += low <= (0.97 + 0.3) / 2 <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_a_gain_is_taken_edit_by_edit_and_its_interval_holds_the_truth() -> None:
    old = {"a": {"right": [0, 0, 1, 1]}, "b": {"right": [0] * 10}}
    assert report.gained(old, old)[0] == 0
    middle, low, high = report.gained(old, {"a": {"right": [1, 1, 1, 0]}, "b": {"right": [1] + [0] * 9}})
    assert middle == pytest.approx((0.25 + 0.1) / 2)
    assert low < 0 < high
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        before = {name: (rng.random(60) < 0.6).astype(int) for name in "ab"}
        after = {name: np.where(rng.random(60) < 0.2, rng.random(60) < 0.9, one) for name, one in before.items()}
        pairs = [{name: {"right": one.astype(int).tolist()} for name, one in side.items()} for side in (before, after)]
        _, low, high = report.gained(*pairs)
        inside += low <= 0.2 * (0.9 - 0.6) <= high
    assert 0.92 <= inside / 400 <= 0.99


def test_the_report_shows_every_family_of_every_model(tmp_path: Path) -> None:
    files = []
    for number, found in enumerate((result(20, 5, [0.0, 0.4] * 50), result(90, 45, [0.3, 0.7] * 50))):
        files.append(tmp_path / f"{number}.json")
        files[-1].write_text(json.dumps(found))
    out = tmp_path / "out"
    report.tables(files, ["before", "after"], out)
    text = (out / "report.md").read_text()
    assert "100 or 50" not in text
    assert "50 or 100 edits of each family" in text
    assert "| color | 20 (13-29) | 90 (83-94) |" in text
    assert "| all, each alike | 15 (" in text
    assert "| color | edited | 0.200 | 0.900 |" in text
    assert "| after against before | +75.0 (+67.1 to +82.9) | 100 (97-100) of 130 |" in text
    assert (
        "| after | 90 (83-94) | +70.0 (+60.6 to +79.4) | 0.500 (0.461-0.539) | +0.300 (+0.300 to +0.300), +150 % |"
        in text
    )
    assert (out / "correctness.png").stat().st_size > 5000
    assert "agree" not in text
    report.tables(files, ["before", "after"], tmp_path / "again", against=out)
    assert "4 of 4 shares agree" in (tmp_path / "again" / "report.md").read_text()


def test_the_committed_report_is_what_its_numbers_give(root: Path, tmp_path: Path) -> None:
    learned, names = root / "docs" / "learning", ["pretrained", "SFT", "DPO", "NFT"]
    report.tables([learned / f"{name}.json" for name in names], names, tmp_path)
    assert (tmp_path / "report.md").read_text() == (learned / "report.md").read_text()


def test_shares_whose_intervals_do_not_meet_are_named() -> None:
    old, new = result(50, 25), result(52, 45)
    assert report.agreement([old], [old]) == (2, [])
    assert report.agreement([new], [old]) == (2, [(0, "text")])


def test_an_edit_wins_when_it_comes_nearer_and_ties_count_for_nobody() -> None:
    before = {"color": {"errors": [0.2, 0.2, 0.2, 0.2]}, "add": {"errors": [0.1]}}
    after = {"color": {"errors": [0.1, 0.3, 0.2005, 0.1]}}
    assert report.wins(before, after) == (2, 3)
    assert report.wins(after, before) == (1, 3)


def a_run(folder: Path, losses: dict[int, float], begun: int) -> Path:
    """The folder of a run that logged these losses by step, five minutes apart."""
    store = f"sqlite:///{folder.parent / 'mlflow.db'}"
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name("world")
    number = client.create_run(
        experiment.experiment_id if experiment else client.create_experiment("world")
    ).info.run_id
    client.log_param(number, "stage.seed", 7)
    for place, (step, loss) in enumerate(losses.items()):
        client.log_metric(number, "train/loss", loss, timestamp=begun + 300_000 * place, step=step)
    client.log_metric(number, "perf/samples_per_s", 36.0)
    record = {"stage": "Pretrain", "base": "world", "mlflow_uri": store, "mlflow_run_id": number}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_a_run_s_seed_hours_and_curves_come_from_its_store(tmp_path: Path) -> None:
    first = a_run(tmp_path / "run", {0: 0.9, 10: 0.5, 20: 0.3}, 0)
    report.run([first], tmp_path / "pretrain.json")
    found = json.loads((tmp_path / "pretrain.json").read_text())
    assert (found["stage"], found["stage.seed"], found["steps"], found["hours"]) == ("Pretrain", "7", 20, 0.17)
    assert found["curves"] == {"train/loss": [[0, 0.9], [10, 0.5], [20, 0.3]]}
    assert (tmp_path / "pretrain.png").stat().st_size > 5000
    again = a_run(tmp_path / "again", {15: 0.4, 25: 0.2}, 90_000_000)
    report.run([first, again], tmp_path / "both.json")
    found = json.loads((tmp_path / "both.json").read_text())
    assert (found["steps"], found["hours"]) == (25, 0.17)
    assert found["curves"] == {"train/loss": [[0, 0.9], [10, 0.5], [15, 0.4], [25, 0.2]]}


def test_hours_leave_out_what_a_run_was_stopped_for() -> None:
    assert report.hours([0, 300_000, 90_000_000, 90_600_000]) == pytest.approx(0.25)


def test_curves_are_thinned_to_means_at_their_last_step() -> None:
    points = [(step, float(step)) for step in range(1, 401)]
    found = report.thinned(points)
    assert len(found) == report.POINTS
    assert found[0] == (2, 1.5)
    assert found[-1] == (400, 399.5)
    assert report.thinned(points[:3]) == points[:3]


def test_edits_of_every_kind_are_drawn(tmp_path: Path) -> None:
    report.edits(["world-untrained"], ["untrained"], tmp_path / "new" / "edits.png", seed=0, steps=1)
    picture = np.asarray(Image.open(tmp_path / "new" / "edits.png").convert("RGB"))
    assert picture.shape[0] > picture.shape[1] > 500
    assert (picture != 255).any(-1).mean() > 0.2
