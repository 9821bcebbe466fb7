"""Judges without a server: a model of this process, or the answers of another log."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from firered_lit.errors import UserError
from firered_lit.judges.asker import Asker
from firered_lit.judges.log import Log
from firered_lit.judges.record import is_final, reply_of, row_of
from firered_lit.judges.reply import Kind, Reply, one_line
from firered_lit.judges.request import ChatRequest
from firered_lit.places import user_path

T = TypeVar("T")
KEY = ("request", "repeat")


class Answerer(Protocol):
    """A source of answers in this process: `callbacks.judge.local.LocalVLM`, or `ReplayedLog`.

    Attributes:
        version: The model's name, "" where requests name it.
    """

    version: str

    def answer(self, request: ChatRequest) -> Reply:
        """Return the reply. One thread asks, one request at a time."""
        ...


class ReplayedLog:
    """The answers of another log, for equal requests; what is not there is an error.

    Args:
        log: The log.

    Raises:
        UserError: There is no such file.
    """

    version = ""

    def __init__(self, log: str) -> None:
        path = user_path(log)
        if not path.is_file():
            raise UserError(f"judge log {log}: no such file")
        self.log = Log(path, KEY, counts=is_final)

    def answer(self, request: ChatRequest) -> Reply:
        """Return the answer in the log."""
        reply = reply_of(self.log.find(request.digest, request.repeat))
        if reply is None:
            return Reply(Kind.ERROR, reason=f"{self.log.path} has no answer to this request")
        return replace(reply, replayed=False)


class LocalJudge(Asker):
    """A judge in a thread of its own, with the log of a server's client.

    Args:
        answerer: What answers.
        log: A file to which a line is added for each request.
        replay: Answer from the log what has been answered there.
    """

    parallel = 1

    def __init__(self, answerer: Answerer, log: str | None = None, replay: bool = False) -> None:
        self.answerer = answerer
        self.log = None if log is None else Log(log, KEY)
        self.replay = replay
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="judge")

    @property
    def name(self) -> str:
        """The model's name."""
        return self.answerer.version or type(self.answerer).__name__

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine that awaits `complete` in the judge's thread."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="local judge", daemon=True)
                self._thread.start()
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    async def complete(self, request: ChatRequest) -> Reply:
        """Return what comes of a request, from the log or from the model.

        Raises:
            UserError: The log cannot be written, or the model cannot be loaded.
        """
        if self.replay and self.log is not None:
            known = reply_of(self.log.find(request.digest, request.repeat))
            if known is not None:
                return known
        begun = time.monotonic()
        reply = await asyncio.get_running_loop().run_in_executor(self._worker, self._answer, request)
        reply = replace(reply, tries=1, seconds=time.monotonic() - begun)
        self.record(request, reply)
        return reply

    def _answer(self, request: ChatRequest) -> Reply:
        try:
            return self.answerer.answer(request)
        except UserError:
            raise
        except Exception as problem:  # a library's own words for a picture or a text that it cannot use
            return Reply(Kind.ERROR, reason=one_line(f"{type(problem).__name__}: {problem}"))

    def record(self, request: ChatRequest, reply: Reply) -> None:
        """Add a line to the log, where there is one."""
        if self.log is not None:
            self.log.add(row_of(request, reply, self.name))

    def close(self) -> None:
        """End the threads; what is being answered is waited for."""
        with self._lock:
            loop, self._loop = self._loop, None
        self._worker.shutdown(cancel_futures=True)
        if loop is not None and self._thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    def __enter__(self) -> "LocalJudge":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
