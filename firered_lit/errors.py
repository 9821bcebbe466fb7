"""The one exception that a user is meant to read."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad input, said in one line: what is wrong, where (file, row, key), what to do. The command line exits with 2."""

    exit_code = 2


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception says; its kind when it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def naming(key: str, settings: Collection[str] = ()) -> Iterator[None]:
    """Have whatever a library raises, while it builds from what the user wrote, be one line that names the key.

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
        said = " ".join(str(error).split())
        below = [name for name in settings if name in said.lower()]
        place = ".".join([key, *below[:1]])
        raise UserError(f"{place}: {type(error).__name__}: {said}") from error
