"""The steps of a curation, shared, killed and spread: the same rows, scores and bytes, and nothing asked again."""

import multiprocessing
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from raw_pictures import contents, lines
from support.started import kill, started
from support.stub_judge import StubJudge
from whole_curation import BEGINS, PARALLEL, answer, everything, mixed_table

ANSWERS = "state/answers.jsonl"


@pytest.fixture
def judge():
    with StubJudge(answer, latency=0.01) as found:
        yield found


def settled(out):
    """The bytes of a curation by name, but for what killed processes left, and the answers without their order."""
    found = {name: file for name, file in contents(out).items() if not any(part[0] == "." for part in Path(name).parts)}
    found.pop(ANSWERS)
    answers = Counter((row["request"], row["repeat"], row["text"]) for row in lines(out / ANSWERS))
    return found, set(answers)


def same(one, other):
    """Return the names of files that differ, which is better to read than the files."""
    (files, answers), (others, other_answers) = settled(one), settled(other)
    names = sorted(name for name in {*files, *others} if files.get(name) != others.get(name))
    return names + ["answers"] * (answers != other_answers)


def test_every_step_over_rows_is_shared_by_commands(judge, tmp_path, capsys):
    source = mixed_table(tmp_path / "raw", 14)
    everything(source, tmp_path / "one", judge.url, workers=0)
    once = judge.count
    # The last one to finish a step goes on to its share of the next one: 0 labels, 1 labels and makes, 0 makes.
    for shard, said in ((1, "annotate: shard 1"), (0, "label: shard 0"), (1, "make: shard 1"), (0, "report")):
        capsys.readouterr()
        everything(source, tmp_path / "two", judge.url, workers=0, shard=shard, num_shards=2)
        assert said in capsys.readouterr().out.splitlines()[-1]
    assert same(tmp_path / "one", tmp_path / "two") == []
    assert judge.count == 2 * once


def kills_over(steps, source, folder, judge):
    """Kill a curation by two processes once in each of some steps, in their order, at a random moment of it.

    Returns:
        How often it was killed, and how many answers were asked for.
    """
    rng = random.Random(7)
    spans = spans_of(source, folder / "timed", judge)
    before = judge.count
    kills = 0
    for step in steps:
        for _ in range(20):
            process, announced = begun(source, folder / "killed", judge)
            awaited(announced, step)
            time.sleep(rng.uniform(0, spans[step]))
            if kill(process):
                kills += 1
                break
    everything(source, folder / "killed", judge.url)
    return kills, judge.count - before


def begun(source, out, judge):
    """Start a curation by two processes, and return its process and what announces its steps."""
    announced, other = multiprocessing.Pipe(duplex=False)
    process = started(everything, source, out, judge.url, other)
    other.close()
    return process, announced


def awaited(announced, step):
    """Wait until a step begins, or the process ends."""
    try:
        while announced.recv() != step:
            pass
    except EOFError:
        pass


def spans_of(source, out, judge):
    """Return how many seconds every step takes, from its first beginning to that of the next one."""
    process, announced = begun(source, out, judge)
    begins = {}
    try:
        while True:
            begins.setdefault(announced.recv(), time.monotonic())
    except EOFError:
        process.join()
    assert process.exitcode == 0
    assert begins.keys() == BEGINS.keys()
    ends = [*begins.values(), time.monotonic()][1:]
    return {step: end - begin for (step, begin), end in zip(begins.items(), ends, strict=True)}


@pytest.mark.parametrize(
    ("count", "steps"),
    [
        pytest.param(16, ["label", "make"], id="twice"),
        pytest.param(
            60,
            ["annotate"] * 4 + ["fit"] * 2 + ["select"] * 2 + ["label"] * 4 + ["write"] * 2 + ["make"] * 4
            + ["fill", "report"],
            id="twenty times",
            marks=[pytest.mark.slow, pytest.mark.timeout(1800)],
        ),
    ],
)  # fmt: skip
def test_killed_at_any_moment_it_comes_to_the_same_bytes_and_asks_nothing_again(judge, tmp_path, count, steps):
    source = mixed_table(tmp_path / "raw", count)
    everything(source, tmp_path / "calm", judge.url, workers=0)
    once = judge.count
    kills, asked = kills_over(steps, source, tmp_path, judge)
    assert kills == len(steps)
    assert same(tmp_path / "calm", tmp_path / "killed") == []
    assert asked <= once + kills * PARALLEL
