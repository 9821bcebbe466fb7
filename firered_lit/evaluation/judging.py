"""The second step: ask the judge about every picture that lies there and was not judged yet.

The log is the only state. A question whose answer stands there is not asked again, whatever has happened in between; a
picture that was drawn anew is another question.
"""

import asyncio
import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tqdm import tqdm

from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.judges.asker import Asker
from firered_lit.judges.reply import FINAL, Kind, Reply
from firered_lit.judges.request import ChatRequest

from .benchmarks.pictures import file_or_none
from .drawing import own_items
from .protocols import Asking, Benchmark, EvaluationFolder, Item
from .responses import MOST_ATTEMPTS, Attempt, Response, Responses, marked, question_of, texts_of
from .scores import Scoring

logger = logging.getLogger(__name__)
T = TypeVar("T")

# How often the official scripts ask for an answer that can be read: GEdit-Bench without end, the others once.
OFFICIAL_ATTEMPTS = {"gedit": 5}
GIVES_UP_AFTER = 8  # questions in a row, at least, that a server fails before it is called gone
BUILDERS = 2  # threads that read and encode pictures


@dataclass
class JudgingOutcome:
    """The outcome of a judging.

    Attributes:
        items: Pictures whose questions were looked at.
        known: How many of them were answered before.
        kinds: Kind of reply -> how many requests ended so.
        unreadable: One line per picture that could not be shown to the judge, the first ones.
        not_shown: How many such pictures there are.
    """

    items: int = 0
    known: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    unreadable: list[str] = field(default_factory=list)
    not_shown: int = 0

    def __str__(self) -> str:
        told = [f"{self.items} pictures, {self.known} of them judged before"]
        told.extend(f"{count} {kind}" for kind, count in sorted(self.kinds.items()))
        if self.not_shown:
            told.append(f"{self.not_shown} not readable")
        return ", ".join(told)


def ask(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    client: Asker,
    asking: Asking,
    *,
    attempts: int | None = None,
    repeats: int = 1,
    repeated_items: int = 50,
    shard: int = 0,
    num_shards: int = 1,
) -> JudgingOutcome:
    """Ask about all pictures of all models; run again, it goes on.

    Args:
        folder: The evaluation; its log gets the answers.
        benchmarks: What was drawn.
        models: Names of the models whose pictures are judged.
        client: The judge. It logs into `folder.responses`.
        asking: Settings of the judge.
        attempts: How often an answer that the official code cannot read is asked for. None: as the official scripts
            do, once for REDEdit-Bench and ImgEdit and up to 5 times for GEdit-Bench.
        repeats: How often a subset of the items is judged, for the judge's own noise.
        repeated_items: Items of each suite in that subset.
        shard: This process asks about every num_shards-th item, from this one on: those that it has drawn.
        num_shards: How many processes share the work.

    Raises:
        UserError: The judge takes no question at all, or its budget is spent. What was answered is in the log.
    """
    if attempts is not None and not 1 <= attempts <= MOST_ATTEMPTS:
        raise UserError(f"attempts {attempts}: a number from 1 to {MOST_ATTEMPTS} is needed")
    judging = _Judging(folder, client, asking, attempts)
    work = (benchmarks, models, repeats, repeated_items, shard, num_shards)
    count = sum(1 for _ in _tasks(*work))
    future = client.spawn(judging.run(_tasks(*work), count))
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


@dataclass(frozen=True, slots=True)
class _JudgingTask:
    """One picture to be judged, for the `repeat`-th time."""

    benchmark: Benchmark
    fingerprint: str
    scoring: Scoring
    item: Item
    model: str
    repeat: int


