"""One asynchronous client for OpenAI-compatible servers: bounded, patient within limits, its log its only state."""

import asyncio
import atexit
import contextlib
import email.utils
import json
import logging
import math
import os
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from firered_lit.config.api_keys import KeyVariable
from firered_lit.draws import chooser
from firered_lit.errors import UserError
from firered_lit.judges.address import ServerAddress
from firered_lit.judges.asker import Asker
from firered_lit.judges.log import Log
from firered_lit.judges.record import reply_of, row_of
from firered_lit.judges.reply import Kind, NoAnswerError, Reply, is_filter, one_line, read
from firered_lit.judges.request import ChatRequest

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)
T = TypeVar("T")

MOST_BYTES = 1 << 24  # of one answer
PASSING = (408, 409, 425, 429)  # HTTP codes that may pass, as all from 500 on do
SPENT = "insufficient_quota"  # of a 429 that does not pass


class Client(Asker):
    """A chat model behind `POST {url}/chat/completions`. Requests are sent by one thread, however many are under way.

    What may pass (no connection, 429, 5xx, an answer that is none) is tried again, `retries` times, after 1, 2, 4 ...
    times `backoff` seconds and up to a quarter more, by a draw. Where the server says `Retry-After`, nobody asks it
    before that. Redirects are never followed. The thread starts with the first request and ends with `close`.

    Args:
        url: as http://localhost:8000/v1.
        key_variable: environment variable that holds the key, where the server wants one; its name ends in _API_KEY.
        timeout: seconds that one try may take, from the connection to the end of the answer.
        retries: tries after the first.
        backoff: seconds before the second try.
        longest_wait: seconds, at most, that a `Retry-After` is waited for.
        parallel: requests under way at once.
        memory: bytes that the requests under way may have, all of them together; one is sent whatever its size.
        budget: HTTP requests in all, tries included; None sets no limit.
        log: a file to which a line is added for each request.
        replay: answer from the log what has been answered there.
        seed: keys the draws of waiting times.

    Raises:
        UserError: see `Address.of`; a number that means nothing.
    """

    def __init__(
        self,
        url: str,
        key_variable: KeyVariable = "OPENAI_API_KEY",
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 0.5,
        longest_wait: float = 120.0,
        parallel: int = 8,
        memory: int = 1 << 30,
        budget: int | None = None,
        log: str | None = None,
        replay: bool = False,
        seed: int = 0,
    ) -> None:
        positive = {"timeout": timeout, "parallel": parallel, "memory": memory}
        for name, value in positive.items():
            if not 0 < value < math.inf:
                raise UserError(f"judge.{name}={value}: must be above 0")
        natural = {"retries": retries, "backoff": backoff, "longest_wait": longest_wait, "budget": budget or 0}
        for name, value in natural.items():
            if not 0 <= value < math.inf:
                raise UserError(f"judge.{name}={value}: must be at least 0")
        if replay and log is None:
            raise UserError("judge.replay: name the log to answer from")
        self.address = ServerAddress.of(url, key_variable)
        self.timeout = timeout
        self.retries = retries
        self.backoff = backoff
        self.longest_wait = longest_wait
        self.parallel = parallel
        self.memory = memory
        self.budget = budget
        self.log = None if log is None else Log(log, ("request", "repeat"))
        self.replay = replay
        self.seed = seed
        self.kinds: Counter[Kind] = Counter()  # of the replies so far
        self.spent = 0  # HTTP requests so far
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._warned = False

    @property
    def name(self) -> str:
        """The judge's name in errors: the server's address."""
        return self.address.url

    @property
    def is_spent(self) -> bool:
        """Return whether the budget is spent, so that nothing more is sent."""
        return self.budget is not None and self.spent >= self.budget

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> "Future[T]":
        """Run a coroutine that awaits `complete` in the client's thread. The future raises what it raises; cancelled,
        what is under way is broken off and what is not is never sent."""
        with self._lock:
            if self._worker is None:
                self._announce()
                self._worker = _Worker(self)
            return asyncio.run_coroutine_threadsafe(coroutine, self._worker.loop)

    async def complete(self, request: ChatRequest) -> Reply:
        """Return what comes of a request, of any kind. To be awaited in a coroutine that `spawn` runs.

        Raises:
            UserError: the log cannot be written or read.
        """
        worker = self._worker
        if worker is None:  # closed in this moment
            raise asyncio.CancelledError
        return await worker.complete(request)

    def record(self, request: ChatRequest, reply: Reply) -> None:
        """Add a line to the log, where there is one.

        Raises:
            UserError: the log cannot be written.
        """
        if self.log is not None:
            self.log.add(row_of(request, reply, self.address.url))

    def close(self) -> None:
        """Break off what is under way and end the thread. A later request starts another one."""
        with self._lock:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.stop()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _announce(self) -> None:
        """Say once what a user would want to know of how the server is reached."""
        if self._warned:
            return
        self._warned = True
        if self.address.in_clear:
            logger.warning("judge %s: the key travels without encryption; use https://", self.address.url)
        if self.address.proxy is not None:
            logger.warning(
                "judge %s: asked through the proxy %s", self.address.url, urlsplit(self.address.proxy).hostname
            )

    def waiting_time(self, request: ChatRequest, tries: int) -> float:
        """Return the seconds to wait after so many tries of a request that failed: keyed by both and the seed."""
        draw = chooser(self.seed, "retry", request.digest, request.repeat, tries).random()
        return self.backoff * 2 ** (tries - 1) * (1 + draw / 4)


