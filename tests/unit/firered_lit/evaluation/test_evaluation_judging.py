"""Judging and scoring end to end: real copies of three layouts, a real judge over HTTP, planted faults, kill -9."""

import json
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from support import standin
from support.stub_judge import LASTING, PASSING, StubJudge
from warm import Started, inline

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.gedit import GEdit
from firered_lit.evaluation.benchmarks.imgedit import ImgEdit
from firered_lit.evaluation.benchmarks.rededit import REDEdit
from firered_lit.evaluation.judging import ask, repeated
from firered_lit.evaluation.protocols import Asking, EvaluationFolder
from firered_lit.evaluation.scores import (
    GEDIT,
    IMGEDIT,
    REDEDIT,
    JudgedItem,
    gedit_item,
    gedit_scores,
    imgedit_score,
    macro_mean,
    rededit_score,
    score_item,
)
from firered_lit.evaluation.scoring import score
from firered_lit.judges.client import Client
from firered_lit.judges.log import rows

ASKING = Asking()
SEED = 5


@pytest.fixture(scope="session")
def copies(tmp_path_factory):
    """The folder of stand-in copies: 15 + 9 + 11 items, REDEdit's and GEdit-Bench's in both languages."""
    folder = tmp_path_factory.mktemp("copies")
    standin.write_rededit(folder / "rededit", each=1)
    standin.write_imgedit(folder / "imgedit", each=1)
    standin.write_gedit(folder / "gedit", each=1)
    return folder


@pytest.fixture(scope="session")
def benchmarks(copies):
    return [
        REDEdit(str(copies / "rededit"), version="any"),
        ImgEdit(str(copies / "imgedit"), version="any"),
        GEdit(str(copies / "gedit"), version="any"),
    ]


def items_of(benchmarks):
    return [(benchmark, item) for benchmark in benchmarks for item in benchmark.items()]


def draw_targets(folder, benchmarks, model="right"):
    """Put every item's target where a model's picture lies."""
    for benchmark, item in items_of(benchmarks):
        path = folder.picture(model, item)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(benchmark.folder) / "targets" / item.output, path)


@pytest.fixture
def folder(tmp_path, benchmarks):
    """An evaluation in which the model "right" has drawn everything."""
    folder = EvaluationFolder(tmp_path / "out")
    draw_targets(folder, benchmarks)
    return folder


def client_of(judge, folder, **options):
    options = {"timeout": 5.0, "retries": 2, "backoff": 0.01, "parallel": 16} | options
    return Client(judge.url, log=str(folder.responses), replay=True, **options)


def judged(judge, folder, benchmarks, models=("right",), *, client=None, **options):
    """Ask and score once, with a client of its own as a new process has it."""
    with client_of(judge, folder, **(client or {})) as asked:
        summary = ask(folder, benchmarks, models, asked, ASKING, **options)
    score(folder, benchmarks, models, ASKING, SEED)
    return summary


def lines(folder, model="right"):
    return list(rows(folder.model_items(model)))


def tables(folder):
    return json.loads(folder.scores.read_text(encoding="utf-8"))


def requests_of(benchmarks):
    """Return how many requests one attempt at everything takes."""
    return sum(benchmark.suites()[item.suite].requests for benchmark, item in items_of(benchmarks))


# Right judges


def test_every_picture_is_judged_once_and_scored_by_what_the_judge_said(folder, benchmarks) -> None:
    with StubJudge(latency=0.05) as judge:
        judged(judge, folder, benchmarks)
        assert judge.count == requests_of(benchmarks)
        assert judge.most > 4
        again = judged(judge, folder, benchmarks)
        assert judge.count == requests_of(benchmarks)
    assert again.known == again.items == len(items_of(benchmarks))

    # Each item by its own answer.
    parsers = {"rededit_en": rededit_score, "rededit_cn": rededit_score, "imgedit": imgedit_score}
    values = {}
    written = lines(folder)
    assert [(line["suite"], line["id"]) for line in written] == [
        (item.suite, item.id) for _, item in items_of(benchmarks)
    ]
    for line in written:
        (answers,) = line["answers"]
        if line["suite"] in parsers:
            expected = {"score": parsers[line["suite"]](answers[0])}
        else:
            expected = gedit_item(*(gedit_scores(answer) for answer in answers))
        assert line["official"] == line["strict"] == {"state": "scored", "values": expected}
        assert line["judge"]["date"]
        assert (folder.out / line["picture"]).is_file()
        values.setdefault(line["suite"], {}).setdefault(line["category"], []).append(expected)

    # Tables by the items.
    for suite in ("rededit_en", "rededit_cn", "imgedit"):
        for mode in ("official", "strict"):
            table = tables(folder)[suite][mode]
            means = {}
            for category, found in values[suite].items():
                means[category] = round(sum(value["score"] for value in found) / len(found), 2)
                assert table[category]["score"] == means[category]
                assert table[category]["expected"] == table[category]["scored"] == len(found)
            assert table["overall"]["score"] == macro_mean(list(means.values()))
    assert set(tables(folder)) == {
        *parsers,
        *("gedit_en", "gedit_cn", "gedit_en_intersection", "gedit_cn_intersection"),
    }
    assert tables(folder)["gedit_en_intersection"]["official"]["overall"]["expected"] == 11