def _tasks(
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    repeats: int,
    repeated_items: int,
    shard: int,
    num_shards: int,
) -> Iterator[_JudgingTask]:
    """Yield the tasks of a shard: its items once, then those of the subset again.

    A process asks about the pictures that it has drawn itself, of every model, and needs not wait for the others.
    """
    own = {(item.suite, item.id) for _, item in own_items(benchmarks, shard, num_shards)}
    for benchmark in benchmarks:
        suites = benchmark.suites()
        fingerprint = benchmark.fingerprint()
        judged = [item for item in benchmark.items() if suites[item.suite].requests]
        for repeat in range(repeats):
            chosen = judged if repeat == 0 else repeated(judged, repeated_items)
            for model in models:
                for item in chosen:
                    if (item.suite, item.id) in own:
                        yield _JudgingTask(benchmark, fingerprint, suites[item.suite], item, model, repeat)


def repeated(items: Sequence[Item], count: int) -> list[Item]:
    """Return `count` items of each suite, the same in every run, in their order."""
    kept: set[tuple[str, str]] = set()
    for suite in dict.fromkeys(item.suite for item in items):
        ids = [item.id for item in items if item.suite == suite]
        ids.sort(key=lambda item_id: seed_of("repeats", suite, item_id))
        kept.update((suite, item_id) for item_id in ids[:count])
    return [item for item in items if (item.suite, item.id) in kept]


class _Judging:
    """A judging under way, in the judge's loop."""

    def __init__(self, folder: EvaluationFolder, client: Asker, asking: Asking, attempts: int | None) -> None:
        self.folder = folder
        self.client = client
        self.asking = asking
        self.attempts = attempts
        self.responses = Responses(folder.responses)
        self.health = Health(client)
        self.judged = JudgingOutcome()
        self.begun: set[tuple[str, int]] = set()
        self.builders = ThreadPoolExecutor(BUILDERS, thread_name_prefix="pictures")

    async def run(self, tasks: Iterable[_JudgingTask], count: int) -> JudgingOutcome:
        """Work through the tasks, so many in all, as many at once as keep the judge busy."""
        room = asyncio.Semaphore(self.client.parallel + 2 * BUILDERS)
        running: set[asyncio.Task[None]] = set()
        failure: list[BaseException] = []

        with tqdm(total=count, unit="picture", desc="judge", smoothing=0.05, mininterval=1.0) as bar:

            def ended(job: "asyncio.Task[None]") -> None:
                running.discard(job)
                room.release()
                bar.update()
                if not job.cancelled() and job.exception() is not None:
                    failure.append(job.exception())  # type: ignore[arg-type]

            try:
                for task in tasks:
                    await room.acquire()
                    if failure or self.health.spent:
                        break
                    job = asyncio.ensure_future(self._judge(task))
                    running.add(job)
                    job.add_done_callback(ended)
                while running and not failure:
                    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for job in running:
                    job.cancel()
                await asyncio.gather(*running, return_exceptions=True)
                self.builders.shutdown(wait=False, cancel_futures=True)
        if failure:
            raise failure[0]
        self.health.conclude()
        self._conclude()
        return self.judged

    def _conclude(self) -> None:
        """Tell of pictures that could not be shown; refuse where that is all of them."""
        judged = self.judged
        if not judged.not_shown:
            return
        first = judged.unreadable[0]
        if judged.not_shown == judged.items:
            raise UserError(f"no picture could be shown to the judge: {first}")
        logger.warning("judge: %d pictures cannot be shown to it, such as %s", judged.not_shown, first)

    async def _judge(self, task: _JudgingTask) -> None:
        """Ask about one picture until there is an answer that can be read."""
        picture = self.folder.picture(task.model, task.item)
        data = await self._in_thread(file_or_none, picture)
        if data is None:
            return
        question = question_of(task.fingerprint, task.item, hashlib.sha256(data).hexdigest(), self.asking)
        if (question, task.repeat) in self.begun:  # another model has drawn the same picture
            return
        self.begun.add((question, task.repeat))

        self.judged.items += 1
        limit = self.attempts or OFFICIAL_ATTEMPTS.get(task.scoring.name, 1)
        requests: list[ChatRequest] = []
        asked = False
        for number in range(limit):
            attempt = await self._in_thread(
                self.responses.attempt, question, task.scoring.requests, task.repeat, number
            )
            if None in attempt:
                asked = True
                if not requests:
                    requests = await self._requests(task, data)
                if not requests:
                    return
                attempt = await self._answers(task, requests, attempt, question, number)
            if not _asks_again(task.scoring, attempt):
                break
        if not asked:
            self.judged.known += 1

    async def _requests(self, task: _JudgingTask, data: bytes) -> list[ChatRequest]:
        """Return the requests about a picture; none where it cannot be shown, which is counted."""
        try:
            return await self._in_thread(_build, task, data, self.asking)
        except UserError as problem:
            self.judged.not_shown += 1
            if len(self.judged.unreadable) < 5:
                self.judged.unreadable.append(str(problem))
            return []

    async def _answers(
        self, task: _JudgingTask, requests: Sequence[ChatRequest], known: Attempt, question: str, number: int
    ) -> Attempt:
        """Return an attempt with what was missing asked for."""
        calls = [call for call, response in enumerate(known) if response is None]
        asked = [marked(requests[call], question, call, task.repeat, number, task.item, task.model) for call in calls]
        replies = await asyncio.gather(*(self._reply(request) for request in asked))
        attempt = list(known)
        for call, reply in zip(calls, replies):
            attempt[call] = Response(reply, asked[0].model, "") if reply.kind in FINAL else None
        return tuple(attempt)

    async def _reply(self, request: ChatRequest) -> Reply:
        reply = await self.client.complete(request)
        if reply.replayed:  # the same request stands in the log under another question
            self.client.record(request, reply)
        else:
            self.judged.kinds[str(reply.kind)] += 1
            self.health.note(reply)
        return reply

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.builders, function, *arguments)


