"""An OCR engine in a process of its own, so that one that hangs or is killed costs rewards and not the run.

Parent and child talk over two pipes: a line of JSON, then the images' bytes one way; a line of JSON the other.
"""

import contextlib
import io
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from callbacks.ocr_engine import Engine, Picture, paddle_engine
from firered_lit.rewards.layout_ocr import Char

ROOT = Path(__file__).resolve().parents[1]
_FAULTS = (OSError, EOFError, ValueError, KeyError, TypeError)  # of a pipe, and of an answer that is none


class EngineError(Exception):
    """The engine gave no reading: it raised, hung, died or could not be built."""


class EngineProcess:
    """A handle on the process. It is started when first asked, and again after a fault. For one thread at a time.

    Args:
        options: arguments of `factory`, as JSON can hold them.
        factory: a function of a module, which builds the engine in the other process. The function itself, never its
            name, so that no text can choose what that process runs.
        limit: seconds that one reading may take.
        start_limit: seconds that building the engine may take.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        *,
        factory: Callable[..., Engine] = paddle_engine,
        limit: float = 60.0,
        start_limit: float = 180.0,
    ) -> None:
        self.options = dict(options)
        self.factory = f"{factory.__module__}:{factory.__name__}"
        self.limit, self.start_limit = limit, start_limit
        self.starts = 0  # how often it was built
        self._process: subprocess.Popen[bytes] | None = None
        self._characters: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def characters(self) -> frozenset[str]:
        """What the recogniser can read. Builds the engine."""
        with self._lock:
            self._started()
            return self._characters

    def read(self, images: Sequence[Picture]) -> list[list[Char] | str]:
        """Characters of each image, or why that image could not be read. Raises EngineError when all are lost."""
        with self._lock:
            process = self._started()
            try:
                header = json.dumps({"shapes": [image.shape for image in images]}).encode() + b"\n"
                self._send(process, header + b"".join(np.ascontiguousarray(image).tobytes() for image in images))
                answer = self._answer(process, self.limit)
                return [a if isinstance(a, str) else [Char(*char) for char in a] for a in answer["images"]]
            except _FAULTS as problem:
                raise EngineError(self._autopsy(problem)) from problem

    def close(self) -> None:
        """End the process; a later reading starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()

    def __del__(self) -> None:
        self.close()

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self.starts += 1
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - the process outlives this call
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "callbacks.ocr_worker", self.factory, json.dumps(self.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C is for the run to answer
        )
        self._rest = b""
        try:
            self._characters = frozenset(self._answer(self._process, self.start_limit)["characters"])
        except _FAULTS as problem:
            raise EngineError(f"not built: {self._autopsy(problem)}") from problem
        return self._process

    def _send(self, process: "subprocess.Popen[bytes]", data: bytes) -> None:
        """Write within the limit: a child that does not read leaves the pipe full."""
        out, until, view = process.stdin.fileno(), time.monotonic() + self.limit, memoryview(data)
        os.set_blocking(out, False)
        while view:
            if not select.select([], [out], [], max(0.0, until - time.monotonic()))[1]:
                raise TimeoutError
            view = view[os.write(out, view[: 1 << 16]) :]

    def _answer(self, process: "subprocess.Popen[bytes]", limit: float) -> dict[str, Any]:
        """The next line."""
        until = time.monotonic() + limit
        while b"\n" not in self._rest:
            if not select.select([process.stdout], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError
            if not (more := os.read(process.stdout.fileno(), 1 << 20)):
                raise EOFError
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def _autopsy(self, problem: Exception) -> str:
        """Why, in one line, for the log; ends the process."""
        process = self._process
        late = isinstance(problem, TimeoutError)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if late else 1)
        code = process.returncode
        self.close()
        if late:
            return f"no answer within {self.limit:g} s" if self._characters else "no answer in time"
        self._errors.seek(0)
        said = [line.strip() for line in self._errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f"its process ended ({code}{': ' + said[-1][:200] if said and code != -9 else ''})"


def serve(engine: Engine, requests: io.BufferedIOBase, answers: io.BufferedIOBase) -> None:
    """Read images until the parent is gone. An image that the engine cannot read does not cost the others theirs."""

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    send({"characters": "".join(sorted(engine.characters))})
    for line in requests:
        shapes = json.loads(line)["shapes"]
        images = [np.frombuffer(requests.read(int(np.prod(s))), np.uint8).reshape(s) for s in shapes]
        send({"images": [_plain(reading) for reading in read_each(engine, images)]})


def read_each(engine: Engine, images: Sequence[Picture]) -> list[list[Char] | str]:
    """All at once; when that raises, one by one, to know which ones are the cause."""
    try:
        return list(engine.read(images))
    except Exception as problem:  # an engine may fail in any way
        if len(images) == 1:
            return [" ".join(f"{type(problem).__name__}: {problem}".split())]
        return [read_each(engine, [image])[0] for image in images]


def _follow(parent: int) -> None:
    """End with the parent, whatever the engine is doing."""
    while os.getppid() == parent:
        time.sleep(2)
    os._exit(1)


def _plain(reading: list[Char] | str) -> Any:
    return reading if isinstance(reading, str) else [[c.text, c.x, c.y, c.w, c.h, c.line] for c in reading]


def main() -> None:
    """`python -m callbacks.ocr_worker module:function options`."""
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print; that must not be taken for an answer
    module, name = sys.argv[1].split(":")
    engine = getattr(__import__(module, fromlist=[name]), name)(**json.loads(sys.argv[2]))
    serve(engine, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
