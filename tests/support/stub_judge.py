"""An OpenAI-compatible judge over real HTTP whose answer is a function of the request alone.

In a test: `with StubJudge() as judge: ... judge.url`. As a program it prints its port:

    python tests/support/stub_judge.py [--latency 5] [--plant refused=0.1 limited=0.1]

It answers in the form that the prompt asks for: JSON with `"score"`, `[[A]]`, `[[B]]` or `[[tie]]`, the text on a
picture, else three lines "Criterion: number". Faults are planted by the request's hash, so that the same requests meet
them in every run. Kinds that pass are met at the first try of a request alone; the others stay.
"""

import argparse
import asyncio
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

PASSING = ("limited", "half", "late", "broken", "garbage_once")
LASTING = ("refused", "declined", "filtered", "garbage", "cut", "foreign", "gone")
KINDS = (*PASSING, *LASTING)

Answer = Callable[[Mapping[str, Any], "Digest"], str]


class Digest:
    """Numbers in [0, 1) drawn from the hash of a request."""

    def __init__(self, raw: bytes) -> None:
        self.hex = hashlib.sha256(raw).hexdigest()

    def share(self, *key: object) -> float:
        """Return a number in [0, 1) that depends on the request and the key."""
        text = repr((self.hex, *key)).encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:6], "big") / 2**48

    def integer(self, low: int, high: int, *key: object) -> int:
        """Return an integer from low to high, both included."""
        return low + int(self.share(*key) * (high - low + 1))


def words(body: Mapping[str, Any]) -> str:
    """Return all words of a request."""
    found = []
    for message in body["messages"]:
        content = message["content"]
        if isinstance(content, str):
            found.append(content)
            continue
        found.extend(part["text"] for part in content if part["type"] == "text")
    return "\n".join(found)


def pictures(body: Mapping[str, Any]) -> list[str]:
    """Return the data URLs of a request's pictures, in their order."""
    found = []
    for message in body["messages"]:
        if not isinstance(message["content"], str):
            found.extend(part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url")
    return found


def hashed_answer(body: Mapping[str, Any], digest: Digest) -> str:
    """Return scores drawn from the request's hash, in the form that its words ask for."""
    asked = words(body)
    if '"score"' in asked:
        scores = [digest.integer(0, 10, number) for number in range(2)]
        return json.dumps({"score": scores, "reasoning": f"As seen in {digest.hex[:8]}."})
    if "[[A]]" in asked:
        verdict = ("[[A]]", "[[B]]", "[[tie]]")[digest.integer(0, 2, "verdict")]
        return f"Looked at both. {verdict}"
    lines = [f"Brief reasoning: as seen in {digest.hex[:8]}."]
    for number, name in enumerate(("Obedience", "Looks", "Detail")):
        lines.append(f"{name}: {digest.integer(1, 5, number)}")
    return "\n".join(lines)


class StubJudge:
    """The server, in a thread of its own.

    Args:
        answer: Makes the words from the body and its digest.
        plant: Kind of fault -> share of requests that meet it; see KINDS.
        latency: Seconds before each answer.
        retry_after: Seconds that a planted 429 asks for.
        lateness: Seconds that a planted late answer takes.
        keep: Keep the bodies of all requests.
        port: 0 takes a free one.

    Attributes:
        asked: Digest of a body -> how often it came.
        bodies: Every body, in the order of arrival, where they are kept.
        faults: Kind -> how often it was met.
        most: The most requests that were under way at once.
    """

    def __init__(
        self,
        answer: Answer = hashed_answer,
        plant: Mapping[str, float] | None = None,
        latency: float = 0.0,
        retry_after: float = 0.1,
        lateness: float = 30.0,
        keep: bool = True,
        port: int = 0,
    ) -> None:
        self.answer = answer
        self.plant = dict(plant or {})
        unknown = set(self.plant) - set(KINDS)
        assert not unknown, f"no such fault: {unknown}"
        self.latency = latency
        self.retry_after = retry_after
        self.lateness = lateness
        self.keep = keep
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.faults: Counter[str] = Counter()
        self.under_way = 0
        self.most = 0
        self.port = port
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self.serve_forever, daemon=True)
        self._thread.start()
        self._ready.wait(20)

    @property
    def url(self) -> str:
        """The address to ask."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def count(self) -> int:
        """The number of requests that came."""
        return self.asked.total()

    def fault_of(self, raw: bytes) -> str | None:
        """Return the fault that is planted for a body."""
        draw = Digest(raw).share("fault")
        for kind in KINDS:
            draw -= self.plant.get(kind, 0.0)
            if draw < 0:
                return kind
        return None

    def stop(self) -> None:
        """End the server and its thread."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(20)

    def __enter__(self) -> "StubJudge":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def serve_forever(self) -> None:
        """Serve until `stop`."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self._respond)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            return await self._answered(request, await request.read())
        finally:
            self.under_way -= 1

    async def _answered(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        digest = Digest(raw)
        body = json.loads(raw)
        self.asked[digest.hex] += 1
        if self.keep:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
        await asyncio.sleep(self.latency)

        fault = self.fault_of(raw)
        if fault in PASSING and self.asked[digest.hex] > 1:
            fault = None
        if fault is not None:
            self.faults[fault] += 1
        text = self.answer(body, digest)
        response = await self._planted(request, body, text, fault)
        if response is not None:
            return response
        return completion(body, text)

    async def _planted(
        self, request: web.Request, body: Mapping[str, Any], text: str, fault: str | None
    ) -> web.StreamResponse | None:
        """Return what a fault answers; None where the answer is the plain one."""
        if fault == "limited":
            headers = {"Retry-After": f"{self.retry_after:g}"}
            return web.json_response({"error": {"message": "slow down"}}, status=429, headers=headers)
        if fault == "half":
            whole = json.dumps(reply(body, text)).encode()
            response = web.StreamResponse(headers={"Content-Length": str(len(whole))})
            await response.prepare(request)
            await response.write(whole[: len(whole) // 2])
            request.transport.close()
            return response
        if fault == "late":
            await asyncio.sleep(self.lateness)
            return None
        if fault == "broken":
            return web.Response(text="<html>bad gateway</html>")
        if fault == "gone":
            return web.Response(status=500, text="gone")
        if fault == "filtered":
            error = {"code": "content_filter", "message": "stopped by the content management policy"}
            return web.json_response({"error": error}, status=400)
        if fault == "refused":
            return completion(body, "", finish="content_filter")
        if fault == "declined":
            return completion(body, "I'm sorry, but I can't help with that.")
        if fault in ("garbage", "garbage_once"):
            return completion(body, '{"score": [7, "reasoning"} Obedience 5/5; looks **4** (detail 3)')
        if fault == "cut":
            return completion(body, text[: len(text) * 2 // 3], finish="length")
        if fault == "foreign":
            return completion(body, "简要说明：如要求。\n提示遵循：5\n自然度：4\n细节：4")
        return None


def reply(body: Mapping[str, Any], text: str, finish: str = "stop") -> dict[str, Any]:
    """Return a chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": finish}
    return {"id": "stub", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


def completion(body: Mapping[str, Any], text: str, finish: str = "stop") -> web.Response:
    """Return a chat completion over HTTP."""
    return web.json_response(reply(body, text, finish))


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--plant", nargs="*", default=[], metavar="KIND=SHARE")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    plant = {}
    for planted in given.plant:
        kind, share = planted.split("=")
        plant[kind] = float(share)
    judge = StubJudge(plant=plant, latency=given.latency, keep=False, port=given.port)
    print(judge.port, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
