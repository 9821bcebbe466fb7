"""`check --data` says what was understood, which image is which, and what is wrong, before anything is encoded."""

import ast
import json
import re

import pytest
from PIL import Image

from datamodules.sources.layouts import NAMES
from datamodules.sources.records import Refusal, read
from datamodules.summary import summary


def examples(root):
    text = (root / "docs" / "formats.md").read_text(encoding="utf-8")
    return [json.loads(row) for row in re.findall(r"```json\n(.*?)\n```", text, re.DOTALL)]


def test_every_example_of_the_documentation_is_read_with_its_images_in_their_roles(root, tmp_path):
    rows, names = examples(root), set()
    for number, row in enumerate(rows):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps(row))
        record, *_ = read(path)
        assert not isinstance(record, Refusal), record
        names.add(record.columns.name)
        assert record.references == (str(tmp_path / "source.png"),)
        assert record.target == ("" if record.columns.name == "edit-r1" else str(tmp_path / "target.png"))
        assert record.loser == (str(tmp_path / "worse.png") if record.columns.loser else "")
        assert record.instructions["original/en"] == "Make the hat red"
        assert bool(record.regions) == ("regions" in row)
    assert names == {*NAMES} - {"ai-toolkit"}


REASON = {"Refuse": 1, "Refusal": 2, "BadImageError": 0}  # which argument of a refusal is its reason


def test_every_refusals_reason_is_documented(root):
    said = (root / "docs" / "formats.md").read_text(encoding="utf-8").partition("## What is refused")[2]
    calls = [
        node
        for path in (root / "datamodules").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in REASON
    ]
    given = [node.args[REASON[node.func.id]] for node in calls if len(node.args) > REASON[node.func.id]]
    reasons = {argument.value for argument in given if isinstance(argument, ast.Constant)}
    assert len(reasons) > 20
    for reason in reasons:
        assert all(word in said for word in reason.split()), reason


@pytest.fixture
def folder(tmp_path):
    for name in ("source", "target", "worse"):
        Image.new("RGB", (96, 64), (len(name), 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def lines(folder, *rows, **options):
    path = folder / "e.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(summary(path, **options).lines())


def test_it_tells_which_image_is_which_and_what_rows_carry(root, folder):
    Image.new("L", (96, 64)).save(folder / "mask.png")
    rows = [row | {"id": number} for number, row in enumerate(examples(root))]
    said = lines(folder, *rows)
    assert said[0] == f"rows        {len(rows)}: {len(rows)} good, 0 refused; 2 inverted edits"
    layouts = [line for line in said if line.startswith("layout ")]
    assert len(layouts) == len(NAMES) - 1
    assert "layout      editreward 1: `path1` is preferred to `path2`, for DPO" in layouts
    assert "layout      diffsynth 1: `image` is the target there, `edit_image` the source" in layouts
    (carried,) = (line for line in said if line.startswith("carried"))
    for count in ("mask 1", "pair 4", "prompt without target 1", "regions 1", "requirement 1"):
        assert count in carried
    (pair,) = (row for row in rows if "path2" in row)
    assert f"{folder}/source.png -> {folder}/target.png rather than {folder}/worse.png" in lines(folder, pair)[-1]


def test_the_report_is_lines_whatever_line_ends_rows_hold(folder):
    row = {"source_image": "source.png", "target_image": "target.png", "instruction": "a\nb", "task": "c\r\nd\u2028e"}
    said = lines(folder, row)
    assert all(len(line.splitlines()) == 1 for line in said)
    assert "tasks       c d e 1" in said


def test_what_is_wrong_is_said_before_anything_is_encoded(folder):
    row = {"source_image": "source.png", "target_image": "target.png", "instruction": "red"}
    said = "\n".join(
        lines(
            folder,
            row,
            row | {"regions": [{"box": [100, 10, 150, 60]}], "id": "outside"},
            row | {"mask": "none.png", "id": "unmasked"},
            row | {"regions": [{"points": []}], "id": "pointless"},
        )
    )
    assert "rows        4: 1 good, 3 refused" in said
    for problem in ("e.jsonl:2: regions[0]: [[100.0, 10.0], [150.0, 60.0]] lies outside of the target, which has 96x64",
                    "e.jsonl:3: mask:", "e.jsonl:4: regions[0]: a face is 5 points"):  # fmt: skip
        assert problem in said
