"""The ablations of the learning world: arms that fit their recipes, intervals, and rows in one order of references."""

import json
from pathlib import Path

import pytest
from scipy import stats

from benchmarks import ablations
from firered_lit.config import build, recipe


def test_every_arm_fits_its_recipe_and_arms_differ(root: Path) -> None:
    for name, one in ablations.ablations(Path("learned"), Path("out")).items():
        assert len(set(one.arms.values())) == 2, name
        if not one.recipe:
            continue
        read = []
        for keys in one.arms.values():
            path = root / "recipes" / "world" / f"{one.recipe}.yaml"
            found = recipe.load(path, ablations.overrides(one, keys, Path("x"), 3))
            build.validate(found)
            assert (found.root["stage"]["seed"], found.root["data"]["seed"]) == (3, 103), name
            read.append(found.root)
        assert read[0] != read[1], name


@pytest.mark.parametrize("values", [(0.2, 0.5, 0.9), (1.0, 2.0)])
def test_intervals_are_students(values) -> None:
    low, high = stats.t.interval(0.95, len(values) - 1, sum(values) / len(values), stats.sem(values))
    middle, half = map(float, ablations.interval(values).split(" ± "))
    assert middle == pytest.approx((low + high) / 2, rel=1e-3)
    assert half == pytest.approx((high - low) / 2, rel=0.05)


def test_a_background_is_borrowed_in_one_order_until_it_is_turned(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ablations, "command", lambda *words: None)
    ablations.borrowings(tmp_path, 6)
    rows = [json.loads(line) for line in (tmp_path / "compose" / "edits.jsonl").read_text().splitlines()]
    assert {row["instruction"] for row in rows} == {"Give Picture 1 the background of Picture 2"}
    for number in range(6):
        plain, turned = (ablations.borrowed(number, "train", way) for way in (False, True))
        assert plain.target == turned.target
        assert plain.sources == turned.sources[::-1]
        assert plain.captions == turned.captions[::-1]
        assert turned.texts["original/en"] == "Give Picture 2 the background of Picture 1"
        assert turned.texts["original/cn"] == "把图2的背景换成图1的背景"
        ground, lender = plain.sources
        assert plain.target.things == ground.things
        assert plain.target.background == lender.background
        assert lender.background != ground.background