class _Worker:
    """A thread with an event loop, the connections of a client and what bounds them."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.loop = asyncio.new_event_loop()
        self.slots = asyncio.Semaphore(client.parallel)
        self.writing = asyncio.Lock()
        self.ahead = asyncio.Semaphore(client.parallel + 1 + client.parallel // 8)  # requests that are written down
        self.room = _Room(client.memory)
        self.free_at = 0.0  # of the loop's clock: before that, the server does not want to be asked
        self.session: aiohttp.ClientSession | None = None
        self.thread = threading.Thread(target=self._run, name="judge", daemon=True)
        self.thread.start()
        atexit.register(self.stop)

    def stop(self) -> None:
        """Break off everything and wait for the thread, unless it is the one that asks."""
        atexit.unregister(self.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self.thread:
            self.thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        """Cancel the tasks, close the connections and the threads that looked up names."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self.session is not None:
            await self.session.close()
        await self.loop.shutdown_default_executor()

    async def complete(self, request: ChatRequest) -> Reply:
        """Answer a request from the log or by the server, and write down what came of it."""
        client = self.client
        if client.replay and client.log is not None:
            known = reply_of(client.log.find(request.digest, request.repeat))
            if known is not None:
                client.kinds[known.kind] += 1
                return known
        async with self.ahead, self.room.of(request.size):
            body = await self._written(request)  # while others are under way, so that a free slot is used at once
            async with self.slots:
                begun = self.loop.time()
                reply = await self._patiently(request, body)
        reply = replace(reply, seconds=self.loop.time() - begun)
        client.kinds[reply.kind] += 1
        client.record(request, reply)
        return reply

    async def _written(self, request: ChatRequest) -> bytes:
        """Return a request's body. After each the loop sees to the connections, so that what is written is sent."""
        async with self.writing:
            body = request.body()
            await asyncio.sleep(0)
            return body

    async def _patiently(self, request: ChatRequest, body: bytes) -> Reply:
        """Try until there is an answer, or one that no other try would change, or no try is left."""
        client = self.client
        reply = Reply(Kind.ERROR)
        for tries in range(1, client.retries + 2):
            # Wait, but for nothing: what a spent budget leaves unasked is known at once.
            if tries > 1 and not client.is_spent:
                await asyncio.sleep(client.waiting_time(request, tries - 1))
            while not client.is_spent and (early := self.free_at - self.loop.time()) > 0:
                await asyncio.sleep(early)
            if client.is_spent:
                return Reply(Kind.BUDGET, reason=f"the budget of {client.budget} requests is spent", tries=tries - 1)
            client.spent += 1
            reply, passing = await self._once(body)
            if not passing:
                return replace(reply, tries=tries)
        return replace(reply, reason=f"{reply.reason}, {client.retries + 1} times", tries=client.retries + 1)

    async def _once(self, body: bytes) -> tuple[Reply, bool]:
        """One try, and whether what it met may pass."""
        timeout = self.client.timeout
        try:
            async with asyncio.timeout(timeout):
                status, headers, raw = await self._post(body)
        except TimeoutError:
            return Reply(Kind.LATE, reason=f"no answer within {timeout:g} s"), True
        except Exception as problem:  # a network may fail in any way
            return Reply(Kind.ERROR, reason=_network_reason(problem)), True
        if status == 200:
            return _answer(raw)
        return self._refusal(status, headers, raw)

    async def _post(self, body: bytes) -> tuple[int, Any, bytes]:
        """Status, headers and the body of one answer, which is read no further than `MOST_BYTES`."""
        address = self.client.address
        if self.session is None:
            self.session = _session()
        headers = {"Content-Type": "application/json"}
        if address.key is not None:
            headers["Authorization"] = f"Bearer {address.key}"
        url = f"{address.url}/chat/completions"
        post = self.session.post(url, data=body, headers=headers, allow_redirects=False, proxy=address.proxy)
        async with post as response:
            raw = bytearray()
            async for piece in response.content.iter_any():
                raw += piece
                if len(raw) > MOST_BYTES:
                    raise ValueError(f"an answer of more than {MOST_BYTES >> 20} MiB")
            return response.status, response.headers, bytes(raw)

    def _refusal(self, status: int, headers: Any, raw: bytes) -> tuple[Reply, bool]:
        """Return what an HTTP status other than 200 means, and whether it may pass."""
        address = self.client.address
        body = raw.decode(errors="replace")
        reason = f"HTTP {status} {one_line(body)}".strip()
        if address.key is not None:
            reason = reason.replace(address.key, "***")  # some servers repeat the key that they do not know
        if 300 <= status < 400:
            where = _without_secrets(headers.get("Location", ""))
            reason = f"HTTP {status}: redirects to {where}, which is not followed; name the url that answers itself"
            return Reply(Kind.REDIRECTED, reason=reason), False
        if status == 429:
            self._hold_back(headers)
            return Reply(Kind.LIMITED, reason=reason), SPENT not in body
        if status >= 500 or status in PASSING:
            self._hold_back(headers)
            return Reply(Kind.ERROR, reason=reason), True
        if is_filter(body):
            return Reply(Kind.REFUSED, reason=f"refused: {reason}"), False
        if status in (401, 403):
            state = "is not the right one" if address.key else "is not set"
            return Reply(Kind.KEY, reason=f"{reason}; the key in {address.key_variable} {state}"), False
        return Reply(Kind.REJECTED, reason=reason), False

    def _hold_back(self, headers: Any) -> None:
        """Ask nothing before the server wants to be asked, or `longest_wait` is over."""
        seconds = retry_after(headers.get("Retry-After"), time.time())
        if seconds is not None:
            until = self.loop.time() + min(seconds, self.client.longest_wait)
            self.free_at = max(self.free_at, until)


