"""Annotators and rows for tests of the corpus engine, in a module of their own, where other processes find them."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

from datamodules.sources.raw import RawRows
from firered_lit.curation.annotator import Annotator


class Corner(Annotator):
    """The red of a picture's first pixel."""

    columns = {"red": "count"}  # noqa: RUF012

    def annotate(self, batch):
        return {"red": [int(picture.pixels[0, 0, 0]) for picture in batch]}


class Look(Annotator):
    """The mean colour."""

    columns = {"vector": "vector"}  # noqa: RUF012

    def annotate(self, batch):
        return {"vector": [picture.pixels.mean((0, 1)) / 255 for picture in batch]}


class Faulty(Annotator):
    """Raises, returns too few values, values of another kind, dies or hangs at the picture of a number, or at all."""

    columns = {"value": "number"}  # noqa: RUF012

    def __init__(self, fault, number=2):
        self.fault, self.number = fault, number

    def annotate(self, batch):
        if any(self._is_bad(picture) for picture in batch):
            return self._fail(batch)
        return {"value": [1.0] * len(batch)}

    def _is_bad(self, item):
        return self.number is None or item.path.endswith(f"{self.number:04d}.jpg")

    def _fail(self, batch):
        if self.fault == "raises":
            raise RuntimeError("boom")
        if self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.fault == "hangs":
            time.sleep(600)
        values = {"too few": [], "text": ["much"] * len(batch), "nan": [float("nan")] * len(batch)}
        return {"value": values[self.fault]}


class Slow(Annotator):
    """Writes the number of its process to a file, and takes a minute."""

    columns = {"value": "number"}  # noqa: RUF012

    def __init__(self, pids):
        self.pids = str(pids)

    def annotate(self, batch):
        with Path(self.pids).open("a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(60)
        raise RuntimeError


class DeadlyRows(RawRows):
    """Rows of which one picture kills the process that opens it."""

    def __init__(self, source, at):
        super().__init__(source)
        self.at = at

    def open(self, path, role):
        if path.endswith(self.at):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open(path, role)


class Deadly(Annotator):
    """Notes every picture that it sees, and at one of them, the first time, kills the worker that it works for."""

    columns = {"value": "number"}  # noqa: RUF012

    def __init__(self, folder, at):
        self._folder = Path(folder)
        self.at = at

    def annotate(self, batch):
        names = [Path(picture.path).name for picture in batch]
        died = self._folder / "died"
        if self.at in names and multiprocessing.parent_process() and not died.exists() and self._in_cluster():
            died.touch()
            os.kill(multiprocessing.parent_process().pid, signal.SIGKILL)
            time.sleep(600)
        with (self._folder / "seen").open("a") as file:
            file.writelines(f"{name}\n" for name in names)
        return {"value": [1.0] * len(batch)}

    def _in_cluster(self):
        """Return whether the parent is a worker of Ray."""
        title = Path(f"/proc/{multiprocessing.parent_process().pid}/cmdline").read_bytes()
        return title.startswith(b"ray::")
