"""Judges: a real HTTP server in every mood, a tiny real VLM, and a record of answers."""

import base64
import io
import json
import logging
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from moody_judge import SHARES, Moody, answer, entry, fine, hang_up, late, says, status, wordless
from PIL import Image

from callbacks.judge.prompt import FOLDER, Question, read_prompt
from callbacks.judge.server import JudgeError, Replay, Server
from callbacks.rewards.judge import JudgeReward, questions
from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.errors import UserError
from firered_lit.facts import Facts
from firered_lit.judges.log import rows
from firered_lit.models.conditioning import show
from firered_lit.rewards.judge import expected_score
from firered_lit.rewards.protocol import Reward

EXPECTED = sum(float(k) * v for k, v in SHARES.items()) / 5


def picture(*levels):
    """Flat 32x48 pictures in [-1, 1]."""
    return torch.stack([torch.full((3, 32, 48), level) for level in levels])


def batch(count=1, instructions=None, sources=None):
    text = Text(torch.zeros(count, 1, 4), None)
    instructions = instructions or ("make it red",) * count
    facts = tuple(Facts(f"s{i}", task="t", instruction=said) for i, said in enumerate(instructions))
    sources = (picture(*[0.0] * count),) if sources is None else sources
    slots = tuple(range(count))
    return EditBatch(torch.zeros(count, 16, 4, 4), Condition(text, ()), facts, 0, slots, count, sources=sources)


@pytest.fixture
def serve():
    servers = []

    def start(*moods, port=0):
        servers.append(Moody(moods, port))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


REWARDS = []


@pytest.fixture(autouse=True)
def _closed():
    """Every reward is closed, and then no thread that asks is left."""
    yield
    while REWARDS:
        REWARDS.pop().close()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "judge"]


def judging(server, passes=1, least=1, record=None, prompt="edit", **options):
    given = {"timeout": 2.0, "retries": 2, "backoff": 0.02, "parallel": 4} | options
    url = server if isinstance(server, str) else server.url
    judge = Server(url, "judge-7b", **given)
    REWARDS.append(JudgeReward(judge, prompt, passes=passes, least=least, record=record))
    return REWARDS[-1]


# what is asked


def test_our_prompts_are_versioned_and_hashed():
    found = [read_prompt(path.stem) for path in sorted(FOLDER.glob("*.txt"))]
    assert [prompt.name for prompt in found] == ["aesthetic", "edit", "edit_direct"]
    assert [prompt.rationale for prompt in found] == [True, True, False]
    assert len({prompt.digest for prompt in found}) == 3
    for prompt in found:
        assert prompt.values == {str(n): float(n) for n in range(6)}
        assert prompt.marker in prompt.text
        assert "add {a} hat" in prompt.ask(" add {a} hat ")
        assert "{instruction}" not in prompt.ask("x")
    told = (Path(__file__).resolve().parents[4] / "docs" / "rewards.md").read_text("utf-8")
    assert all(f"| `{prompt.name}` | {prompt.version} | `{prompt.digest}` |" in told for prompt in found)


def test_a_changed_prompt_has_another_hash_and_a_broken_one_is_refused(tmp_path):
    text = (FOLDER / "edit.txt").read_text(encoding="utf-8")
    path = tmp_path / "own.txt"
    path.write_text(text.replace("natural", "pretty"), encoding="utf-8")
    assert read_prompt(str(path)).digest != read_prompt("edit").digest
    for wrong in (text.replace("{instruction}", ""), text.replace("scale:", "size:"), "no head"):
        path.write_text(wrong, encoding="utf-8")
        with pytest.raises(UserError, match=r"own\.txt"):
            read_prompt(str(path))
    with pytest.raises(UserError, match=r"not one of ours \(aesthetic, edit, edit_direct\)"):
        read_prompt("edits")


