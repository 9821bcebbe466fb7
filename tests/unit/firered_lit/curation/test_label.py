"""A model's answers become columns, rules look at them, and rows get their texts; nothing is asked twice."""

import base64
import io
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from raw_pictures import CREDIT, edits, lines, loose
from support.stub_judge import StubJudge, pictures, words

from datamodules.sources.raw import RawRows
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.label.label import Label
from firered_lit.curation.label.prompt import FOLDER, read_prompt
from firered_lit.curation.run import curate
from firered_lit.errors import UserError
from firered_lit.evaluation.judge_server import JudgeServer

RULES = {"misaligned": {"column": "label.alignment", "below": 4}, "side": {"column": "label.sides", "among": [0]}}


def described(body):
    number = len(pictures(body))
    texts = {
        name: f"{name} of {number} pictures"
        for name in ("structured", "detailed_en", "detailed_cn", "concise_en", "concise_cn", "user_en", "user_cn")
    }
    return texts | {"category": "color" if number > 1 else "none"}


def checked(body):
    asked = words(body)
    score = 2 if "square 1" in asked else 5
    return {"alignment": score, "quality": 4, "sides": "square 2" not in asked, "viewpoint": True, "counts": True}


def answer(body, digest):
    found = checked(body) if '"alignment"' in words(body) else described(body)
    return f"<think>Let me see {{...}}</think>Here it is:\n```json\n{json.dumps(found)}\n```"


def server(judge, **more):
    url = judge if isinstance(judge, str) else judge.url
    return JudgeServer(url, "stub", retries=1, backoff=0.01, parallel=4, timeout=20, **more)


def run(source, out, judge, rules=RULES, label=None, **options):
    label = label or Label(server(judge))
    given = {"annotators": {"hashes": Hashes()}, "rules": rules, "workers": 0, "shard_rows": 3, "label": label}
    curate(source=str(source), out=str(out), rows=RawRows(str(source)), **{**given, **options})
    return pq.read_table(out / "decisions.parquet").column("reason").to_pylist()


def test_rows_are_selected_again_by_what_a_model_said(tmp_path):
    source = edits(tmp_path / "raw", 5)
    with StubJudge(answer) as judge:
        reasons = run(source, tmp_path / "out", judge)
        assert judge.count == 10
    assert reasons == [None, "misaligned", "side", None, None]
    kept = lines(tmp_path / "out" / "selected.jsonl")
    assert [line["instruction"] for line in kept] == [f"Invert square {number}" for number in (0, 3, 4)]
    assert all(line["instruction_cn"] == "concise_cn of 2 pictures" and line["license"] == CREDIT for line in kept)
    assert {line["category"] for line in kept} == {"color"}


def test_pictures_without_words_get_them_and_are_checked_by_them(tmp_path):
    with StubJudge(answer) as judge:
        reasons = run(loose(tmp_path / "raw", 4), tmp_path / "out", judge)
        asked = [words(body) for body in judge.bodies if '"alignment"' in words(body)]
    assert reasons == [None] * 4
    assert all("concise_en of 1 pictures" in text for text in asked)
    kept = lines(tmp_path / "out" / "selected.jsonl")
    assert [line["instruction"] for line in kept] == ["concise_en of 1 pictures"] * 4
    assert not any("category" in line for line in kept)


def test_the_target_is_the_last_picture_that_is_sent(tmp_path):
    source = edits(tmp_path / "raw", 1)
    with StubJudge(answer) as judge:
        run(source, tmp_path / "out", judge)
        sent = [base64.b64decode(url.partition(",")[2]) for url in pictures(judge.bodies[0])]
    for file, name in zip(sent, ("0_source.png", "0_target.png"), strict=True):
        shown = np.asarray(Image.open(io.BytesIO(file)), int)
        assert np.abs(shown - np.asarray(Image.open(tmp_path / "raw" / name))).mean() < 8


def test_rows_that_rules_drop_are_not_asked_about(tmp_path):
    source = edits(tmp_path / "raw", 4)
    with StubJudge(answer) as judge:
        rules = {"first": {"column": "row.where", "among": [f"{source}:1"]}, **RULES}
        assert run(source, tmp_path / "out", judge, rules)[0] == "first"
        assert judge.count == 6


def test_what_is_answered_is_never_asked_again_and_thresholds_move_without_the_server(tmp_path):
    source = edits(tmp_path / "raw", 4)
    with StubJudge(answer) as judge:
        first = run(source, tmp_path / "out", judge)
        assert run(source, tmp_path / "out", judge) == first
        assert judge.count == 8
    rules = {"misaligned": {"column": "label.alignment", "below": 2}}
    moved = run(source, tmp_path / "out", "http://127.0.0.1:9/v1", rules, steps=["select", "write"])
    assert moved == [None] * 4


