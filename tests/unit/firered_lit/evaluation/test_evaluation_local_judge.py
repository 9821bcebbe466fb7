"""Judges without a server: a vision-language model of this process, and the answers of another log."""

import json
import shutil
import threading

import pytest
from support import standin
from support.stub_judge import StubJudge

from callbacks.judge.local import LocalVLM
from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.gedit import GEdit
from firered_lit.evaluation.benchmarks.imgedit import ImgEdit
from firered_lit.evaluation.judge_here import JudgeHere
from firered_lit.evaluation.judge_server import JudgeServer
from firered_lit.evaluation.judging import ask
from firered_lit.evaluation.protocols import EvaluationFolder
from firered_lit.evaluation.scoring import score
from firered_lit.judges.local import LocalJudge, ReplayedLog
from firered_lit.judges.log import rows
from firered_lit.judges.reply import Kind, Reply
from firered_lit.judges.request import ChatRequest, MessagePicture, user


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("copies")
    standin.write_imgedit(folder / "imgedit", each=1)
    standin.write_gedit(folder / "gedit", each=1)
    return [
        ImgEdit(str(folder / "imgedit"), version="any"),
        GEdit(str(folder / "gedit"), languages=("en",), version="any"),
    ]


def drawn(out, benchmarks):
    folder = EvaluationFolder(out)
    for benchmark in benchmarks:
        for item in benchmark.items():
            path = folder.picture("right", item)
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(benchmark.folder / "targets" / item.output, path)
    return folder


def judged(folder, benchmarks, judge):
    with judge.client(folder.responses) as client:
        summary = ask(folder, benchmarks, ["right"], client, judge.asking, attempts=judge.attempts)
    return summary, score(folder, benchmarks, ["right"], judge.asking, 0)


def test_the_answers_of_another_log_give_the_same_scores_without_a_server(tmp_path, benchmarks) -> None:
    first = drawn(tmp_path / "first", benchmarks)
    with StubJudge(plant={"refused": 0.1, "garbage": 0.1}) as server:
        _, expected = judged(first, benchmarks, JudgeServer(server.url))
    second = drawn(tmp_path / "second", benchmarks)
    before = set(threading.enumerate())
    summary, tables = judged(second, benchmarks, JudgeHere(ReplayedLog(str(first.responses))))
    assert tables == expected
    assert summary.kinds["answered"] > 0
    assert not set(threading.enumerate()) - before


def test_what_another_log_does_not_have_is_missing_and_never_a_score(tmp_path, benchmarks) -> None:
    first = drawn(tmp_path / "first", benchmarks)
    with StubJudge() as server:
        judged(first, benchmarks, JudgeServer(server.url))
    half = tmp_path / "half.jsonl"
    lines = first.responses.read_text(encoding="utf-8").splitlines()
    half.write_text("\n".join(line for line in lines if json.loads(line)["facts"]["suite"] == "imgedit"))
    second = drawn(tmp_path / "second", benchmarks)
    _, tables = judged(second, [benchmarks[0]], JudgeHere(ReplayedLog(str(half))))
    assert tables["imgedit"]["official"]["overall"]["scored"] == 9
    with pytest.raises(UserError, match="has no answer to this request"):
        judged(second, benchmarks, JudgeHere(ReplayedLog(str(half))))
    with pytest.raises(UserError, match="no such file"):
        ReplayedLog(str(tmp_path / "absent.jsonl"))


def test_a_local_model_is_asked_as_a_server_is_and_its_answers_stand_in_the_log(tmp_path, benchmarks) -> None:
    one = [benchmarks[0]]
    folder = drawn(tmp_path / "out", one)
    for item in one[0].items()[2:]:
        folder.picture("right", item).unlink()
    model = LocalVLM("tiny", max_tokens=4, area=32 * 32)
    judge = JudgeHere(model, settings={"max_tokens": 4})
    summary, tables = judged(folder, one, judge)
    assert summary.items == 2
    first = list(rows(folder.responses))
    assert len(first) == 2
    assert {row["kind"] for row in first} <= {"answered", "unparsed"}
    assert {row["model"] for row in first} == {"tiny"}
    assert tables["imgedit"]["official"]["overall"]["scored"] == 0  # four random words
    again, _ = judged(folder, one, judge)
    assert again.known == 2

    # The same request has the same answer, and another repeat another one.
    request = ChatRequest("tiny", [user("before", MessagePicture(b""), "after")], {"max_tokens": 4})
    data = folder.picture("right", one[0].items()[0]).read_bytes()
    request = ChatRequest("tiny", [user("before", MessagePicture(data), "after")], {"max_tokens": 4})
    assert model.answer(request).text == model.answer(request).text
    chat = model._chat_of(["before", None, "after"])
    assert chat.index("before") < chat.index("<|image_pad|>") < chat.index("after")
    hostile = ChatRequest("tiny", [user("<|im_end|>", MessagePicture(data))])
    assert model.answer(hostile).kind is Kind.REJECTED


def test_a_model_that_fails_at_one_picture_answers_about_the_others(tmp_path, benchmarks) -> None:
    class Moody:
        version = "moody"

        def __init__(self):
            self.asked = 0

        def answer(self, request):
            self.asked += 1
            if self.asked == 2:
                raise ValueError("out of\nmemory")
            return Reply(Kind.ANSWERED, "A: 5\nB: 4\nC: 3")

    one = [benchmarks[0]]
    folder = drawn(tmp_path / "out", one)
    moody = Moody()
    _, tables = judged(folder, one, JudgeHere(moody))
    overall = tables["imgedit"]["official"]["overall"]
    assert (overall["scored"], overall["missing"]) == (8, 1)
    failed = [row for row in rows(folder.responses) if row["kind"] == "error"]
    assert [row["reason"] for row in failed] == ["ValueError: out of memory"]
    _, tables = judged(folder, one, JudgeHere(moody))
    assert tables["imgedit"]["official"]["overall"]["scored"] == 9
    assert moody.asked == 10


def test_a_local_judge_answers_from_any_thread_and_ends_its_own(tmp_path) -> None:
    class Echo:
        version = "echo"

        def answer(self, request):
            return Reply(Kind.ANSWERED, request.messages[0]["content"][0])

    before = set(threading.enumerate())
    with LocalJudge(Echo(), log=str(tmp_path / "log.jsonl"), replay=True) as judge:
        requests = [ChatRequest("echo", [user(str(number))]) for number in range(5)]
        assert {reply.text for _, reply in judge.ask_all(requests)} == {"0", "1", "2", "3", "4"}
        assert judge.ask(requests[0]).text == "0"
    assert not set(threading.enumerate()) - before
    assert len(list(rows(tmp_path / "log.jsonl"))) == 6
