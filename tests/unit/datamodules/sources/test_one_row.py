"""Whatever one row raises is that row's refusal, by file, line and field; the rows beside it are kept."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules.prepare.crops import Opening
from datamodules.prepare.encode import Encoder
from datamodules.prepare.write import prepare
from datamodules.sources import images, records, refusals
from datamodules.sources.images import BadImageError
from datamodules.sources.records import Refusal, read
from datamodules.summary import summary
from firered_lit.errors import UserError
from firered_lit.models.sizes import Sizes

SIZES = Sizes(target_area=64 * 64, reference_area=64 * 64, condition_area=56 * 56)


def photo(seed, size=(64, 64)):
    """Smooth noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


def damaged_avif():
    """An AVIF file whose pixels are zeros; Pillow raises RuntimeError."""
    file = io.BytesIO()
    photo(1).save(file, "AVIF")
    whole = file.getvalue()
    start = whole.index(b"mdat") + 4
    return whole[:start] + bytes(len(whole) - start)


def damaged_tiff():
    """A TIFF file whose width is of no known tag; Pillow raises TypeError as soon as the header is read."""
    file = io.BytesIO()
    photo(1).save(file, "TIFF")
    whole = bytearray(file.getvalue())
    entries = int.from_bytes(whole[4:8], "little") + 2
    assert whole[entries : entries + 2] == (256).to_bytes(2, "little")
    whole[entries : entries + 2] = (9999).to_bytes(2, "little")
    return bytes(whole)


def edit(**columns):
    return {"source_image": "a.png", "target_image": "b.png", "instruction": "red", **columns}


