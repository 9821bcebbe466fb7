"""Answers made elsewhere, and the shared golden cases through the whole path: benchmark, judge or file, score."""

import csv
import io
import json
import math
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import standin
from support.stub_judge import StubJudge, words

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.gedit import GEdit
from firered_lit.evaluation.benchmarks.imgedit import ImgEdit
from firered_lit.evaluation.benchmarks.rededit import REDEdit
from firered_lit.evaluation.judging import ask
from firered_lit.evaluation.protocols import Asking, EvaluationFolder
from firered_lit.evaluation.scoring import score
from firered_lit.judges.client import Client
from firered_lit.judges.log import rows

PROMPT = "Judge <edit_prompt> with numbers."


def picture(color="red", form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, format=form)
    return file.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def rededit_of(folder, tasks):
    """A copy of REDEdit-Bench's layout with these tasks, one item each; item N is asked for as "item N."."""
    index = []
    for number, task in enumerate(tasks):
        source = f"redbench/{task}/{task}-{number + 1}.png"
        write(folder / source, picture())
        text = f"item {number}."
        row = {"id": str(number + 1), "source": source, "task": task}
        index.append(row | {"a_to_b_instructions": text, "a_to_b_instructions_eng": text})
    write(folder / "redbench.jsonl", "".join(json.dumps(row) + "\n" for row in index))
    write(folder / "prompts.json", dict.fromkeys(tasks, PROMPT))
    return REDEdit(str(folder), languages=("en",), version="any")


def imgedit_of(folder, types):
    """A copy of ImgEdit's layout: key -> type."""
    index = {}
    for key, kind in types.items():
        name = f"animal/{key}.jpg"
        write(folder / "Benchmark" / "singleturn" / name, picture(form="JPEG"))
        index[key] = {"id": name, "prompt": f"item {key}.", "edit_type": kind}
    write(folder / "basic_edit.json", index)
    write(folder / "prompts.json", dict.fromkeys(types.values(), PROMPT))
    return ImgEdit(str(folder), version="any")


def gedit_of(folder, table):
    """A copy of GEdit-Bench's layout: (group, language, key, instruction, in the intersection) of each row."""
    embedded = {"bytes": picture(), "path": None}
    rows_of = []
    for group, language, key, instruction, intersection in table:
        rows_of.append(
            {
                "task_type": group,
                "key": key,
                "instruction": instruction,
                "instruction_language": language,
                "input_image": embedded,
                "input_image_raw": embedded,
                "Intersection_exist": intersection,
            }
        )
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows_of), folder / "data" / "train.parquet")
    write(folder / "vie_prompts.py", standin.VIE_PROMPTS)
    languages = sorted({language for _, language, *_ in table})
    return GEdit(str(folder), languages=languages, version="any")


def scored(out, benchmark, answers, models=("model",)):
    """Score a file of answers; return the tables and the lines."""
    folder = EvaluationFolder(out)
    tables = score(folder, [benchmark], list(models), Asking(), 0, answers)
    return tables, list(rows(folder.model_items(models[0])))


def asked(out, benchmark, answer):
    """Let a real server answer about a picture of each item; return the tables and the lines."""
    folder = EvaluationFolder(out)
    for item in benchmark.items():
        write(folder.picture("model", item), picture("blue"))
    with StubJudge(answer) as judge, Client(judge.url, log=str(folder.responses), replay=True) as client:
        ask(folder, [benchmark], ["model"], client, Asking())
    tables = score(folder, [benchmark], ["model"], Asking(), 0)
    return tables, list(rows(folder.model_items("model")))


def table_answer(answers):
    """A judge that looks up the item that is asked for: "item N."."""

    def answer(body, digest):
        text = words(body)
        return answers[text[text.index("item ") :].split(".")[0].removeprefix("item ")]

    return answer


# The official scripts' own files


def test_rededits_details_are_scored_by_the_line_of_the_index(tmp_path) -> None:
    benchmark = rededit_of(tmp_path / "data", ["text", "text", "add", "add", "add"])
    details = {
        "4": "A: 1\nB: 1\nC: 2",
        "0": "A: 5\nB: 4\nC: 4",
        "1": "Error: 429",
        "2": {"error": "no"},
    }
    path = write(tmp_path / "evaluation_details.json", details)
    tables, lines = scored(tmp_path / "out", benchmark, str(path))
    official = tables["rededit_en"]["official"]
    strict = tables["rededit_en"]["strict"]
    assert official["text"]["score"] == round((4.33 + 429.0) / 2, 2)
    assert official["add"]["score"] == 1.33
    assert official["overall"]["score"] == (1.33 + 216.66) / 2
    assert official["add"] | {"score": None} == {
        "score": None,
        "expected": 3,
        "scored": 1,
        "missing": 2,
        "refused": 0,
        "unparsed": 0,
    }
    assert strict["text"]["score"] == round((4.33 + 1) / 2, 2)
    assert strict["text"]["unparsed"] == 1
    assert strict["add"]["score"] == round((1.33 + 1 + 1) / 3, 2)
    assert [line["official"]["state"] for line in lines] == ["scored", "scored", "missing", "missing", "scored"]
    assert lines[2]["answers"] == [[None]]


