"""Judge requests a second: the asynchronous client against a thread and a connection of urllib for each request.

    python benchmarks/judge_client.py [--parallel 8 64 256] [--latency 0.5] [--kilobytes 300] [--rounds 3]

Both sides ask one local server, in a process of its own, that answers each request after a fixed time. They send the
same bodies (three pictures and a prompt), take turns in one process, and must get the same answers. `under way` is the
mean number of requests that the server holds: requests times latency over wall time, to be compared with `parallel`. A
ratio is the median over rounds of threads / client, by wall time and by CPU time of this process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from firered_lit.judges.client import Client
from firered_lit.judges.reply import Kind
from firered_lit.judges.request import ChatRequest, MessagePicture, user

Side = Callable[[str, Sequence[ChatRequest], int], list[str]]


def serve(latency: float) -> None:
    """Answer every request after `latency` seconds with the length of its body. Prints its port."""
    import asyncio

    from aiohttp import web

    async def answer(request: Any) -> web.Response:
        body = await request.read()
        await asyncio.sleep(latency)
        return web.json_response({"choices": [{"message": {"content": str(len(body))}}]})

    async def main() -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.Event().wait()

    asyncio.run(main())


def by_threads(url: str, requests: Sequence[ChatRequest], parallel: int) -> list[str]:
    """Return the answers, with a thread for each request under way."""

    def ask(request: ChatRequest) -> str:
        headers = {"Content-Type": "application/json"}
        sent = urllib.request.Request(f"{url}/chat/completions", request.body(), headers)
        with urllib.request.urlopen(sent, timeout=60) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(parallel) as pool:
        return list(pool.map(ask, requests))


def by_client(url: str, requests: Sequence[ChatRequest], parallel: int) -> list[str]:
    """Return the answers, with the client, whose thread and connections are made and ended within the time."""
    with Client(url, parallel=parallel) as client:
        replies = [future.result() for future in [client.submit(request) for request in requests]]
    assert {reply.kind for reply in replies} == {Kind.ANSWERED}
    return [reply.text for reply in replies]


def measured(side: Callable[..., list[str]], *arguments: Any) -> tuple[float, float, list[str]]:
    """Return the wall and CPU seconds of a side, and its answers."""
    wall = time.perf_counter()
    cpu = time.process_time()
    answers = side(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu, answers


def compare(url: str, parallel: int, given: argparse.Namespace) -> None:
    """One row of the table."""
    picture = MessagePicture(os.urandom(given.kilobytes << 10))
    count = given.waves * parallel
    requests = [ChatRequest("judge", [user(picture, picture, picture, f"how good? {i}")]) for i in range(count)]
    sides: list[Side] = [by_threads, by_client]
    walls: dict[Side, list[float]] = {side: [] for side in sides}
    cpus: dict[Side, list[float]] = {side: [] for side in sides}
    answers = []
    for _ in range(given.rounds):
        for side in walls:
            wall, cpu, answer = measured(side, url, requests, parallel)
            walls[side].append(wall)
            cpus[side].append(cpu)
            answers.append(answer)
    assert all(answer == answers[0] for answer in answers), "both sides get the same answers"
    cells = [f"{parallel:8}"]
    for side in walls:
        wall = statistics.median(walls[side])
        under_way = count * given.latency / wall
        cells.append(f"{count / wall:8.1f} {under_way:9.1f} {statistics.median(cpus[side]):7.2f}")
    for seconds in (walls, cpus):
        ratios = [old / new for old, new in zip(seconds[by_threads], seconds[by_client], strict=True)]
        cells.append(f"{statistics.median(ratios):5.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print("   ".join(cells), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", type=int, nargs="+", default=[8, 64, 256], help="requests under way at once")
    parser.add_argument("--latency", type=float, default=0.5, help="seconds of the server for each request")
    parser.add_argument("--kilobytes", type=int, default=300, help="of each of the three pictures")
    parser.add_argument("--waves", type=int, default=4, help="requests, by those under way at once")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
        return
    command = [sys.executable, __file__, "--serve", str(given.latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            url = f"http://127.0.0.1:{port}/v1"
            measured(by_client, url, [ChatRequest("judge", [user("warm?")])], 1)  # imports
            sides = "req/s  under way   CPU s"
            print(f"parallel   threads: {sides}   client: {sides}   ratio by wall time   by CPU time")
            for parallel in given.parallel:
                compare(url, parallel, given)
        finally:
            server.kill()


if __name__ == "__main__":
    main()
