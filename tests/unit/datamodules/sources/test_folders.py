"""Folders: hidden files are no data, endings count in any case, and of twins none is chosen."""

import json

import pytest
from PIL import Image

from datamodules.sources.records import Refusal, read
from datamodules.sources.tables import files, survey

EDIT = {"source_image": "a.png", "target_image": "b.png", "instruction": "red"}


def table(path, *ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(EDIT | {"id": name}) + "\n" for name in ids))


def ids(folder):
    return [row.reason if isinstance(row, Refusal) else row.id for row in read(folder)]


def test_hidden_tables_and_folders_are_no_data(tmp_path):
    table(tmp_path / "color" / "edits.jsonl", "first")
    table(tmp_path / "color" / "._edits.jsonl", "of macOS")
    table(tmp_path / ".ipynb_checkpoints" / "edits-checkpoint.jsonl", "of a notebook")
    table(tmp_path / "color" / ".ipynb_checkpoints" / "edits-checkpoint.jsonl", "of a notebook too")
    table(tmp_path / ".edits.jsonl.1-0.part", "being written")
    assert ids(tmp_path) == ["first"]
    assert survey(tmp_path)[0] == 1


def test_a_folder_that_is_named_counts_though_its_own_name_is_hidden(tmp_path):
    table(tmp_path / ".demo" / "edits.jsonl", "first")
    assert ids(tmp_path / ".demo") == ["first"]


def test_what_prepare_writes_into_a_folder_of_the_source_is_no_data(tmp_path):
    table(tmp_path / "edits.jsonl", "first")
    before = survey(tmp_path)
    table(tmp_path / "out" / "refused.jsonl", "refused")
    (tmp_path / "out" / "prepare.json").write_text("{}")
    assert ids(tmp_path) == ["first"]
    assert survey(tmp_path) == before


@pytest.mark.parametrize("name", ["EDITS.JSONL", "edits.Jsonl", "edits.NDJSON"])
def test_endings_of_tables_count_in_any_case(tmp_path, name):
    table(tmp_path / name, "first")
    assert ids(tmp_path) == ids(tmp_path / name) == ["first"]
    assert survey(tmp_path / name)[0] == 1


def test_arrays_csv_and_parquet_are_read_by_endings_in_any_case(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "e.JSON").write_text(json.dumps([EDIT | {"id": "1"}, EDIT | {"id": "2"}]))
    (tmp_path / "e.CSV").write_text("id,source_image,target_image,instruction\n1,a.png,b.png,red\n2,a.png,b.png,red\n")
    pq.write_table(pa.Table.from_pylist([EDIT | {"id": "1"}, EDIT | {"id": "2"}]), tmp_path / "e.PARQUET")
    for name in ("e.JSON", "e.CSV", "e.PARQUET"):
        assert ids(tmp_path / name) == ["1", "2"]
        assert survey(tmp_path / name)[0] == 2


def test_rows_of_an_array_on_one_line_are_told_apart(tmp_path):
    (tmp_path / "e.json").write_text(json.dumps([EDIT | {"id": "1"}, EDIT | {"id": "2"}, {}]))
    assert [row.where for row in read(tmp_path / "e.json")] == [
        f"{tmp_path / 'e.json'}:1{end}" for end in ("", ", row 2", ", row 3")
    ]


def test_of_an_array_one_row_that_is_not_utf8_is_refused_alone(tmp_path):
    rows = [json.dumps(EDIT | {"id": name}).encode() for name in ("first", "second", "third")]
    rows[1] = rows[1].replace(b"red", b"\xff\xfe")
    (tmp_path / "e.json").write_bytes(b"[" + b",\n".join(rows) + b"]")
    assert ids(tmp_path / "e.json") == ["first", "invalid UTF-8", "third"]


# -- Folders in ai-toolkit's manner --
def picture(path, shade=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), (shade, 0, 0)).save(path)


@pytest.fixture
def toolkit(tmp_path):
    for stem in ("a0", "a1"):
        picture(tmp_path / "target" / f"{stem}.png", 10)
        picture(tmp_path / "control" / f"{stem}.png", 20)
        (tmp_path / "target" / f"{stem}.txt").write_text("make it red")
    return tmp_path


def test_twins_are_refused_and_not_chosen_from(toolkit):
    picture(toolkit / "target" / "a0.jpg", 30)
    first, second = read(toolkit)
    assert (first.field, first.reason) == ("target", "several files")
    assert "a0.jpg and a0.png" in first.detail
    assert second.target.endswith("a1.png")


@pytest.mark.parametrize("folder", ["control", "target"])
def test_twins_of_a_control_or_of_a_caption_are_refused(toolkit, folder):
    if folder == "control":
        picture(toolkit / "control" / "a1.webp", 30)
    else:
        (toolkit / "target" / "a1.TXT").write_text("make it blue")
    first, second = read(toolkit)
    assert first.target.endswith("a0.png")
    assert (second.field, second.reason) == ("control" if folder == "control" else "caption", "several files")


def test_captions_count_in_any_case(toolkit):
    (toolkit / "target" / "a0.txt").rename(toolkit / "target" / "a0.TXT")
    first, _ = read(toolkit)
    assert first.instructions == {"original/en": "make it red"}


def test_hidden_pictures_and_captions_are_no_data(toolkit):
    for name in ("._a0.png", ".a2.png"):
        picture(toolkit / "target" / name)
        picture(toolkit / "control" / name)
    (toolkit / "target" / "._a0.txt").write_bytes(b"\x00\x05\x16\x07")
    picture(toolkit / "target" / ".ipynb_checkpoints" / "a0-checkpoint.png")
    assert [row.target.rpartition("/")[2] for row in read(toolkit)] == ["a0.png", "a1.png"]


def test_a_caption_that_is_a_folder_refuses_its_row(toolkit):
    (toolkit / "target" / "a0.txt").unlink()
    (toolkit / "target" / "a0.txt").mkdir()
    first, second = read(toolkit)
    assert (first.field, first.reason) == ("caption", "unreadable caption")
    assert not isinstance(second, Refusal)


def test_one_task_a_folder_in_a_fixed_order(tmp_path):
    for name in ("b", "a"):
        table(tmp_path / name / "edits.jsonl", name)
    assert [path.parent.name for path in files(tmp_path)] == ["a", "b"]
