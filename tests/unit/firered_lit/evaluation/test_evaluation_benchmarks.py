"""A benchmark is read as it was published, or refused in one line before anything is drawn."""

import io
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import standin
from PIL import Image

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks import rededit
from firered_lit.evaluation.benchmarks.gedit import GEdit
from firered_lit.evaluation.benchmarks.imgedit import ImgEdit
from firered_lit.evaluation.benchmarks.rededit import REDEdit


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    standin.write_rededit(folder / "rededit", each=2)
    standin.write_imgedit(folder / "imgedit", each=2)
    standin.write_imgedit(folder / "repack", each=2, parquet=True)
    standin.write_gedit(folder / "gedit", each=2)
    return folder


def opened(picture: bytes) -> Image.Image:
    return Image.open(io.BytesIO(picture))


def test_rededit_has_every_row_in_both_languages_with_its_own_source(copies: Path) -> None:
    benchmark = REDEdit(str(copies / "rededit"), version="any")
    items = benchmark.items()
    english = [item for item in items if item.suite == "rededit_en"]
    assert list(benchmark.suites()) == ["rededit_en", "rededit_cn"]
    assert Counter(item.category for item in english) == dict.fromkeys(standin.REDEDIT, 2)
    assert [item.id for item in english] == [str(i + 1) for i in range(30)]
    assert len(items) == 60
    portrait = next(item for item in english if item.category == "portrait")
    assert portrait.sources[0].startswith("redbench/id/portrait-")
    assert portrait.output == f"portrait/portrait-{portrait.id}.png"
    chinese = next(item for item in items if item.suite == "rededit_cn" and item.id == portrait.id)
    assert (chinese.language, chinese.sources) == ("zh", portrait.sources)
    assert chinese.instruction != portrait.instruction
    assert benchmark.sources(portrait) == [(copies / "rededit" / portrait.sources[0]).read_bytes()]
    assert "<edit_prompt>" in benchmark.prompt(portrait)


def test_imgedit_reads_the_same_items_as_json_and_as_parquet(copies: Path) -> None:
    both = [ImgEdit(str(copies / name), version="any") for name in ("imgedit", "repack")]
    items = [benchmark.items() for benchmark in both]
    told = [[(item.id, item.category, item.instruction, item.output) for item in found] for found in items]
    assert told[0] == told[1]
    assert Counter(item.category for item in items[0]) == dict.fromkeys(standin.IMGEDIT, 2)
    assert both[0].fingerprint() == both[1].fingerprint()
    for first, second in zip(*items, strict=True):
        pictures = [opened(benchmark.sources(item)[0]) for benchmark, item in zip(both, (first, second), strict=True)]
        assert pictures[0].format == "JPEG"
        assert pictures[0].tobytes() == pictures[1].tobytes()


def test_gedit_keeps_two_rows_of_one_key_apart(copies: Path) -> None:
    benchmark = GEdit(str(copies / "gedit"), version="any")
    items = benchmark.items()
    assert Counter(item.suite for item in items) == {"gedit_en": 22, "gedit_cn": 22}
    assert len({(item.suite, item.id) for item in items}) == 44
    assert len({(item.suite, item.output) for item in items}) == 44
    twins = [item for item in items if item.suite == "gedit_en" and item.category == "subject-remove"]
    assert twins[1].id == f"{twins[0].id}-2"
    assert benchmark.sources(twins[0]) != benchmark.sources(twins[1])
    assert sum(item.facts["intersection"] for item in items) == 22
    rows = [row for path in sorted((copies / "gedit/data").iterdir()) for row in pq.read_table(path).to_pylist()]
    for item in items:
        assert benchmark.sources(item) == [rows[item.facts["row"]]["input_image"]["bytes"]]


def test_prompts_in_python_are_read_and_never_run(copies: Path) -> None:
    prompts = GEdit(str(copies / "gedit"), version="any").prompts
    assert set(prompts) == {
        "_context_no_delimit",
        "_prompts_0shot_two_image_edit_rule",
        "_prompts_0shot_tie_rule_SC",
        "_prompts_0shot_rule_PQ",
    }


def test_the_first_items_of_each_category_can_be_asked_for(copies: Path) -> None:
    items = REDEdit(str(copies / "rededit"), version="any", each=1, languages=["cn"]).items()
    assert [item.category for item in items] == list(standin.REDEDIT)