def test_scores_are_a_function_of_the_log_and_the_pictures(folder, benchmarks, tmp_path) -> None:
    with StubJudge() as judge:
        judged(judge, folder, benchmarks)
    before = folder.scores.read_bytes(), folder.statistics.read_bytes(), folder.model_items("right").read_bytes()
    shutil.copytree(folder.out, tmp_path / "copy", ignore=shutil.ignore_patterns("*.json", "items.jsonl"))
    copied = EvaluationFolder(tmp_path / "copy")
    score(copied, benchmarks, ["right"], ASKING, SEED)
    assert before == (
        copied.scores.read_bytes(),
        copied.statistics.read_bytes(),
        copied.model_items("right").read_bytes(),
    )


def test_a_log_of_another_judge_gives_no_scores_but_one_line(folder, benchmarks) -> None:
    with StubJudge() as judge:
        judged(judge, folder, benchmarks)
    paths = (folder.scores, folder.model_scores("right"), folder.model_items("right"), folder.statistics)
    before = [path.read_bytes() for path in paths]
    for asking in (Asking("other-7b"), Asking("", {"temperature": 1})):
        with pytest.raises(UserError, match=r"holds no answer of judge .* but \d+ of gpt") as caught:
            score(folder, benchmarks, ["right"], asking, SEED)
        assert "\n" not in str(caught.value)
        assert [path.read_bytes() for path in paths] == before


def test_a_picture_that_is_drawn_anew_is_asked_about_anew_and_no_other(folder, benchmarks) -> None:
    _, item = items_of(benchmarks)[0]
    other = folder.picture("right", items_of(benchmarks)[5][1])
    with StubJudge() as judge:
        judged(judge, folder, benchmarks)
        before = judge.count
        shutil.copy(other, folder.picture("right", item))
        judged(judge, folder, benchmarks)
        assert judge.count == before + 1


def test_the_same_picture_of_two_models_is_judged_once(folder, benchmarks) -> None:
    draw_targets(folder, benchmarks, "twin")
    with StubJudge() as judge:
        judged(judge, folder, benchmarks, ("right", "twin"))
        assert judge.count == requests_of(benchmarks)
    assert [line["official"] for line in lines(folder)] == [line["official"] for line in lines(folder, "twin")]
    statistics = json.loads(folder.statistics.read_text())
    assert {row["suite"] for row in statistics["comparisons"]} == set(statistics["estimates"])
    for row in statistics["comparisons"]:
        assert row["overall"]["difference"] == 0
        assert "not distinguishable" in row["overall"]["verdict"]


def test_shards_share_the_work_and_ask_nothing_twice(folder, benchmarks) -> None:
    with StubJudge() as judge:
        counts = []
        for shard in range(3):
            judged(judge, folder, benchmarks, shard=shard, num_shards=3)
            counts.append(judge.count)
        assert 0 < counts[0] < counts[1] < counts[2]
        assert len(judge.asked) <= judge.count <= requests_of(benchmarks)
    assert {line["official"]["state"] for line in lines(folder)} == {"scored"}


def test_repeats_measure_the_judges_own_noise_on_a_fixed_subset(folder, benchmarks) -> None:
    few = [benchmarks[1]]
    again = Counter()

    def moody(body, digest):
        again[digest.hex] += 1
        mark = 4 if again[digest.hex] < 3 else 1
        return f"A: {mark}\nB: 4\nC: 4"

    with StubJudge(moody) as judge:
        judged(judge, folder, few, repeats=3, repeated_items=4)
        assert judge.count == 9 + 2 * 4
        judged(judge, folder, few, repeats=3, repeated_items=4)
        assert judge.count == 9 + 2 * 4
    noise = json.loads(folder.statistics.read_text())["noise"]["imgedit"]
    assert noise["items"] == 4
    assert 0 <= noise["identical"] <= 0.5  # 4 4 1 in some order: at most one of two repeats equals the first
    assert noise["deviation"] == pytest.approx((1.0 * 2 / 3 / 2) ** 0.5)
    assert noise["floor"] > 0
    chosen = repeated(few[0].items(), 4)
    assert chosen == repeated(few[0].items(), 4)
    assert len(chosen) == 4


# Planted judges


