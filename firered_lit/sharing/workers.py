"""Processes that share shards. One that dies or hangs costs what it was at, and nothing else.

Every process says what it begins. When it is gone, or has said nothing for too long, its shard is given to a new one,
which is more careful where that happened. The shards that are finished are on the disk.

Processes are forked from a server that has done nothing but import (`forkserver`): one that is forked from this process
would inherit the locks of threads which OpenCV, Torch or a notebook have started here, and wait for them forever.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from firered_lit.errors import UserError
from firered_lit.process.surroundings import quiet_libraries
from firered_lit.sharing.sendable import sendable

Step = tuple[str, int, int]  # what a process is at: a name, a number, and a place there or -1 for all of it
Report = Callable[[Step], None]
Heard = Callable[[Step], None]

_LOOK = 1.0  # seconds between two looks at processes that say nothing
_START = 120.0  # seconds, at least, that a process may take to start
_UNNAMED_DEATHS = 2  # before any step was named, after which something else is wrong
_SHARD_DEATHS = 1000  # of one shard, likewise
_BEFORE_ANY: Step = ("", -1, -1)  # the step of a process that has named none yet


class ShardWork(Protocol):
    """The work on a shard, with the rows that it takes."""

    @property
    def shard(self) -> int:
        """Its number."""
        ...

    def after_death(self, step: Step, deaths: int) -> Any:
        """Return what is to be done now that processes have died or hung at a step so many times.

        Raises:
            UserError: They will die again.
        """
        ...


W = TypeVar("W", bound=ShardWork)
D = TypeVar("D")
D_co = TypeVar("D_co", covariant=True)


class Doer(Protocol[W, D_co]):
    """Work that goes over rows, shard by shard. It is sent to other processes."""

    def left(self, todo: Mapping[int, Any]) -> Mapping[int, Any]:
        """Return what of it is not on the disk yet."""
        ...

    def works(self, todo: Mapping[int, Any]) -> Iterator[W]:
        """Yield the works of some shards, by number, as their rows are read."""
        ...

    def do(self, work: W, report: Report) -> D_co:
        """Do a work, saying each step before it begins, and return what came of it."""
        ...


@dataclass
class _Job(Generic[W]):
    """A work, and what it has been through."""

    work: W
    deaths: dict[Step, int] = field(default_factory=dict)


class _Process(Generic[W]):
    """A process that works, and what it said last."""

    def __init__(self, doer: bytes, key: str) -> None:
        context = multiprocessing.get_context("forkserver")
        self.connection, other = context.Pipe()
        target: BaseProcess = context.Process(target=_serve, args=(doer, other, key), daemon=True)
        self.process = target
        self.process.start()
        other.close()
        self.job: _Job[W] | None = None
        self.step = _BEFORE_ANY
        self.heard = time.monotonic()
        self.started = False

    def give(self, job: _Job[W]) -> None:
        self.job = job
        self.step = _BEFORE_ANY
        self.heard = time.monotonic()
        with contextlib.suppress(OSError):  # it is dead, which the next look finds
            self.connection.send(job.work)

    def hangs(self, patience: float) -> bool:
        """Return whether it has said nothing for too long."""
        allowed = patience if self.started else max(patience, _START)
        return time.monotonic() - self.heard > allowed

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def ignored(step: Step) -> None:
    """Do nothing with a step that is said."""


def run(
    doer: Doer[W, D],
    todo: Mapping[int, Any],
    workers: int,
    patience: float,
    done: Callable[[D], None],
    heard: Heard = ignored,
    key: str = "workers",
) -> None:
    """Do shards in processes, and call `done` with what came of each.

    Args:
        doer: The step.
        todo: What is to be made of each shard, by its number. Rows are read one shard ahead of the processes.
        workers: Processes; 0 does the work in this one, where nothing that dies or hangs can be left out.
        patience: Seconds for which a process may be at one step.
        done: Called in this process, in the order in which shards are finished.
        heard: Called in this process with every step that is said.
        key: The recipe's name for `workers`, for messages.

    Raises:
        UserError: Nothing can go on, or a shard's processes die again and again.
    """
    works = doer.works(todo)
    if workers == 0:
        for work in works:
            done(doer.do(work, heard))
        return
    sent = sendable(doer, f"take {key}=0")
    _import_once(doer)
    processes: list[_Process[W]] = []
    waiting: list[_Job[W]] = []
    try:
        while True:
            _hand_out(sent, works, waiting, processes, workers, key)
            busy = [process for process in processes if process.job is not None]
            if not busy:
                return
            ready = wait([process.connection for process in busy], _LOOK)
            for process in busy:
                lives = process.connection in ready and _hear(process, done, heard)
                if not lives and (process.connection in ready or process.hangs(patience)):
                    processes.remove(process)
                    waiting.append(_after_death(process, key))
    finally:
        for process in processes:
            process.end()


def _import_once(doer: Doer[W, D]) -> None:
    """Have the server of processes import what all of them need, if it does not run yet."""
    parts = [doer, *vars(doer).values()]
    modules = dict.fromkeys(type(part).__module__ for part in parts if not isinstance(part, Mapping))
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        [name for name in modules if name not in ("builtins", "__main__")]
    )


def _hand_out(
    doer: bytes,
    works: Iterator[W],
    waiting: list[_Job[W]],
    processes: list[_Process[W]],
    workers: int,
    key: str,
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
            idle = _Process(doer, key)
            processes.append(idle)
        idle.give(job)


def _hear(process: _Process[W], done: Callable[[D], None], heard: Heard) -> bool:
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
            kind, said = process.connection.recv()
        except (EOFError, OSError):
            return False
        process.heard = time.monotonic()
        process.started = True
        if kind == "done":
            process.job = None
            done(said)
            return True
        if kind == "problem":
            raise said
        if kind == "fault":
            raise RuntimeError(said)
        process.step = said
        if said != _BEFORE_ANY:
            heard(said)


def _after_death(process: _Process[W], key: str) -> _Job[W]:
    """End a process, and return its shard with what is to be done otherwise."""
    process.end()
    job, step = process.job, process.step
    assert job is not None  # noqa: S101, only busy processes are looked at
    job.deaths[step] = job.deaths.get(step, 0) + 1
    if sum(job.deaths.values()) > _SHARD_DEATHS or job.deaths.get(_BEFORE_ANY, 0) > _UNNAMED_DEATHS:
        if not process.started:
            raise UserError(
                f"processes cannot start: a script needs `if __name__ == '__main__':` around the call, and one that is"
                f" read from stdin can have none; or take {key}=0"
            )
        raise UserError(f"shard {job.work.shard}: its processes die again and again; try {key}=0 to see why")
    job.work = job.work.after_death(step, job.deaths[step])
    return job


def _serve(doer: bytes, connection: Connection, key: str) -> None:
    """Do what comes, until the parent is gone."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    quiet_libraries()
    tqdm.set_lock(threading.RLock())  # no bar is drawn here, and a lock between processes would be left behind
    _one_thread()
    try:
        step: Any = pickle.loads(doer)  # noqa: S301, from the process that has started this one
    except Exception as problem:
        said = f"{type(problem).__name__}: {problem}"
        connection.send(("problem", UserError(f"{said}: is it found from another process? Try {key}=0")))
        return
    connection.send(("step", _BEFORE_ANY))
    while True:
        try:
            work = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer: Any = ("done", step.do(work, lambda at: connection.send(("step", at))))
        except (UserError, OSError) as problem:
            answer = ("problem", problem)
        except Exception as problem:
            answer = ("fault", f"shard {work.shard}: {type(problem).__name__}: {problem}")
        connection.send(answer)


def _one_thread() -> None:
    """Let OpenCV have no threads of its own: there is a process for every core."""
    with contextlib.suppress(ImportError):
        import cv2

        cv2.setNumThreads(1)


def _end_with_parent() -> None:
    """End this process when its parent is gone, however that ended."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
