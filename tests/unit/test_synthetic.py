import json
from pathlib import Path

import numpy as np
import pytest

from datamodules.synthetic import FAMILIES, draw, edit, write


@pytest.mark.parametrize("number", range(len(FAMILIES) * 3))
def test_every_edit_changes_the_picture_and_nothing_in_it_is_random(number: int) -> None:
    sample = edit(0, number)
    target = np.asarray(draw(sample.target))
    assert np.array_equal(target, np.asarray(draw(edit(0, number).target)))
    for source in sample.sources:
        assert source.canvas != sample.target.canvas or not np.array_equal(np.asarray(draw(source)), target)
    assert sample.en
    assert any("一" <= c <= "鿿" for c in sample.cn)
    assert edit(1, number) != sample


def test_no_edit_of_many_is_invisible() -> None:
    for number in range(400):
        sample = edit(0, number)
        for source in sample.sources:
            assert source != sample.target
        visible = {thing.colour for thing in sample.target.things}
        assert sample.target.background not in visible


def test_an_edit_leaves_the_rest_alone() -> None:
    """Recolouring changes pixels inside the thing only; a flip is the mirrored picture."""
    recoloured, flipped = edit(0, 0), edit(0, 4)
    before, after = (np.asarray(draw(s)).astype(int) for s in (recoloured.sources[0], recoloured.target))
    changed = np.abs(before - after).max(-1) > 0
    assert 0 < changed.mean() < 0.3
    mirrored = np.asarray(draw(flipped.sources[0])).astype(int)[:, ::-1]
    assert np.abs(mirrored - np.asarray(draw(flipped.target)).astype(int)).mean() < 2


def test_the_world_is_written_in_the_layout_that_prepare_reads(tmp_path: Path) -> None:
    write(tmp_path, 14)
    rows = [json.loads(line) for f in tmp_path.glob("*/edits.jsonl") for line in f.read_text("utf-8").splitlines()]
    assert len(rows) == 14
    assert {0, 1, 2} == {0 if (s := r["source_image"]) is None else 1 if isinstance(s, str) else len(s) for r in rows}
    for folder in tmp_path.iterdir():
        for line in (folder / "edits.jsonl").read_text("utf-8").splitlines():
            assert (folder / json.loads(line)["target_image"]).exists()