def test_the_published_rededit_is_taken_as_it_is(shared_data: Path, tmp_path: Path) -> None:
    index = shared_data / "rededit_bench" / "redbench.jsonl"
    if not index.exists():
        pytest.skip("the index of REDEdit-Bench is not here")
    content = index.read_bytes()
    (tmp_path / "redbench.jsonl").write_bytes(content)
    rows = [json.loads(line) for line in content.decode().splitlines()]
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "PNG")
    for row in rows:
        path = tmp_path / row["source"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.getvalue())
    items = REDEdit(str(tmp_path), version="published").items()
    assert len(items) == 2 * sum(rededit.PUBLISHED.values()) == 3084
    assert len({(item.suite, item.output) for item in items}) == 3084
    assert all(item.output == f"{item.category}/{item.category}-{item.id}.png" for item in items)

    # A row less: the message names the task.
    short = [line for line in content.splitlines(keepends=True) if b'"id": "1500"' not in line]
    (tmp_path / "redbench.jsonl").write_bytes(b"".join(short))
    with pytest.raises(UserError, match=r"1541 rows, the published version has 1542 \(\w+ \d+ of \d+\); SHA-256"):
        REDEdit(str(tmp_path), version="published").items()


def test_an_instruction_may_hold_any_line_end_but_its_own(tmp_path: Path) -> None:
    folder = standin.write_rededit(tmp_path, each=1)
    odd = "Write\u2028two\x85lines\x0bor\x1cmore\r\n“各”"
    index = folder / "redbench.jsonl"
    first, *rest = index.read_text(encoding="utf-8").split("\n")
    changed = json.dumps(json.loads(first) | {"a_to_b_instructions_eng": odd}, ensure_ascii=False)
    index.write_text("\n".join([changed, *rest]), encoding="utf-8")
    assert REDEdit(str(folder)).items()[0].instruction == odd


# A damaged folder


def change(folder: Path, columns: dict[str, object]) -> None:
    """Change columns of the first row."""
    index = folder / "redbench.jsonl"
    first, *rest = index.read_text(encoding="utf-8").splitlines(keepends=True)
    index.write_text(json.dumps(json.loads(first) | columns) + "\n" + "".join(rest), encoding="utf-8")


def with_half_a_line(folder: Path) -> None:
    with (folder / "redbench.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "1')


WRONG_COLUMNS = {
    "no text": ({"a_to_b_instructions": 7}, r":1: a_to_b_instructions: expected a text, got 7"),
    "half a character": (
        {"a_to_b_instructions_eng": "Write \ud800"},
        r":1: a_to_b_instructions_eng: expected a text, got 'Write \\ud800'",
    ),
    "half a character in a path": ({"source": "redbench/\ud800.png"}, r":1: source: expected a text"),
    "an id twice": ({"id": "2"}, r": the id '2' stands there 2 times"),
    "a way out": (
        {"source": "redbench/../../outside.png"},
        r":1: 'redbench/\.\./\.\./outside\.png' does not lie below",
    ),
    "a task with a way out": ({"task": "../add"}, r":1: '\.\./add' does not lie below"),
}
WRONG_FILES = {
    "no index": (lambda folder: (folder / "redbench.jsonl").unlink(), r": missing; .*REDEdit_Bench\.tar"),
    "half a line": (with_half_a_line, r":16: not valid JSON"),
    "no object": (
        lambda folder: (folder / "redbench.jsonl").write_text("[1]\n", encoding="utf-8"),
        r":1: expected a JSON object, not a list",
    ),
    "other text": (lambda folder: (folder / "redbench.jsonl").write_bytes(b"\xff\xfe"), ": not UTF-8 text"),
}


@pytest.mark.parametrize(("columns", "message"), WRONG_COLUMNS.values(), ids=WRONG_COLUMNS)
def test_a_row_of_rededit_with_a_wrong_column_is_refused_in_one_line(columns, message, tmp_path: Path) -> None:
    change(standin.write_rededit(tmp_path, each=1), columns)
    with pytest.raises(UserError, match=rf"redbench\.jsonl{message}") as caught:
        REDEdit(str(tmp_path)).items()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("damage", "message"), WRONG_FILES.values(), ids=WRONG_FILES)
def test_a_damaged_index_of_rededit_is_refused_in_one_line(damage, message, tmp_path: Path) -> None:
    damage(standin.write_rededit(tmp_path, each=1))
    with pytest.raises(UserError, match=rf"redbench\.jsonl{message}") as caught:
        REDEdit(str(tmp_path)).items()
    assert "\n" not in str(caught.value)


