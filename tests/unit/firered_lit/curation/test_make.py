"""Edits made from pictures alone: nothing changes outside of the mask, inverses lead back, words name what happens."""

import itertools
import json
import re
import string
from collections import Counter

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_pictures import CREDIT, lines, picture, save, table

from datamodules.sources.raw import RawRows
from datamodules.sources.records import Refusal, rows
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.make import phrases, several, templates, tone
from firered_lit.curation.make.maker import Make
from firered_lit.curation.run import curate
from firered_lit.draws import chooser
from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.rededit import PUBLISHED

SIDE = 160
SEEDS = range(4)
# The word by which every instruction names what happens, whatever the slots are.
MARKS = {
    "brighten": ("bright", "亮"),
    "darken": ("dark", "暗"),
    "raise_contrast": ("contrast", "对比度"),
    "lower_contrast": ("contrast", "对比度"),
    "saturate": ("colours", "鲜艳"),
    "desaturate": ("colours", "淡"),
    "warm": ("warm", "暖"),
    "cool": ("co(?:ol|ld)", "冷"),
    "drain": ("black and white", "黑白"),
    "colourise": ("colour.*black.and.white", "黑白.*上.*色"),
    "recolour": ("", ""),
    "blur": ("blur", "模糊"),
    "sharpen": ("sharp", "清晰"),
    "grain": ("grain", "颗粒"),
    "denoise": ("nois", "噪点"),
    "decompress": ("compression|jpeg", "压缩"),
    "upscale": ("low-res", "分辨率"),
    "add_text": ("add|put|write", "加|写"),
    "remove_text": ("remove|rid", "去掉|删"),
    "replace_text": ("replace|change", "换成|改成"),
    "add_sticker": ("add|stick", "加上|贴"),
    "remove_sticker": ("remove|take away", "去掉|不要"),
    "replace_sticker": ("replace|swap", "换成"),
    "crop": ("crop|cut", "裁"),
    "extend": ("extend|more", "扩展|补"),
    "compose": ("arrange|together", "并排|排列|拼"),
    "extract": ("extract|want", "提取|要"),
}


def scene(seed):
    """A picture that suits every template: shapes on smooth light, and a green field that nothing else is like."""
    pixels = picture(seed, SIDE)
    grey = tone.grey(pixels)
    pixels = grey + (pixels - grey.astype(float)) * 0.35
    pixels = pixels.clip(0, 255).astype(np.uint8)
    pixels[60:110, 40:100] = (30, 190, 40)
    return pixels


def made(name, seed):
    found = templates.make(name, [scene(seed + number) for number in range(4)], chooser(0, seed, name))
    if found is None:
        pytest.skip("the template does not suit this picture")
    return found


def edits():
    """Every template on every scene that it suits, and compound edits."""
    for seed in SEEDS:
        pictures = [scene(seed + number) for number in range(4)]
        for name in templates.TEMPLATES:
            found = templates.make(name, pictures, chooser(0, seed, name))
            if found is not None:
                yield found
        found = several.compound(pictures[0], chooser(0, seed, "several"))
        if found is not None:
            yield found


ALL = list(edits())


def shown(edit):
    return f"{edit.template}-{edit.target.shape}"


def test_every_template_suits_some_picture():
    assert {edit.template for edit in ALL} == {*templates.TEMPLATES, phrases.SEVERAL}


@pytest.mark.parametrize("edit", ALL, ids=shown)
def test_nothing_changes_outside_of_the_mask(edit):
    assert edit.mask.shape == edit.target.shape[:2]
    assert edit.target.dtype == edit.source.dtype == np.uint8
    keeping = np.argwhere(~edit.mask)
    row, column = edit.corner
    places = keeping - (row, column)
    np.testing.assert_array_equal(edit.target[tuple(keeping.T)], edit.source[tuple(places.T)])


@pytest.mark.parametrize("edit", [edit for edit in ALL if edit.source.shape == edit.target.shape], ids=shown)
def test_the_mask_of_a_local_edit_is_what_changed_and_an_edit_changes_something(edit):
    differing = (edit.source != edit.target).any(axis=2)
    assert differing.any()
    if not edit.mask.all() and not edit.steps:
        np.testing.assert_array_equal(edit.mask, differing)


def test_an_extension_keeps_every_pixel_that_is_there_and_paints_the_rest():
    for seed in SEEDS:
        edit = made("extend", seed)
        top, left = edit.corner
        height, width = edit.source.shape[:2]
        assert edit.mask.sum() == edit.mask.size - height * width
        np.testing.assert_array_equal(edit.target[top : top + height, left : left + width], edit.source)


