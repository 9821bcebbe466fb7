"""Keys of services: a recipe names the environment variable that holds one, and only a variable meant for that is read.

A recipe also says where the key is sent, and it can come from a stranger. So no other secret of the environment, as
AWS_SECRET_ACCESS_KEY or HF_TOKEN, can be named.
"""

import os
import re
from typing import TypeAlias

from firered_lit.errors import UserError

KeyVariable: TypeAlias = str  # the annotation by which `check` knows an argument that names a key's variable


def is_key_variable(name: object) -> bool:
    """Return whether `name` may hold a key: letters, digits and underscores that end in _API_KEY."""
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*_API_KEY", name) is not None


def read_key(variable: KeyVariable) -> str | None:
    """Return the key in an environment variable, None when it is not set.

    Raises:
        UserError: the variable's name does not end in _API_KEY.
    """
    if not is_key_variable(variable):
        raise UserError(f"key_variable={variable}: the name of an environment variable that ends in _API_KEY")
    return os.environ.get(variable)
