"""Metrics of the text on edited pictures: nearest parts, texts that must be gone, readers, each picture once."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rendered import paper, write
from support.stub_judge import StubJudge, pictures, words

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.pictures import png
from firered_lit.evaluation.benchmarks.rededit import REDEdit
from firered_lit.evaluation.protocols import Asking, EvaluationFolder
from firered_lit.evaluation.scoring import score
from firered_lit.evaluation.text_metrics import TextColumn, nearest, shows
from firered_lit.evaluation.text_reading import (
    JudgeReader,
    TextReading,
    read_texts,
    reader_of,
    readings_of,
    targets_of,
)
from firered_lit.evaluation.text_scores import oneig_text_score
from firered_lit.evaluation.text_targets import TextTarget
from firered_lit.judges.client import Client
from firered_lit.judges.log import rows

NEAREST = {
    "alone": ("TODAY", ["TODAY"], "TODAY"),
    "among others": ("TODAY", ["SALE", "TODAY ONLY"], "TODAY"),
    "over lines": ("GRAND OPENING", ["THE GRAND", "OPENING SALE"], "GRAND OPENING"),
    "with a slip": ("GRAND OPENING", ["GRAND OPENNING SALE"], "GRAND OPENNING"),
    "a part of a word is another word": ("BURGER", ["HAMBURGER"], "HAMBURGER"),
    "Chinese": ("今天", ["明天见", "今天是个好日子"], "今天"),
    "Chinese with a slip": ("好日子", ["今天是个好日于"], "好日于"),
    "Chinese and Latin": ("Python入门", ["第2版 Python入门 作者"], "Python入门"),
    "Latin beside Chinese": ("OPEN", ["营业中 OPEN", "早安"], "OPEN"),
    "nothing": ("TODAY", [], ""),
    "nothing near": ("AB", ["qwerty uiop"], ""),
}


@pytest.mark.parametrize(("target", "lines", "part"), NEAREST.values(), ids=NEAREST)
def test_a_target_is_held_against_the_part_that_comes_nearest(target, lines, part) -> None:
    assert nearest(target, lines) == part


SHOWN = {
    "as it is": ("OR", ["A OR B"], True),
    "inside of a word": ("OR", ["FOR B"], False),
    "in other letters": ("Or", ["OR"], False),
    "punctuation does not count": ("SALE!", ["- SALE -"], True),
    "over lines": ("BIG SALE", ["BIG", "SALE"], True),
    "Chinese inside of a line": ("福", ["有福了"], True),
    "Chinese that is not there": ("福", ["有寿了"], False),
    "nothing but marks": ("!!", ["!!"], False),
}


@pytest.mark.parametrize(("text", "lines", "expected"), SHOWN.values(), ids=SHOWN)
def test_a_text_that_must_be_gone_is_looked_for_as_words(text, lines, expected) -> None:
    assert shows(text, lines) is expected


@settings(max_examples=60)
@given(st.lists(st.text("abAB 中文1.", max_size=8), max_size=4), st.text("abAB 中文1.", min_size=1, max_size=6))
def test_no_reading_breaks_the_metrics(lines, target) -> None:
    column = TextColumn()
    column.add(TextTarget("replace", (target,), (target,)), lines)
    told = column.statistics((1, 1, 1))
    assert told["score"] is None or 0 <= told["score"] <= 1
    if shows(target, lines):
        assert nearest(target, lines) == nearest(target, [target])
        assert told["gone"] == 0


def test_the_score_is_oneigs_of_the_nearest_parts_and_what_was_not_read_counts_in_strict() -> None:
    column = TextColumn()
    column.add(TextTarget("add", ("GRAND OPENING", "NOW")), ["THE GRAND OPENNING", "NOW"], "eye")
    column.add(TextTarget("delete", (), ("OLD", "LOGO")), ["OLD HOUSE"], "eye")
    column.add(TextTarget("keep", ("LATE",)), None)
    column.add(None, ["what"])
    told = column.statistics((1, 0, 0))
    pairs = [("GRAND OPENING", "GRAND OPENNING"), ("NOW", "NOW")]
    expected = oneig_text_score(pairs)
    assert {name: told[name] for name in ("ED", "CR", "WAC", "score")} == {
        name: expected[name] for name in ("ED", "CR", "WAC", "score")
    }
    assert told["weighted"] == pytest.approx(((1 - 1 / 14) + 1) / 2)
    assert told["strict_weighted"] == pytest.approx(((1 - 1 / 14) + 1 + 0) / 3)
    assert (told["gone"], told["to_be_gone"]) == (0.5, 2)
    assert (told["items"], told["items_read"], told["without_target"]) == (3, 2, 1)
    assert (told["texts"], told["texts_read"], told["readers"]) == (3, 2, ["eye"])


# A whole evaluation


INSTRUCTIONS = ("Change 'MORNING' to 'NIGHT'", "Delete 'OLD'", "Make it nice", "Add 'NEW' on the wall")


def picture_of(*lines):
    image = paper((320, 160))
    for number, line in enumerate(lines):
        write(image, line, (160, 45 + 60 * number), 36)
    return png(image)


SHOWN_TEXTS = (["THE NIGHT"], ["OLD", "SIGN"], ["NICE"], [])


@pytest.fixture
def benchmark(tmp_path):
    data = tmp_path / "data"
    index = []
    for number, instruction in enumerate(INSTRUCTIONS):
        source = data / "redbench" / "text" / f"text-{number + 1}.png"
        source.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(source)
        row = {"id": str(number + 1), "source": str(source.relative_to(data)), "task": "text"}
        index.append(row | {"a_to_b_instructions": instruction, "a_to_b_instructions_eng": instruction})
    (data / "redbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in index))
    (data / "prompts.json").write_text(json.dumps({"text": "<edit_prompt>"}))
    return REDEdit(str(data), languages=("en",), version="any")


@pytest.fixture
def folder(tmp_path, benchmark):
    folder = EvaluationFolder(tmp_path / "out")
    for item, lines in zip(benchmark.items(), SHOWN_TEXTS, strict=True):
        path = folder.picture("model", item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture_of(*lines))
    return folder


class Written:
    """A reader that knows what was drawn, and counts what it is asked."""

    identity = "written"

    def __init__(self):
        self.asked = 0
        self.known = {hashlib.sha256(picture_of(*lines)).hexdigest(): lines for lines in SHOWN_TEXTS}

    def read(self, files):
        self.asked += len(files)
        return [self.known[hashlib.sha256(data).hexdigest()] for data in files]


def test_every_picture_is_read_once_and_scored_beside_its_target(folder, benchmark) -> None:
    reader = Written()
    targets = targets_of([benchmark])
    assert targets["rededit_en", "3"] is None
    assert read_texts(folder, [benchmark], ["model"], reader, targets) == 3
    assert read_texts(folder, [benchmark], ["model"], reader, targets) == 0
    assert reader.asked == 3

    score(folder, [benchmark], ["model"], Asking(), 0, text=TextReading(reader))
    told = json.loads(folder.statistics.read_text())["text"]["rededit_en"]["model"]
    assert (told["texts"], told["texts_read"], told["without_target"]) == (2, 2, 1)
    assert told["CR"] == 0.5
    assert (told["gone"], told["to_be_gone"]) == (0.5, 2)  # MORNING is, OLD is not
    assert told["readers"] == ["written"]
    facts = [line["facts"]["text"] for line in rows(folder.model_items("model"))]
    assert facts[0] == {
        "op": "replace",
        "must_contain": ["NIGHT"],
        "must_not_contain": ["MORNING"],
        "read": ["THE NIGHT"],
    }
    assert facts[2] is None


def test_each_shard_reads_what_it_has_drawn(folder, benchmark) -> None:
    targets = targets_of([benchmark])
    assert read_texts(folder, [benchmark], ["model"], Written(), targets, shard=0, num_shards=2) == 1
    assert read_texts(folder, [benchmark], ["model"], Written(), targets, shard=1, num_shards=2) == 2


def test_a_users_table_stands_above_the_rules(folder, benchmark, tmp_path) -> None:
    table = tmp_path / "own.jsonl"
    table.write_text(json.dumps({"id": "3", "op": "add", "must_contain": ["NICE"]}) + "\n")
    targets = targets_of([benchmark], str(table))
    assert targets["rededit_en", "3"] == TextTarget("add", ("NICE",))
    assert targets["rededit_en", "1"].must_contain == ("NIGHT",)
    table.write_text(json.dumps({"id": "77", "op": "add"}))
    with pytest.raises(UserError, match="'77': no such item"):
        targets_of([benchmark], str(table))


def test_missing_and_damaged_pictures_are_not_read(folder, benchmark) -> None:
    first, second, *_ = benchmark.items()
    folder.picture("model", first).unlink()
    folder.picture("model", second).write_bytes(b"no picture")
    assert read_texts(folder, [benchmark], ["model"], Written(), targets_of([benchmark])) == 1
    score(folder, [benchmark], ["model"], Asking(), 0, text=TextReading())
    told = json.loads(folder.statistics.read_text())["text"]["rededit_en"]["model"]
    assert (told["items"], told["items_read"]) == (3, 1)
    assert told["score"] == oneig_text_score([("NEW", "")])["score"]
    assert told["strict_score"] == oneig_text_score([("NIGHT", ""), ("NEW", "")])["score"] < told["score"]


def test_the_judge_reads_where_no_other_reader_is_named(folder, benchmark) -> None:
    def answer(body, digest):
        assert "Write down all text" in words(body)
        (url,) = pictures(body)
        assert url.startswith("data:image/png;base64,")
        return "THE NIGHT\nOLD"

    asking = Asking("reader-7b", {"temperature": 0})
    with StubJudge(answer) as judge, Client(judge.url, log=str(folder.responses), replay=True) as client:
        reader = reader_of(TextReading(), client, asking)
        assert isinstance(reader, JudgeReader)
        assert read_texts(folder, [benchmark], ["model"], reader, targets_of([benchmark])) == 3
        assert judge.count == 3
        assert {body["temperature"] for body in judge.bodies} == {0}
    digest = hashlib.sha256(picture_of("NICE")).hexdigest()
    assert readings_of(folder).find(digest, "judge reader-7b") is None
    (line, *_) = rows(folder.texts)
    assert line["lines"] == ["THE NIGHT", "OLD"]


def test_a_judge_that_declines_to_read_is_asked_again_in_the_next_run(folder, benchmark) -> None:
    with StubJudge(plant={"refused": 1.0}) as judge, Client(judge.url) as client:
        reader = JudgeReader(client, "reader-7b", {})
        assert read_texts(folder, [benchmark], ["model"], reader, targets_of([benchmark])) == 0
    assert not Path(folder.texts).exists()


def test_a_spent_budget_ends_the_reading_in_one_line(folder, benchmark) -> None:
    with StubJudge() as judge, Client(judge.url, log=str(folder.responses), replay=True, budget=2) as client:
        reader = JudgeReader(client, "reader-7b", {})
        with pytest.raises(UserError, match="the budget of 2 requests is spent"):
            read_texts(folder, [benchmark], ["model"], reader, targets_of([benchmark]))
    assert [row["kind"] for row in rows(folder.responses)].count("answered") == 2


def test_the_same_picture_of_several_models_is_read_once(folder, benchmark, monkeypatch) -> None:
    monkeypatch.setattr("firered_lit.evaluation.text_reading.BATCH", 1)
    for item in benchmark.items():
        path = folder.picture("twin", item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(folder.picture("model", item).read_bytes())
    reader = Written()
    assert read_texts(folder, [benchmark], ["model", "twin"], reader, targets_of([benchmark])) == reader.asked == 3


def test_nothing_that_reads_is_one_line() -> None:
    with pytest.raises(UserError, match=r"text\.reader: nothing reads"):
        reader_of(TextReading(), None, Asking("a"))
