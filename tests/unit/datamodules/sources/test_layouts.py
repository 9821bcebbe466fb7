"""Every layout that users have becomes the same record, from a file as they have it; polarity is never guessed."""

import csv
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.sources import images, parquet
from datamodules.sources.layouts import LAYOUTS, NAMES
from datamodules.sources.parquet import Embedded
from datamodules.sources.records import Refusal, read, rows
from datamodules.sources.tables import files, survey
from firered_lit.errors import UserError


def jsonl(path, *items):
    path.write_text("".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items), encoding="utf-8")
    return path


def table(path, items, **options):
    pq.write_table(pa.Table.from_pylist(items), path, **options)
    return path


def png(seed, size=(40, 32)):
    """The bytes of a small image."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


ROWS = {
    "diffsynth": {"image": "t.png", "prompt": "red", "edit_image": "s.png"},
    "edit-r1": {"image": "s.png", "prompt": "red", "requirement": "is it red"},
    "musubi": {"image_path": "t.png", "caption": "red", "control_path": "s.png"},
    "longcat": {"img_path": "t.png", "ref_img_path": "s.png", "prompt": "red"},
    "longcat-dpo": {"img_path_win": "t.png", "img_path_lose": "l.png", "ref_img_path": "s.png", "prompt": "red"},
    "editreward": {"prompt": "red", "path_src": "s.png", "path1": "t.png", "path2": "l.png"},
    "preferences": {"source_image": "s.png", "chosen_image": "t.png", "rejected_image": "l.png", "instruction": "red"},
    "imgedit": {"input_images": ["s.png"], "output_images": ["t.png"], "prompt": "red"},
    "omnigen2": {"input_images": ["s.png"], "output_image": "t.png", "instruction": "red", "task_type": "edit"},
    "instruct-pix2pix": {"input_image": "s.png", "edited_image": "t.png", "edit_prompt": "red"},
    "hq-edit": {"input_image": "s.png", "output_image": "t.png", "edit": "red", "inverse_edit": "green"},
    "omniedit": {"src_img": "s.png", "edited_img": "t.png", "edited_prompt_list": ["red"], "width": 40, "height": 32},
    "unicedit": {"src_image": "s.png", "edit_image": "t.png", "prompt_en": "red", "prompt_cn": "变红"},
    "pico-banana": {"local_input_image": "s.png", "output_image": "t.png", "text": "red", "summarized_text": "red!"},
    "pico-banana-dpo": {
        "local_input_image": "s.png", "output_image": "t.png", "rejected_images": ["l.png"],
        "text": "red", "summarized_text": "red!",
    },
    "magicbrush": {"source_img": "s.png", "target_img": "t.png", "instruction": "red", "mask_img": "m.png"},
    "firered": {"source_image": "s.png", "edit_image": "t.png", "instruction": "red"},
}  # fmt: skip


def test_there_is_a_row_of_every_layout():
    assert {*ROWS, "ai-toolkit"} == set(NAMES) == {columns.name for columns in LAYOUTS}


@pytest.mark.parametrize("name", ROWS)
def test_a_layout_is_told_by_its_columns(tmp_path, name):
    (record,) = read(jsonl(tmp_path / "e.jsonl", ROWS[name]), inverse=False)
    assert not isinstance(record, Refusal), record
    assert record.columns.name == name
    assert record.references == (str(tmp_path / "s.png"),)
    assert record.target == ("" if name == "edit-r1" else str(tmp_path / "t.png"))
    assert record.loser == (str(tmp_path / "l.png") if record.columns.loser else "")
    assert record.instructions["original/en"] == "red"
    assert (record.requirement == "is it red") == (name == "edit-r1")
    assert (record.mask == str(tmp_path / "m.png")) == (name == "magicbrush")
    assert record.size == ((32, 40) if name == "omniedit" else (0, 0))


@pytest.mark.parametrize("name", ROWS)
def test_of_two_layouts_columns_none_is_chosen(tmp_path, name):
    """The columns of any other layout beside these: refused, unless the one is a part of the other."""
    for other in ROWS.keys() - {name}:
        row = ROWS[other] | ROWS[name]
        if row in (ROWS[other], ROWS[name]):
            continue
        (refusal,) = read(jsonl(tmp_path / "e.jsonl", row))
        assert isinstance(refusal, Refusal), (other, refusal)
        assert refusal.reason == "several targets"
        (record,) = read(tmp_path / "e.jsonl", inverse=False, layout=name)
        assert name == "firered" or record.columns.name == name


UNCLEAR = [
    ({"image": "a", "prompt": "p"}, "say layout=diffsynth or layout=edit-r1"),
    ({"img_path": "a", "prompt": "p"}, "longcat (`img_path` is the target there, `ref_img_path` the source)"),
    ({"image_path": "a", "caption": "p"}, "write null for text-to-image, or say layout=musubi"),
    ({"src_img": "s", "edited_img": "t"}, "expected src_img, edited_img, edited_prompt_list"),
    ({"source_img": "s", "target_img": "t"}, "looks like magicbrush"),
    ({"edit_image": "s", "prompt": "p"}, "looks like diffsynth"),
]


@pytest.mark.parametrize(("row", "said"), UNCLEAR)
def test_what_is_not_clear_is_refused_with_what_to_say(tmp_path, row, said):
    (refusal,) = read(jsonl(tmp_path / "e.jsonl", row))
    assert (refusal.field, refusal.reason) == ("columns", "wrong columns")
    assert said in refusal.detail
    assert "\n" not in str(refusal)


def test_columns_of_two_layouts_are_refused_by_a_column_that_is_there(tmp_path):
    """Also where the first of the layouts has no target."""
    row = {"image": "a.png", "requirement": "red", "prompt": "red", "ref_img_path": "b.png", "img_path": "c.png"}
    (found,) = read(jsonl(tmp_path / "e.jsonl", row))
    assert (found.field, found.reason) == ("image", "several targets")


def test_image_is_the_target_or_the_source_as_said(tmp_path):
    path = jsonl(tmp_path / "e.jsonl", {"image": "a.png", "prompt": "p"})
    (edit,), (prompt,) = read(path, layout="diffsynth"), read(path, layout="edit-r1")
    assert (edit.target, edit.references) == (str(tmp_path / "a.png"), ())
    assert (prompt.target, prompt.references) == ("", (str(tmp_path / "a.png"),))
    with pytest.raises(UserError, match="is diffsynth meant"):
        list(read(path, layout="difsynth"))
    (refusal,) = read(path, layout="musubi")
    assert "not of layout=musubi: expected control_path, image_path, caption" in refusal.detail


def test_omnigen2_rows_of_its_three_tasks_are_read(tmp_path):
    """Its examples have `edit`, `ic` (several inputs) and `t2i`, which has no `input_images` at all."""
    rows = [
        {"task_type": "edit", "instruction": "red", "input_images": ["s.png"], "output_image": "t.png"},
        {"task_type": "ic", "instruction": "两只猫", "input_images": ["s.png", "m.png"], "output_image": "t.png"},
        {"task_type": "t2i", "instruction": "a tree", "output_image": "t.png"},
    ]
    path = jsonl(tmp_path / "mix.jsonl", *rows)
    edit, several, text = read(path, layout="omnigen2")
    assert [record.task for record in (edit, several, text)] == ["edit", "ic", "t2i"]
    assert [len(record.references) for record in (edit, several, text)] == [1, 2, 0]
    assert several.instructions == {"original/cn": "两只猫"}
    # Without the layout's name the text-to-image row is refused, with what to say.
    edit, several, refusal = read(path)
    assert (edit.task, several.task) == ("edit", "ic")
    assert "say layout=omnigen2" in refusal.detail


def test_diffsynth_csv_json_and_jsonl_say_the_same(tmp_path):
    items = [
        {"image": "t.png", "prompt": 'make, "it"\nred', "edit_image": ["a.png", "b.png"], "width": 40, "height": 32},
        {"image": "u.png", "prompt": "[x] 变红", "edit_image": None, "width": 40, "height": 32},
    ]
    jsonl(tmp_path / "e.jsonl", *items)
    (tmp_path / "e.json").write_text(json.dumps(items, indent=1))
    with (tmp_path / "e.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, items[0])
        writer.writeheader()
        writer.writerows(row | {"edit_image": json.dumps(row["edit_image"] or "").strip('"')} for row in items)
    found = [list(read(tmp_path / name)) for name in ("e.jsonl", "e.json", "e.csv")]
    assert [len(record.references) for record in found[0]] == [2, 0]
    assert found[0][0].instructions == {"original/en": 'make, "it"\nred'}
    assert list(found[0][1].instructions) == ["original/cn"]
    for name, other in zip(("e.json", "e.csv"), found[1:]):
        assert [vars(r) | {"where": ""} for r in other] == [vars(r) | {"where": ""} for r in found[0]]
        assert survey(tmp_path / name)[0] == 2
    assert [record.where.rpartition(":")[2] for record in found[1]] == ["2", "12"]
    assert [record.where.rpartition(":")[2] for record in found[2]] == ["2", "4"]  # a cell goes over two lines


def test_a_broken_cell_is_named_by_its_line(tmp_path):
    path = tmp_path / "e.csv"
    path.write_bytes(b"image,prompt,edit_image\na,p,s\na,p, with a comma,s\nb\nc,\xff,s\nd,p,s2\n")
    kinds = [(i.where[-2:], i.reason) if isinstance(i, Refusal) else "kept" for i in read(path)]
    assert kinds == ["kept", (":3", "invalid CSV"), (":4", "invalid CSV"), (":5", "invalid UTF-8"), "kept"]


def test_a_json_array_is_read_piece_by_piece_and_ends_where_it_breaks(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources.tables.PIECE", 7)
    items = [{"image": f"{i}.png", "prompt": "é" * i, "edit_image": "s.png", "id": i} for i in range(1, 9)]
    path = tmp_path / "e.json"
    path.write_text(json.dumps([*items[:4], 3, *items[4:]], ensure_ascii=False), encoding="utf-8")
    kinds = [i.reason if isinstance(i, Refusal) else i.id for i in read(path)]
    assert kinds == ["1", "2", "3", "4", "not an object", "5", "6", "7", "8"]
    path.write_text(path.read_text("utf-8")[:-40], encoding="utf-8")
    *_, last = read(path)
    assert (last.reason, last.where) == ("invalid JSON", f"{path}:1, row 9")
    path.write_text(json.dumps(items)[:-1])
    assert [isinstance(item, Refusal) for item in read(path)] == [False] * 7 + [True]


def test_musubi_numbers_its_controls(tmp_path):
    base = {"image_path": "t.png", "caption": "red"}
    good = base | {"control_path_0": "a.png", "control_path_1": "b.png", "control_path_2": None}
    gap = base | {"control_path_0": None, "control_path_1": "b.png"}
    record, refusal = read(jsonl(tmp_path / "e.jsonl", good, gap))
    assert record.references == (str(tmp_path / "a.png"), str(tmp_path / "b.png"))
    assert (refusal.field, refusal.reason) == ("control_path_0", "wrong type")


def test_longcat_polarity(tmp_path):
    """`img_path` is what comes out, in SFT as in DPO."""
    sft, dpo = read(jsonl(tmp_path / "e.jsonl", ROWS["longcat"], ROWS["longcat-dpo"]))
    assert sft.target == dpo.target == str(tmp_path / "t.png")
    assert sft.references == dpo.references == (str(tmp_path / "s.png"),)
    assert (sft.loser, dpo.loser) == ("", str(tmp_path / "l.png"))


def test_imgedit_lists(tmp_path):
    items = [
        {"input_images": ["a.png", "b.png"], "output_images": ["t.png"], "prompt": "put them together", "id": None},
        {"input_images": ["a.png"], "output_images": ["t.png", "u.png"], "prompt": "in two ways", "id": "x"},
        {"input_images": ["a.png"], "output_images": [], "prompt": "nothing"},
        {"input_images": ["a.png"], "output_images": ["./a.png"], "prompt": "swapped"},
        {"input_images": ["a.png"], "output_images": ["t.png", "a.png"], "prompt": "the second swapped"},
    ]
    path = table(tmp_path / "e.parquet", items)
    record, first, second, none, same, mixed = read(path)
    assert (len(record.references), record.target) == (2, str(tmp_path / "t.png"))
    assert [(r.id, r.target, r.references) for r in (first, second)] == [
        ("x.0", str(tmp_path / "t.png"), (str(tmp_path / "a.png"),)),
        ("x.1", str(tmp_path / "u.png"), (str(tmp_path / "a.png"),)),
    ]
    assert (none.field, none.reason, none.detail) == (
        "output_images",
        "missing image",
        "output_images is an empty list",
    )
    assert (same.field, same.reason) == (mixed.field, mixed.reason) == ("input_images", "source is target")
    assert [len(row) if isinstance(row, list) else 0 for row in rows(path)] == [1, 2, 0, 0, 0]


def test_pico_bananas_rejected_images_are_losers_of_the_one_output(tmp_path):
    pair = ROWS["pico-banana-dpo"]
    several = pair | {"rejected_images": ["l.png", "m.png"], "id": 7, "edit_type": "colour"}
    path = jsonl(
        tmp_path / "e.jsonl", pair, several, pair | {"rejected_images": []}, pair | {"rejected_images": ["t.png"]}
    )
    one, first, second, none, same = read(path)
    assert (one.target, one.loser) == (str(tmp_path / "t.png"), str(tmp_path / "l.png"))
    assert [(r.id, r.task, r.target, r.loser) for r in (first, second)] == [
        (f"7.{i}", "colour", str(tmp_path / "t.png"), str(tmp_path / name)) for i, name in enumerate(["l.png", "m.png"])
    ]
    assert (none.field, none.reason) == ("rejected_images", "missing image")
    assert (same.field, same.reason) == ("rejected_images", "winner is loser")
    edits = list(read(path, layout="pico-banana"))
    assert [(r.columns.name, r.loser) for r in edits if not isinstance(r, Refusal)] == [("pico-banana", "")] * 2
    assert {r.reason for r in edits if isinstance(r, Refusal)} == {"duplicate id"}


def test_editrewards_pair_that_is_a_tie_or_says_the_opposite_is_no_preference(tmp_path):
    pair = ROWS["editreward"] | {"model1_overall_score": 6, "model2_overall_score": 4, "tie_case": False}
    wrong = [{"tie_case": True}, {"model1_overall_score": 4}, {"model1_overall_score": 3}]
    unsaid = {"model1_overall_score": None, "path1": "u.png"}
    good, *bad, other = read(jsonl(tmp_path / "e.jsonl", pair, *(pair | change for change in wrong), pair | unsaid))
    assert (good.target, good.loser) == (str(tmp_path / "t.png"), str(tmp_path / "l.png"))
    assert other.target == str(tmp_path / "u.png")
    assert [(r.field, r.reason) for r in bad] == [
        ("tie_case", "no preference"),
        ("model1_overall_score", "no preference"),
        ("model1_overall_score", "no preference"),
    ]
    assert "3 for path1 is not above 4 for path2" in bad[2].detail


def test_a_prompt_needs_its_source(tmp_path):
    row = {"image": None, "prompt": "red", "requirement": "is it red"}
    (refusal,) = read(jsonl(tmp_path / "e.jsonl", row))
    assert (refusal.field, refusal.reason) == ("image", "no source")


def test_omniedit_keeps_every_wording_and_its_own_id(tmp_path):
    row = {"omni_edit_id": "x1", "task": "swap", "edited_prompt_list": ["Swap it", "The cat is a dog", "换成狗"]}
    row |= {"src_img": {"bytes": png(1), "path": "a.png"}, "edited_img": {"bytes": png(2), "path": "b.png"}}
    (record,) = read(table(tmp_path / "e.parquet", [row | {"width": 40, "height": 32, "sc_score_1": 8.0}]))
    assert record.instructions == {
        "original/en": "Swap it", "paraphrase_1/en": "The cat is a dog", "paraphrase_2/cn": "换成狗"
    }  # fmt: skip
    assert (record.id, record.task, record.size) == ("x1", "swap", (32, 40))


def unicedit(count):
    """Rows as UnicEdit-10M has them: one key for several edits of a source, file names that say nothing."""
    for i in range(count):
        source, edit = ({"bytes": png(seed), "path": "image.png"} for seed in (i // 2, 100 + i))
        yield {"key": f"k{i // 2}", "edit_task": f"task {i % 3}", "src_image": source, "edit_image": edit,
               "prompt_en": f"edit {i}", "prompt_cn": f"编辑{i}"}  # fmt: skip


def test_unicedit_images_lie_in_the_table(tmp_path):
    """Its keys repeat, so rows are told apart by their place; edits of one source are one group, by its bytes."""
    path = table(tmp_path / "e.parquet", list(unicedit(6)), row_group_size=4)
    found = list(read(path))
    assert len({record.id for record in found}) == 6
    assert len({record.group for record in found}) == 3
    assert [record.task for record in found] == [f"task {i % 3}" for i in range(6)]
    assert found[3].instructions == {"original/en": "edit 3", "original/cn": "编辑3"}
    for i, record in enumerate(found):
        for image, seed in ((record.references[0], i // 2), (record.target, 100 + i)):
            expected = Image.open(io.BytesIO(png(seed)))
            assert np.array_equal(np.asarray(images.load(image)), np.asarray(expected))
            assert images.size(image) == (32, 40)
    assert "e.parquet:4" in found[3].target


def test_unwanted_images_are_not_read(tmp_path, monkeypatch):
    """A row group in which nothing is wanted is read without its images; ids, order and texts are the same."""
    path, asked = table(tmp_path / "e.parquet", list(unicedit(8)), row_group_size=2), []
    real = pq.ParquetFile.iter_batches
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, size, groups, columns: (
        asked.append(columns is None) or real(self, size, groups, columns)
    ))  # fmt: skip
    some = [row for (row,) in rows(path, wanted=lambda number: number == 5)]
    assert asked == [False, False, True, False]
    assert [bool(record.target.data) for record in some] == [False] * 5 + [True] + [False] * 2
    assert [record.id for record in some] == [record.id for record in read(path)]
    with pytest.raises(images.BadImageError, match="zero bytes"):
        images.load(some[0].target)


def test_equal_images_in_a_table_are_refused(tmp_path):
    same = {"bytes": png(1), "path": "x.png"}
    row = next(unicedit(1)) | {"src_image": same, "edit_image": same}
    (refusal,) = read(table(tmp_path / "e.parquet", [row]))
    assert (refusal.field, refusal.reason) == ("src_image", "source is target")


def test_a_table_may_hold_paths_in_the_place_of_bytes(tmp_path):
    row = next(unicedit(1)) | {"src_image": {"bytes": None, "path": "a.png"}}
    (record,) = read(table(tmp_path / "e.parquet", [row]))
    assert record.references == (str(tmp_path / "a.png"),)
    assert isinstance(record.target, Embedded)


def test_broken_parquet_is_one_error(tmp_path):
    (tmp_path / "e.parquet").write_bytes(b"PAR1" + bytes(100))
    for read_it in (lambda path: list(read(path)), survey):
        with pytest.raises(UserError, match=r"e\.parquet: cannot be read"):
            read_it(tmp_path / "e.parquet")


def test_parquet_rows_are_held_a_few_at_a_time(tmp_path):
    """One row group of 40 MB: what is alive at once is a batch or two of it."""
    items = [row | {"src_image": {"bytes": bytes([i]) * 200_000, "path": ""}} for i, row in enumerate(unicedit(200))]
    path = table(tmp_path / "e.parquet", items, compression="none", use_dictionary=False, write_batch_size=8)
    del items
    alive, top = pa.total_allocated_bytes(), 0
    for _ in read(path):
        top = max(top, pa.total_allocated_bytes() - alive)
    assert pq.read_metadata(path).num_row_groups == 1
    assert top < 20e6
    assert parquet.BATCH < 64


def test_pico_banana_and_magicbrush(tmp_path):
    pico = ROWS["pico-banana"] | {"edit_type": "Change colour", "open_image_input_url": "https://example.com/x.jpg"}
    (record,) = read(jsonl(tmp_path / "p.jsonl", pico))
    assert (record.task, record.instructions) == ("Change colour", {"original/en": "red", "instructive/en": "red!"})
    turns = [
        ROWS["magicbrush"] | {"img_id": 7, "turn_index": 1},
        {"source_img": "t.png", "target_img": "u.png", "instruction": "blue", "mask_img": None, "img_id": 7},
    ]
    first, second = read(jsonl(tmp_path / "m.jsonl", *turns))
    assert first.group == second.group  # the turns of a picture are held out together
    assert (first.mask, second.mask) == (str(tmp_path / "m.png"), "")


def toolkit(folder, controls=("control_1", "control_2")):
    for name in ("target", *controls):
        (folder / name).mkdir(parents=True)
        for stem, ending in (("a", "png"), ("b", "jpg")):
            (folder / name / f"{stem}.{ending if name == 'target' else 'webp'}").touch()
    (folder / "target" / "a.txt").write_text("make it red\n")
    (folder / "target" / "b.txt").write_text("变蓝", encoding="utf-8")
    return folder


def test_ai_toolkit_folders_match_by_stem(tmp_path):
    folder = toolkit(tmp_path / "hats")
    (table,) = files(folder)
    assert table.home == folder
    first, second = read(folder)
    assert first.target == str(folder / "target" / "a.png")
    assert first.references == (str(folder / "control_1" / "a.webp"), str(folder / "control_2" / "a.webp"))
    assert (first.instructions, second.instructions) == ({"original/en": "make it red"}, {"original/cn": "变蓝"})
    assert first.task == "hats"
    before = survey(folder)
    (folder / "target" / "a.txt").write_text("make it green")
    assert before[0] == survey(folder)[0] == 2
    assert before[1] != survey(folder)[1]


def test_ai_toolkit_files_that_are_missing(tmp_path):
    """The last controls may be absent; a hole would shift the references, and no caption is no instruction."""
    folder = toolkit(tmp_path / "hats")
    (folder / "control_2" / "a.webp").unlink()
    (folder / "control_1" / "b.webp").unlink()
    first, second = read(folder)
    assert len(first.references) == 1
    assert (second.field, second.reason) == ("control_1", "missing image")
    (folder / "target" / "a.txt").unlink()
    first, _ = read(folder)
    assert (first.field, first.reason) == ("caption", "empty instruction")


def test_tables_of_several_kinds_are_not_mixed(tmp_path):
    jsonl(tmp_path / "e.jsonl", ROWS["firered"])
    (tmp_path / "info.json").write_text("{}")
    assert files(tmp_path) == [tmp_path / "e.jsonl"]
    (tmp_path / "e.csv").touch()
    with pytest.raises(UserError, match=r"several kinds \(csv, jsonl\)"):
        files(tmp_path)


@pytest.mark.parametrize(("size", "kept"), [({"width": 8, "height": "9"}, (9, 8)), ({"width": 8}, (0, 0))])
def test_sizes_come_from_the_rows(tmp_path, size, kept):
    (record,) = read(jsonl(tmp_path / "e.jsonl", ROWS["firered"] | size))
    assert record.size == kept


def test_a_wrong_size_is_named(tmp_path):
    (refusal,) = read(jsonl(tmp_path / "e.jsonl", ROWS["firered"] | {"width": "wide", "height": 3}))
    assert (refusal.field, refusal.reason) == ("width", "wrong type")
