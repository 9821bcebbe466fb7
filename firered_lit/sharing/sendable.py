"""Objects for other processes: pickled here, or refused in one line."""

import pickle

from firered_lit.errors import UserError


def sendable(thing: object, remedy: str) -> bytes:
    """Return a thing as it is sent to other processes.

    Args:
        thing: What they work with.
        remedy: What helps where a part of it cannot be sent, beside a class in a module.

    Raises:
        UserError: A part of it is of a class that other processes do not find.
    """
    try:
        return pickle.dumps(thing)
    except (pickle.PicklingError, AttributeError, TypeError) as problem:
        said = " ".join(str(problem).split())
        raise UserError(
            f"a part of the recipe cannot be sent to another process ({said}); put its class into a module, or {remedy}"
        ) from None