@pytest.mark.parametrize("kind", [*PASSING[:-1], *LASTING[:-1]])
def test_a_planted_fault_is_counted_as_what_it_is_and_no_score_is_invented(folder, benchmarks, kind) -> None:
    judge = StubJudge(plant={kind: 0.2}, retry_after=0.02, lateness=20.0)
    with judge:
        judged(judge, folder, benchmarks, client={"timeout": 0.6})
    assert judge.faults[kind] > 0
    states = {
        "refused": "refused",
        "declined": "refused",
        "filtered": "refused",
        "garbage": "unparsed",
        "foreign": "unparsed",
        "cut": "unparsed",
    }
    found = Counter(line["strict"]["state"] for line in lines(folder))
    assert set(found) == {"scored", states[kind]} if kind in states else {"scored"}
    if kind in PASSING:
        assert judge.count > requests_of(benchmarks)

    for line in lines(folder):
        scoring = {"rede": REDEDIT, "imge": IMGEDIT, "gedi": GEDIT}[line["suite"][:4]]
        item = JudgedItem(line["id"], line["category"], tuple(tuple(answers) for answers in line["answers"]))
        assert line["official"]["values"] == score_item(scoring, item, "official").values
        if line["strict"]["state"] != "scored":
            assert set(line["strict"]["values"].values()) == {scoring.lowest}
    for suite, modes in tables(folder).items():
        overall = modes["strict"]["overall"]
        counts = [overall[state] for state in ("scored", "missing", "refused", "unparsed")]
        assert overall["expected"] == sum(counts)
        assert overall["missing"] == 0, suite


def test_a_judge_with_every_fault_at_once_changes_no_score_of_the_others(folder, benchmarks, tmp_path) -> None:
    plant = dict.fromkeys(("limited", "half", "broken", "refused", "declined", "garbage", "foreign"), 0.1)
    with StubJudge() as judge:
        judged(judge, folder, benchmarks)
    right = {(line["suite"], line["id"]): line for line in lines(folder)}
    faulty = EvaluationFolder(tmp_path / "faulty")
    draw_targets(faulty, benchmarks)
    with StubJudge(plant=plant, retry_after=0.02) as judge:
        summary = judged(judge, faulty, benchmarks)
    assert all(judge.faults[kind] for kind in plant)

    # What each item meets is known from its own requests.
    for (benchmark, item), line in zip(items_of(benchmarks), lines(faulty), strict=True):
        data = faulty.picture("right", item).read_bytes()
        met = {judge.fault_of(request.body()) for request in benchmark.requests(item, data, ASKING)}
        if met & {"refused", "declined"}:
            expected = "refused"
        elif met & {"garbage", "foreign"}:
            expected = "unparsed"
        else:
            expected = "scored"
        assert line["official"]["state"] == line["strict"]["state"] == expected, (line["suite"], line["id"], met)
        if expected == "scored":
            assert line["official"] == right[item.suite, item.id]["official"]
        else:
            assert line["official"]["values"] == {}
    assert "refused" in str(summary)


def test_an_answer_that_cannot_be_read_is_asked_for_again_as_gedit_does_and_not_without_end(folder, benchmarks) -> None:
    with StubJudge(plant={"garbage": 1.0}) as judge:
        judged(judge, folder, benchmarks)
        once = len(benchmarks[0].items()) + len(benchmarks[1].items())
        assert judge.count == once + 5 * 2 * len(benchmarks[2].items())
        judged(judge, folder, benchmarks)
        assert judge.count == once + 5 * 2 * len(benchmarks[2].items())
    assert {line["official"]["state"] for line in lines(folder)} == {"unparsed"}


def test_both_questions_are_asked_again_where_one_answer_cannot_be_read(folder, benchmarks) -> None:
    with StubJudge(plant={"garbage_once": 0.3}) as judge:
        judged(judge, folder, benchmarks[2:])
    attempts = Counter(len(line["answers"]) for line in lines(folder))
    assert set(attempts) == {1, 2}
    assert judge.count == 2 * sum(count * number for number, count in attempts.items())
    assert {line["official"]["state"] for line in lines(folder)} == {"scored"}


def test_more_attempts_are_made_where_the_user_wants_them(folder, benchmarks) -> None:
    with StubJudge(plant={"garbage_once": 0.3}) as judge:
        judged(judge, folder, benchmarks[:2], attempts=2)
    assert judge.faults["garbage_once"] > 0
    assert {line["official"]["state"] for line in lines(folder)} == {"scored"}


# Pictures that are not there