@pytest.mark.parametrize("edit", ALL, ids=shown)
def test_an_inverse_leads_back_to_every_pixel_and_its_inverse_is_the_edit(edit):
    back = templates.invert(edit)
    if back is None:
        assert edit.template in {*templates.TOGETHER, "decompress", "upscale"}
        return
    np.testing.assert_array_equal(back.source, edit.target)
    np.testing.assert_array_equal(back.target, edit.source)
    again = templates.invert(back)
    if again is None:
        pytest.fail("the inverse has no inverse")
    np.testing.assert_array_equal(again.mask, edit.mask)
    assert again.slots == edit.slots
    assert phrases.instructions(again) == phrases.instructions(edit)


def test_the_table_of_inverses_goes_both_ways():
    for name in templates.TEMPLATES:
        back = templates.inverse_of(name)
        if name in templates.TOGETHER:
            assert back is None
        else:
            assert templates.inverse_of(back) in {name, "saturate", "brighten", "raise_contrast", "warm"}
    assert not set(templates.UNDONE_ALONE) & set(templates.TEMPLATES)


def test_a_curve_and_the_curve_back_come_to_the_same_picture():
    pixels = scene(1).clip(30, 255)
    back = tone.curved(tone.curved(pixels, 0.6), 1 / 0.6)
    assert np.abs(back.astype(int) - pixels).max() <= 2


@pytest.mark.parametrize("name", ["recolour", "replace_text", "replace_sticker"])
def test_an_inverted_replacement_speaks_of_the_other_one(name):
    edit = made(name, 1)
    back = templates.invert(edit)
    assert (back.slots["old"], back.slots["new"]) == (edit.slots["new"], edit.slots["old"])
    said, reverse = phrases.phrase(edit, "cn", "concise"), phrases.phrase(back, "cn", "concise")
    assert said != reverse


@pytest.mark.parametrize("edit", [edit for edit in ALL if not edit.steps], ids=shown)
def test_every_instruction_names_what_happens_and_all_that_it_happens_with(edit):
    for place, language in enumerate(phrases.LANGUAGES):
        spoken = phrases.words(edit, language)
        for kind in phrases.KINDS:
            text = phrases.phrase(edit, language, kind)
            assert re.search(MARKS[edit.template][place], text.lower()), text
            assert "{" not in text
            for slot in ("text", "old", "new"):
                if slot in spoken:
                    assert spoken[slot] in text
            if "place" in spoken:
                assert spoken["place"] in text
            if "count" in edit.slots:
                assert ("things" in spoken and (spoken["things"] in text or spoken["the_things"] in text)) or (
                    spoken["the_old_things"] in text and spoken["new_things"] in text
                )


def test_the_table_of_phrases_has_every_template_in_both_languages_and_no_phrase_twice():
    for language in phrases.LANGUAGES:
        assert set(phrases.TABLES[language]) == set(templates.TEMPLATES)
        texts = [getattr(one, kind) for one in phrases.TABLES[language].values() for kind in phrases.KINDS]
        assert Counter(texts).most_common(1)[0][1] == 1
    for name in templates.TEMPLATES:
        fields = {
            language: {
                slot
                for kind in ("detailed",)
                for _, slot, _, _ in string.Formatter().parse(getattr(phrases.TABLES[language][name], kind))
                if slot
            }
            for language in phrases.LANGUAGES
        }
        assert {slot.split("_")[0] for slot in fields["en"]} == {slot.split("_")[0] for slot in fields["cn"]}


def test_left_is_left_and_counts_are_counts():
    edit = made("add_sticker", 2)
    height, width = edit.mask.shape
    rows_of, columns_of = np.nonzero(edit.mask)
    row, column = edit.slots["place"].split()
    centre = (rows_of.min() + rows_of.max()) / 2 / height, (columns_of.min() + columns_of.max()) / 2 / width
    assert {"top": 0, "middle": 1, "bottom": 2}[row] == int(centre[0] * 3)
    assert {"left": 0, "middle": 1, "right": 2}[column] == pytest.approx(int(centre[1] * 3), abs=0)
    parts = cv2.connectedComponents(edit.mask.astype(np.uint8))[0] - 1
    assert parts == int(edit.slots["count"])


@pytest.mark.parametrize("edit", [edit for edit in ALL if edit.steps], ids=shown)
def test_the_steps_of_a_compound_edit_lead_from_its_source_to_its_target(edit):
    steps = several.split(edit)
    assert len(steps) >= 2
    np.testing.assert_array_equal(steps[0].source, edit.source)
    np.testing.assert_array_equal(steps[-1].target, edit.target)
    for step, after in itertools.pairwise(steps):
        np.testing.assert_array_equal(step.target, after.source)
    for language in phrases.LANGUAGES:
        whole = phrases.instructions(edit)["concise"][language]
        for step in steps:
            clause = phrases.phrase(step, language, "concise")[1:-1]
            assert clause in whole


