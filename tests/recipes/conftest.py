"""The command line as users call it, on a small prepared data set."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.synthetic import write
from firered_lit.cli import main

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Process:
    """`python -m firered_lit ...` in a process of its own, with its output in a file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        self.file = log.open("wb")
        command = [sys.executable, "-m", "firered_lit", *arguments]
        self.popen = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=self.file, stderr=subprocess.STDOUT)

    def wait(self, timeout: float = 240) -> int:
        try:
            return self.popen.wait(timeout)
        finally:
            self.popen.kill()
            self.file.close()

    def until(self, condition: Callable[[], bool], timeout: float = 120) -> None:
        """Wait for a condition while the process lives."""
        end = time.monotonic() + timeout
        while not condition():
            if self.popen.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"{self.popen.args}: ended or late before its time:\n{self.output}")
            time.sleep(0.02)

    def send(self, number: int = signal.SIGKILL) -> None:
        self.popen.send_signal(number)

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace")


@pytest.fixture
def launch(tmp_path: Path) -> Callable[..., Process]:
    started: list[Process] = []

    def start(*arguments: str) -> Process:
        started.append(Process(tmp_path / f"process{len(started)}.log", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.popen.kill()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-eight edits of zero, one and two references in four shapes, prepared for the tiny base."""
    folder = tmp_path_factory.mktemp("world")
    write(folder / "source", 28)
    code = main(
        ["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={folder / 'source'}", f"out={folder / 'data'}"]
    )
    assert code == 0
    return folder / "data"


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
