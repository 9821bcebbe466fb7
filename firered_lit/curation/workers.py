"""Processes that annotate shards. One that dies or hangs costs what it was at, and nothing else.

Every process says what it begins. When it is gone, or has said nothing for too long, its shard is given to a new one,
which takes the batch at which that happened item by item; the item at which it happens again is left out with the
reason. The shards that are finished are on the disk.
"""

import contextlib
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import cv2

from firered_lit.errors import UserError

from .shards import Done, Shards, Step, Work

_LOOK = 1.0  # seconds between two looks at processes that say nothing
_DEATHS = 2  # at one item, after which it is left out
_SHARD_DEATHS = 1000  # of one shard, after which something else is wrong than its items
_BEFORE_ANY: Step = ("", -1, -1)  # the step of a process that has named none yet


@dataclass
class _Job:
    """A shard in work, and what it has been through."""

    work: Work
    deaths: dict[Step, int] = field(default_factory=dict)


class _Process:
    """A process that annotates, and what it said last."""

    def __init__(self, shards: Shards) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        target: BaseProcess = context.Process(target=_serve, args=(shards, other, os.getpid()), daemon=True)
        self.process = target
        self.process.start()
        other.close()
        self.job: _Job | None = None
        self.step = _BEFORE_ANY
        self.heard = time.monotonic()

    def give(self, job: _Job) -> None:
        self.job = job
        self.step = _BEFORE_ANY
        self.heard = time.monotonic()
        with contextlib.suppress(OSError):  # it is dead, which the next look finds
            self.connection.send(job.work)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def annotate(
    shards: Shards, works: Iterator[Work], workers: int, patience: float, done: Callable[[Done], None]
) -> None:
    """Annotate shards in processes, and call `done` with what came of each.

    Args:
        shards: What annotates them.
        works: The shards; taken one ahead of what the processes are at.
        workers: Processes; 0 does the work in this one, where nothing that dies or hangs can be left out.
        patience: Seconds for which a process may be at one step.
        done: Called in this process, in the order in which shards are finished.

    Raises:
        UserError: An annotator cannot be opened, or a shard's processes die again and again.
    """
    if workers == 0:
        for work in works:
            done(shards.annotate(work))
        return
    processes: list[_Process] = []
    waiting: list[_Job] = []
    threads = _one_thread()
    try:
        while True:
            _hand_out(shards, works, waiting, processes, workers)
            busy = [process for process in processes if process.job is not None]
            if not busy:
                return
            ready = wait([process.connection for process in busy], _LOOK)
            for process in busy:
                heard = process.connection in ready and _hear(process, done)
                late = time.monotonic() - process.heard > patience
                if not heard and (late or process.connection in ready):
                    processes.remove(process)
                    waiting.append(_after_death(process))
    finally:
        for process in processes:
            process.end()
        cv2.setNumThreads(threads)


def _hand_out(
    shards: Shards, works: Iterator[Work], waiting: list[_Job], processes: list[_Process], workers: int
) -> None:
    """Give every idle process a shard, first those that a process died at; start processes as long as some are left."""
    while True:
        idle = next((process for process in processes if process.job is None), None)
        if idle is None and len(processes) >= workers:
            return
        job = waiting.pop(0) if waiting else None
        if job is None:
            work = next(works, None)
            if work is None:
                return
            job = _Job(work)
        if idle is None:
            idle = _Process(shards)
            processes.append(idle)
        idle.give(job)


def _hear(process: _Process, done: Callable[[Done], None]) -> bool:
    """Take what a process says.

    Returns:
        Whether it is alive.

    Raises:
        UserError: It says that nothing can go on.
        OSError: It cannot write.
    """
    while True:
        try:
            if not process.connection.poll():
                return True
            said: Any = process.connection.recv()
        except (EOFError, OSError):
            return False
        process.heard = time.monotonic()
        if isinstance(said, Done):
            process.job = None
            done(said)
            return True
        if isinstance(said, UserError | OSError):
            raise said
        if isinstance(said, str):
            raise RuntimeError(said)
        process.step = said


def _after_death(process: _Process) -> _Job:
    """End a process, and return its shard with what is to be done otherwise."""
    process.end()
    job, step = process.job, process.step
    assert job is not None  # noqa: S101, only busy processes are looked at
    job.deaths[step] = job.deaths.get(step, 0) + 1
    if sum(job.deaths.values()) > _SHARD_DEATHS or job.deaths.get(_BEFORE_ANY, 0) > _DEATHS:
        raise UserError(f"shard {job.work.shard}: its processes die again and again; try workers=0 to see why")
    work = job.work
    one_by_one, skipped = set(work.one_by_one), set(work.skipped)
    if step[2] < 0:
        one_by_one.add(step[:2])
    elif job.deaths[step] >= _DEATHS:
        skipped.add(step)
    job.work = Work(work.shard, work.rows, work.names, frozenset(one_by_one), frozenset(skipped))
    return job


def _serve(shards: Shards, connection: Connection, parent: int) -> None:
    """Annotate what comes, until the parent is gone."""
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while True:
        try:
            work = connection.recv()
        except (EOFError, OSError):
            return
        try:
            said: Any = shards.annotate(work, connection.send)
        except (UserError, OSError) as problem:
            said = problem
        except Exception as problem:
            said = f"shard {work.shard}: {type(problem).__name__}: {problem}"
        connection.send(said)


def _one_thread() -> int:
    """End OpenCV's threads before processes are forked, which would wait for them; return how many it had.

    The processes have none either: there is one for every core.
    """
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    return before


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
