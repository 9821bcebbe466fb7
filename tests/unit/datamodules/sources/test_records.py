"""FireRed's JSONL as documented and as coded; every row that cannot be used is named by file, line and field."""

import json
import subprocess
import sys
import tracemalloc

import pytest
from PIL import Image

from datamodules.sources import tables
from datamodules.sources.records import Record, Refusal, read, rows
from datamodules.sources.tables import files
from datamodules.summary import summary
from firered_lit.errors import UserError

ROW = {"source_image": "a.png", "target_image": "b.png", "instruction": "make it red", "task": "colour"}


def write(path, *items):
    """Each item a line: an object as JSON, bytes as they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((i if isinstance(i, bytes) else json.dumps(i).encode()) + b"\n" for i in items))
    return path


def only(path, **options):
    items = list(read(path, **options))
    assert len(items) == 1, items
    return items[0]


@pytest.mark.parametrize(
    ("source", "count"), [("a.png", 1), (["a.png"], 1), (["a.png", "c.png", "d.png"], 3), (None, 0), ([], 0)]
)
def test_source_is_a_path_a_list_or_null(tmp_path, source, count):
    record = only(write(tmp_path / "edits.jsonl", ROW | {"source_image": source}))
    assert len(record.references) == count
    assert record.target == str(tmp_path / "b.png")
    assert record.references == tuple(str(tmp_path / f"{n}.png") for n in ["a", "c", "d"][:count])


def test_fault_5_target_is_read_as_documented_and_as_coded(tmp_path):
    coded = {("edit_image" if k == "target_image" else k): v for k, v in ROW.items()}
    documented, as_coded = read(write(tmp_path / "e.jsonl", ROW | {"id": 1}, coded | {"id": 2}))
    assert documented.target == as_coded.target == str(tmp_path / "b.png")


def test_fault_5_a_row_without_inverse_instruction_is_kept_as_it_is(tmp_path):
    assert isinstance(only(write(tmp_path / "e.jsonl", ROW)), Record)


def test_inverse_instruction_makes_a_record_of_its_own(tmp_path):
    row = ROW | {"inverse_instruction": "make it blue", "inverse_instruction_cn": "变蓝", "instruction_cn": "变红"}
    path = write(tmp_path / "e.jsonl", row)
    edit, inverted = read(path)
    assert (inverted.target, inverted.references) == (edit.references[0], (edit.target,))
    assert edit.instructions == {"original/en": "make it red", "original/cn": "变红"}
    assert inverted.instructions == {"original/en": "make it blue", "original/cn": "变蓝"}
    assert inverted.id != edit.id
    assert inverted.group == edit.group
    assert only(path, inverse=False) == edit


@pytest.mark.parametrize("source", [None, ["a.png", "c.png"]])
def test_only_an_edit_of_one_reference_is_inverted(tmp_path, source):
    row = ROW | {"source_image": source, "inverse_instruction": "back"}
    assert only(write(tmp_path / "e.jsonl", row)).target.endswith("b.png")


def without(name):
    return {k: v for k, v in ROW.items() if k != name}


def test_captions_of_references_are_kept(tmp_path):
    """As many as there are references; prompts say them for references that are dropped."""
    row = ROW | {"source_image": ["a.png", "c.png"], "reference_captions": ["a hat", None]}
    assert only(write(tmp_path / "e.jsonl", row)).captions == ({"en": "a hat"}, {})
    row |= {"reference_captions": ["帽子", "cat"], "reference_captions_cn": [None, "猫"]}
    assert only(write(tmp_path / "e.jsonl", row)).captions == ({"cn": "帽子"}, {"en": "cat", "cn": "猫"})


BAD = [
    (ROW | {"reference_captions": ["a", "b"]}, "reference_captions", "wrong type"),
    (ROW | {"reference_captions": "a"}, "reference_captions", "wrong type"),
    (ROW | {"reference_captions": [1]}, "reference_captions", "wrong type"),
    (ROW | {"reference_captions_cn": ["一", "二"]}, "reference_captions_cn", "wrong type"),
    (b'{"source_image": ', "line", "invalid JSON"),
    (b"[" * 100_000, "line", "invalid JSON"),
    (b'{"source_image": "\xff\xfe"}', "line", "invalid UTF-8"),
    (b'{"source_image": "a", "target_image": "b", "instruction": "\\ud800"}', "line", "invalid UTF-8"),
    (b"[1, 2]", "line", "not an object"),
    (without("source_image"), "source_image", "wrong columns"),
    (without("target_image"), "target_image", "wrong columns"),
    (without("instruction"), "instruction", "wrong columns"),
    (without("instruction") | {"instructions": "x"}, "instruction", "wrong columns"),
    (ROW | {"edit_image": "c.png"}, "target_image", "several targets"),
    (ROW | {"instruction": ""}, "instruction", "empty instruction"),
    (ROW | {"instruction": " \n", "instruction_cn": None}, "instruction", "empty instruction"),
    (ROW | {"instruction": 7}, "instruction", "wrong type"),
    (ROW | {"target_image": None}, "target_image", "wrong type"),
    (ROW | {"target_image": ["b.png"]}, "target_image", "wrong type"),
    (ROW | {"source_image": ""}, "source_image", "wrong type"),
    (ROW | {"source_image": [None]}, "source_image", "wrong type"),
    (ROW | {"source_image": "a\0.png"}, "source_image", "wrong type"),
    (ROW | {"source_image": "b.png"}, "source_image", "source is target"),
    (ROW | {"source_image": ["a.png", "x/../b.png"]}, "source_image", "source is target"),
    (ROW | {"task": 3}, "task", "wrong type"),
]


@pytest.mark.parametrize(("row", "field", "reason"), BAD)
def test_bad_rows_are_refused_alone(tmp_path, row, field, reason):
    """The row before and the row after are read; the refusal names file, line and field in one line."""
    path = write(tmp_path / "e.jsonl", ROW | {"id": "before"}, b"", row, ROW | {"id": "after"})
    before, refusal, after = read(path)
    assert (before.id, after.id) == ("before", "after")
    assert (refusal.where, refusal.field, refusal.reason) == (f"{path}:3", field, reason)
    assert str(refusal).startswith(f"{path}:3: {field}: ")
    assert "\n" not in str(refusal)
    assert len(str(refusal)) - len(refusal.where) < 400


def test_a_near_miss_is_named(tmp_path):
    refusal = only(write(tmp_path / "e.jsonl", without("instruction") | {"instructions": "x"}))
    assert "is 'instructions' meant?" in refusal.detail


def test_a_line_too_long_is_refused_and_not_held(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "LONGEST_LINE", 200)
    path = write(tmp_path / "e.jsonl", ROW | {"id": 1}, ROW | {"id": 2, "instruction": "x" * 1000}, ROW | {"id": 3})
    first, refusal, last = read(path)
    assert (first.id, last.id) == ("1", "3")
    assert (refusal.where, refusal.reason) == (f"{path}:2", "invalid JSON")


def test_duplicate_ids_are_refused_from_the_second_on(tmp_path):
    path = write(tmp_path / "e.jsonl", ROW | {"id": 7}, ROW | {"id": "7"}, ROW, ROW, ROW | {"target_image": "c.png"})
    kinds = [item.reason if isinstance(item, Refusal) else "kept" for item in read(path)]
    assert kinds == ["kept", "duplicate id", "kept", "duplicate id", "kept"]


def test_ids_do_not_depend_on_where_the_data_lies(tmp_path):
    here, there = (only(write(tmp_path / name / "colour" / "e.jsonl", ROW)) for name in ("x", "y"))
    assert here.id == there.id
    assert here.target != there.target


def test_folders_are_tasks(tmp_path):
    """Equal relative paths in two folders are different images, so different records."""
    for task in ("add", "remove"):
        write(tmp_path / task / "edits.jsonl", without("task"))
    items = list(read(tmp_path))
    assert [item.task for item in items] == ["add", "remove"]
    assert [item.target for item in items] == [str(tmp_path / task / "b.png") for task in ("add", "remove")]


def test_a_byte_order_mark_and_windows_line_ends_are_no_trouble(tmp_path):
    path = tmp_path / "e.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(ROW).encode() + b"\r\n\r\n")
    assert only(path).instructions == {"original/en": "make it red"}


@pytest.mark.parametrize(
    ("name", "message"), [("absent.jsonl", "no such"), ("e.txt", ".jsonl"), ("empty", "no *.jsonl")]
)
def test_sources_that_cannot_be_read_are_one_error(tmp_path, name, message):
    (tmp_path / "e.txt").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError) as error:
        files(tmp_path / name)
    assert message in str(error.value)
    assert name in str(error.value)


def test_urls_are_kept_as_they_are(tmp_path):
    url = "https://example.com/a//b.png"
    assert only(write(tmp_path / "e.jsonl", ROW | {"source_image": url})).references == (url,)


def test_summary_counts_and_shows_the_first_problems(tmp_path):
    Image.new("RGB", (64, 48)).save(tmp_path / "b.png")
    good = ROW | {"source_image": None}
    path = write(tmp_path / "e.jsonl", good, good | {"instruction_cn": "红", "task": "x"}, ROW, b"{", b"{")
    found = summary(path, shown=2)
    assert (found.rows, found.tasks, found.references) == (5, {"colour": 1, "x": 1}, {0: 2})
    assert found.languages == {"en": 2, "cn": 1}
    assert found.shapes == {(48, 64): 2}
    assert found.refused == {"missing image": 1, "invalid JSON": 2}
    assert [problem.where for problem in found.problems] == [f"{path}:3", f"{path}:4"]
    assert any("5: 2 good, 3 refused" in line for line in found.lines())


def test_fault_10_memory_does_not_grow_with_the_file(tmp_path):
    """Ten times the rows add what their ids take, not the rows."""

    def peak(count):
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for i in range(count):
                file.write(json.dumps(ROW | {"id": i, "instruction": "x" * 2000}) + "\n")
        tracemalloc.start()
        kept = sum(not isinstance(row, Refusal) for row in rows(path))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert kept == count
        return top

    assert peak(5000) - peak(500) < 4500 * 200


def test_reading_needs_neither_torch_nor_a_client_of_the_web():
    heavy = "{'torch', 'aiohttp'}"
    code = f"import sys, datamodules.sources.records, datamodules.summary; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_real_edits_are_read_whole(shared_data):
    found = summary(shared_data / "real_edits" / "edits.jsonl")
    assert (found.rows, found.refused.total()) == (23, 0)
    assert found.tasks == {"portrait": 16, "motion": 2, "text": 4, "stylize": 1}
    assert found.references == {1: 23}
