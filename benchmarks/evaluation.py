"""An evaluation's speed and memory: asking the judge, many rows, and the page.

    python benchmarks/evaluation.py judge [--latency 5] [--parallel 64] [--side 512] [--waves 4]
    python benchmarks/evaluation.py memory [--rows 1000 10000 100000]
    python benchmarks/evaluation.py page [--items 3084] [--side 512]

`judge` asks a local server, in a process of its own, that answers each request after a fixed time: once by loops that
work as the official scripts do (REDEdit-Bench: 20 threads; ImgEdit: a pool of 32; GEdit-Bench: one item after the
other, its two questions in turn), once by the step `judge`. Both make the same requests from the same files, pictures
read and encoded anew for each. `ratio` is the step's items a second over the loop's, `ideal` its requests under way
over the loop's, `of ideal` the one over the other. CPU seconds are those of the asking process.

`memory` judges and scores benchmarks of so many rows with small pictures, each in a process of its own, and shows the
largest resident memory of each step.

`page` writes a report of two models and opens it in a headless Chromium: seconds to the first picture, to a filter's
and an order's effect, and the memory of the page.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
import numpy as np
from evaluated import evaluated, made_up
from PIL import Image

from firered_lit.evaluation import judging, report, scoring
from firered_lit.evaluation.benchmarks.gedit_requests import requests as gedit_requests
from firered_lit.evaluation.benchmarks.imgedit_requests import requests as imgedit_requests
from firered_lit.evaluation.benchmarks.rededit_requests import requests as rededit_requests
from firered_lit.evaluation.protocols import Asking, EvaluationFolder, Item
from firered_lit.evaluation.scores import GEDIT, IMGEDIT, REDEDIT, Scoring
from firered_lit.judges.client import Client
from firered_lit.judges.request import ChatRequest

MODEL = "model"
SCORINGS = {"rededit": REDEDIT, "imgedit": IMGEDIT, "gedit": GEDIT}
OFFICIAL_THREADS = {"rededit": 20, "imgedit": 32, "gedit": 1}
PROMPT = "Compare both pictures: <edit_prompt>. Three lines, each a criterion, a colon and a number from 1 to 5."
VIE = {
    "_context_no_delimit": 'Answer in JSON, with "score" and "reasoning".',
    "_prompts_0shot_two_image_edit_rule": "Two pictures.",
    "_prompts_0shot_tie_rule_SC": "Two scores from 0 to 10: <instruction>.",
    "_prompts_0shot_rule_PQ": "Two scores from 0 to 10.",
}


class Photos:
    """A benchmark with as many items as wanted, and some source pictures for all of them.

    Args:
        kind: Whose requests it makes: rededit, imgedit or gedit.
        count: Items.
        files: Source pictures.
    """

    def __init__(self, kind: str, count: int, files: Sequence[Path]) -> None:
        self.kind = kind
        self.count = count
        self.files = files

    def suites(self) -> Mapping[str, Scoring]:
        return {self.kind: SCORINGS[self.kind]}

    def fingerprint(self) -> str:
        return self.kind

    def items(self) -> Sequence[Item]:
        return [
            Item(self.kind, str(i), f"task {i % 10}", "en", f"Change thing {i}", (self._file(i).name,), f"{i}.png")
            for i in range(self.count)
        ]

    def sources(self, item: Item) -> list[bytes]:
        return [self._file(int(item.id)).read_bytes()]

    def requests(self, item: Item, edited: bytes, asking: Asking) -> list[ChatRequest]:
        sources = self.sources(item)
        if self.kind == "rededit":
            return rededit_requests(item, sources, edited, PROMPT, asking)
        if self.kind == "imgedit":
            return imgedit_requests(item, sources, edited, PROMPT, asking)
        return gedit_requests(item, sources, edited, VIE, asking)

    def measure(self, item: Item, edited: bytes) -> None:
        return None

    def _file(self, number: int) -> Path:
        return self.files[number % len(self.files)]


def photos(folder: Path, side: int, count: int = 16) -> list[Path]:
    """Write pictures with soft shapes and a camera's noise."""
    files = []
    for number in range(count):
        rng = np.random.default_rng(number)
        soft = Image.fromarray(rng.integers(0, 256, (12, 12, 3), np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        noisy = np.asarray(soft, np.float32) + rng.normal(0, 3, (side, side, 3))
        files.append(folder / f"{number}.png")
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(files[-1])
    return files


def draw_all(folder: EvaluationFolder, benchmark: Photos) -> None:
    """Link a picture for every item."""
    for item in benchmark.items():
        path = folder.picture(MODEL, item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(benchmark.files[(int(item.id) + 5) % len(benchmark.files)])


@contextmanager
def judge_server(latency: float) -> Iterator[str]:
    """A judge in a process of its own; its address."""
    command = [sys.executable, str(ROOT / "tests" / "support" / "stub_judge.py"), "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline())
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


# Asking the judge


def post(url: str, request: ChatRequest) -> str:
    """Send one request over a connection of its own, as a thread that waits for it."""
    sent = urllib.request.Request(f"{url}/chat/completions", request.body(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(sent, timeout=120) as answer:
        return json.load(answer)["choices"][0]["message"]["content"]


def by_loop(url: str, benchmark: Photos, folder: EvaluationFolder) -> dict[str, list[str]]:
    """Ask as the official scripts do, and write all answers at the end."""

    def ask(item: Item) -> tuple[str, list[str]]:
        requests = benchmark.requests(item, folder.picture(MODEL, item).read_bytes(), Asking())
        return item.id, [post(url, request) for request in requests]

    with ThreadPoolExecutor(OFFICIAL_THREADS[benchmark.kind]) as pool:
        waiting = [pool.submit(ask, item) for item in benchmark.items()]
        answers = dict(future.result() for future in as_completed(waiting))
    (folder.out / "answers.json").write_text(json.dumps(answers))
    return answers


def by_step(url: str, benchmark: Photos, folder: EvaluationFolder, parallel: int) -> None:
    """Ask by the step `judge`, which logs every answer."""
    with Client(url, parallel=parallel, timeout=120, log=str(folder.responses), replay=True) as client:
        judging.ask(folder, [benchmark], [MODEL], client, Asking(), attempts=1)


def measured(run: Callable[..., Any], *arguments: Any) -> tuple[float, float, Any]:
    """Return wall and CPU seconds, and what came of it."""
    wall = time.perf_counter()
    cpu = time.process_time()
    result = run(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu, result


def compare_judging(given: argparse.Namespace, folder: Path) -> None:
    """Print a row per benchmark."""
    files = photos(folder, given.side)
    head = "items/s  CPU s/item"
    print(f"benchmark  under way   loop: {head}   step: {head}   ratio   ideal   of ideal   CPU ratio")
    with judge_server(given.latency) as url:
        for kind, threads in OFFICIAL_THREADS.items():
            calls = SCORINGS[kind].requests

            # As many whole waves on both sides.
            few = Photos(kind, given.waves * threads, files)
            many = Photos(kind, max(1, given.waves * given.parallel // calls), files)
            folders = [EvaluationFolder(folder / f"{kind}_{side}") for side in ("loop", "step")]
            draw_all(folders[0], few)
            draw_all(folders[1], many)
            loop_wall, loop_cpu, answers = measured(by_loop, url, few, folders[0])
            step_wall, step_cpu, _ = measured(by_step, url, many, folders[1], given.parallel)

            # Both got the same answers to the same requests.
            tables = scoring.score(folders[1], [many], [MODEL], Asking(), seed=0)
            assert tables[kind]["official"]["overall"]["scored"] == many.count
            lines = folders[1].model_items(MODEL).read_text("utf-8").splitlines()
            for line in map(json.loads, lines[: few.count]):
                assert line["answers"] == [answers[line["id"]]]

            rates = few.count / loop_wall, many.count / step_wall
            cpus = loop_cpu / few.count, step_cpu / many.count
            ratio = rates[1] / rates[0]
            ideal = given.parallel / threads
            sides = "   ".join(f"{rate:13.2f} {cpu:11.3f}" for rate, cpu in zip(rates, cpus))
            under_way = f"{threads:3} -> {given.parallel:3}"
            print(f"{kind:10} {under_way} {sides}   {ratio:5.2f}   {ideal:5.2f}   {ratio / ideal:8.1%}", end="")
            print(f"   {cpus[0] / cpus[1]:9.2f}", flush=True)


# Many rows


def resident() -> float:
    """Return the largest resident memory of this process so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def judge_rows(rows: int, url: str, folder: Path, results: "multiprocessing.Queue[list[float]]") -> None:
    """Judge and score so many rows in this process."""
    home = EvaluationFolder(folder / str(rows))
    benchmark = Photos("imgedit", rows, photos(folder, 16))
    draw_all(home, benchmark)
    found = [resident()]
    begin = time.perf_counter()
    by_step(url, benchmark, home, 64)
    found.append(resident())
    judged = time.perf_counter()
    scoring.score(home, [benchmark], [MODEL], Asking(), seed=0)
    found += [resident(), judged - begin, time.perf_counter() - judged]
    results.put(found)


def measure_memory(given: argparse.Namespace, folder: Path) -> None:
    """Print a row per number of rows."""
    print("   rows   MB before   MB after judge   MB after score   judge: rows/s   score: rows/s")
    spawned = multiprocessing.get_context("spawn")
    with judge_server(0) as url:
        for rows in given.rows:
            results = spawned.Queue()
            process = spawned.Process(target=judge_rows, args=(rows, url, folder, results))
            process.start()
            before, judged, scored, judging_s, scoring_s = results.get(timeout=3600)
            process.join()
            shutil.rmtree(folder / str(rows))
            speeds = f"{rows / judging_s:15.0f} {rows / scoring_s:15.0f}"
            print(f"{rows:7} {before:11.0f} {judged:16.0f} {scored:16.0f} {speeds}", flush=True)


# The page


def measure_page(given: argparse.Namespace, folder: Path) -> None:
    """Write and open a page; print how long things take."""
    from playwright.sync_api import sync_playwright

    benchmark = made_up(given.items, (given.side, given.side))
    words = "The edit follows the instruction, and the rest of the picture is as it was. " * 8
    home = evaluated(folder, benchmark, words=words, pictures=64)
    begin = time.perf_counter()
    report.write(home, [benchmark], ("ours", "theirs"), seed=0)
    written = time.perf_counter() - begin
    index = home.report / "index.html"
    size = sum(path.stat().st_size for path in home.report.rglob("*") if path.is_file())
    print(f"written in {written:.1f} s: index.html {index.stat().st_size / 1e6:.1f} MB, folder {size / 1e6:.0f} MB")

    browser_path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--enable-precise-memory-info"])
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        seconds = {}

        def timed(name: str, act: Callable[[], object]) -> None:
            start = time.perf_counter()
            act()
            page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
            seconds[name] = time.perf_counter() - start

        def first_picture() -> None:
            page.goto(index.as_uri(), wait_until="commit")
            shown = "[...document.querySelectorAll('article img')].some((one) => one.naturalWidth > 0)"
            page.locator("#items").scroll_into_view_if_needed()
            while not page.evaluate(shown):
                page.wait_for_timeout(5)

        timed("first picture", first_picture)
        timed("filter by failure", lambda: page.select_option("#failure", label="refused"))
        timed("all again", lambda: page.select_option("#failure", label="all"))
        timed("widest gap first", lambda: page.select_option("#order", label="widest gap first"))
        timed("search", lambda: page.fill("#search", "number 77 "))
        timed("search ended", lambda: page.fill("#search", ""))
        timed("to the last item", lambda: page.locator("article").last.scroll_into_view_if_needed())
        cards = page.locator("article").count()
        heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
        nodes = page.evaluate("document.querySelectorAll('*').length")
        renderers = renderer_memory()
        browser.close()
    assert cards == given.items
    for name, value in seconds.items():
        print(f"{name:18} {value:6.2f} s")
    print(f"cards {cards}, elements {nodes}, JavaScript heap {heap:.0f} MB, renderer {renderers:.0f} MB resident")


def renderer_memory() -> float:
    """Return the resident memory of the largest renderer of this process's browser, in MB."""
    import psutil

    renderers = [0.0]
    for process in psutil.Process().children(recursive=True):
        try:
            if "--type=renderer" in process.cmdline():
                renderers.append(process.memory_info().rss / 1e6)
        except psutil.Error:  # it has ended
            continue
    return max(renderers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = parser.add_subparsers(required=True)
    judge = rows.add_parser("judge")
    judge.add_argument("--latency", type=float, default=5.0, help="seconds of the server for each request")
    judge.add_argument("--parallel", type=int, default=64, help="requests of the step under way at once")
    judge.add_argument("--side", type=int, default=512, help="of the pictures, px")
    judge.add_argument("--waves", type=int, default=4, help="requests, by those under way at once")
    judge.set_defaults(run=compare_judging)
    memory = rows.add_parser("memory")
    memory.add_argument("--rows", type=int, nargs="+", default=[1000, 10_000, 100_000])
    memory.set_defaults(run=measure_memory)
    page = rows.add_parser("page")
    page.add_argument("--items", type=int, default=3084, help="REDEdit-Bench in both languages")
    page.add_argument("--side", type=int, default=512, help="of the pictures, px")
    page.set_defaults(run=measure_page)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        given.run(given, Path(folder))


if __name__ == "__main__":
    main()
