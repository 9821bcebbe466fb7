"""The one exception that a user is meant to read."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input as one line: the problem, its place (file, row, key), the remedy. The command line exits with 2."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message; its kind when it has none."""
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]


@contextmanager
def naming(key: str, settings: Collection[str] = ()) -> Iterator[None]:
    """Turn whatever a library raises, while it builds from a recipe, into one line that names the key.

    Args:
        key: The recipe's key of what is built.
        settings: The keys below it; the first one that the library speaks of is named too.

    Raises:
        UserError: Anything was raised. A UserError stays as it is.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        below = [name for name in settings if name in message.lower()]
        place = ".".join([key, *below[:1]])
        raise UserError(f"{place}: {type(error).__name__}: {message}") from error