def test_a_rededit_without_any_picture_is_refused_in_one_line(tmp_path: Path) -> None:
    shutil.rmtree(standin.write_rededit(tmp_path, each=1) / "redbench")
    told = r"15 of 15 pictures are missing, first redbench/add/add-1\.png; .*REDEdit_Bench\.tar"
    with pytest.raises(UserError, match=told):
        REDEdit(str(tmp_path)).items()


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (REDEdit, r"rededit/redbench\.jsonl: .*30 rows, the published version has 1542 .*SHA-256 [0-9a-f]{16}"),
        (ImgEdit, r"imgedit/basic_edit\.json: .*18 rows, the published version has 737 .*SHA-256 [0-9a-f]{16}"),
        (GEdit, r"gedit \(en\): .*22 rows, the published version has 606"),
    ],
)
def test_another_version_is_told_with_its_hash_and_refused_on_request(kind, told, copies: Path, caplog) -> None:
    folder = str(copies / kind.__name__.lower())
    assert kind(folder).items()
    assert len(caplog.messages) == (2 if kind is GEdit else 1)
    assert re.search(told, caplog.messages[0])
    with pytest.raises(UserError, match=told):
        kind(folder, version="published").items()


def test_a_missing_picture_is_told_and_costs_its_item_alone(tmp_path: Path, caplog) -> None:
    folder = standin.write_rededit(tmp_path, each=1)
    (folder / "redbench/id/portrait-10.png").unlink()
    benchmark = REDEdit(str(folder))
    items = benchmark.items()
    assert "1 of 15 pictures are missing, first redbench/id/portrait-10.png" in caplog.text
    lost = [item for item in items if item.category == "portrait"]
    assert len(lost) == 2
    for item in lost:
        with pytest.raises(UserError, match=r"redbench/id/portrait-10\.png: missing"):
            benchmark.sources(item)
    assert all(benchmark.sources(item) for item in items if item not in lost)


@pytest.mark.parametrize("kind", [ImgEdit, GEdit])
def test_an_empty_folder_is_refused_in_one_line(kind: type, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="parquet files"):
        kind(str(tmp_path)).items()


def test_a_damaged_table_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1, and then nothing")
    with pytest.raises(UserError, match=r"train\.parquet: cannot be read as parquet"):
        GEdit(str(tmp_path)).items()
    pq.write_table(pq.read_table(standin.write_gedit(tmp_path / "whole", 1) / "data/train-00000-of-00002.parquet")
                   .drop_columns(["key"]), tmp_path / "train.parquet")  # fmt: skip
    with pytest.raises(UserError, match=r"train\.parquet: no column 'key'"):
        GEdit(str(tmp_path)).items()


@pytest.mark.parametrize("key", ["../../out", "/etc/passwd", "a/b", "..\\x", "", "x" * 300, "\ud800", "a\0"])
def test_a_key_that_is_no_files_name_is_refused(key: str, tmp_path: Path) -> None:
    folder = standin.write_imgedit(tmp_path, each=1)
    index = json.loads((folder / "basic_edit.json").read_text(encoding="utf-8"))
    index[key] = index.pop("7")
    (folder / "basic_edit.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(UserError):
        ImgEdit(str(folder), version="any").items()


def test_a_missing_prompt_is_named_with_the_file(copies: Path) -> None:
    benchmark = REDEdit(str(copies / "rededit"), version="any", prompts=str(copies / "nowhere.json"))
    with pytest.raises(UserError, match=r"nowhere\.json: missing; .*`prompts`"):
        benchmark.prompt(benchmark.items()[0])


def test_a_missing_text_of_vie_prompts_is_named_with_the_file(tmp_path: Path) -> None:
    folder = standin.write_gedit(tmp_path, each=1)
    prompts = folder / "vie_prompts.py"
    prompts.write_text(prompts.read_text(encoding="utf-8").replace("_0shot_rule_PQ", "_0shot_rule"), encoding="utf-8")
    with pytest.raises(UserError, match=r"vie_prompts\.py: the text _prompts_0shot_rule_PQ is missing; .*`prompts`"):
        _ = GEdit(str(folder)).prompts


@pytest.mark.parametrize("kind", [REDEdit, ImgEdit, GEdit])
def test_another_choice_of_a_version_is_refused_in_one_line(kind, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="version=publishd: choose one of published, any"):
        kind(str(tmp_path), version="publishd")


@pytest.mark.parametrize("kind", [REDEdit, GEdit])
@pytest.mark.parametrize("languages", [[], ["en", "fr"]])
def test_another_language_is_refused_in_one_line(kind, languages, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{kind.__name__.lower()}\.languages: .*: choose en, cn or both"):
        kind(str(tmp_path), languages=languages)
