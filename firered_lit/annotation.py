"""Check plain values of a recipe against annotations, by the annotation's text alone."""

import ast
from collections.abc import Callable
from typing import Any, NamedTuple

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


Test = Callable[[Any], bool]


class _Known(NamedTuple):
    """Two tests of a value: is it open (not known yet), and does it stand for an object?"""

    is_open: Test
    is_object: Test


def fits(
    annotation: str | None, value: Any, is_open: Test = lambda _: False, is_object: Test = lambda _: False
) -> bool:
    """Return False when a value surely is not what an annotation asks for; True where the text alone cannot tell.

    Args:
        annotation: the text of it.
        value: a plain value.
        is_open: marks values, at any depth, that are not known yet and therefore fit.
        is_object: marks values, at any depth, that stand for an object: no number, no text and no truth value.
    """
    try:
        tree = parse(annotation or "Any", mode="eval").body
    except SyntaxError:
        return True
    return _fits(tree, value, _Known(is_open, is_object))


def _fits(node: ast.expr, value: Any, known: _Known) -> bool:
    if known.is_open(value):
        return True
    if known.is_object(value):
        return _takes_object(node)
    if isinstance(node, ast.BinOp):
        return _fits(node.left, value, known) or _fits(node.right, value, known)
    if isinstance(node, ast.Constant):
        return fits(node.value, value, *known) if isinstance(node.value, str) else value is None
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _fits_generic(ast.unparse(node.value).split(".")[-1], inner, value, known)
    name = ast.unparse(node).split(".")[-1]
    if name in _SCALARS:
        return _SCALARS[name](value)
    if name in _SEQUENCES | _MAPPINGS:
        return isinstance(value, list if name in _SEQUENCES else dict)
    return name not in _NEVER


def _fits_generic(name: str, inner: list[ast.expr], value: Any, known: _Known) -> bool:
    """`name[inner]`: unions, literals and containers."""
    if name == "Optional":
        return value is None or _fits(inner[0], value, known)
    if name == "Union":
        return any(_fits(option, value, known) for option in inner)
    if name == "Annotated":
        return _fits(inner[0], value, known)
    if name == "Literal":
        return any(ast.unparse(option) == repr(value) for option in inner)
    if name in _MAPPINGS:
        return isinstance(value, dict) and all(
            _fits(part, item, known) for pair in value.items() for part, item in zip(inner, pair)
        )
    if name in _SEQUENCES:
        if not isinstance(value, list):
            return False
        fixed = name in ("tuple", "Tuple") and ast.unparse(inner[-1]) not in ("...", "()")
        parts = inner if fixed else [inner[0]] * len(value)
        return len(parts) == len(value) and all(_fits(part, item, known) for part, item in zip(parts, value))
    return name not in _NEVER


def _takes_object(node: ast.expr) -> bool:
    """Return whether an annotation has an alternative that is no scalar."""
    if isinstance(node, ast.BinOp):
        return _takes_object(node.left) or _takes_object(node.right)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if isinstance(node, ast.Subscript):
        name = ast.unparse(node.value).split(".")[-1]
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if name in ("Optional", "Union", "Annotated"):
            return any(map(_takes_object, inner if name == "Union" else inner[:1]))
        return name != "Literal"
    return ast.unparse(node).split(".")[-1] not in _SCALARS