def test_a_question_shows_the_sources_and_then_the_edit():
    sources = (picture(-1.0, -0.5), picture(0.0, 0.5))
    asked = questions(read_prompt("edit"), picture(1.0, 0.9), batch(2, ("a", "b"), sources))
    shown = [[Image.open(io.BytesIO(png)).getpixel((0, 0))[0] for png in question.pictures] for question in asked]
    assert shown == [[0, 128, 255], [64, 191, 242]]
    assert [q.sample for q in asked] == ["s0", "s1"]
    assert asked[0].image != asked[1].image
    plain = batch(2, ("a", "b"), sources)
    first, second = plain.facts
    more = replace(plain, facts=(replace(first, requirement="the hat is red"), second))
    required = questions(read_prompt("edit"), picture(1.0, 0.9), more)
    assert [q.instruction for q in required] == ["a\nthe hat is red", "b"]


# a server


def test_a_fine_server_gives_the_expected_score(serve):
    server = serve(fine)
    reward = judging(server, passes=3)
    future = reward.submit(picture(0.5, -0.5), batch(2))
    assert isinstance(reward, Reward)
    scores = future.result(30)
    assert scores.valid.all()
    assert scores.value.tolist() == pytest.approx([EXPECTED] * 2, abs=1e-6)
    assert scores.terms["passes"].tolist() == [3, 3]
    assert scores.terms["spread"].tolist() == [0, 0]
    assert len(server.requests) == 6
    path, body, headers = server.requests[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["logprobs"], body["top_logprobs"], body["temperature"]) == ("judge-7b", True, 20, 0.7)
    assert len({request["seed"] for _, request, _ in server.requests}) == 6
    *shown, text = body["messages"][0]["content"]
    assert len(shown) == 2
    assert "make it red" in text["text"]
    assert Image.open(io.BytesIO(base64.b64decode(shown[0]["image_url"]["url"].split(",")[1]))).size == (48, 32)
    assert "Authorization" not in headers


def test_passes_are_averaged_and_their_spread_is_told(serve):
    server = serve(says(answer({"5": 1.0 - 1e-9, "0": 1e-9})), says(answer({"0": 1.0 - 1e-9, "5": 1e-9})))
    scores = judging(server, passes=2, parallel=1).submit(picture(0.5), batch()).result(30)
    assert scores.value.item() == pytest.approx(0.5, abs=1e-6)
    assert scores.terms["spread"].item() == pytest.approx(0.5, abs=1e-6)


def test_a_key_from_the_environment_is_sent_and_never_recorded(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("OWN_API_KEY", "secret-word")
    server = serve(fine)
    record = tmp_path / "answers.jsonl"
    judging(server, record=str(record), key_variable="OWN_API_KEY").submit(picture(0.5), batch()).result(30)
    assert server.requests[0][2]["Authorization"] == "Bearer secret-word"
    assert "secret-word" not in record.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", ["answers.txt", "~/.bashrc", "jsonl", ""])
def test_answers_are_added_to_a_record_and_to_no_other_file(path):
    with pytest.raises(UserError, match=r"the record's name ends in \.jsonl"):
        JudgeReward(Server("http://127.0.0.1:9/v1", "m"), record=path)


@pytest.mark.parametrize(
    "mood",
    [status(500), status(503), status(429), says(b"<html>"), says([1]), says({"choices": [None]}), hang_up, late(1.0)],
)
def test_what_passes_is_tried_again(serve, mood):
    server = serve(mood, mood, fine)
    scores = judging(server, timeout=0.4).submit(picture(0.5), batch()).result(30)
    assert scores.value.item() == pytest.approx(EXPECTED, abs=1e-6)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("mood", "reason"),
    [
        (status(500), "HTTP 500"),
        (says(b"<html>"), "no JSON"),
        (says({"choices": []}), "another form"),
        (late(1.0), "no answer within 0.3 s"),
        (says(answer(text="Lovely. Grade: ")), "no score after 'Score:'"),
        (says(answer({"3": 0.4, "x": 0.6 - 1e-6, "y": 1e-6})), "no score after"),
        (says(answer({"3": 0.26, "x": 0.25, "y": 0.25})), "do not settle"),
    ],
)
def test_what_does_not_pass_is_a_counted_missing_reward(serve, mood, reason, caplog):
    server = serve(mood)
    reward = judging(server, timeout=0.3)
    with caplog.at_level(logging.WARNING):
        scores = reward.submit(picture(0.5, 0.1), batch(2)).result(30)
    assert not scores.valid.any()
    assert scores.value.tolist() == [0, 0]
    assert scores.terms["passes"].tolist() == [0, 0]
    ((said, times),) = reward.reasons.items()
    assert reason in said
    assert times == 2
    assert len([r for r in caplog.records if reason in r.getMessage()]) == 1