def test_imgedits_result_is_scored_by_its_keys_and_a_stored_error_stops_nothing(tmp_path) -> None:
    benchmark = imgedit_of(tmp_path / "data", {"7": "add", "12": "add", "90": "style"})
    result = {"12": "A:  5\nB: 1", "7": "A: 5\nB: 4\nC: 4", "90": {"error": "timeout"}}
    tables, lines = scored(tmp_path / "out", benchmark, str(write(tmp_path / "result.json", result)))
    official = tables["imgedit"]["official"]
    assert official["add"]["score"] == round((4.33 + 1.0) / 2, 2)
    assert official["style"]["score"] is None
    assert official["overall"]["score"] == official["add"]["score"]
    assert [line["official"]["state"] for line in lines] == ["scored", "scored", "missing"]


GROUPS = ("tone_transfer", "background_change", "ps_human")


def gedit_table():
    table = []
    for group in GROUPS:
        for number in range(3):
            table.append((group, "en", f"{number:032x}", f"do {group} {number}", number == 0))
    table.append((GROUPS[0], "en", f"{0:032x}", "a second one of this key", False))
    table.append((GROUPS[0], "cn", f"{0:032x}", "中文", True))
    return table


def write_csv(folder, table, values):
    """The tables of the official script, a file per group and one of all."""
    columns = ["source_image", "edited_image", "instruction", "sementics_score", "quality_score"]
    columns += ["intersection_exist", "instruction_language"]
    written = []
    for (group, language, key, instruction, intersection), (semantics, quality) in zip(table, values, strict=True):
        place = f"/results/model/fullset/{group}/{language}/{key}"
        written.append([f"{place}_SRCIMG.png", f"{place}.png", instruction, semantics, quality, intersection, language])
    folder.mkdir(parents=True, exist_ok=True)
    for group in [*{row[0] for row in table}, "combined"]:
        with (folder / f"model_{group}_gpt_score.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(row for row in written if group in ("combined", Path(row[1]).parents[1].name))
    return folder


def test_gedits_tables_are_scored_with_their_intersection_and_rows_that_share_a_key(tmp_path) -> None:
    table = gedit_table()
    benchmark = gedit_of(tmp_path / "data", table)
    values = [(9, 4), (0, 10), (7, 8), (6, 6), (5, 5), (10, 10), (3, 7), (8, 2), (1, 9), (2, 2), (4, 4)]
    folder = write_csv(tmp_path / "csv", table, values)
    tables, lines = scored(tmp_path / "out", benchmark, {"gedit_en": str(folder), "gedit_cn": str(folder)})
    by_instruction = {line["instruction"]: line["official"]["values"] for line in lines}
    for (_, _, _, instruction, _), (semantics, quality) in zip(table, values, strict=True):
        expected = {"SC": semantics, "PQ": quality, "O": math.sqrt(semantics * quality)}
        assert by_instruction[instruction] == expected
    overall = tables["gedit_en"]["official"]["overall"]
    assert (overall["expected"], overall["scored"]) == (10, 10)
    assert tables["gedit_en_intersection"]["official"]["overall"]["expected"] == 3
    assert list(tables["gedit_en"]["official"]) == ["background_change", "ps_human", "tone_transfer", "overall"]
    assert tables["gedit_cn"]["official"]["overall"]["score"] == 4.0


def test_a_row_that_a_crash_has_doubled_counts_once(tmp_path) -> None:
    table = [("ps_human", "en", "a" * 32, "one", True), ("ps_human", "en", "b" * 32, "two", True)]
    benchmark = gedit_of(tmp_path / "data", table)
    folder = write_csv(tmp_path / "csv", [*table, table[0]], [(9, 4), (4, 4), (9, 4)])
    tables, _ = scored(tmp_path / "out", benchmark, str(folder))
    assert tables["gedit_en"]["official"]["overall"]["score"] == 5.0


def test_rows_of_ones_own_may_have_several_attempts(tmp_path) -> None:
    benchmark = gedit_of(tmp_path / "data", [("ps_human", "en", "a" * 32, "one", True)])
    (item,) = benchmark.items()
    answers = [["sorry", '{"score": [9, 9]}'], ['{"score": [6, 7]}', '{"score": [2, 2]}']]
    text = "".join(json.dumps({"id": item.id, "answers": pair}) + "\n" for pair in answers)
    tables, lines = scored(tmp_path / "out", benchmark, str(write(tmp_path / "own.jsonl", text)))
    assert tables["gedit_en"]["official"]["overall"]["score"] == math.sqrt(12)
    assert lines[0]["answers"] == answers


# Files that cannot be used


def test_a_file_that_cannot_be_used_is_refused_in_one_line(tmp_path) -> None:
    benchmark = imgedit_of(tmp_path / "data", {"7": "add"})
    wrong = {
        "absent.json": (None, "cannot be read"),
        "list.json": ([], "expected a JSON object"),
        "torn.json": ('{"7": ', "not valid JSON"),
        "other.json": ({"8": "A: 1"}, "no such item"),
        "rows.jsonl": ('{"id": "8"}\n', "no such item"),
        "short.jsonl": ('{"id": "7", "answers": []}\n', "1 answers are needed"),
        "columns.csv": ("a,b\n1,2\n", "'edited_image' is missing"),
    }
    for name, (content, reason) in wrong.items():
        path = tmp_path / name
        if content is not None:
            write(path, content)
        with pytest.raises(UserError, match=reason) as caught:
            scored(tmp_path / "out", benchmark, str(path))
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "scores.json").exists()


