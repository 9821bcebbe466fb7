"""An object store that answers late, with errors, or with half of a body: the same batches, or one error."""

import os
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import pytest
from test_edits import loader, print_of, prints
from test_faults import root, store  # noqa: F401

from datamodules.chunks import remote
from firered_lit.errors import UserError

BUSY = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"

TIMES = {("late", "chunks"): 1, ("late", "samples"): 1, ("half", "samples"): 3}  # others 6


class Moody(BaseHTTPRequestHandler):
    """Between the reader and the store. `moods`: what happens to the next requests for chunks, one each."""

    protocol_version, moods, upstream = "HTTP/1.1", [], ""
    timeout = 3  # s; a client that keeps its connection open does not keep the thread

    def do_GET(self):
        mood = self.moods.pop() if self.path.endswith(".bin") and self.command == "GET" and self.moods else ""
        headers = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")}
        request = urllib.request.Request(self.upstream + self.path, headers=headers, method=self.command)
        try:
            answer = urllib.request.urlopen(request)
        except urllib.error.HTTPError as error:
            answer = error
        body = answer.read()
        if mood == "late":
            time.sleep(1.5)
        if mood == "reset":
            self.close_connection = True
            return
        self.send_response(503 if mood == "busy" else answer.status)
        body = BUSY if mood == "busy" else body
        for name, value in answer.headers.items() if mood != "busy" else ():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        length = answer.headers["Content-Length"] if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if mood == "half" else body)
        self.close_connection = mood == "half"

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_):
        pass


@pytest.fixture
def moods(store, monkeypatch):  # noqa: F811
    """What the store will do with the next requests for chunks, the last first."""
    monkeypatch.setattr(Moody, "upstream", os.environ["AWS_ENDPOINT_URL"])
    monkeypatch.setattr(Moody, "moods", [])
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.04))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield Moody.moods
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("fetch", ["chunks", pytest.param("samples", marks=pytest.mark.slow)])
@pytest.mark.parametrize("mood", ["busy", "half", pytest.param("reset", marks=pytest.mark.slow), "late"])
def test_what_passes_is_waited_for(root, moods, tmp_path, mood, fetch):  # noqa: F811
    """More of it in a row than the client library puts up with by itself: two answers, or five broken bodies."""
    local = loader(root)
    expected = prints(local, len(local))
    edits = loader("s3://edits/v1", cache=str(tmp_path / "cache"), fetch=fetch)
    found = [print_of(next(iter(edits)))]
    moods += [mood] * TIMES.get((mood, fetch), 6)
    found += prints(edits, len(expected) - 1)
    assert not moods
    assert found == expected


@pytest.mark.parametrize("mood", ["busy", "half"])
def test_what_stays_is_one_error_that_names_chunk_and_sample(root, moods, tmp_path, mood):  # noqa: F811
    edits = loader("s3://edits/v1", cache=str(tmp_path / "cache"))
    next(iter(edits))
    moods += [mood] * 200
    with pytest.raises(UserError, match=r"s3://edits/v1/chunks/part-\d+-0\.bin: sample \d") as error:
        list(islice(edits, len(edits)))
    assert "\n" not in str(error.value)
    assert ("SlowDown" if mood == "busy" else "read, but total bytes expected") in str(error.value)
    assert "run again when the store answers" in str(error.value)
    assert len(moods) > 100