def test_missing_and_damaged_pictures_are_counted_and_never_asked_about(folder, benchmarks) -> None:
    (_, lost), (_, torn) = items_of(benchmarks)[3:5]
    folder.picture("right", lost).unlink()
    folder.picture("right", torn).write_bytes(b"no picture")
    drawn = folder.drawings("right")
    drawn.mkdir(parents=True)
    reason = "out of memory </script>"
    (drawn / "0.jsonl").write_text(json.dumps({"suite": lost.suite, "id": lost.id, "failed": reason}) + "\n")
    with StubJudge() as judge:
        summary = judged(judge, folder, benchmarks)
        assert judge.count == requests_of(benchmarks) - 2
    assert summary.not_shown == 1
    by_id = {(line["suite"], line["id"]): line for line in lines(folder)}
    first, second = by_id[lost.suite, lost.id], by_id[torn.suite, torn.id]
    assert (first["picture"], first["failed"]) == (None, reason)
    assert "cannot be read as a picture" in second["failed"]
    for line in (first, second):
        assert line["official"] == {"state": "missing", "values": {}}
        assert line["strict"] == {"state": "missing", "values": {"score": 1.0}}
    assert tables(folder)[lost.suite]["official"]["overall"]["missing"] == 2


# Judges that cannot go on


@pytest.fixture
def few(benchmarks):
    return [benchmarks[1]]


REFUSING = {
    "no such server": ("gone", {}, "questions in a row have failed"),
    "a server that always fails": ("gone", {"parallel": 1}, "questions in a row have failed"),
    "a spent budget": (None, {"budget": 5}, "the budget of 5 requests is spent"),  # one is under way alone
}


@pytest.mark.parametrize(("fault", "options", "reason"), REFUSING.values(), ids=REFUSING)
def test_a_judge_that_cannot_answer_ends_the_step_in_one_line_and_loses_nothing(
    folder, few, benchmarks, fault, options, reason
) -> None:
    with StubJudge(plant={fault: 1.0} if fault else {}, latency=0.02) as judge:
        url = judge.url
        if not options:
            url = "http://127.0.0.1:9/v1"
        options = {"timeout": 5.0, "retries": 0, "backoff": 0.01, "parallel": 2} | options
        client = Client(url, log=str(folder.responses), **options)
        with client, pytest.raises(UserError, match=reason) as caught:
            ask(folder, few if fault is None else benchmarks, ["right"], client, ASKING)
        assert "\n" not in str(caught.value)
        answered = judge.count if fault is None else 0
    with StubJudge() as judge:
        judged(judge, folder, few)
        assert judge.count == len(few[0].items()) - answered


def test_a_judge_without_the_model_ends_the_step_in_one_line(folder, few) -> None:
    import aiohttp.web

    class Modelless(StubJudge):
        async def _answered(self, request, raw):
            error = {"error": {"message": "The model `gpt-4o` does not exist"}}
            return aiohttp.web.json_response(error, status=404)

    with Modelless() as judge, client_of(judge, folder) as client, pytest.raises(UserError, match="does not exist"):
        ask(folder, few, ["right"], client, ASKING)


# kill -9

KILLED = """
import sys
from firered_lit.evaluation.benchmarks.gedit import GEdit
from firered_lit.evaluation.benchmarks.imgedit import ImgEdit
from firered_lit.evaluation.benchmarks.rededit import REDEdit
from firered_lit.evaluation.judging import ask
from firered_lit.evaluation.protocols import Asking, EvaluationFolder
from firered_lit.judges.client import Client
from pathlib import Path

url, copies, out = sys.argv[1:]
folder = EvaluationFolder(Path(out))
kinds = {"rededit": REDEdit, "imgedit": ImgEdit, "gedit": GEdit}
benchmarks = [kind(f"{copies}/{name}", version="any") for name, kind in kinds.items()]
with Client(url, log=str(folder.responses), replay=True, parallel=8) as client:
    ask(folder, benchmarks, ["right"], client, Asking())
"""


def test_a_judging_that_is_killed_asks_nothing_again_whose_answer_it_has(
    folder, benchmarks, copies, tmp_path, root
) -> None:
    with StubJudge() as judge:
        judged(judge, folder, benchmarks)
        distinct = len(judge.asked)
    expected = folder.scores.read_bytes()

    out = EvaluationFolder(tmp_path / "killed")
    draw_targets(out, benchmarks)
    rng = random.Random(3)
    kills = 3
    with StubJudge(latency=0.05) as judge:
        command = (inline, KILLED, judge.url, str(copies), str(out.out))
        for _ in range(kills):
            enough = judge.count + rng.randint(6, 20)
            process = Started(*command, log=tmp_path / "said", folder=root)
            while judge.count < enough and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = judge.count
        judged(judge, out, benchmarks)
        assert 0 < before < judge.count
        assert judge.count <= requests_of(benchmarks) + kills * 8
        assert len(judge.asked) == distinct
    assert out.scores.read_bytes() == expected
