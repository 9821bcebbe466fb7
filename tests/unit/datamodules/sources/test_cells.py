"""CSV cells are what their column says: numbers, flags, missing values; and the same in the other tables."""

import csv
import json
import math

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datamodules.sources.records import Refusal, read
from datamodules.sources.tables import survey
from firered_lit.errors import UserError

PAIR = {"prompt": "red", "path_src": "a.png", "path1": "b.png", "path2": "c.png"}
SCORES = ("model1_overall_score", "model2_overall_score")
EDIT = {"source_image": "a.png", "target_image": "b.png", "instruction": "red"}


def csv_file(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def jsonl_file(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet_file(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


WRITERS = {"e.csv": csv_file, "e.jsonl": jsonl_file, "e.parquet": parquet_file}


def only(path):
    (found,) = read(path)
    return found


def kept(found):
    return not isinstance(found, Refusal)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize(
    ("winner", "loser", "preferred"),
    [(9, 3, True), (3, 9, False), (4, 4, False), (10, 9, True), (9, 10, False), (4.5, 4.25, True), (-1, 2, False)],
)
def test_a_pair_is_a_preference_where_its_scores_say_so(tmp_path, name, winner, loser, preferred):
    found = only(WRITERS[name](tmp_path / name, [PAIR | dict(zip(SCORES, (winner, loser)))]))
    assert kept(found) == preferred
    if not preferred:
        assert (found.field, found.reason) == (SCORES[0], "no preference")


@pytest.mark.parametrize("answer", ["True", "true", "TRUE", "1", "1.0", "yes"])
def test_a_tie_is_no_preference_however_csv_says_so(tmp_path, answer):
    found = only(csv_file(tmp_path / "e.csv", [PAIR | {"tie_case": answer}]))
    assert (found.field, found.reason) == ("tie_case", "no preference")


@pytest.mark.parametrize("answer", ["False", "0", "no", "", "nan", "None"])
def test_what_is_no_tie_is_a_preference(tmp_path, answer):
    assert kept(only(csv_file(tmp_path / "e.csv", [PAIR | {"tie_case": answer}])))


@pytest.mark.parametrize(
    ("column", "value"),
    [("tie_case", "maybe"), (SCORES[0], "good"), (SCORES[1], "inf"), ("held_out", "2"), ("width", "wide")],
)
@pytest.mark.parametrize("name", ["e.csv", "e.jsonl", "e.parquet"])
def test_a_value_that_is_no_number_and_no_answer_is_refused_by_its_column(tmp_path, name, column, value):
    found = only(WRITERS[name](tmp_path / name, [PAIR | {column: value}]))
    assert (found.field, found.reason) == (column, "wrong type")
    assert value in found.detail or "Infinity" in found.detail


@pytest.mark.parametrize("score", [math.nan, None])
def test_a_missing_score_says_nothing(tmp_path, score):
    for name in ("e.jsonl", "e.parquet"):
        assert kept(only(WRITERS[name](tmp_path / name, [PAIR | {SCORES[0]: score, SCORES[1]: 3.0}])))


@pytest.mark.parametrize(
    ("cell", "held_out"), [("true", True), ("False", False), ("1", True), ("0", False), ("", None)]
)
def test_held_out_is_true_or_false_in_csv(tmp_path, cell, held_out):
    assert only(csv_file(tmp_path / "e.csv", [EDIT | {"held_out": cell}])).held_out is held_out


@pytest.mark.parametrize("cell", ["96", "96.0", "9.6e1"])
def test_a_size_is_a_number_in_csv(tmp_path, cell):
    assert only(csv_file(tmp_path / "e.csv", [EDIT | {"width": cell, "height": "64"}])).size == (64, 96)


def test_a_size_with_a_missing_one_beside_it_is_a_number_in_parquet(tmp_path):
    """A column of whole numbers, one missing, is of floats."""
    rows = [EDIT | {"width": 96.0, "height": 64.0, "id": "y"}, EDIT | {"width": math.nan, "height": 64.0, "id": "x"}]
    first, second = read(parquet_file(tmp_path / "e.parquet", rows))
    assert (first.size, second.size) == ((64, 96), (0, 0))


@pytest.mark.parametrize("size", ["96.5", "-96", "1e9", "True"])
def test_a_size_that_is_none_is_refused(tmp_path, size):
    found = only(csv_file(tmp_path / "e.csv", [EDIT | {"width": size, "height": "64"}]))
    assert (found.field, found.reason) == ("width", "wrong type")


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("text", ["nan", "NaN", "None", "null", " none ", "<NA>"])
def test_a_missing_value_is_no_instruction(tmp_path, name, text):
    found = only(WRITERS[name](tmp_path / name, [EDIT | {"instruction": text}]))
    assert (found.field, found.reason) == ("instruction", "empty instruction")
    other = only(WRITERS[name](tmp_path / name, [EDIT | {"instruction": text, "instruction_cn": "变红"}]))
    assert other.instructions == {"original/cn": "变红"}


@pytest.mark.parametrize("text", ["none of the hats stays", "null and void", "Nancy in red"])
def test_an_instruction_that_begins_with_such_a_word_is_kept(tmp_path, text):
    assert only(csv_file(tmp_path / "e.csv", [EDIT | {"instruction": text}])).instructions == {"original/en": text}


@pytest.mark.parametrize("cell", ["", "nan", "None", "null"])
def test_a_missing_source_in_csv_is_text_to_image_and_a_missing_target_is_refused(tmp_path, cell):
    assert only(csv_file(tmp_path / "e.csv", [EDIT | {"source_image": cell}])).references == ()
    found = only(csv_file(tmp_path / "e.csv", [EDIT | {"target_image": cell}]))
    assert (found.field, found.reason) == ("target_image", "wrong type")


@pytest.mark.parametrize("column", ["target_text", "replaced_text"])
def test_a_word_of_a_picture_that_may_be_a_missing_value_is_refused_in_csv_alone(tmp_path, column):
    found = only(csv_file(tmp_path / "e.csv", [EDIT | {column: "None"}]))
    assert (found.field, found.reason) == (column, "wrong type")
    assert "JSONL" in found.detail
    assert getattr(only(csv_file(tmp_path / "e.csv", [EDIT | {column: ""}])), column) == ""
    assert getattr(only(jsonl_file(tmp_path / "e.jsonl", [EDIT | {column: "None"}])), column) == "None"


def test_two_columns_of_one_name_are_one_error(tmp_path):
    (tmp_path / "e.csv").write_text("source_image,target_image,instruction,instruction\na.png,b.png,one,two\n")
    with pytest.raises(UserError, match=r"e\.csv:1: two columns are called 'instruction'"):
        list(read(tmp_path / "e.csv"))


def test_a_header_that_cannot_be_read_is_one_error(tmp_path):
    (tmp_path / "e.csv").write_bytes(b"source_image,target_\xff,instruction\na.png,b.png,one\n")
    with pytest.raises(UserError, match=r"e\.csv:1: its header cannot be read"):
        list(read(tmp_path / "e.csv"))
    (tmp_path / "e.csv").write_bytes(b'"' + b"x" * (1 << 25) + b'"\n')
    with pytest.raises(UserError, match=r"e\.csv:1: its header cannot be read"):
        list(read(tmp_path / "e.csv"))


def test_what_a_csv_file_is_made_from_is_its_cells_as_they_are_written(tmp_path):
    """A folder that an earlier version began from this file goes on: OLD_HASH is the hash that it noted."""
    rows = [EDIT | {"held_out": "true", "width": "96.0"}, EDIT | {"held_out": "", "width": "nan"}]
    assert survey(csv_file(tmp_path / "e.csv", rows)) == (2, OLD_HASH)


OLD_HASH = "4575e38c1b24a23126797bd1"