def test_categories_are_the_names_of_the_benchmark():
    assert set(templates.CATEGORIES.values()) <= set(PUBLISHED)


def test_equal_keys_make_equal_edits_and_other_keys_others():
    first = templates.make("grain", [scene(0)], chooser(0, "a", "grain"))
    again = templates.make("grain", [scene(0)], chooser(0, "a", "grain"))
    other = templates.make("grain", [scene(0)], chooser(1, "a", "grain"))
    np.testing.assert_array_equal(first.target, again.target)
    assert (first.target != other.target).any()


# The step of `curate`.


def raw(folder, count):
    found = []
    for number in range(count):
        save(folder / f"{number}.png", scene(number))
        row = {"id": f"p{number}", "source_image": None, "target_image": f"{number}.png", "instruction": "A scene"}
        found.append(row | {"license": CREDIT})
    return table(folder / "rows.jsonl", found)


def run(source, out, make=None, rules=None, **options):
    make = make or Make(each=2, several=1.0, part_rows=3)
    given = {"annotators": {"hashes": Hashes()}, "rules": rules, "workers": 0, "shard_rows": 8}
    curate(source=str(source), out=str(out), rows=RawRows(str(source)), make=make, **{**given, **options})
    return lines(out / "made.jsonl")


def test_what_is_made_is_read_by_prepare_and_by_curate_again(tmp_path):
    found = run(raw(tmp_path / "raw", 7), tmp_path / "out")
    assert len(found) >= 7 * 4
    records = [record for some in rows(tmp_path / "out" / "made.jsonl") for record in some]
    assert not any(isinstance(record, Refusal) for record in records)
    assert [record.id for record in records] == [line["id"] for line in found]
    assert all(line["license"] == CREDIT and line["made_from"] in {f"p{n}" for n in range(7)} for line in found)
    for line, record in zip(found, records, strict=True):
        assert {"original/en", "original/cn", "structured/en", "instructive/en"} <= set(record.instructions)
        with Image.open(record.target) as target:
            if "mask" in line:
                with Image.open(record.mask) as mask:
                    assert mask.size == target.size
    parents = {line["id"]: line for line in found}
    children = [line for line in found if "parent" in line]
    assert children
    assert all(line["id"] in parents[line["parent"]]["steps"] for line in children)
    again = tmp_path / "again"
    source = str(tmp_path / "out" / "made.jsonl")
    curate(source, str(again), RawRows(source), {"hashes": Hashes()}, workers=0)
    kept = pq.read_table(again / "decisions.parquet").to_pylist()
    assert all(decision["kept"] for decision in kept)
    assert next(line["mask"] for line in lines(again / "selected.jsonl") if "mask" in line).startswith("/")


def test_edits_of_one_picture_are_held_out_together(tmp_path):
    found = run(raw(tmp_path / "raw", 8), tmp_path / "out", Make(each=3, held_out=0.5))
    sides = {}
    for line in found:
        sides.setdefault(line["made_from"], set()).add(line["held_out"])
    assert all(len(side) == 1 for side in sides.values())
    assert len({*map(tuple, sides.values())}) == 2


def test_dropped_pictures_and_edits_are_left_alone_and_only_named_templates_are_drawn(tmp_path, capsys):
    rules = {"second": {"column": "row.id", "among": ["p1"]}}
    make = Make({"blur": 1.0, "crop": 2.0}, each=5, several=0.0)
    found = run(raw(tmp_path / "raw", 3), tmp_path / "out", make, rules)
    assert {line["made_from"] for line in found} == {"p0", "p2"}
    assert {line["template"] for line in found} == {"blur", "crop"}
    assert "made              4 edits" in capsys.readouterr().out


def test_a_template_that_is_none_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"no template 'brigten'; did you mean 'brighten'"):
        Make({"brigten": 1.0})


def test_what_is_made_is_not_made_again_unless_something_else_is_asked_for(tmp_path):
    source = raw(tmp_path / "raw", 6)
    before = run(source, tmp_path / "out")
    parts = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "made").iterdir()}
    assert run(source, tmp_path / "out") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "made").iterdir()} == parts
    rules = {"last": {"column": "row.id", "among": ["p5"]}}
    run(source, tmp_path / "out", rules=rules)
    after = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "made").iterdir()}
    assert [after[path] == number for path, number in sorted(parts.items())] == [True, False]


def test_rows_say_what_their_edit_was_made_with(tmp_path):
    found = run(raw(tmp_path / "raw", 6), tmp_path / "out", Make({"replace_text": 1, "add_text": 1}, several=0.0))
    assert found
    for line in found:
        texts = {"add_text": "text", "replace_text": "new"}
        assert line["target_text"] == line["slots"][texts[line["template"]]]
        assert line["slots"].get("old") == line.get("replaced_text")
        assert json.dumps(line["target_text"])[1:-1] in line["structured"]
