"""A signal at any moment ends a command by 75, whatever its main thread does; with it end its other processes."""

import os
import signal
import subprocess
import sys
import time

import pytest

BUSY = """
import hashlib, os, signal, subprocess, sys, time
from firered_lit.process import stopping

def compute():
    "Stay inside a library for minutes: no handler runs in the main thread meanwhile."
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", (1 << 31) - 1)

def wait():
    while True:
        time.sleep(0.1)

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell starts behind it
with stopping.watching():
    {body}
"""
LAUNCH = """launched = []
stopping.launching(lambda: launched)
environment = os.environ | {"LOCAL_RANK": "1"}
launched.append(subprocess.Popen([sys.executable, "-c", os.environ["SECOND"]], stdout=2, env=environment))
time.sleep(float(os.environ["AFTER"]))
print(launched[0].pid, flush=True)
compute()"""


@pytest.fixture
def start(root, tmp_path):
    """Starts a process that runs some lines under the watch, and returns it when it has said that it is there."""
    started = []

    def run(body, **environment):
        code = BUSY.format(body=body.replace("\n", "\n    "))
        command = [sys.executable, "-c", code]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "said").open("w"),
            text=True,
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root), "SECOND": BUSY.format(body="compute()")} | environment,
        )
        started.append(process)
        process.said = process.stdout.readline().strip()
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def gone(number, seconds=10):
    """Return whether a process ends within some seconds; one that nobody has waited for has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with open(f"/proc/{number}/stat") as file:
                state = file.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=["TERM", "USR1"])
def test_a_signal_ends_a_main_thread_that_is_inside_a_library(start, number, tmp_path):
    process = start("print('here', flush=True)\ncompute()")
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(10) == 75
    assert time.monotonic() - begun < 5
    assert f"{number.name}: nothing to save yet" in (tmp_path / "said").read_text()


def test_an_interrupt_ends_a_main_thread_that_is_inside_a_library(start):
    process = start("stopping._LAST_ACTIONS = 0.3\nprint('here', flush=True)\ncompute()")
    time.sleep(0.3)  # until it is inside
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130


def test_what_must_happen_before_the_end_happens_and_cannot_hold_it(start, tmp_path):
    closing = f"stopping.before_the_end(lambda: open({str(tmp_path / 'closed')!r}, 'w').close())\n"
    process = start(
        closing + "stopping._LAST_ACTIONS = 0.3\nstopping.before_the_end(wait)\nprint('here', flush=True)\nwait()"
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 75
    assert (tmp_path / "closed").exists()


def test_after_the_hand_over_signals_are_the_trainers(start):
    process = start(
        "signal.signal(signal.SIGTERM, lambda *_: print('trainer', flush=True))\n"
        "assert stopping.hand_over() is None\nprint('here', flush=True)\nwait()"
    )
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline().strip() == "trainer"
    time.sleep(1)
    assert process.poll() is None


def test_a_signal_that_comes_while_the_handlers_change_is_handed_over(start):
    lines = "stopping._watch.handed_over = True\nos.kill(os.getpid(), signal.SIGTERM)\n"
    process = start(lines + "print(stopping.hand_over(), flush=True)")
    assert process.said == str(int(signal.SIGTERM))


def test_a_forked_worker_leaves_the_run_alone(start):
    lines = "worker = os.fork()\nif worker: print(worker, flush=True)\nwait()"
    process = start(lines)
    os.kill(int(process.said), signal.SIGTERM)
    assert gone(int(process.said))
    time.sleep(1)
    assert process.poll() is None


@pytest.mark.parametrize("after", ["0", "1"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["TERM", "KILL"])
def test_the_second_process_of_a_run_ends_with_the_first(start, number, after):
    """Also when it has not come to its own first line yet."""
    process = start(LAUNCH, AFTER=after)
    process.send_signal(number)
    assert process.wait(10) == (75 if number == signal.SIGTERM else -9)
    assert gone(int(process.said))


def test_the_first_process_of_a_run_ends_with_the_second_that_a_signal_ends(start):
    process = start(LAUNCH, AFTER="1")
    os.kill(int(process.said), signal.SIGTERM)
    assert process.wait(10) == 75