BAD_ROWS = {  # what ended the whole work once: the row, its field, the reason
    "one file as two sources": (edit(source_image=["a.png", "a.png"]), "source_image", "source named twice"),
    "one file as two sources, written otherwise": (
        edit(source_image=["a.png", "./x/../a.png"]),
        "source_image",
        "source named twice",
    ),
    "a damaged AVIF": (edit(target_image="damaged.avif"), "target_image", "unreadable image"),
    "a damaged TIFF": (edit(target_image="damaged.tiff"), "target_image", "unreadable image"),
    "a region beyond what a float holds": (
        edit(regions=[{"box": [0, 0, 10**400, 9]}]),
        "regions[0]",
        "bad region",
    ),
    "a face beyond what a float holds": (
        edit(landmarks=[[[10**400, 0]] * 5]),
        "landmarks[0]",
        "bad region",
    ),
    "an instruction of 22,000 tokens": (edit(instruction="sky " * 22_000), "instruction", "unusable prompt"),
    "an instruction longer than an edit's positions": (
        edit(instruction="sky " * 1_100),
        "instruction",
        "unusable prompt",
    ),
    "half of a surrogate pair in a path": (edit(target_image="\ud800.png"), "line", "invalid UTF-8"),
    "a path of 100,000 characters": (edit(target_image="x" * 100_000), "target_image", "unreadable image"),
    "a size of 400 digits": (edit(width=10**400, height=10**400), "height", "wrong type"),
    "a nest of 900 lists": (edit(regions=json.loads("[" * 900 + "]" * 900)), "line", "invalid JSON"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one_row")
    for number, name in enumerate(("a", "b", "c")):
        photo(number).save(folder / f"{name}.png")
    (folder / "damaged.avif").write_bytes(damaged_avif())
    (folder / "damaged.tiff").write_bytes(damaged_tiff())
    return folder


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make(source, out, **options):
    settings = {"model": "tiny", "sizes": SIZES, "held_out": 0.0, "device": "cpu", "max_refused": 1.0} | options
    prepare(str(source), str(out), **settings)
    return [json.loads(line) for line in (out / "refused.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def prepared(folder):
    """The refusals by line of all bad rows, a good one on either side of each; and what was kept."""
    rows = []
    for number, (row, _, _) in enumerate(BAD_ROWS.values()):
        rows += [edit(id=f"good {number}"), row]
    source = jsonl(folder / "edits.jsonl", [*rows, edit(id="last", target_image="c.png")])
    refused = make(source, folder / "out")
    kept = json.loads((folder / "out" / "data.json").read_text())["kept"]
    return {row["where"]: row for row in refused}, kept


@pytest.mark.parametrize("name", BAD_ROWS)
def test_prepare_refuses_the_row_by_file_line_and_field(prepared, folder, name):
    refused, _ = prepared
    _, field, reason = BAD_ROWS[name]
    found = refused.get(f"{folder / 'edits.jsonl'}:{2 * list(BAD_ROWS).index(name) + 2}")
    assert (found["field"], found["reason"]) == (field, reason)
    assert len(found["detail"]) < 1000
    assert "\n" not in found["detail"]


def test_prepare_keeps_every_good_row_beside_them(prepared):
    refused, kept = prepared
    assert (len(refused), kept) == (len(BAD_ROWS), len(BAD_ROWS) + 1)


def test_an_edit_longer_than_its_positions_is_refused_with_its_length(prepared, folder):
    refused, _ = prepared
    row = 2 * list(BAD_ROWS).index("an instruction longer than an edit's positions") + 2
    assert "tokens, the model reads 3968" in refused[f"{folder / 'edits.jsonl'}:{row}"]["detail"]


def test_check_finds_what_no_picture_has_to_be_decoded_for(folder):
    for name, (row, field, reason) in BAD_ROWS.items():
        found = summary(jsonl(folder / "checked.jsonl", [edit(), row | {"id": "x"}]))
        assert found.rows == 2, name
        if reason in ("source named twice", "bad region", "invalid UTF-8") or name == "a damaged TIFF":
            (problem,) = found.problems
            assert (problem.field, problem.reason) == (field, reason), name


# -- Parquet --
def parquet(path, **columns):
    """Three edits, of which the columns replace what they name."""
    plain = {"source_image": ["a.png"] * 3, "target_image": ["b.png"] * 3, "instruction": ["one", "two", "three"]}
    pq.write_table(pa.table({**plain, **columns}), path)
    return list(read(path))


def not_utf8():
    """A column of text whose second value is not UTF-8, which Arrow writes as it is."""
    return pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())


FAR = pa.array([0, 10**18, 0], pa.timestamp("us"))
WRONG_STRUCT = pa.array([{"bytes": "a.png", "path": "a.png"}] * 3)
PARQUET = {
    "text that is not UTF-8": ({"instruction": not_utf8()}, "instruction", "unreadable value", [1]),
    "a far date in the place of text": ({"instruction": FAR}, "instruction", "wrong type", [0, 2]),
    "a struct that is no image": ({"target_image": WRONG_STRUCT}, "target_image", "wrong type", [0, 1, 2]),
    "bytes that are not UTF-8": (
        {"instruction": pa.array([b"one", b"\xff", b"three"])},
        "instruction",
        "invalid UTF-8",
        [1],
    ),
}


@pytest.mark.parametrize("name", PARQUET)
def test_a_value_that_parquet_cannot_give_refuses_its_row(tmp_path, name):
    columns, field, reason, rows = PARQUET[name]
    found = parquet(tmp_path / "e.parquet", **columns)
    assert len(found) == 3
    for row in rows:
        assert (found[row].field, found[row].reason) == (field, reason)
        assert found[row].where == f"{tmp_path / 'e.parquet'}:{row + 1}"
    if len(rows) == 1:
        assert [record.instructions for record in (found[0], found[2])] == [
            {"original/en": "one"},
            {"original/en": "three"},
        ]


def test_a_far_date_that_nobody_asks_for_costs_no_row(tmp_path):
    found = parquet(tmp_path / "e.parquet", made_at=FAR)
    assert [record.instructions["original/en"] for record in found] == ["one", "two", "three"]


def test_a_binary_column_of_instructions_is_read_as_text(tmp_path):
    found = parquet(tmp_path / "e.parquet", instruction=pa.array([b"one", "把".encode(), b"three"]), task=[b"t"] * 3)
    assert [record.instructions for record in found] == [
        {"original/en": "one"},
        {"original/en": "把"},
        {"original/en": "three"},
    ]
    assert {record.task for record in found} == {"t"}


def test_a_damaged_page_refuses_the_rows_of_its_part_alone(tmp_path):
    path = tmp_path / "e.parquet"
    rows = [edit(id=f"{i}", instruction=f"make it {i} " * 20) for i in range(60)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=20, compression="zstd", use_dictionary=False)
    group = pq.read_metadata(path).row_group(1)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "instruction")
    data = bytearray(path.read_bytes())
    data[column.data_page_offset : column.data_page_offset + column.total_compressed_size] = bytes(
        column.total_compressed_size
    )
    path.write_bytes(data)
    found = list(read(path))
    assert len(found) == 60
    refused = [number for number, row in enumerate(found) if isinstance(row, Refusal)]
    assert refused == list(range(20, 40))
    assert all(found[number].reason == "unreadable Parquet" for number in refused)


def test_no_byte_of_a_parquet_footer_ends_the_process(tmp_path):
    """Each byte of the schema, and some of the rest: rows are read or refused, or the file is, in one line.

    A column that the schema alone calls required has once ended the process, without any exception.
    """
    path = tmp_path / "e.parquet"
    pq.write_table(pa.Table.from_pylist([edit(id=f"{i}") for i in range(6)]), path, row_group_size=3)
    whole = path.read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    outcomes = set()
    for place in [*range(start, start + 100), *range(start + 100, len(whole), 12)]:
        for value in (0, 255, whole[place] ^ 1):
            path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            try:
                outcomes.update(type(row).__name__ for row in read(path))
            except UserError as problem:
                assert str(problem).startswith(f"{path}: ")  # noqa: PT017
                outcomes.add("UserError")
    assert outcomes >= {"Record", "UserError"}


@pytest.mark.parametrize("names", [["id", "id"], ["instruction", "instruction"]])
def test_two_columns_of_one_name_are_one_error(tmp_path, names):
    columns = ["source_image", "target_image", "instruction", *names]
    pq.write_table(pa.table([pa.array(["x"])] * len(columns), names=columns), tmp_path / "e.parquet")
    with pytest.raises(UserError, match=r"e\.parquet: two columns are called"):
        list(read(tmp_path / "e.parquet"))


# -- The guard --
class Odd(Exception):  # noqa: N818
    """An exception that no list of kinds names."""


def fails_for_the_second(real):
    """A function that raises an exception of its own for what belongs to the second row."""

    def function(*args, **options):
        if "row_two" in repr(args):
            raise Odd("nobody\nknows this")
        return real(*args, **options)

    return function


def three_rows(path):
    return jsonl(path, [edit(id=name, requirement=name) for name in ("row_one", "row_two", "row_three")])


STAGES = {"read": (records, "captions_of"), "open": (Opening, "crop"), "encode": (Encoder, "_meta")}


@pytest.mark.parametrize("stage", STAGES)
def test_whatever_is_raised_in_whichever_stage_of_prepare_refuses_its_row(folder, tmp_path, monkeypatch, stage):
    owner, name = STAGES[stage]
    monkeypatch.setattr(owner, name, fails_for_the_second(getattr(owner, name)))
    source = three_rows(folder / f"{stage}.jsonl")
    (found,) = make(source, tmp_path / "out")
    assert (found["where"], found["reason"]) == (f"{source}:2", "unusable row")
    assert found["detail"] == "Odd: nobody knows this"


def test_whatever_check_meets_refuses_its_row(folder, monkeypatch):
    monkeypatch.setattr("datamodules.summary._shape", fails_for_the_second(lambda *args: None))
    source = three_rows(folder / "looked_at.jsonl")
    (found,) = summary(source).problems
    assert (found.where, found.detail) == (f"{source}:2", "Odd: nobody knows this")


@pytest.mark.parametrize(
    "problem", [MemoryError(), OSError(28, "No space left on device"), UserError("mend this"), KeyboardInterrupt()]
)
def test_what_is_of_the_machine_ends_the_work(problem):
    def work():
        raise problem

    with pytest.raises(type(problem)):
        refusals.guarded(work, "e.jsonl:1")


def test_a_refusal_is_one_bounded_line_that_any_file_takes():
    refusal = Refusal("e\n.jsonl:1", "a", "b", "x\udcff\r\n" + "y" * 100_000)
    assert "\n" not in str(refusal)
    assert len(str(refusal).encode()) < 1000
    assert Refusal(refusal.where, refusal.field, refusal.reason, refusal.detail) == refusal


@pytest.mark.parametrize("make_odd", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_an_image_that_is_no_file_is_refused_at_once(tmp_path, make_odd):
    make_odd(tmp_path / "a.png")
    for look in (images.load, images.size):
        with pytest.raises(BadImageError, match=r"a\.png"):
            look(tmp_path / "a.png")


def test_a_device_in_the_place_of_an_image_is_refused_at_once():
    with pytest.raises(BadImageError, match="not a regular file"):
        images.load("/dev/zero")
