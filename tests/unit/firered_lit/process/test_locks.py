"""One process at a time in a folder: refused by name, and nothing is left of a process that was killed."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from datamodules.synthetic import write
from firered_lit.cli import main
from firered_lit.errors import UserError
from firered_lit.process import locks

HOLD = """
import os, sys, time
from pathlib import Path
from firered_lit.process import locks

with locks.held(Path(sys.argv[1]), sys.argv[2]):
    worker = os.fork() if sys.argv[3] == "with a worker" else 1
    if worker:
        print(worker, flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(root):
    """Starts a process that holds a lock, and returns it with the number of its forked worker."""
    started = []

    def start(path, verb="fit", how="alone"):
        command = [sys.executable, "-c", HOLD, str(path), verb, how]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root))
        return started[-1], int(started[-1].stdout.readline())

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_the_second_is_refused_and_the_holder_is_named(tmp_path, holder):
    process, _ = holder(tmp_path / "run" / ".lock")
    with pytest.raises(UserError) as refusal, locks.held(tmp_path / "run" / ".lock", "fit"):
        pass
    said = f"another fit is at work here: process {process.pid} on {socket.gethostname()}"
    assert str(refusal.value).startswith(f"{tmp_path / 'run'}: {said}")


def test_a_killed_process_leaves_no_lock_though_its_worker_lives(tmp_path, holder):
    process, worker = holder(tmp_path / ".lock", how="with a worker")
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        os.kill(worker, 0)
        with locks.held(tmp_path / ".lock", "fit"):
            assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_lock_leaves_no_file_and_is_held_once_by_one_process_too(tmp_path):
    with locks.held(tmp_path / ".lock", "fit"):
        with pytest.raises(UserError, match="another fit"), locks.held(tmp_path / ".lock", "fit"):
            pass
        assert (tmp_path / ".lock").exists()
    assert not list(tmp_path.iterdir())
    with locks.held(tmp_path / ".lock", "fit"):
        pass


def test_a_file_that_its_holder_removes_meanwhile_is_no_lock(tmp_path, monkeypatch):
    """It is opened, its holder leaves and removes it, a third process makes and holds a new one, it is locked."""
    path = tmp_path / ".lock"
    path.touch()
    third = tmp_path / "third"
    third.write_text("the third")
    locking = fcntl.flock

    def meanwhile(descriptor, how):
        if third.exists():
            third.rename(path)
        locking(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", meanwhile)
    refused = pytest.raises(UserError, match="another fit")
    with locks.held(path, "fit"), refused, locks.held(path, "fit"):
        pass


def test_where_the_file_system_knows_no_locks_a_warning_says_so(tmp_path, monkeypatch, caplog):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locks.held(tmp_path / ".lock", "fit"):
        assert "this file system knows no locks" in caplog.text
    with locks.in_turn(tmp_path):
        pass


def test_shards_of_one_number_share_a_folder_and_others_are_refused(tmp_path):
    (tmp_path / ".lock-0-of-7").touch()  # of a killed process
    with locks.shard_held(tmp_path, "mine", 0, 2):
        with locks.shard_held(tmp_path, "mine", 1, 2):
            pass
        for shard, shards in ((0, 2), (1, 3), (0, 1)):
            refused = pytest.raises(UserError, match=r"another mine is at work here .shard 0-of-2.: process")
            with refused, locks.shard_held(tmp_path, "mine", shard, shards):
                pass
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("verb", ["fit", "prepare", "mine"])
def test_a_second_command_in_a_folder_is_one_line(verb, tmp_path, holder, capfd, root, monkeypatch):
    """Nothing of the folder changes."""
    monkeypatch.chdir(root)
    out = tmp_path / "out"
    options = {
        "fit": ["--recipe", "recipes/world/sft.yaml", f"run.dir={out}", "logger=null"],
        "prepare": ["--recipe", "recipes/tiny/prepare.yaml", f"source={tmp_path / 'source'}", f"out={out}"],
        "mine": ["--recipe", "recipes/tiny/mine_preferences.yaml", f"out={out}"],
    }
    options["mine"] += [f"task.candidates.requests={tmp_path / 'source'}"]
    options["mine"] += [f"task.candidates.base={{base: {tmp_path / 'expert'}}}"]
    options["mine"] += [f"task.candidates.experts={{expert: {tmp_path / 'expert'}}}"]
    if verb != "fit":
        write(tmp_path / "source", 2)
        (tmp_path / "expert").mkdir()
    name = ".lock" if verb == "fit" else ".lock-0-of-1"
    process, _ = holder(out / name, verb)
    before = {path.name for path in out.iterdir()}
    assert main([verb, *options[verb]]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert f"{out}: another {verb} is at work here" in error
    assert f"process {process.pid} on" in error
    assert {path.name for path in out.iterdir()} - before <= {".lock"}
