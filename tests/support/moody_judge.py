"""A judge's HTTP server in every mood: fine, late, failing, talking nonsense."""

import json
import math
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SHARES = {"5": 0.5, "4": 0.3, "3": 0.1, "2": 0.06, "1": 0.03, "0": 0.01}


def entry(token, shares=None):
    shares = shares or {token: 1.0}
    top = [{"token": t, "logprob": math.log(p)} for t, p in shares.items()]
    return {"token": token, "logprob": math.log(shares[token]), "top_logprobs": top}


def answer(shares=SHARES, text="It is red. Score: "):
    first = max(shares, key=shares.get)
    content = [entry(word) for word in text.split(" ") if word]
    content = [replace_token(c, f"{c['token']} ") for c in content]
    content.append(entry(first, shares))
    return {"choices": [{"message": {"content": text + first}, "logprobs": {"content": content}}]}


def replace_token(item, token):
    return item | {"token": token}


class Moody(ThreadingHTTPServer):
    """Answers each request by the next of `moods`; the last one stays."""

    daemon_threads = True

    def __init__(self, moods, port=0):
        self.moods, self.requests, self.lock = list(moods), [], threading.Lock()
        super().__init__(("127.0.0.1", port), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def stop(self):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """A client that has gone is none of the server's business."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, body, dict(self.headers)))
            mood = self.server.moods.pop(0) if len(self.server.moods) > 1 else self.server.moods[0]
        mood(self, body)

    def say(self, data, code=200):
        data = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


def fine(handler, body):
    handler.say(answer())


def status(code):
    return lambda handler, body: handler.say({"error": "sorry"}, code)


def says(data):
    return lambda handler, body: handler.say(data)


def late(seconds):
    def mood(handler, body):
        time.sleep(seconds)
        fine(handler, body)

    return mood


def hang_up(handler, body):
    handler.connection.shutdown(socket.SHUT_RDWR)


def wordless(handler, body):
    handler.say({"choices": [{"message": {"content": "Score: 4"}}]})
