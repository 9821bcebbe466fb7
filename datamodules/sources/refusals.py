"""A row that is left out, and why; and the one guard around all work on a row.

Whatever is raised while a row is read, opened or encoded is the refusal of this row, whoever raises it: a library may
raise what no list of exceptions names. What is of the machine, such as a full disk, and what the user has to mend
before anything goes on, a UserError, ends the work instead.
"""

import contextlib
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

from firered_lit.errors import UserError

LONGEST = 600  # characters of a refusal's line
MACHINE = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EROFS}
)  # errors that no row is to blame for
DEVICE = frozenset({"OutOfMemoryError", "AcceleratorError"})  # torch's, by name: reading rows needs no torch
T = TypeVar("T")


@dataclass(frozen=True)
class Refusal:
    """A row that is left out: where, which field, its category for counting, and a line for the person who mends it."""

    where: str
    field: str
    reason: str
    detail: str

    def __post_init__(self) -> None:
        for part in fields(self):
            object.__setattr__(self, part.name, one_line(getattr(self, part.name)))

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.detail}"


class Refuse(Exception):  # noqa: N818, it carries a refusal, it is no fault
    """A row that cannot be used: its field, the category for counting, and a line for the person who mends it."""

    def __init__(self, field: str, reason: str, detail: str) -> None:
        super().__init__(field, reason, detail)
        self.field = field
        self.reason = reason
        self.detail = detail

    def at(self, where: str) -> Refusal:
        """Return the refusal of the row that lies there."""
        return Refusal(where, self.field, self.reason, self.detail)


def one_line(text: str, longest: int = LONGEST) -> str:
    """Return a text as one line of bounded length that any file takes; half of a surrogate pair is escaped."""
    lines = text.splitlines()
    line = text if lines == [text] else " ".join(part.strip() for part in lines)
    line = line.encode("utf-8", "backslashreplace").decode()
    return line if len(line) <= longest else line[: longest - 4] + " ..."


def said(problem: BaseException) -> str:
    """Return what an exception says, and its kind, in one line."""
    text = one_line(str(problem))
    return f"{type(problem).__name__}: {text}" if text else type(problem).__name__


def ends_the_work(problem: BaseException) -> bool:
    """Return whether what was raised is of the machine, or for the user to mend, and of no single row."""
    if isinstance(problem, UserError | MemoryError) or not isinstance(problem, Exception):
        return True
    if isinstance(problem, OSError) and problem.errno in MACHINE:
        return True
    return type(problem).__name__ in DEVICE


@contextlib.contextmanager
def refusing(field: str | Callable[[], str], reason: str = "unusable row") -> Iterator[None]:
    """Have whatever is raised be a refusal of the row.

    Args:
        field: The field that is being worked on, or a function that says it when something was raised.
        reason: Category of an exception that is no `Refuse` already.

    Raises:
        Refuse: something was raised that does not end the work.
    """
    try:
        yield
    except Refuse:
        raise
    except Exception as problem:
        if ends_the_work(problem):
            raise
        name = field if isinstance(field, str) else field()
        raise Refuse(name, reason, said(problem)) from problem


def guarded(work: Callable[[], T], where: str, field: str | Callable[[], str] = "row") -> T | Refusal:
    """Return what the work on a row returns, or the row's refusal, whatever is raised.

    Args:
        work: The work on the row.
        where: The row, as "file:line".
        field: See `refusing`.
    """
    try:
        with refusing(field):
            return work()
    except Refuse as problem:
        return problem.at(where)
