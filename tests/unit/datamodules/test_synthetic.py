import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.sources.records import read
from datamodules.synthetic import COLOURS, FAMILIES, WORDS, boxes, draw, edit, reword, write, write_pairs


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


def test_the_boxes_hold_the_things_and_nothing_else_does() -> None:
    for number in range(30):
        scene = edit(0, number).target
        picture = np.asarray(draw(scene)).astype(int)
        drawn = np.abs(picture - np.array(COLOURS[scene.background][1])).max(-1) > 24
        for box in (found["box"] for found in boxes(scene)):
            left, top, right, bottom = box
            inside = drawn[int(top) : int(bottom) + 1, int(left) : int(right) + 1]
            assert inside.any(0).mean() > 0.85
            assert inside.any(1).mean() > 0.85
            inside[:] = False
        assert not drawn.any()


def test_the_world_is_written_in_the_layout_that_prepare_reads(tmp_path: Path) -> None:
    write(tmp_path, 14)
    rows = [json.loads(line) for f in tmp_path.glob("*/edits.jsonl") for line in f.read_text("utf-8").splitlines()]
    assert len(rows) == 14
    assert {0, 1, 2} == {0 if (s := r["source_image"]) is None else 1 if isinstance(s, str) else len(s) for r in rows}
    for folder in tmp_path.iterdir():
        for line in (folder / "edits.jsonl").read_text("utf-8").splitlines():
            assert (folder / json.loads(line)["target_image"]).exists()


def test_pairs_show_a_right_and_a_spoiled_edit(tmp_path: Path) -> None:
    """No spoiled edit is right, or the source; the right one is the sample's own target."""
    write_pairs(tmp_path, 60)
    records = list(read(tmp_path / "pairs.jsonl"))
    assert len(records) == 60
    for record in records:
        right, spoiled = (np.asarray(Image.open(path)).astype(int) for path in (record.target, record.loser))
        assert right.shape == spoiled.shape
        assert (np.abs(right - spoiled).max(-1) > 20).mean() > 0.01
        assert all(not np.array_equal(np.asarray(Image.open(path)), spoiled) for path in record.references)
        assert np.array_equal(right, np.asarray(draw(edit(0, int(record.id.removeprefix("0-"))).target)))


def test_edits_of_words_say_what_the_target_shows_and_what_it_replaces(tmp_path: Path) -> None:
    """They are written beside the others only when asked for, and change nothing outside of the words."""
    write(tmp_path, 20, families=(reword,))
    rows = [json.loads(line) for line in (tmp_path / "text" / "edits.jsonl").read_text("utf-8").splitlines()]
    assert {row["target_text"] for row in rows} <= set(WORDS)
    assert {bool(row["replaced_text"]) for row in rows} == {True, False}
    for number, row in enumerate(rows):
        sample = edit(0, number, (reword,))
        assert row["target_text"] in sample.en
        assert row["target_text"] in sample.cn
        assert row["replaced_text"] in sample.en
        before, after = (np.asarray(draw(s)).astype(int) for s in (sample.sources[0], sample.target))
        changed = np.abs(before - after).max(-1) > 20
        assert changed.any()
        assert not changed[: len(changed) // 4].any()
    assert not any(edit(0, number).target.words for number in range(50))
