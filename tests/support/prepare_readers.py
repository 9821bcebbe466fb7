"""Readers of layouts for tests of `prepare`, in a module of their own, where other processes find them."""

import multiprocessing
import os
import signal
import time
from pathlib import Path


class DeadlyReader:
    """Notes every text that it is asked for, and at one of them, the first time, kills a process.

    Args:
        folder: Where it notes them.
        at: The text.
        whom: "itself", the process that encodes, or "the worker" of Ray that this one works for.
    """

    identity = "deadly"

    def __init__(self, folder, at, whom):
        self._folder = Path(folder)
        self.at = at
        self.whom = whom
        self._command = os.getpid()

    def __call__(self, target, source, text, replaced):
        died = self._folder / "died"
        if text == self.at and not died.exists() and os.getpid() != self._command:
            died.touch()
            self._kill()
        with (self._folder / "seen").open("a") as file:
            file.write(f"{text}\n")
        return {"text": text}

    def _kill(self):
        victim = os.getpid()
        if self.whom == "the worker":
            victim = multiprocessing.parent_process().pid
            assert Path(f"/proc/{victim}/cmdline").read_bytes().startswith(b"ray::")
        os.kill(victim, signal.SIGKILL)
        time.sleep(600)


class UnsendableReader(DeadlyReader):
    """A reader with a part that no other process can have."""

    def __init__(self, folder):
        super().__init__(folder, at="", whom="")
        self.function = lambda: None
