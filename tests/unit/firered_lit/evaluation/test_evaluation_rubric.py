"""A user's own rows, in any layout that `prepare` reads, are an evaluation with a rubric of their own."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stub_judge import StubJudge, pictures, words

from datamodules.sources.evaluation_rows import EvaluationRows
from firered_lit import cli
from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.rubric import Rubric, plain_name
from firered_lit.evaluation.protocols import Asking

RUBRIC = "Asked: <edit_prompt>\nOne line each:\nDone: number\nKept: number"


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 40, 200)).save(file, "PNG")
    return file.getvalue()


def write_rows(folder: Path) -> Path:
    """Five rows; the third has two sources, the fourth is in Chinese alone, the last in English alone and held out."""
    rows = []
    for number in range(5):
        (folder / f"s{number}.png").write_bytes(png(number))
        (folder / f"t{number}.png").write_bytes(png(100 + number))
        row = {"id": f"row {number}/<b>", "source_image": f"s{number}.png", "target_image": f"t{number}.png"}
        row |= {"instruction": f"Change {number}", "instruction_cn": f"修改{number}", "task": "color"}
        rows.append(row)
    rows[2]["source_image"] = ["s2.png", "s1.png"]
    rows[3] |= {"instruction": "", "task": "../tone"}
    rows[4] |= {"instruction_cn": "", "held_out": True}
    path = folder / "edits.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rubric_of(folder: Path, text: str = RUBRIC, name: str = "rubric.txt") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_every_row_is_an_item_in_each_language_that_it_has(tmp_path: Path) -> None:
    table = write_rows(tmp_path)
    benchmark = Rubric(EvaluationRows(str(table)), rubric_of(tmp_path), name="mine", criteria=2)
    items = benchmark.items()
    told = [(item.suite, item.id, item.instruction) for item in items]
    english = [("mine_en", f"row {number}/<b>", f"Change {number}") for number in (0, 1, 2, 4)]
    chinese = [("mine_cn", f"row {number}/<b>", f"修改{number}") for number in (0, 1, 2, 3)]
    assert told == english + chinese
    assert list(benchmark.suites()) == ["mine_en", "mine_cn"]
    assert benchmark.sources(items[2]) == [png(2), png(1)]
    assert all(item.output.count("/") == 1 and ".." not in item.output for item in items)
    assert len({item.output for item in items if item.suite == "mine_en"}) == 4

    held_out = Rubric(EvaluationRows(str(table), held_out=True), rubric_of(tmp_path))
    assert [item.instruction for item in held_out.items()] == ["Change 4"]


def test_pictures_inside_of_a_table_are_read_as_they_are(tmp_path: Path) -> None:
    rows = []
    for number in range(150):
        embedded = {"bytes": png(number), "path": f"s{number}.png"}
        target = {"bytes": png(number + 1), "path": None}
        rows.append({"image": embedded, "edited_image": target, "edit_prompt": f"Change {number}", "id": str(number)})
    columns = {"image": "source_image", "edited_image": "target_image", "edit_prompt": "instruction", "id": "id"}
    table = pa.Table.from_pylist(rows).rename_columns(list(columns.values()))
    pq.write_table(table, tmp_path / "edits.parquet", row_group_size=40)
    benchmark = Rubric(EvaluationRows(str(tmp_path / "edits.parquet")), rubric_of(tmp_path))
    items = benchmark.items()
    assert len(items) == 150
    for number in (0, 149, 63, 64, 80):
        assert benchmark.sources(items[number]) == [png(number)]


def test_the_judge_sees_the_rubric_the_sources_and_the_edit(tmp_path: Path) -> None:
    texts = json.dumps({"color": "Of colour: <edit_prompt>", "*": "Of all else: <edit_prompt>"})
    benchmark = Rubric(EvaluationRows(str(write_rows(tmp_path))), rubric_of(tmp_path, texts, "rubric.json"))
    items = benchmark.items()
    (request,) = benchmark.requests(items[2], png(222), Asking("judge", {"max_tokens": 7}))
    body = json.loads(request.body())
    assert words(body) == "Of colour: Change 2"
    assert len(pictures(body)) == 3
    assert [picture.data for picture in request.pictures] == [png(2), png(1), png(222)]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge", 0.0, 7)
    (request,) = benchmark.requests(items[-1], png(222), Asking("judge"))
    assert words(json.loads(request.body())) == "Of all else: 修改3"


def test_own_rows_are_evaluated_by_one_command(tmp_path: Path) -> None:
    table = write_rows(tmp_path)
    out = tmp_path / "out"
    with StubJudge() as judge:
        command = ["eval", "--recipe", "recipes/eval/folder.yaml", f"data={table}", f"out={out}"]
        command += [f"benchmarks.folder.rubric={rubric_of(tmp_path)}", f"judge.url={judge.url}", "judge.model=any"]
        command += ["models={copier: {_target_: firered_lit.evaluation.models.planted.Copier}}"]
        assert cli.main([*command, "steps=[draw, judge, score]"]) == 0
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert scores["folder_en"]["official"]["overall"]["scored"] == 4
    assert scores["folder_cn"]["official"]["../tone"]["scored"] == 1


def test_what_cannot_be_evaluated_is_refused_in_one_line(tmp_path: Path) -> None:
    table = write_rows(tmp_path)
    rows = EvaluationRows(str(table))
    cases = {
        "judge.model: name the judge": (RUBRIC, Asking()),
        "<edit_prompt> must stand where": ("no slot", Asking("judge")),
    }
    for message, (text, asking) in cases.items():
        benchmark = Rubric(rows, rubric_of(tmp_path, text))
        with pytest.raises(UserError, match=message):
            benchmark.requests(benchmark.items()[0], png(1), asking)
    benchmark = Rubric(rows, rubric_of(tmp_path, '{"color": "<edit_prompt>"}', "rubric.json"))
    with pytest.raises(UserError, match=r"rubric\.json: no text for '\.\./tone', and none for all others"):
        benchmark.requests(benchmark.items()[-1], png(1), Asking("judge"))
    with pytest.raises(UserError, match=r"nowhere\.txt: missing"):
        Rubric(rows, str(tmp_path / "nowhere.txt")).fingerprint()
    with pytest.raises(UserError, match="lowest=5: must be below highest=5"):
        Rubric(rows, "x", lowest=5)
    with table.open("a", encoding="utf-8") as file:
        file.write('{"id": "7", "source_image": "s1.png"}\n')
    with pytest.raises(UserError, match=r"1 of 6 rows cannot be evaluated, first .*edits\.jsonl:6"):
        EvaluationRows(str(table)).rows()
    with pytest.raises(UserError, match="nowhere"):
        EvaluationRows(str(tmp_path / "nowhere")).rows()


def test_names_of_files_tell_texts_apart() -> None:
    texts = ["a", "a/b", "a b", "../a", "", "..", "a" * 300, "a" * 301, "日本", "日" * 90, "CON\0", "\ud800"]
    names = [plain_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    assert names[0] == "a"
    assert names[8] == "日本"
    assert all("/" not in name and not name.startswith(".") and len(name.encode()) < 230 and name for name in names)
