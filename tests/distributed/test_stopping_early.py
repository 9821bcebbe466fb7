"""Two processes of `fit`, the first ended by SIGTERM as they start: by 75, and nothing of the run lives on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FIT = [sys.executable, "-m", "firered_lit", "fit", "--recipe", "recipes/world/sft.yaml", "trainer.devices=2"]
MARK = "FIRERED_LIT_TEST_RUN"


def processes(mark):
    """Numbers and command lines of the living processes that have inherited the mark of a run."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            environment = (folder / "environ").read_bytes() if folder.name.isdigit() else b""
            if f"{MARK}={mark}".encode() in environment.split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended meanwhile
            continue
    return found


@pytest.fixture
def run(tmp_path):
    """Starts `fit`, with the number of this test as its mark."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    kept = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "NODE_RANK", "WORLD_SIZE")}
    environment = kept | {MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "said").open("w") as said:
        options = [f"run.dir={tmp_path / 'run'}", "trainer.max_steps=10000", "data.batch=2", "run.validate_every=null"]
        options += ["checkpoint.monitor=null", "callbacks.correctness=null"]
        process = subprocess.Popen(
            [*FIT, *options], cwd=ROOT, env=environment, stdout=said, stderr=said, start_new_session=True
        )
        process.mark = mark
        yield process
    for number in processes(mark):
        os.kill(number, signal.SIGKILL)
    process.wait()


def seconds_of_life(run, limit=20):
    """Return how long the processes of a run live on, in s; fail when they do so for too long."""
    begun = time.monotonic()
    while left := processes(run.mark):
        assert time.monotonic() - begun < limit, left
        run.poll()
        time.sleep(0.1)
    return time.monotonic() - begun


def test_a_signal_while_two_processes_meet_ends_both(run, tmp_path):
    """The second one has been started, and the first waits for it."""
    while not any(" fit " in line for number, line in processes(run.mark).items() if number != run.pid):
        assert run.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.05)
    run.send_signal(signal.SIGTERM)
    assert run.wait(20) == 75, (tmp_path / "said").read_text()
    assert seconds_of_life(run) < 10


@pytest.mark.slow
@pytest.mark.parametrize("which", ["first", "second"])
@pytest.mark.parametrize("after", [0.5, 1, 2, 5, 10, 15, 20, 30])
def test_a_signal_after_some_seconds_ends_all(run, tmp_path, after, which):
    """Before the first line of ours by the signal itself, from there on by 75."""
    time.sleep(after)
    others = [number for number, line in processes(run.mark).items() if number != run.pid and " fit " in line]
    if which == "second" and not others:
        pytest.skip("there is no second process yet")
    os.kill(others[0] if which == "second" else run.pid, signal.SIGTERM)
    code = run.wait(60)
    lived = seconds_of_life(run)
    print(f"after {after:4} s to the {which}: {1 + len(others)} processes, code {code}, gone {lived:.1f} s later")
    assert code == 75 or (after < 1 and code == -signal.SIGTERM), (tmp_path / "said").read_text()
    assert lived < 10
