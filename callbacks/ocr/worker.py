"""An OCR engine in a process of its own, so that one that hangs or is killed costs rewards and not the run.

Parent and child talk over two pipes: a line of JSON, then the images' bytes one way; a line of JSON the other.
"""

import contextlib
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
from typing import IO, Any

import numpy as np

from callbacks.ocr.engine import Engine, Picture, paddle_engine
from firered_lit.rewards.layout_ocr import Char

ROOT = Path(__file__).resolve().parents[2]
_FAULTS = (OSError, EOFError, ValueError, KeyError, TypeError)  # errors of a pipe, and of an answer that is none
KILLED = -9  # exit code of a process that the system killed


class EngineError(Exception):
    """The engine gave no reading: it raised, hung, died or could not be built."""


class EngineProcess:
    """A handle on the process. It is started when first asked, and again after a fault. For one thread at a time.

    Args:
        options: Arguments of `factory`, as JSON can hold them.
        factory: A function of a module, which builds the engine in the other process. The function itself, never its
            name, so that no text can choose the function that this process runs.
        limit: Seconds that one reading may take.
        start_limit: Seconds that building the engine may take.
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
        self.limit = limit
        self.start_limit = start_limit
        self._begin()

    def _begin(self) -> None:
        """Set what belongs to the process, of which there is none yet."""
        self.starts = 0  # times that it was built
        self._process: subprocess.Popen[bytes] | None = None
        self._characters: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process builds an engine of its own from."""
        settings = ("options", "factory", "limit", "start_limit")
        return {name: getattr(self, name) for name in settings}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._begin()

    @property
    def pid(self) -> int | None:
        """Id of the process; None while there is none."""
        return self._process.pid if self._process else None

    def characters(self) -> frozenset[str]:
        """Return the characters that the recogniser can read. Builds the engine."""
        with self._lock:
            self._started()
            return self._characters

    def read(self, images: Sequence[Picture]) -> list[list[Char] | str]:
        """Return the characters of each image, or the reason why that image could not be read.

        Raises:
            EngineError: All images are lost.
        """
        header = json.dumps({"shapes": [image.shape for image in images]}).encode()
        pixels = [np.ascontiguousarray(image).tobytes() for image in images]
        request = b"".join([header, b"\n", *pixels])
        with self._lock:
            process = self._started()
            try:
                self._send(process, request)
                answer = self._answer(process, self.limit)
                return [_reading(plain) for plain in answer["images"]]
            except _FAULTS as problem:
                raise EngineError(self._autopsy(process, problem)) from problem

    def close(self) -> None:
        """End the process; a later reading starts another."""
        process = self._process
        self._process = None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in _pipes(process):
                with contextlib.suppress(OSError):
                    pipe.close()

    def __del__(self) -> None:
        self.close()

    def _started(self) -> "subprocess.Popen[bytes]":
        """Return the process, which is started when there is none. Raises EngineError."""
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.close()
        self.starts += 1
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - the process outlives this call
        paths = [str(ROOT)]
        if os.environ.get("PYTHONPATH"):
            paths.append(os.environ["PYTHONPATH"])
        process = subprocess.Popen(
            [sys.executable, "-m", "callbacks.ocr.worker", self.factory, json.dumps(self.options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C is for the run to answer
        )
        self._process = process
        self._rest = b""
        try:
            self._characters = frozenset(self._answer(process, self.start_limit)["characters"])
        except _FAULTS as problem:
            raise EngineError(f"not built: {self._autopsy(process, problem)}") from problem
        return process

    def _send(self, process: "subprocess.Popen[bytes]", data: bytes) -> None:
        """Write within the limit: a child that does not read leaves the pipe full."""
        stdin, _ = _pipes(process)
        out = stdin.fileno()
        until = time.monotonic() + self.limit
        os.set_blocking(out, False)
        rest = memoryview(data)
        while rest:
            _, writable, _ = select.select([], [out], [], max(0.0, until - time.monotonic()))
            if not writable:
                raise TimeoutError
            written = os.write(out, rest[: 1 << 16])
            rest = rest[written:]

    def _answer(self, process: "subprocess.Popen[bytes]", limit: float) -> dict[str, Any]:
        """Return the next line that the process writes, within so many seconds."""
        _, stdout = _pipes(process)
        until = time.monotonic() + limit
        while b"\n" not in self._rest:
            readable, _, _ = select.select([stdout], [], [], max(0.0, until - time.monotonic()))
            if not readable:
                raise TimeoutError
            more = os.read(stdout.fileno(), 1 << 20)
            if not more:
                raise EOFError
            self._rest += more
        line, self._rest = self._rest.split(b"\n", 1)
        return json.loads(line)

    def _autopsy(self, process: "subprocess.Popen[bytes]", problem: Exception) -> str:
        """End the process, and return the reason of its fault in one line, for the log."""
        late = isinstance(problem, TimeoutError)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if late else 1)
        code = process.returncode
        self.close()
        if late:
            return f"no answer within {self.limit:g} s" if self._characters else "no answer in time"

        # The last line that it wrote.
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        written = [line.strip() for line in lines if line.strip()]
        if written and code != KILLED:
            return f"its process ended ({code}: {written[-1][:200]})"
        return f"its process ended ({code})"


def _pipes(process: "subprocess.Popen[bytes]") -> tuple[IO[bytes], IO[bytes]]:
    """Return the standard input and output of a process that was started with pipes for both."""
    if process.stdin is None or process.stdout is None:
        raise OSError("the process has no pipes")
    return process.stdin, process.stdout


def _reading(plain: Any) -> list[Char] | str:
    """Return a reading from its JSON."""
    if isinstance(plain, str):
        return plain
    return [Char(*char) for char in plain]


def serve(engine: Engine, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Read images until the parent is gone. An image that the engine cannot read does not cost the others theirs.

    Args:
        engine: Reads them.
        requests: Pipe with lines of JSON, the bytes of images after each.
        answers: Pipe for lines of JSON.
    """

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message).encode() + b"\n")
        answers.flush()

    send({"characters": "".join(sorted(engine.characters))})
    for line in requests:
        shapes = json.loads(line)["shapes"]
        images = []
        for shape in shapes:
            content = requests.read(int(np.prod(shape)))
            images.append(np.frombuffer(content, np.uint8).reshape(shape))
        send({"images": [_plain(reading) for reading in read_each(engine, images)]})


def read_each(engine: Engine, images: Sequence[Picture]) -> list[list[Char] | str]:
    """Return the readings of images: all at once or, when that raises, one by one, to know which are the cause."""
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
    """Return a reading as JSON holds it."""
    if isinstance(reading, str):
        return reading
    return [[char.text, char.x, char.y, char.w, char.h, char.line] for char in reading]


def main() -> None:
    """Run the engine: `python -m callbacks.ocr.worker module:function options`."""
    threading.Thread(target=_follow, args=(os.getppid(),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # libraries print; that must not be taken for an answer
    module, name = sys.argv[1].split(":")
    engine = getattr(__import__(module, fromlist=[name]), name)(**json.loads(sys.argv[2]))
    serve(engine, sys.stdin.buffer, answers)


if __name__ == "__main__":
    main()
