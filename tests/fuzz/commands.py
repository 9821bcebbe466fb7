"""The command line called in this process, with a limit of seconds, and what may come of it."""

import contextlib
import io
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from firered_lit.cli import main


class Reached(BaseException):
    """The work that a command is for would begin: everything before it was accepted."""


class Hung(BaseException):
    """A command was not over in its time."""


class Outcome(NamedTuple):
    """How a command ended, and what it wrote to stderr."""

    code: int
    stderr: str

    @property
    def line(self) -> str:
        """The last line of stderr."""
        return (self.stderr.strip().splitlines() or [""])[-1]


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


def run(arguments: Sequence[str], seconds: float = 60) -> Outcome:
    """Run a command as a user does; an argument that argparse refuses is exit code 2 as well."""
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()), within(seconds):
        try:
            code = main(list(arguments))
        except Reached:
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return Outcome(code, errors.getvalue())


def problem(outcome: Outcome) -> str | None:
    """Return what is wrong with an ending; None where it was accepted, or refused in one line with exit code 2."""
    if "Traceback (most recent call last)" in outcome.stderr:
        return "a traceback"
    if outcome.code == 0:
        return None
    if outcome.code != 2:
        return f"exit code {outcome.code}"
    if "error: " not in outcome.line:
        return "its last line is no error"
    return None