@pytest.mark.parametrize("cell", ["", "nan", "seven", "true", "[1]"])
def test_a_cell_that_is_no_number_is_named_by_its_line(tmp_path, cell) -> None:
    table = [("ps_human", "en", "a" * 32, "one", True)]
    benchmark = gedit_of(tmp_path / "data", table)
    folder = write_csv(tmp_path / "csv", table, [(cell, 4)])
    with pytest.raises(UserError, match="line 2: sementics_score"):
        scored(tmp_path / "out", benchmark, str(folder))


def test_one_file_for_several_suites_or_an_unknown_name_is_refused(tmp_path) -> None:
    benchmark = imgedit_of(tmp_path / "data", {"7": "add"})
    path = str(write(tmp_path / "result.json", {"7": "A: 1"}))
    with pytest.raises(UserError, match=r"answers\.MODEL\.SUITE"):
        scored(tmp_path / "out", benchmark, path, models=("a", "b"))
    with pytest.raises(UserError, match="neither a model nor a suite"):
        scored(tmp_path / "out", benchmark, {"rededit_en": path})
    _, lines = scored(tmp_path / "out", benchmark, {"b": {"imgedit": path}, "a": path}, models=("a", "b"))
    assert lines[0]["official"]["values"] == {"score": 1.0}


# The shared golden cases, through the whole path


@pytest.fixture(scope="module")
def golden(root):
    folder = Path(os.environ.get("FIRERED_LIT_SHARED", root.parent / "shared" / "data"))
    path = folder / "golden_eval.json"
    if not path.exists():
        pytest.skip("the golden cases are not here: set FIRERED_LIT_SHARED to the folder that holds golden_eval.json")
    return json.loads(path.read_text(encoding="utf-8"))


def expected_of(case):
    """Return the official code's result; None where it stops."""
    return None if isinstance(case["expected"], dict) else case["expected"]


@pytest.mark.parametrize("by_file", [True, False], ids=["file", "server"])
@pytest.mark.parametrize("name", ["rededit", "imgedit"])
def test_golden_line_answers_score_as_the_official_code_scored_them(tmp_path, golden, name, by_file) -> None:
    cases = golden[name]["parse"]
    if not by_file:  # a server cannot answer nothing
        cases = [case for case in cases if isinstance(case["response"], str) and case["response"].strip()]
    keys = [str(number) for number in range(len(cases))]
    if name == "rededit":
        benchmark = rededit_of(tmp_path / "data", ["add"] * len(cases))
    else:
        benchmark = imgedit_of(tmp_path / "data", dict.fromkeys(keys, "add"))
    answers = {key: case["response"] for key, case in zip(keys, cases, strict=True)}
    if by_file:
        _, lines = scored(tmp_path / "out", benchmark, str(write(tmp_path / "answers.json", answers)))
    else:
        _, lines = asked(tmp_path / "out", benchmark, table_answer(answers))
    for line, case in zip(lines, cases, strict=True):
        assert line["official"]["values"].get("score") == expected_of(case), case["name"]


