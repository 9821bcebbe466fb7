"""REDEdit-Bench at its full size, killed by -9 at ten random moments and run again: the same scores, nothing twice."""

import json
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from standin import write_rededit
from stub_judge import StubJudge

from firered_lit.judges.log import rows

ROWS = 1542
KILLS = 10
IN_FLIGHT = 64
SEEN = re.compile(r"as seen in ([0-9a-f]{8})")  # in the judge's words: the hash of what it was asked


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A stand-in copy with as many rows as REDEdit-Bench has in public."""
    folder = write_rededit(tmp_path_factory.mktemp("rededit"), each=-(-ROWS // 15))
    index = folder / "redbench.jsonl"
    lines = index.read_text("utf-8").splitlines(keepends=True)
    index.write_text("".join(lines[:ROWS]), "utf-8")
    return folder


def start(root: Path, copy: Path, out: Path, judge: StubJudge) -> subprocess.Popen:
    command = [sys.executable, "-m", "firered_lit", "eval", "--recipe", "recipes/eval/rededit.yaml", f"data={copy}"]
    command += [f"out={out}", "model={_target_: firered_lit.evaluation.models.planted.RandomCrop}", "mlflow=null"]
    command += ["benchmarks.rededit.version=any", f"judge.url={judge.url}", f"judge.parallel={IN_FLIGHT}"]
    log = (out.parent / f"{out.name}.log").open("ab")
    return subprocess.Popen(command, cwd=root, stdout=log, stderr=subprocess.STDOUT)


def logged(out: Path) -> set[str]:
    """Return the hashes of the questions whose answers stand in the log."""
    path = out / "responses.jsonl"
    if not path.exists():
        return set()
    found = set()
    for row in rows(path):
        found.update(SEEN.findall(row["text"]))
    return found


def drawn(out: Path) -> Counter:
    """Return how often each item was drawn."""
    lines = [line for path in out.glob("pictures/*/drawn/*.jsonl") for line in rows(path)]
    return Counter((line["suite"], line["id"]) for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_full_benchmark_killed_ten_times_scores_the_same_and_asks_nothing_twice(root, copy, tmp_path):
    # As it goes without being killed.
    whole = tmp_path / "whole"
    with StubJudge(keep=False) as judge:
        assert start(root, copy, whole, judge).wait() == 0
        assert set(judge.asked.values()) == {1}
        expected = judge.asked.copy()
    assert drawn(whole).total() == 2 * ROWS

    # Killed at random moments of drawing and of judging.
    killed = tmp_path / "killed"
    rng = random.Random(0)
    moments = sorted(rng.sample(range(2 * ROWS + len(expected)), KILLS))
    with StubJudge(keep=False) as judge:
        for moment in moments:
            answered = logged(killed)
            before = judge.asked.copy()
            process = start(root, copy, killed, judge)
            while drawn(killed).total() + judge.count < moment:
                assert process.poll() is None, "ended before it was killed"
                time.sleep(0.05)
            process.kill()
            process.wait()
            time.sleep(0.5)  # what was under way arrives
            asked = {digest[:8] for digest in judge.asked - before}
            assert not asked & answered, "what the log answers is not asked again"
        assert start(root, copy, killed, judge).wait() == 0
        asked = judge.asked.copy()

    requests = f"{asked.total()} requests for {len(expected)}"
    print(f"{KILLS} kills, {requests}, {drawn(killed).total()} drawings for {2 * ROWS}")
    assert asked.keys() == expected.keys()
    assert asked.total() <= len(expected) + KILLS * IN_FLIGHT
    assert drawn(killed).total() <= 2 * ROWS + KILLS
    assert (killed / "scores.json").read_bytes() == (whole / "scores.json").read_bytes()
    estimates = [json.loads((out / "statistics.json").read_text("utf-8"))["estimates"] for out in (killed, whole)]
    assert estimates[0] == estimates[1]
