"""The client of judges against a real HTTP server: bounds, patience, kinds of replies, secrets, the log."""

import base64
import email.utils
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from moody_judge import Moody, answer, fine, hang_up, says, status

from firered_lit.errors import UserError
from firered_lit.judges.client import Client, retry_after
from firered_lit.judges.log import Log, append, rows
from firered_lit.judges.record import is_final
from firered_lit.judges.reply import Kind, NoAnswerError, read
from firered_lit.judges.request import ChatRequest, MessagePicture, user


def request(text="how good?", *pictures, repeat=0, **settings):
    return ChatRequest("judge-7b", [user(*pictures, text)], settings, repeat)


def held(event):
    """A mood that answers nothing before the event."""

    def mood(handler, body):
        event.wait(20)
        fine(handler, body)

    return mood


@pytest.fixture
def release():
    """An event that ends what is held, before servers are waited for."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture
def asking(release):
    """Starts a server of these moods and a client of it; afterwards no thread of either is left."""
    before = set(threading.enumerate())
    opened = []

    def start(*moods, **options):
        server = Moody(moods or (fine,))
        options = {"timeout": 20.0, "retries": 2, "backoff": 0.02} | options
        client = Client(server.url, **options)
        opened.append((server, client))
        return server, client

    yield start
    release.set()
    for server, client in opened:
        client.close()
        server.stop()
    wait_until(lambda: not set(threading.enumerate()) - before)


def wait_until(true, seconds=20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def words(content, **more):
    """A mood that answers with these words; `more` goes into the choice."""
    return says({"choices": [{"message": {"content": content}, **more}]})


# what is sent


def test_a_request_is_sent_as_it_is_written_and_nothing_is_added(asking):
    server, client = asking()
    picture = MessagePicture(b"\xff\xd8 a JPEG", "image/png", detail="high")
    odd = {"type": "input_audio", "input_audio": {"data": ""}}
    messages = [{"role": "system", "content": "judge"}, user("图A", picture, "edited", MessagePicture(b"b"), odd)]
    client.ask(ChatRequest("m", messages, {"temperature": 0.1}))
    ((path, body, headers),) = server.requests
    assert path == "/v1/chat/completions"
    assert body.keys() == {"model", "messages", "temperature"}
    assert body["messages"][0] == {"role": "system", "content": "judge"}
    parts = body["messages"][1]["content"]
    assert [part["type"] for part in parts] == ["text", "image_url", "text", "image_url", "input_audio"]
    assert parts[0]["text"] == "图A"
    sent = parts[1]["image_url"]
    assert sent["detail"] == "high"
    assert base64.b64decode(sent["url"].removeprefix("data:image/png;base64,")) == picture.data
    assert "detail" not in parts[3]["image_url"]
    assert "Authorization" not in headers
    assert "Cookie" not in headers


def test_the_hash_of_a_request_is_that_of_what_is_sent():
    first = request("a", MessagePicture(b"1"), temperature=0, top_p=1)
    assert first.digest == request("a", MessagePicture(b"1"), top_p=1, temperature=0).digest
    others = [
        request("b", MessagePicture(b"1"), temperature=0, top_p=1),
        request("a", MessagePicture(b"2"), temperature=0, top_p=1),
    ]
    others += [
        request("a", MessagePicture(b"1"), temperature=1, top_p=1),
        request("a", MessagePicture(b"1", "image/jpeg")),
    ]
    assert len({first.digest, *(other.digest for other in others)}) == 5
    assert first.prompt_digest == others[1].prompt_digest != others[0].prompt_digest


@pytest.mark.parametrize("mime", ["image/png", 'a "quoted\\" type', "图"])
def test_a_body_is_the_json_of_its_parts(mime):
    pictures = [MessagePicture(bytes(range(256)), mime), MessagePicture(b"", "image/png", detail="low")]
    messages = [user('图 " \\ \n', *pictures, "picture"), {"role": "system", "content": "plain"}]
    body = ChatRequest("judge", messages, {"stop": ["picture"], "temperature": 0.1}).body()
    content = [{"type": "text", "text": '图 " \\ \n'}]
    for picture in pictures:
        image = {"url": f"data:{picture.mime};base64,{base64.b64encode(picture.data).decode()}"}
        if picture.detail is not None:
            image["detail"] = picture.detail
        content.append({"type": "image_url", "image_url": image})
    content.append({"type": "text", "text": "picture"})
    expected = {
        "model": "judge",
        "messages": [{"role": "user", "content": content}, {"role": "system", "content": "plain"}],
        "stop": ["picture"],
        "temperature": 0.1,
    }
    assert body == json.dumps(expected, ensure_ascii=False).encode()


def test_half_a_character_in_a_question_is_sent_as_json_escapes_it(asking):
    server, client = asking()
    asked = request("half \ud800 a character", MessagePicture(b"1"))
    assert client.ask(asked).kind is Kind.ANSWERED
    ((_, body, _),) = server.requests
    assert body["messages"][0]["content"][-1]["text"] == "half \ud800 a character"
    assert asked.digest != request("half a character", MessagePicture(b"1")).digest
    assert asked.prompt_digest != request("half a character").prompt_digest


# bounds


def test_no_more_requests_are_under_way_than_may_be(asking):
    here, most, lock = [0], [0], threading.Lock()

    def counted(handler, body):
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        time.sleep(0.03)
        with lock:
            here[0] -= 1
        fine(handler, body)

    server, client = asking(counted, parallel=5)
    replies = [future.result(20) for future in [client.submit(request(str(i))) for i in range(25)]]
    assert {reply.kind for reply in replies} == {Kind.ANSWERED}
    assert 1 < most[0] <= 5
    assert len(server.requests) == 25


def test_requests_under_way_share_the_memory_that_they_may_have(asking):
    here, most, lock = [0], [0], threading.Lock()

    def counted(handler, body):
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        time.sleep(0.02)
        with lock:
            here[0] -= 1
        fine(handler, body)

    _, client = asking(counted, parallel=8, memory=40_000)
    large = [request(str(i), MessagePicture(bytes(12_000))) for i in range(6)]  # 16 kB each as text
    huge = request("huge", MessagePicture(bytes(60_000)))
    futures = [client.submit(one) for one in [*large, huge]]
    assert all(future.result(20).kind == Kind.ANSWERED for future in futures)
    assert most[0] <= 2


def test_a_thousand_requests_are_taken_as_there_is_room_for_them(asking):
    _, client = asking(parallel=4)
    taken = []

    def made():
        for i in range(60):
            taken.append(i)
            yield request(str(i))

    replies = client.ask_all(made())
    first = next(replies)
    assert len(taken) <= 8
    rest = list(replies)
    assert len(rest) == 59
    assert {asked.messages[0]["content"][0] for asked, _ in [first, *rest]} == {str(i) for i in range(60)}


def test_the_budget_counts_every_try(asking):
    server, client = asking(status(500), status(500), fine, budget=4)
    kinds = [client.ask(request(str(i))).kind for i in range(4)]
    assert kinds == [Kind.ANSWERED, Kind.ANSWERED, Kind.BUDGET, Kind.BUDGET]
    assert len(server.requests) == client.spent == 4
    assert "budget of 4 requests is spent" in client.ask(request()).reason


# patience


def test_a_server_that_drips_is_late_after_the_time_of_the_whole_answer(asking):
    def drips(handler, body):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        for _ in range(400):
            try:
                handler.wfile.write(b" ")
                handler.wfile.flush()
            except OSError:
                return
            time.sleep(0.05)

    _, client = asking(drips, timeout=0.3, retries=0)
    begun = time.monotonic()
    reply = client.ask(request())
    assert time.monotonic() - begun < 10
    assert (reply.kind, reply.reason) == (Kind.LATE, "no answer within 0.3 s, 1 times")


def limited(code, value):
    def mood(handler, body):
        handler.send_response(code)
        handler.send_header("Retry-After", value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return mood


@pytest.mark.parametrize("code", [429, 503])
def test_retry_after_is_waited_for_by_all_requests(asking, code):
    sent, came = [], []

    def busy(handler, body):
        sent.append(time.monotonic())
        limited(code, "0.4")(handler, body)

    def free(handler, body):
        came.append(time.monotonic())
        fine(handler, body)

    _, client = asking(busy, free, parallel=4)
    first = client.submit(request("a"))
    wait_until(lambda: client._worker.free_at > 0)
    assert client.ask(request("b")).tries == 1
    assert first.result(10).tries == 2
    assert len(came) == 2
    assert min(came) - sent[0] >= 0.4


def test_retry_after_is_waited_for_no_longer_than_the_cap(asking):
    _, client = asking(limited(429, "3600"), fine, longest_wait=0.1)
    begun = time.monotonic()
    assert client.ask(request()).kind == Kind.ANSWERED
    assert time.monotonic() - begun < 20


def test_retry_after_is_seconds_or_a_date():
    now = 1_800_000_000.0
    date = email.utils.formatdate(now + 90, usegmt=True)
    assert retry_after(date, now) == pytest.approx(90)
    assert retry_after(email.utils.formatdate(now - 90, usegmt=True), now) == 0
    assert [retry_after(v, now) for v in ("7", " 7 ", "0.5", "-3", "0")] == [7, 7, 0.5, 0, 0]
    assert {retry_after(v, now) for v in (None, "", "soon", "nan", "inf", "99 Foo 2099")} == {None}


def test_waiting_doubles_and_is_a_function_of_the_seed():
    clients = [Client("http://127.0.0.1:9/v1", seed=seed) for seed in (0, 0, 1)]
    first, again, other = ([c.waiting_time(request(), n) for n in range(1, 6)] for c in clients)
    assert first == again != other
    assert all(0.5 * 2**n <= seconds <= 0.625 * 2**n for n, seconds in enumerate(first))
    assert first != [clients[0].waiting_time(request("b"), n) for n in range(1, 6)]


@pytest.mark.parametrize(
    "mood", [status(500), status(408), status(429), says(b"<html>"), says([1]), says(b"[" * 10_000), hang_up]
)
def test_what_may_pass_is_tried_again(asking, mood):
    server, client = asking(mood, mood, fine)
    reply = client.ask(request())
    assert (reply.kind, reply.tries, len(server.requests)) == (Kind.ANSWERED, 3, 3)


def test_a_quota_that_is_spent_is_not_asked_for_again(asking):
    server, client = asking(lambda h, b: h.say({"error": {"code": "insufficient_quota"}}, 429))
    assert client.ask(request()).kind == Kind.LIMITED
    assert len(server.requests) == 1


# kinds


MANY = b'{"choices": [{"message": {"content": "' + b"x" * (17 << 20) + b'"}}]}'
KINDS = {
    "words": (words("fine"), Kind.ANSWERED, "fine", ""),
    "inline thoughts": (words("<think>Score: 1</think> Score: 4"), Kind.ANSWERED, " Score: 4", ""),
    "a filter's end": (words("", finish_reason="content_filter"), Kind.REFUSED, "", "content filter"),
    "the model refuses": (
        says({"choices": [{"message": {"content": None, "refusal": "No\nway"}}]}), Kind.REFUSED, "", "refused: No way"
    ),
    "a filter's error": (
        lambda h, b: h.say({"error": {"code": "content_filter"}}, 400), Kind.REFUSED, "", "refused: HTTP 400"
    ),
    "an error under 200": (says({"error": {"message": "model\nbusy"}}), Kind.ERROR, "", "model busy, 2 times"),
    "an odd error under 200": (says({"error": ["x"]}), Kind.ERROR, "", "['x'], 2 times"),
    "a filter under 200": (says({"error": "Content filter: violence"}), Kind.REFUSED, "", "refused: Content filter"),
    "cut": (words("It is", finish_reason="length"), Kind.CUT, "It is", "cut at max_tokens"),
    "cut in thoughts": (
        says({"choices": [{"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}]}),
        Kind.CUT, "", "cut at max_tokens",
    ),
    "thoughts alone": (
        says({"choices": [{"message": {"content": None, "reasoning_content": "Score: 4"}}]}),
        Kind.UNPARSED, "", "thoughts without an answer",
    ),
    "no words": (words(None), Kind.ERROR, "", "an answer without words, 2 times"),
    "another form": (says({"choices": []}), Kind.ERROR, "", "an answer of another form, 2 times"),
    "too large": (says(MANY), Kind.ERROR, "", "more than 16 MiB"),
    "no key": (status(401), Kind.KEY, "", "the key in OPENAI_API_KEY is not set"),
    "unknown": (status(404), Kind.REJECTED, "", "HTTP 404"),
    "limited": (status(429), Kind.LIMITED, "", "HTTP 429"),
    "failing": (status(502), Kind.ERROR, "", "HTTP 502"),
}  # fmt: skip


@pytest.mark.parametrize("what", KINDS)
def test_every_reply_is_of_one_kind_and_counted(asking, monkeypatch, what):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    mood, kind, said, reason = KINDS[what]
    _, client = asking(mood, retries=1)
    reply = client.ask(request())
    assert (reply.kind, reply.words) == (kind, said)
    assert reason in reply.reason
    assert "\n" not in reply.reason
    assert (reply.reason == "") == (kind == Kind.ANSWERED)
    assert client.kinds == {kind: 1}


def test_a_server_that_is_not_there_is_an_error(asking):
    server, client = asking(retries=0)
    server.stop()
    reply = client.ask(request())
    assert (reply.kind, reply.reason) == (Kind.ERROR, "connection refused, 1 times")


@pytest.mark.parametrize(
    ("text", "declines"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("I cannot judge this picture.", True),
        ("抱歉，我无法评价这张图片。", True),
        ("<think>I'm sorry</think> Fine. Score: 4", False),
        ("The sorry figure in the corner is gone.", False),
    ],
)
def test_words_that_decline_are_known_from_others(text, declines):
    assert read({"choices": [{"message": {"content": text}}]}).declines == declines


@pytest.mark.parametrize(
    "response",
    [None, [], {}, {"choices": None}, {"choices": [{"message": {"content": [1]}}]}, {"choices": [{"message": "x"}]},
     {"choices": [{"message": {"content": "x"}, "logprobs": {"content": [{"token": None}]}}]},
     {"choices": [{"message": {"content": "x"}, "logprobs": "y"}]}],
)  # fmt: skip
def test_what_is_no_chat_completion_is_said_so(response):
    with pytest.raises(NoAnswerError, match="another form"):
        read(response)


# secrets and addresses


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("key", ["secret-word", ""])
def test_a_redirect_is_never_followed_and_no_key_leaves(asking, monkeypatch, code, key):
    monkeypatch.setenv("JUDGE_API_KEY", key)
    elsewhere, _ = asking()

    def redirect(handler, body):
        handler.send_response(code)
        handler.send_header("Location", f"http://name:pass@127.0.0.1:{elsewhere.server_port}/v1?token=x")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server, client = asking(redirect, key_variable="JUDGE_API_KEY")
    reply = client.ask(request())
    assert reply.kind == Kind.REDIRECTED
    assert f"redirects to http://127.0.0.1:{elsewhere.server_port}/v1, which is not followed" in reply.reason
    assert (len(server.requests), len(elsewhere.requests)) == (1, 0)


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HOME", "_API_KEYS", ""])
def test_a_key_comes_only_out_of_a_variable_whose_name_says_that_it_holds_one(name):
    with pytest.raises(UserError, match="ends in _API_KEY"):
        Client("http://127.0.0.1:9/v1", key_variable=name)


def test_the_key_is_in_no_text(asking, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("JUDGE_API_KEY", "secret-word")
    log = tmp_path / "log.jsonl"
    server, client = asking(
        fine, lambda h, b: h.say({"error": f"unknown key {h.headers['Authorization']}"}, 401),
        key_variable="JUDGE_API_KEY", log=str(log),
    )  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        replies = [client.ask(request("a")), client.ask(request("b"))]
    assert server.requests[0][2]["Authorization"] == "Bearer secret-word"
    assert "the key in JUDGE_API_KEY is not the right one" in replies[1].reason
    assert "secret-word" not in f"{replies} {caplog.text} {log.read_text()} {client.address!r}"


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("localhost:8000", "http"), ("ftp://x/v1", "http"), ("http:///v1", "http"), ("http://x:port/v1", "[Pp]ort"),
        ("http://user:pass@x/v1", "password"), ("http://x/v1?key=1", "ends before"), ("http://x /v1", "http"),
    ],
)  # fmt: skip
def test_what_is_no_address_of_a_server_is_refused(url, what):
    with pytest.raises(UserError, match=what) as refused:
        Client(url)
    assert "pass" not in str(refused.value).replace("password", "")
    assert "\n" not in str(refused.value)


def test_a_key_with_a_line_break_is_refused(monkeypatch):
    monkeypatch.setenv("JUDGE_API_KEY", "a\nb")
    with pytest.raises(UserError, match="JUDGE_API_KEY: holds characters"):
        Client("http://127.0.0.1:9/v1", key_variable="JUDGE_API_KEY")


def test_a_proxy_is_used_for_other_machines_alone_and_said(asking, monkeypatch, caplog):
    proxy, _ = asking()
    monkeypatch.setenv("http_proxy", f"http://name:word@127.0.0.1:{proxy.server_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server, client = asking()
    client.ask(request())
    assert (len(server.requests), len(proxy.requests)) == (1, 0)
    with caplog.at_level(logging.WARNING), Client("http://judge.invalid/v1") as other:
        assert other.ask(request()).kind == Kind.ANSWERED
    assert proxy.requests[0][0] == "http://judge.invalid/v1/chat/completions"
    assert "asked through the proxy 127.0.0.1" in caplog.text
    assert "word" not in caplog.text
    monkeypatch.setenv("no_proxy", "judge.invalid")
    assert Client("http://judge.invalid/v1").address.proxy is None
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:9")
    assert Client("http://localhost:8000/v1").address.proxy is None
    with pytest.raises(UserError, match="only HTTP proxies"):
        Client("http://elsewhere.invalid/v1")


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"parallel": 0}, {"memory": -1}, {"retries": -1}, {"backoff": float("nan")}, {"budget": -1},
     {"longest_wait": -1}, {"replay": True}, {"timeout": float("inf")}],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(options):
    with pytest.raises(UserError, match=rf"judge\.{next(iter(options))}"):
        Client("http://127.0.0.1:9/v1", **options)


# the log


def test_the_log_holds_a_line_for_every_request_with_what_was_asked(asking, tmp_path):
    path = tmp_path / "made" / "log.jsonl"
    _, client = asking(fine, status(404), log=str(path))
    asked = ChatRequest("m", [user("why?", MessagePicture(b"1"))], {"seed": 3}, repeat=2, facts={"item": "a"})
    client.ask(asked)
    client.ask(request())
    first, second = rows(path)
    assert first["request"] == asked.digest
    assert first["prompt"] == asked.prompt_digest
    assert first["images"] == [MessagePicture(b"1").digest]
    assert (first["kind"], first["repeat"], first["facts"], first["settings"]) == (
        "answered",
        2,
        {"item": "a"},
        {"seed": 3},
    )
    assert first["response"] == json.loads(json.dumps(answer()))
    assert (second["kind"], second["text"]) == ("rejected", "")
    assert "HTTP 404" in second["reason"]


def test_what_was_answered_is_not_asked_again_and_what_failed_is(asking, tmp_path):
    path = str(tmp_path / "log.jsonl")
    filtered = lambda h, b: h.say({"error": {"code": "content_filter"}}, 400)  # noqa: E731
    moods = [fine, words("It is", finish_reason="length"), filtered, status(404), fine]
    server, client = asking(*moods, log=path)
    asked = [request(str(i)) for i in range(4)]
    before = [client.ask(one) for one in asked]
    server, again = asking(log=path, replay=True)
    after = [again.ask(one) for one in asked]
    assert [reply.replayed for reply in after] == [True, True, True, False]
    assert [reply.kind for reply in after] == [Kind.ANSWERED, Kind.CUT, Kind.REFUSED, Kind.ANSWERED]
    assert [(r.text, r.reason, r.logprobs) for r in before[:3]] == [(r.text, r.reason, r.logprobs) for r in after[:3]]
    assert len(server.requests) == 1
    assert not again.ask(request("0", repeat=1)).replayed


@pytest.mark.parametrize("torn", ['{"request": "a", "te', "\ufffd", "[1]", '{"request"'])
def test_a_torn_line_costs_that_line_alone(tmp_path, torn, caplog):
    path = tmp_path / "log.jsonl"
    append(path, {"request": "a", "n": 1})
    with path.open("a", encoding="utf-8") as file:
        file.write(torn)
    assert [row["n"] for row in rows(path)] == [1]
    append(path, {"request": "b", "n": 2})
    assert [row["n"] for row in rows(path)] == [1, 2]
    assert "1 lines are no JSON objects" in caplog.text
    assert Log(path, ("request",)).find("b") == {"request": "b", "n": 2}


def test_many_threads_write_whole_lines(tmp_path):
    path = tmp_path / "log.jsonl"

    def write(n):
        for i in range(20):
            append(path, {"n": n, "i": i, "text": "字" * 5000})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted((row["n"], row["i"]) for row in rows(path)) == [(n, i) for n in range(6) for i in range(20)]


def test_half_a_character_in_an_answer_is_logged_and_read_again(tmp_path):
    words = "half \ud800 a character, 4 of 5"
    log = tmp_path / "log.jsonl"
    append(log, {"text": words})
    assert [row["text"] for row in rows(log)] == [words]


def test_a_log_that_cannot_be_written_is_one_line(asking, tmp_path):
    (tmp_path / "file").write_text("")
    _, client = asking(log=str(tmp_path / "file" / "log.jsonl"))
    with pytest.raises(UserError, match=r"log .*: cannot be written") as refused:
        client.ask(request())
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", [".bashrc", "run.sh", "answers.json", "log"])
def test_words_of_a_server_go_into_no_file_that_is_run(tmp_path, name):
    with pytest.raises(UserError, match=r"is named NAME\.jsonl"):
        Client("http://127.0.0.1:9/v1", log=str(tmp_path / name))


# the end


def test_a_closed_client_leaves_no_thread_and_starts_again(asking, release):
    server, client = asking(held(release), fine, parallel=1)
    futures = [client.submit(request(str(i))) for i in range(20)]
    wait_until(lambda: server.requests)
    client.close()
    assert all(future.cancelled() for future in futures)
    assert client.spent == 1
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "judge"])
    assert client.ask(request()).kind == Kind.ANSWERED
    client.close()
    client.close()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "judge"])


def test_what_is_cancelled_is_broken_off_and_its_place_is_free(asking, release):
    server, client = asking(held(release), fine, parallel=1)
    lost = [client.submit(request(str(i))) for i in range(3)]
    wait_until(lambda: len(server.requests) == 1)
    begun = time.monotonic()
    for future in reversed(lost):  # what waits first, so that it does not begin
        future.cancel()
    assert client.ask(request()).kind == Kind.ANSWERED
    assert time.monotonic() - begun < 15
    assert len(server.requests) == 2


SCRIPT = """
import sys
from firered_lit.judges.client import Client
from firered_lit.judges.request import ChatRequest, user
assert "aiohttp" not in sys.modules and "torch" not in sys.modules
client = Client(sys.argv[1])
client.submit(ChatRequest("m", [user("x")]))
sys.stdin.readline()
assert client.spent == 1
print("asked", flush=True)
"""


def test_a_process_ends_while_a_request_is_under_way(asking, release):
    server, _ = asking(held(release))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])}
    command = [sys.executable, "-c", SCRIPT, server.url]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, text=True, env=environment, **pipes) as process:
        wait_until(lambda: server.requests, 30)
        said = process.communicate("go on\n", timeout=15)
    assert (process.returncode, *said) == (0, "asked\n", "")


def test_a_failure_behind_an_answer_does_not_hide_it(tmp_path):
    path = tmp_path / "log.jsonl"
    for kind in ("error", "answered", "late"):
        append(path, {"facts": {"item": "7"}, "kind": kind})
    append(path, {"facts": {"item": "8"}, "kind": "error"})
    append(path, {"facts": "no table", "kind": "answered"})
    log = Log(path, ("facts.item",), counts=is_final)
    assert log.find("7")["kind"] == "answered"
    assert log.find("8") is None
    assert log.find(None)["facts"] == "no table"
    assert Log(path, ("facts.item",)).find("7")["kind"] == "late"