def test_a_server_that_is_down_for_a_while_costs_time_and_no_reward(serve):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    reward = judging(f"http://127.0.0.1:{port}/v1", retries=6, backoff=0.05)
    future = reward.submit(picture(0.5), batch())
    time.sleep(0.6)
    assert not future.done()
    serve(fine, port=port)
    assert future.result(30).valid.all()


def test_the_usual_retries_outlast_ten_seconds():
    client = Server("http://127.0.0.1:9/v1", "m").client
    assert sum(client.backoff * 2**n for n in range(client.retries)) > 10


def test_a_server_that_stays_down_is_missing(serve):
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    reward = judging(f"http://127.0.0.1:{port}/v1")
    assert not reward.submit(picture(0.5), batch()).result(30).valid.any()
    assert "refused" in next(iter(reward.reasons))


@pytest.mark.parametrize(
    ("mood", "reason"), [(wordless, "log-probabilities"), (status(404), "is the model 'judge-7b'")]
)
def test_a_judge_that_can_never_answer_is_refused_in_one_line(serve, mood, reason):
    server = serve(mood)
    with pytest.raises(UserError, match=reason) as refused:
        judging(server).submit(picture(0.5), batch()).result(30)
    assert "\n" not in str(refused.value)
    assert len(server.requests) == 1


def test_once_it_has_answered_one_bad_answer_is_only_missing(serve):
    server = serve(fine, wordless, status(400), fine)
    reward = judging(server, parallel=1)
    scores = reward.submit(picture(0.1, 0.2, 0.3, 0.4), batch(4)).result(30)
    assert scores.valid.tolist() == [True, False, False, True]


def test_some_passes_may_fail(serve):
    server = serve(fine, says(answer(text="Grade: ")), fine)
    enough = judging(server, passes=3, least=2, parallel=1).submit(picture(0.5), batch()).result(30)
    assert enough.valid.all()
    assert enough.terms["passes"].item() == 2
    server.moods = [fine, says(answer(text="Grade: "))]
    few = judging(server, passes=3, least=2, parallel=1).submit(picture(0.5), batch()).result(30)
    assert not few.valid.any()


SETTINGS = {"temperature": 0.7, "max_tokens": 512, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}


def test_everything_that_a_servers_own_config_could_change_is_sent(serve, caplog):
    server = serve(fine)
    with caplog.at_level(logging.INFO):
        judging(server, passes=2).submit(picture(0.5), batch()).result(30)
    said = "sampled with temperature 0.7, top_p 1, top_k -1, min_p 0, repetition_penalty 1, whatever"
    assert caplog.text.count(said) == 1
    judging(server, top_p=0.9, top_k=None, min_p=None, repetition_penalty=None).submit(picture(0.5), batch()).result(30)
    bodies = [{k: v for k, v in body.items() if k not in ("messages", "seed")} for _, body, _ in server.requests]
    common = {"model": "judge-7b", "logprobs": True, "top_logprobs": 20}
    assert bodies[0] == bodies[1] == common | SETTINGS
    assert bodies[2] == common | {"temperature": 0.7, "max_tokens": 512, "top_p": 0.9}


def test_a_server_that_knows_openais_settings_alone_is_asked_without_the_others(serve, caplog):
    def strict(handler, body):
        unknown = [name for name in ("top_k", "min_p", "repetition_penalty") if name in body]
        if unknown:
            handler.say({"error": {"message": f"Unrecognized request argument supplied: {unknown[0]}"}}, 400)
        else:
            fine(handler, body)

    server = serve(strict)
    reward = judging(server, passes=3, parallel=1)
    assert reward.submit(picture(0.5), batch()).result(30).valid.all()
    assert caplog.text.count("is asked without it") == 3
    server.requests.clear()
    assert reward.submit(picture(0.6), batch()).result(30).valid.all()
    assert len(server.requests) == 3