def _build(task: _JudgingTask, picture: bytes, asking: Asking) -> list[ChatRequest]:
    return task.benchmark.requests(task.item, picture, asking)


def _asks_again(scoring: Scoring, attempt: Attempt) -> bool:
    """Return whether the official code would ask again: all was answered, and not so that it can be read."""
    if None in attempt:
        return False
    if any(response is not None and response.reply.kind is Kind.REFUSED for response in attempt):
        return False
    return scoring.official(texts_of(attempt)) is None


class Health:
    """Watches whether the judge answers at all, and stops the work where it cannot go on.

    Args:
        client: The judge.

    Attributes:
        spent: Why nothing more is to be asked, while what is under way is waited for; "" as long as the budget lasts.
    """

    def __init__(self, client: Asker) -> None:
        self.name = client.name
        self.patience = max(GIVES_UP_AFTER, 2 * client.parallel)  # questions in a row that may fail
        self.answered = 0
        self.failed = 0  # in a row
        self.failures = 0
        self.reason = ""
        self.spent = ""

    def note(self, reply: Reply) -> None:
        """Count a reply.

        Raises:
            UserError: Another question would fare no better, nor one that is under way.
        """
        if reply.kind in FINAL:
            self.answered += 1
            self.failed = 0
            return
        if reply.kind is Kind.BUDGET:
            self.spent = reply.reason
            return
        if reply.kind in (Kind.KEY, Kind.REDIRECTED):
            raise self._end(reply.reason)
        self.failed += 1
        self.failures += 1
        self.reason = reply.reason
        if self.failed >= self.patience:
            raise self._end(f"{self.failed} questions in a row have failed: {reply.reason}")

    def conclude(self) -> None:
        """Tell of what failed.

        Raises:
            UserError: The budget is spent, or nothing was answered.
        """
        self.check_budget()
        if not self.failures:
            return
        if not self.answered:
            raise self._end(f"no question was answered: {self.reason}")
        logger.warning(
            "judge %s: %d questions have failed and count as missing, such as: %s; run again to ask them",
            *(self.name, self.failures, self.reason),
        )

    def check_budget(self) -> None:
        """Raise a UserError where the budget is spent."""
        if self.spent:
            raise self._end(self.spent)

    def _end(self, reason: str) -> UserError:
        return UserError(f"judge {self.name}: {reason}; what was answered is in the log, and a next run goes on there")
