"""`python -m firered_lit ...` as a process of its own."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from warm import Started, module

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Process:
    """`python -m firered_lit ...` in a process of its own, with its output in a file."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.log = log
        log.write_bytes(b"")
        self.popen = Started(module, "firered_lit", *arguments, log=log, environment=ENVIRONMENT, folder=ROOT)

    def wait(self, timeout: float = 240) -> int:
        try:
            return self.popen.wait(timeout)
        finally:
            self.popen.kill()

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