class _Room:
    """Bytes that requests under way may have together; a request larger than all of it waits to be alone."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def of(self, size: int) -> AsyncIterator[None]:
        """Wait for so much room, and hold it."""
        async with self.changed:
            await self.changed.wait_for(lambda: not self.taken or self.taken + size <= self.size)
            self.taken += size
        try:
            yield
        finally:
            self.taken -= size
            async with self.changed:
                self.changed.notify_all()


def retry_after(value: str | None, now: float) -> float | None:
    """Return the seconds that a `Retry-After` header asks for; None for none, or one that says nothing.

    Args:
        value: seconds, or an HTTP date.
        now: seconds since the epoch.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return max(seconds, 0.0) if math.isfinite(seconds) else None


def _without_secrets(location: str) -> str:
    """An address without what may be a secret in it: a name, a password, a query."""
    parts = urlsplit(location)
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if host else parts.path or "nowhere"


def _session() -> "aiohttp.ClientSession":
    """Connections without a limit of their own, without cookies, and without anything out of the environment."""
    import aiohttp

    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
    )


def _answer(raw: bytes) -> tuple[Reply, bool]:
    """The reply in a body, and whether another try may give a better one."""
    try:
        return read(json.loads(raw)), False
    except NoAnswerError as problem:
        if is_filter(str(problem)):
            return Reply(Kind.REFUSED, reason=f"refused: {problem}"), False
        return Reply(Kind.ERROR, reason=str(problem)), True
    except (ValueError, RecursionError):
        return Reply(Kind.ERROR, reason="an answer that is no JSON"), True


def _network_reason(problem: Exception) -> str:
    """Return what went wrong on the way, in one line."""
    system = getattr(problem, "os_error", problem)  # of a connection that aiohttp could not make
    if isinstance(system, ssl.SSLError):
        return one_line(f"no secure connection: {system}")
    if isinstance(system, OSError) and system.errno is not None and system.errno > 0:
        return os.strerror(system.errno).lower()
    return one_line(f"{type(problem).__name__} {problem}")