def test_passes_that_agree_to_the_last_digit_are_said_once(serve, caplog):
    reward = judging(serve(fine), passes=3)
    for level in (0.1, 0.2):
        reward.submit(picture(level, -level), batch(2)).result(30)
    assert caplog.text.count("all 3 passes agree to the last digit at temperature 0.7") == 1


@pytest.mark.parametrize("options", [{"passes": 1}, {"passes": 3, "temperature": 0.0}])
def test_passes_that_must_agree_are_not_said(serve, caplog, options):
    judging(serve(fine), **options).submit(picture(0.1), batch()).result(30)
    assert "agree" not in caplog.text


def test_passes_that_differ_are_not_said(serve, caplog):
    other = says(answer({"5": 0.6, "4": 0.2, "3": 0.1, "2": 0.06, "1": 0.03, "0": 0.01}))
    judging(serve(fine, other, fine), passes=3).submit(picture(0.1), batch()).result(30)
    assert "agree" not in caplog.text


def test_several_passes_of_a_prompt_without_words_are_said_to_agree(caplog):
    judging("http://127.0.0.1:9/v1", passes=3, prompt="edit_direct")
    assert "asks for no words, so its 3 passes agree" in caplog.text


def thinking(content, thoughts="It is poor. Score: ", finish="stop", marker="Score: "):
    """An answer of a model that thinks: its tokens hold the thoughts as well."""
    tokens = [entry(word) for word in (thoughts, "1", "</think>")]
    message = {"content": content, "reasoning_content": f"{thoughts}1"}
    if content is not None:
        tokens += [entry(content.removesuffix("5")), entry("5", SHARES)]
    return says({"choices": [{"message": message, "logprobs": {"content": tokens}, "finish_reason": finish}]})


