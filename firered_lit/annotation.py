"""Whether a plain value from a recipe can be what an annotation asks for, judged by the annotation's text."""

import ast
from collections.abc import Callable
from typing import Any

from firered_lit.source import parse

_NEVER = {
    "Tensor",
    "Module",
    "Callable",
    "Optimizer",
    "LRScheduler",
    "device",
    "dtype",
    "type",
    "Type",
    "Profiler",
    "Accelerator",
    "Strategy",
    "Logger",
    "timedelta",
}  # no plain value
_SEQUENCES = {"list", "List", "Sequence", "Iterable", "Collection", "set", "Set", "frozenset", "tuple", "Tuple"}
_MAPPINGS = {"dict", "Dict", "Mapping", "MutableMapping"}
_SCALARS: dict[str, Callable[[Any], bool]] = {
    "int": lambda v: isinstance(v, int) and not isinstance(v, bool),
    "float": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
    "bool": lambda v: isinstance(v, bool),
    "str": lambda v: isinstance(v, str),
    "Path": lambda v: isinstance(v, str),
    "PathLike": lambda v: isinstance(v, str),
    "None": lambda v: v is None,
}


def fits(annotation: str | None, value: Any, is_open: Callable[[Any], bool] = lambda _: False) -> bool:
    """False when `value` surely is not what `annotation` asks for; True where the text alone cannot tell.

    `is_open(value)` marks values, at any depth, that are not known yet and therefore fit.
    """
    try:
        tree = parse(annotation or "Any", mode="eval").body
    except SyntaxError:
        return True
    return _fits(tree, value, is_open)


def _fits(node: ast.expr, value: Any, is_open: Callable[[Any], bool]) -> bool:
    if is_open(value):
        return True
    if isinstance(node, ast.BinOp):
        return _fits(node.left, value, is_open) or _fits(node.right, value, is_open)
    if isinstance(node, ast.Constant):
        return fits(node.value, value, is_open) if isinstance(node.value, str) else value is None
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _fits_generic(ast.unparse(node.value).split(".")[-1], inner, value, is_open)
    name = ast.unparse(node).split(".")[-1]
    if name in _SCALARS:
        return _SCALARS[name](value)
    if name in _SEQUENCES | _MAPPINGS:
        return isinstance(value, list if name in _SEQUENCES else dict)
    return name not in _NEVER


def _fits_generic(name: str, inner: list[ast.expr], value: Any, is_open: Callable[[Any], bool]) -> bool:
    """`name[inner]`: unions, literals and containers."""
    if name == "Optional":
        return value is None or _fits(inner[0], value, is_open)
    if name == "Union":
        return any(_fits(option, value, is_open) for option in inner)
    if name == "Annotated":
        return _fits(inner[0], value, is_open)
    if name == "Literal":
        return any(ast.unparse(option) == repr(value) for option in inner)
    if name in _MAPPINGS:
        return isinstance(value, dict) and all(
            _fits(part, item, is_open) for pair in value.items() for part, item in zip(inner, pair)
        )
    if name in _SEQUENCES:
        if not isinstance(value, list):
            return False
        fixed = name in ("tuple", "Tuple") and ast.unparse(inner[-1]) not in ("...", "()")
        parts = inner if fixed else [inner[0]] * len(value)
        return len(parts) == len(value) and all(_fits(part, item, is_open) for part, item in zip(parts, value))
    return name not in _NEVER
