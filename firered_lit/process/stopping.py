"""Ending a command from outside at any moment: by exit code 75, with all processes that it has started.

Python runs a signal's handler between two lines of the main thread, which may wait for minutes inside a library: for
the other processes of a run, or while it reads weights. So a thread takes the signals here. Once training has begun,
`callbacks.signals` takes them over, which saves before it ends.

The processes that Lightning starts for a run watch the first one, and end when it is gone.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

REQUEUE, INTERRUPTED = 75, 130  # EX_TEMPFAIL of sysexits.h; 128 + SIGINT
_ENDING = (signal.SIGTERM, signal.SIGUSR1)
_LOOK = 0.5  # seconds between two looks at the other processes of the run
_LAST_ACTIONS = 5.0  # seconds that closing the record of the run may take
_CHILDREN = 2.0  # seconds after which a process that was asked to end is killed
_GRACE = 10.0  # seconds for which a training process may outlive the first one
_FIRST = "FIRERED_LIT_FIRST_PROCESS"  # the number of the process that starts the others of a run


class Watch:
    """The thread that takes signals, and looks whether the other processes of the run still live."""

    def __init__(self) -> None:
        self.received: int | None = None  # the first signal that came
        self.handed_over = False  # whether the trainer handles signals now
        self.last_actions: list[Callable[[], None]] = []
        self.launched: Callable[[], Sequence[Any]] = tuple  # the processes that Lightning has started from here
        self._first = _first_process()
        self._first_gone: float | None = None  # when it was missed, by time.monotonic
        self._ended = threading.Lock()
        self._reader, self._writer = os.pipe()
        self._handlers: dict[int, Any] = {}
        self._wakeup_before = -1
        self._thread = threading.Thread(target=self._look_out, name="signals", daemon=True)

    def start(self) -> None:
        """Take the signals. Only the main thread may."""
        os.set_blocking(self._writer, False)
        self._wakeup_before = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in _ENDING:
            self._handlers[number] = signal.signal(number, self._note)
        self._thread.start()

    def stop(self) -> None:
        """Give the signals back to whoever had them before."""
        self.reset(self._wakeup_before)
        os.write(self._writer, b"\0")
        self._thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def reset(self, wakeup: int = -1) -> None:
        """Put the handlers back, in this process or in one that was forked from it."""
        signal.set_wakeup_fd(wakeup)
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def end(self, code: int, why: str) -> None:
        """End this process with `code`, and those that it has started."""
        if not self._ended.acquire(blocking=False):
            return
        if os.environ.get("LOCAL_RANK", "0") == "0":
            os.write(2, f"\n{why}\n".encode())
        for process in self.launched():
            process.terminate()
        actions = threading.Thread(target=self._act, daemon=True)
        actions.start()
        actions.join(_LAST_ACTIONS)
        until = time.monotonic() + _CHILDREN
        while any(process.poll() is None for process in self.launched()) and time.monotonic() < until:
            time.sleep(0.05)
        for process in (*self.launched(), *_workers()):
            process.kill()
        os._exit(code)

    def _note(self, number: int, frame: object) -> None:
        """Remember a signal, in the main thread, for the trainer that is about to take over."""
        self.received = self.received or number

    def _look_out(self) -> None:
        while True:
            ready, _, _ = select.select([self._reader], [], [], _LOOK)
            numbers = os.read(self._reader, 512) if ready else b""
            if 0 in numbers:
                return
            if not self.handed_over:
                self._obey(numbers)
            self._look_around()

    def _obey(self, numbers: bytes) -> None:
        for number in numbers:
            if number in _ENDING:
                self.end(REQUEUE, f"{signal.Signals(number).name}: nothing to save yet, stopping at once")
            if number == signal.SIGINT:  # the main thread ends by itself, unless it waits inside a library
                late = threading.Timer(_LAST_ACTIONS, self._interrupt)
                late.daemon = True
                late.start()

    def _interrupt(self) -> None:
        if self._thread.is_alive() and not self.handed_over:
            self.end(INTERRUPTED, "stopped by Ctrl-C")

    def _look_around(self) -> None:
        """End with the first process, and with one that a signal has ended before training has begun."""
        if self._first is not None and os.getppid() != self._first:
            self._first_gone = self._first_gone or time.monotonic()
            if not self.handed_over or time.monotonic() > self._first_gone + _GRACE:
                self.end(REQUEUE, "the first process of this run has ended; stopping")
        if not self.handed_over and any(process.poll() == REQUEUE for process in self.launched()):
            self.end(REQUEUE, "another process of this run was stopped by a signal; stopping")

    def _act(self) -> None:
        for action in self.last_actions:
            with contextlib.suppress(Exception):
                action()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()


_watch: Watch | None = None


@contextlib.contextmanager
def watching() -> Iterator[None]:
    """Take signals from here on: SIGTERM and SIGUSR1 end the command with all its processes, by exit code 75."""
    global _watch
    if _watch is not None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watch = _watch = Watch()
    watch.start()
    try:
        yield
    finally:
        if _watch is watch:  # else this is a process that was forked meanwhile
            _watch = None
            watch.stop()
            os.environ.pop(_FIRST, None)


def hand_over() -> int | None:
    """Leave the signals to the caller, whose handlers are in place. Returns one that has come in between."""
    if _watch is None:
        return None
    _watch.handed_over = True
    return _watch.received


def take_back() -> None:
    """Take the signals again: the trainer has ended."""
    if _watch is not None:
        _watch.handed_over = False


def is_watching() -> bool:
    """Return whether a signal ends this process now, without the trainer."""
    return _watch is not None and not _watch.handed_over


def end_with_the_stopped(processes: Sequence[Any]) -> None:
    """End this process by exit code 75 when a signal has ended one of `processes`, which broke off what both did."""
    until = time.monotonic() + _LOOK
    while _watch is not None and time.monotonic() < until:
        if any(process.poll() == REQUEUE for process in processes):
            _watch.end(REQUEUE, "another process of this run was stopped by a signal; stopping")
        time.sleep(0.05)


def before_the_end(action: Callable[[], None]) -> None:
    """Have `action` run, in a thread, before a signal ends the process; it has some seconds."""
    if _watch is not None:
        _watch.last_actions.append(action)


def launching(processes: Callable[[], Sequence[Any]]) -> None:
    """Watch over the processes of a run that are about to be started from here.

    Args:
        processes: Returns those that were started, as `subprocess.Popen`.
    """
    if _watch is not None:
        _watch.launched = processes
        os.environ[_FIRST] = str(os.getpid())


def _first_process() -> int | None:
    """Return the number of the process that this one must not outlive, when it is one of several of a run."""
    if os.environ.get("LOCAL_RANK", "0") != "0" and _FIRST in os.environ:
        return int(os.environ[_FIRST])
    return os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None


def _workers() -> Sequence[Any]:
    """Return the processes that multiprocessing has started here, as those that read data."""
    module = sys.modules.get("multiprocessing")
    return module.active_children() if module else ()


_mask = threading.local()  # of a thread that forks: the signals that it had blocked before


def _hold_signals() -> None:
    """Let no signal reach a forked process before it has its own handlers: it would be lost there."""
    if _watch is not None:
        _mask.before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


def _release_signals() -> None:
    """Let through the signals that came while a process was forked."""
    before = _mask.__dict__.pop("before", None)
    if before is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _forget() -> None:
    """Leave the signals to a forked process itself: a data worker is none of the run's."""
    global _watch
    if _watch is not None:
        _watch.reset()
        _watch = None
    _release_signals()


os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_forget)