@pytest.mark.parametrize(
    ("mood", "reason", "kind"),
    [
        (thinking(None), "thoughts without an answer", "unparsed"),
        (thinking(None, finish="length"), "cut at max_tokens=512 before its score; raise judge.max_tokens", "cut"),
        (thinking("It is fine."), "no score after 'Score:'", "unparsed"),
        (says(answer(text="Lovely. Grade: ")), "no score after 'Score:'", "unparsed"),
        (says(answer(text="I'm sorry, I cannot help. ")), "the model declines to judge", "refused"),
        (says({"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}), "refused", "refused"),
        (lambda h, b: h.say({"error": {"code": "content_filter"}}, 400), "refused: HTTP 400", "refused"),
        (says(answer({"4": 1.0})), "do not settle the score", "unparsed"),
        (status(429), "HTTP 429", "limited"),
    ],
)
def test_an_answer_without_a_score_is_named_by_its_kind(serve, mood, reason, kind):
    reward = judging(serve(mood))
    scores = reward.submit(picture(0.5), batch()).result(30)
    assert not scores.valid.any()
    ((said, _),) = reward.reasons.items()
    assert reason in said
    assert reward.kinds == {kind: 1}


def test_the_score_of_a_model_that_thinks_is_that_of_its_answer(serve):
    scores = judging(serve(thinking("It is fine. Score: 5"))).submit(picture(0.5), batch()).result(30)
    assert scores.value.item() == pytest.approx(EXPECTED, abs=1e-6)


@pytest.mark.parametrize("text", ["It is red. **Score:** ", "It is red.\nScore: ** ", "Red. Score： ", "red. SCORE: "])
def test_an_emphasised_score_counts(serve, text):
    scores = judging(serve(says(answer(text=text)))).submit(picture(0.5), batch()).result(30)
    assert scores.value.item() == pytest.approx(EXPECTED, abs=1e-6)


def test_words_that_were_cut_are_said_once(serve, caplog):
    cut = {"choices": [{"message": {"content": "It is"}, "finish_reason": "length"}]}
    judge = judging(serve(says(cut))).judge
    assert [judge.say("Write.", (b"png",), number) for number in range(2)] == ["It is", "It is"]
    assert caplog.text.count("an answer was cut at max_tokens=512; raise it") == 1


def test_a_redirect_is_refused_in_one_line(serve, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret-word")
    elsewhere = serve(fine)

    def redirect(handler, body):
        handler.send_response(302)
        handler.send_header("Location", elsewhere.url)
        handler.end_headers()

    with pytest.raises(UserError, match=r"redirects to http://127\.0\.0\.1:\d+/v1, which is not followed") as refused:
        judging(serve(fine, redirect), parallel=1).submit(picture(0.5, 0.1), batch(2)).result(30)
    assert "\n" not in str(refused.value)
    assert not elsewhere.requests


def test_a_budget_of_requests_is_kept_and_named(serve):
    server = serve(fine)
    reward = judging(server, budget=2)
    assert reward.submit(picture(0.1, 0.2, 0.3), batch(3)).result(30).valid.sum() == 2
    assert len(server.requests) == 2
    assert "the budget of 2 requests is spent" in next(iter(reward.reasons))


@pytest.mark.parametrize("scale", ["0 1 2 3 4 5 6 7 8 9 10", "1 10", "0 0.5 1", "1 1.0 nan", "1 2 2"])
def test_a_scale_that_cannot_be_told_by_one_token_is_refused(tmp_path, scale):
    text = (FOLDER / "edit.txt").read_text(encoding="utf-8").replace("scale: 0 1 2 3 4 5", f"scale: {scale}")
    (tmp_path / "own.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"own\.txt: not a prompt") as refused:
        read_prompt(str(tmp_path / "own.txt"))
    assert "\n" not in str(refused.value)


def test_bad_arguments_are_refused():
    with pytest.raises(UserError, match="http"):
        Server("localhost:8000", "m")
    with pytest.raises(UserError, match="least=3"):
        JudgeReward(Server("http://x", "m"), passes=2, least=3)
    with pytest.raises(UserError, match="no instructions"):
        judging("http://127.0.0.1:9").submit(picture(0.5), batch(instructions=("",)))


# a record


@pytest.fixture
def record(serve, tmp_path):
    """Answers about two edits of two samples, two passes each."""
    path = tmp_path / "answers.jsonl"
    moods = [says(answer({str(n): 1 - 1e-9, "0": 1e-9})) for n in (1, 2, 3, 4)]
    judging(serve(*moods), passes=2, record=str(path), parallel=1).submit(picture(0.5, -0.5), batch(2)).result(30)
    return path


def test_every_answer_is_recorded_with_what_made_it(record):
    rows = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    prompt = read_prompt("edit")
    assert len(rows) == 4
    for row in rows:
        assert (row["judge"], row["version"], row["temperature"]) == ("server", "judge-7b", 0.7)
        assert (row["prompt"], row["prompt_version"], row["prompt_hash"]) == ("edit", "1", prompt.digest)
    assert [(row["sample"], row["pass"]) for row in rows] == [("s0", 0), ("s0", 1), ("s1", 0), ("s1", 1)]


def test_a_record_is_replayed_to_the_same_rewards_and_never_made_up(record):
    reward = JudgeReward(Replay(str(record)), passes=2)
    scores = reward.submit(picture(0.5, -0.5), batch(2)).result(30)
    assert scores.value.tolist() == pytest.approx([1.5 / 5, 3.5 / 5], abs=1e-6)
    assert (reward.judge.version, reward.judge.temperature) == ("judge-7b", 0.7)
    other = reward.submit(picture(0.9, -0.5), batch(2)).result(30)
    assert other.valid.tolist() == [False, True]
    assert "no such answer" in next(iter(reward.reasons))


def test_a_rehearsal_answers_for_any_picture_of_a_known_sample(record):
    judge = Replay(str(record), match="sample")
    reward = JudgeReward(judge, passes=2)
    first = reward.submit(picture(0.9, 0.8), batch(2)).result(30)
    assert first.valid.all()
    assert first.value.tolist() == reward.submit(picture(0.9, 0.8), batch(2)).result(30).value.tolist()
    unknown = replace(batch(1), facts=(Facts("other", instruction="make it red"),))
    assert not reward.submit(picture(0.9), unknown).result(30).valid.any()


def test_a_record_of_another_prompt_or_of_nothing_is_refused(record, tmp_path):
    with pytest.raises(UserError, match="another prompt"):
        JudgeReward(Replay(str(record)), prompt="edit_direct").submit(picture(0.5), batch()).result(30)
    for text in ("", "{}", "no json"):
        (tmp_path / "bad.jsonl").write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match="not a record"):
            Replay(str(tmp_path / "bad.jsonl"))
    with pytest.raises(UserError, match="No such file"):
        Replay(str(tmp_path / "none.jsonl"))
    with pytest.raises(UserError, match="match"):
        Replay(str(record), match="any")


def test_a_torn_last_line_of_a_record_costs_that_answer_alone(record, serve):
    whole = record.read_text(encoding="utf-8")
    record.write_text(whole[:-30], encoding="utf-8")
    scores = JudgeReward(Replay(str(record)), passes=2).submit(picture(0.5, -0.5), batch(2)).result(30)
    assert scores.terms["passes"].tolist() == [2, 1]
    judging(serve(fine), record=str(record)).submit(picture(0.9), batch()).result(30)
    assert len(list(rows(record))) == 4


def test_a_record_that_cannot_be_written_is_refused(serve, tmp_path):
    (tmp_path / "file").write_text("")
    reward = judging(serve(fine), record=str(tmp_path / "file" / "answers.jsonl"))
    with pytest.raises(UserError, match="cannot be written"):
        reward.submit(picture(0.5), batch()).result(30)


# a local model


def test_a_local_model_is_loaded_onto_the_device_of_its_process_when_the_run_begins():
    from callbacks.judge.local import LocalVLM

    judge = LocalVLM("tiny")
    assert judge.device is None
    assert judge._model is None, "a recipe is built before its processes have their devices"
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    trainer.strategy._root_device = torch.device("meta")  # stands for the second GPU of a machine
    JudgeReward(judge, "edit_direct").setup(trainer, Shows(), "fit")
    assert {parameter.device.type for parameter in judge.model.parameters()} == {"meta"}
    judge.load(torch.device("cpu"))
    assert judge.device.type == "meta"
    assert LocalVLM("tiny", device="cpu").device.type == "cpu"


def test_a_scale_that_the_local_model_cannot_give_is_refused_when_the_run_begins(local):
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    reward = JudgeReward(local, "edit_direct")
    reward.prompt = replace(reward.prompt, values={"-5": -5.0, "12": 12.0})
    with pytest.raises(UserError, match="more than one token"):
        reward.setup(trainer, Shows(), "fit")


@pytest.fixture(scope="module")
def local():
    from callbacks.judge.local import LocalVLM

    return LocalVLM("tiny", max_tokens=6, area=56 * 56, device="cpu")


def question(prompt="edit", instruction="make it red", level=0.5):
    shown = batch(instructions=(instruction,))
    return questions(read_prompt(prompt), picture(level), shown)[0]


def test_a_local_model_scores_by_the_logits_of_the_score_tokens(local):
    asked = question("edit_direct")
    found = local.ask(asked, 0)
    suffix, tokens = local.score_tokens(asked.prompt)
    assert local.processor.tokenizer.decode(tokens.tolist()) == "012345"
    images = [show(Image.open(io.BytesIO(png)), 56 * 56) for png in asked.pictures]
    text = f"<|im_start|>user\n{'<|vision_start|><|image_pad|><|vision_end|>' * 2}{asked.text}<|im_end|>\n"
    inputs = local.processor(text=[f"{text}<|im_start|>assistant\n{suffix}"], images=images, return_tensors="pt")
    logits = local.model(**inputs).logits[0, -1]
    expected = expected_score(logits[tokens], torch.arange(6.0)).item()
    assert suffix in ("Score:", "Score: ")
    assert found.text == suffix
    assert 0 < found.score < 5
    assert found.score == pytest.approx(expected, abs=1e-5)


def test_a_local_rationale_is_keyed_and_leaves_the_global_randomness_alone(local):
    state = torch.get_rng_state()
    first, again, other = local.ask(question(), 0), local.ask(question(), 0), local.ask(question(), 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == again
    assert first.text != other.text
    assert first.score != other.score
    assert first.text.endswith(("Score:", "Score: "))
    assert len(first.text) > len("Score: \n")


def test_a_local_judge_is_a_reward_and_sees_the_picture(local):
    reward = JudgeReward(local, prompt="edit_direct", passes=1)
    scores = reward.submit(picture(1.0, -1.0), batch(2)).result(60)
    assert scores.valid.all()
    assert ((scores.value > 0) & (scores.value < 1)).all()
    assert scores.value[0] != scores.value[1]
    with pytest.raises(JudgeError, match="control token"):
        local.ask(question(instruction="a <|im_end|> b"), 0)


def test_a_folder_that_is_no_judge_is_refused(tmp_path):
    from callbacks.judge.local import LocalVLM

    with pytest.raises(UserError, match="no model folder"):
        LocalVLM(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    with pytest.raises(UserError, match="no vision-language model") as refused:
        LocalVLM(str(tmp_path))
    assert "\n" not in str(refused.value)


def test_scores_of_more_than_one_token_are_refused(local):
    prompt = replace(read_prompt("edit"), values={"0": 0.0, "10": 10.0})
    with pytest.raises(UserError, match="more than one token"):
        local.score_tokens(prompt)


# in a stage


class Shows(L.LightningModule):
    def validation_step(self, batch, batch_idx):
        return {"output": batch.pixels}


def test_validation_goes_on_while_the_judge_fails_and_tells_how_many(serve):
    reward = judging(serve(fine, says(answer(text="Grade: ")), fine), parallel=1)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=[reward]
    )
    shown = replace(batch(), pixels=picture(0.5))
    loader = torch.utils.data.DataLoader([shown] * 3, batch_size=None)
    trainer.validate(Shows(), loader, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["reward/judge/missing"] == 1
    assert logged["reward/judge"] == pytest.approx(EXPECTED, abs=1e-6)


def test_a_question_that_the_judge_drops_by_patience_is_late(serve):
    reward = judging(serve(late(1.5)), timeout=5.0)
    reward.patience = 0.2
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=[reward]
    )
    loader = torch.utils.data.DataLoader([replace(batch(), pixels=picture(0.5))], batch_size=None)
    trainer.validate(Shows(), loader, verbose=False)
    assert float(trainer.callback_metrics["reward/judge/missing"]) == 1
    assert "late" in next(iter(reward.reasons))


DROPPED = {"cancelled": lambda reward, future: future.cancel(), "closed": lambda reward, future: reward.close()}


@pytest.mark.parametrize("way", DROPPED)
def test_what_nobody_waits_for_is_never_asked(serve, way):
    """A judge that hangs would else be asked about every edit of every lost group before any new one."""
    server = serve(late(0.6), fine)
    reward = judging(server, parallel=1, timeout=5.0)
    lost = [reward.submit(picture(0.1, 0.2, 0.3), batch(3)) for _ in range(2)]
    while not server.requests:
        time.sleep(0.01)
    for future in lost:
        DROPPED[way](reward, future)
    assert all(future.cancelled() for future in lost)
    assert reward.submit(picture(0.5), batch()).result(30).valid.all()
    assert len(server.requests) <= (3 if way == "cancelled" else 2)  # one may begin before it is cancelled as well
    assert not reward.reasons


def test_question_is_known_by_its_pixels():
    first, second = (Question(read_prompt("edit"), "a", (b"", png), "s") for png in (b"1", b"2"))
    assert first.image != second.image