def test_golden_sets_of_lines_have_the_official_tables(tmp_path, golden) -> None:
    for number, case in enumerate(golden["rededit"]["dataset"]):
        benchmark = rededit_of(tmp_path / f"rededit{number}", [row["task"] for row in case["meta"]])
        path = write(tmp_path / f"details{number}.json", case["judge_outputs"])
        tables, lines = scored(tmp_path / f"out{number}", benchmark, str(path))
        official = tables["rededit_en"]["official"]
        expected = case["expected"]
        found = {str(line): row["official"]["values"].get("score") for line, row in enumerate(lines)}
        assert {key: value for key, value in found.items() if value is not None} == expected["image"]
        tasks = {task: row["score"] for task, row in official.items() if task != "overall"}
        assert {task: value for task, value in tasks.items() if value is not None} == expected["task"]
        assert official["overall"]["score"] == expected["final_score"]
    for number, case in enumerate(golden["imgedit"]["dataset"]):
        types = {key: row["edit_type"] for key, row in case["meta"].items()}
        benchmark = imgedit_of(tmp_path / f"imgedit{number}", types)
        path = write(tmp_path / f"result{number}.json", case["judge_outputs"])
        tables, _ = scored(tmp_path / f"imgout{number}", benchmark, str(path))
        official = tables["imgedit"]["official"]
        assert {kind: row["score"] for kind, row in official.items() if kind != "overall"} == case["expected"]["task"]
        assert official["overall"]["macro"] == case["overall_macro(paper convention, not in official code)"]
        assert official["overall"]["micro"] == case["overall_micro(BAGEL fork)"]


def test_golden_answers_of_gedit_have_the_official_scores(tmp_path, golden) -> None:
    cases = []
    for case in golden["gedit"]["evaluate"]:
        attempt = [json.dumps({"score": case[name]}) for name in ("SC", "PQ")]
        cases.append(([attempt], case["expected"]))
    for case in golden["gedit"]["evaluate_stateful"]:
        count = len(case["calls"]) // 2
        padded = [(case[name] + case[name][-1:] * count)[:count] for name in ("SC_outputs", "PQ_outputs")]
        expected = case["result_SC_PQ_O"]
        attempts = [list(pair) for pair in zip(*padded, strict=True)]
        cases.append((attempts, None if isinstance(expected, str) else expected))  # dice have no score here
    for case in golden["gedit"]["parse"]:
        found = case["expected_score_list"]
        attempt = [case["response"], '{"score": [9, 9]}']
        numbers = isinstance(found, list) and found and all(isinstance(value, int | float) for value in found)
        expected = [min(found), 9, math.sqrt(min(found) * 9)] if numbers else None
        cases.append(([attempt], expected))

    table = [("ps_human", "en", f"{number:032x}", "one", True) for number in range(len(cases))]
    benchmark = gedit_of(tmp_path / "data", table)
    text = ""
    for item, (attempts, _) in zip(benchmark.items(), cases, strict=True):
        text += "".join(json.dumps({"id": item.id, "answers": attempt}) + "\n" for attempt in attempts)
    _, lines = scored(tmp_path / "out", benchmark, str(write(tmp_path / "own.jsonl", text)))
    for line, (attempts, expected) in zip(lines, cases, strict=True):
        assert (list(line["official"]["values"].values()) or None) == expected, attempts


def test_golden_rows_of_gedit_have_the_official_means(tmp_path, golden) -> None:
    case = golden["gedit"]["aggregate"]
    table = []
    for number, row in enumerate(case["rows"]):
        where = (row["task_type"], row["instruction_language"], f"{number:032x}")
        table.append((*where, f"row {number}", row["intersection_exist"]))
    benchmark = gedit_of(tmp_path / "data", table)
    values = [(row["sementics_score"], row["quality_score"]) for row in case["rows"]]
    folder = str(write_csv(tmp_path / "csv", table, values))
    tables, _ = scored(tmp_path / "out", benchmark, {"gedit_en": folder, "gedit_cn": folder})
    for language in ("en", "cn"):
        expected = case["expected"][language]
        for suite, chosen in ((f"gedit_{language}", "avg"), (f"gedit_{language}_intersection", "avg_intersection")):
            overall = tables[suite]["official"]["overall"]
            assert [overall[name] for name in ("SC", "PQ", "score")] == expected[chosen]
        for group, means in expected["per_group"].items():
            row = tables[f"gedit_{language}"]["official"][group]
            assert [round(row[name], 6) for name in ("SC", "PQ", "score")] == means