def test_rows_without_a_usable_answer_are_counted_and_the_others_go_on(tmp_path, capsys):
    def partly(body, digest):
        text = words(body)
        if "square 0" in text:
            return "I cannot say {"
        if "square 3" in text:
            return json.dumps({"alignment": 11, "quality": True, "sides": 1} | described(body))
        return answer(body, digest)

    source = edits(tmp_path / "raw", 5)
    with StubJudge(partly) as judge:
        reasons = run(source, tmp_path / "out", judge)
    assert reasons == ["failed: label", "misaligned", "side", "failed: label", None]
    printed = capsys.readouterr().out
    assert "labelled          3 rows" in printed
    assert "no label          2 unparsed" in printed
    failures = pq.read_table(tmp_path / "out" / "scores" / "label" / "00000.parquet").column("failure").to_pylist()
    assert "describe" in failures[0]


def test_a_server_that_dies_ends_the_command_and_what_it_answered_is_kept(tmp_path):
    source = edits(tmp_path / "raw", 30)
    count = 0

    def dying(body, digest):
        nonlocal count
        count += 1
        if count > 12:
            raise RuntimeError("boom")
        return answer(body, digest)

    with StubJudge(dying) as judge, pytest.raises(UserError, match=r"rows have no answer, more than max_failed"):
        run(source, tmp_path / "out", judge, shard_rows=30)
    with StubJudge(answer) as judge:
        again = run(source, tmp_path / "out", judge, shard_rows=30)
        assert judge.count == 60 - 12
    assert again.count(None) < 30
    assert "failed: label" not in again


def test_a_prompt_of_ones_own_gives_columns_of_ones_own(tmp_path):
    (tmp_path / "tidy.txt").write_text("version: 3\ntidy: one of yes, no\n\nIs it tidy? {instruction}\n")

    def tidy(body, digest):
        return json.dumps({"tidy": "no" if "square 2" in words(body) else "yes"})

    with StubJudge(tidy) as judge:
        label = Label(server(judge), prompts=[str(tmp_path / "tidy.txt")])
        rules = {"untidy": {"column": "label.tidy", "not_among": ["yes"]}}
        assert run(edits(tmp_path / "raw", 3), tmp_path / "out", judge, rules, label) == [None, None, "untidy"]
    log = lines(tmp_path / "out" / "state" / "answers.jsonl")
    assert {(row["facts"]["prompt"], row["facts"]["version"]) for row in log} == {("tidy", "3")}


def test_rules_of_labels_that_are_not_there_are_refused(tmp_path):
    source = edits(tmp_path / "raw", 2)
    with pytest.raises(UserError, match=r"rules.misaligned: .*run the step label first"):
        run(source, tmp_path / "out", "http://127.0.0.1:9/v1", steps=["annotate", "fit", "select"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("alignment: number 1 to 5\n\nHow?", "version"),
        ("version: 1\nalignment: number 5 to 1\n\nHow?", "none of: text, flag"),
        ("version: 1\nhow many: text\n\nHow?", "a name, a colon"),
        ("version: 1\nsides: flag\n\n", "a text"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_one_line_with_its_file(tmp_path, text, said):
    path = tmp_path / "own.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as problem:
        read_prompt(str(path))
    assert str(path) in str(problem.value)
    with pytest.raises(UserError, match="describe"):
        read_prompt(str(tmp_path / "nowhere.txt"))


def test_our_prompts_ask_for_the_answers_that_their_heads_name():
    for path in FOLDER.glob("*.txt"):
        prompt = read_prompt(path.stem)
        for name, one in prompt.answers.items():
            assert f'"{name}"' in prompt.text
            assert all(choice in prompt.text for choice in one.choices)
        assert "{instruction}" in prompt.text


@pytest.mark.parametrize(
    "words", ["", "{", "[1]", '{"score": true}', '{"score": 6}', '{"score": "5"}', '{"score": null}', "{" * 5000]
)
def test_an_answer_of_another_kind_is_no_answer(tmp_path, words):
    path = tmp_path / "own.txt"
    path.write_text("version: 1\nscore: number 1 to 5\n\nHow good?")
    with pytest.raises(ValueError, match=r"answer|score"):
        read_prompt(str(path)).read(words)


def test_an_edit_that_the_model_rejects_loses_to_one_that_it_likes(tmp_path):
    source = edits(tmp_path / "raw", 2)
    found = lines(source)
    for line in found:
        line.update(source_image="0_source.png", instruction="Invert the square")
    source.write_text("".join(json.dumps(line) + "\n" for line in found))
    liked = (tmp_path / "raw" / "0_target.png").read_bytes()

    def particular(body, digest):
        if '"alignment"' not in words(body):
            return json.dumps(described(body))
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(pictures(body)[-1].partition(",")[2]))), int)
        same = np.abs(shown - np.asarray(Image.open(io.BytesIO(liked)))).mean() < 8
        return json.dumps(checked(body) | {"alignment": 5 if same else 1})

    with StubJudge(particular) as judge:
        assert run(source, tmp_path / "out", judge) == [None, "misaligned"]
    pairs = lines(tmp_path / "out" / "losers.jsonl")
    assert [(pair["chosen_image"][-12:], pair["rejected_image"][-12:]) for pair in pairs] == [
        ("0_target.png", "1_target.png")
    ]
    assert pairs[0]["license"] == CREDIT
