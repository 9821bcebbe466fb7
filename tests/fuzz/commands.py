"""The command line called in this process, with a limit of seconds, and how it may end."""

import contextlib
import io
from collections.abc import Sequence
from typing import NamedTuple

from time_limit import Hung, within

from firered_lit.cli import main


class Reached(BaseException):
    """The work that a command is for would begin: everything before it was accepted."""


class Outcome(NamedTuple):
    """The end of a command: its exit code, and all that it wrote to stderr."""

    code: int
    stderr: str

    @property
    def line(self) -> str:
        """The last line of stderr."""
        return (self.stderr.strip().splitlines() or [""])[-1]


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


def ended_well(arguments: Sequence[str], seconds: float, case: str) -> int:
    """Return the exit code of a command that ended as it should.

    Raises:
        AssertionError: it did not; the message names the case.
    """
    try:
        outcome = run(arguments, seconds)
    except Hung as late:
        raise AssertionError(f"{case}: {late}") from late
    wrong = problem(outcome)
    assert wrong is None, f"{case}: {wrong}\n{outcome.stderr[-3000:]}"
    return outcome.code
