"""A limit of seconds on one case of a fuzzer."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


class Hung(BaseException):
    """A case was not over in its time."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise Hung in what takes longer."""

    def late(*_: object) -> None:
        raise Hung(f"not over after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
