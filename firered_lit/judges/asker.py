"""The interface of judges that answer in a loop of their own: ask one, ask many, ask from any thread."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from firered_lit.judges.reply import Reply
from firered_lit.judges.request import ChatRequest

T = TypeVar("T")


class Asker(ABC):
    """A judge.

    Attributes:
        parallel: Requests under way at once.
    """

    parallel: int

    @property
    @abstractmethod
    def name(self) -> str:
        """The judge's name in errors: a server's address, or a model's name."""

    @abstractmethod
    def record(self, request: ChatRequest, reply: Reply) -> None:
        """Add a line to the log, where there is one."""

    @abstractmethod
    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine that awaits `complete` in the judge's thread."""

    @abstractmethod
    async def complete(self, request: ChatRequest) -> Reply:
        """Return what comes of a request, of any kind. To be awaited in a coroutine that `spawn` runs."""

    def submit(self, request: ChatRequest) -> "Future[Reply]":
        """Begin a request from any thread; see `spawn` and `complete`."""
        return self.spawn(self.complete(request))

    def ask(self, request: ChatRequest) -> Reply:
        """Wait for one request."""
        return self.submit(request).result()

    def ask_all(self, requests: Iterable[ChatRequest]) -> Iterator[tuple[ChatRequest, Reply]]:
        """Yield requests with their replies as they come. Requests are taken from the iterable as room for them is
        there, so that memory does not grow with their number."""
        waiting: dict[Future[Reply], ChatRequest] = {}
        done: list[Future[Reply]] = []
        came = threading.Condition()

        def ended(future: "Future[Reply]") -> None:
            with came:
                done.append(future)
                came.notify()

        def settled() -> Iterator[tuple[ChatRequest, Reply]]:
            with came:
                came.wait_for(lambda: done)
                futures = done[:]
                done.clear()
            for future in futures:
                yield waiting.pop(future), future.result()

        try:
            for request in requests:
                future = self.submit(request)
                waiting[future] = request
                future.add_done_callback(ended)
                while len(waiting) >= 2 * self.parallel:
                    yield from settled()
            while waiting:
                yield from settled()
        finally:
            for future in list(waiting):
                future.cancel()
