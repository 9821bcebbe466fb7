"""Check plain values of a recipe against annotations, by the annotation's text alone."""

import ast
from collections.abc import Callable
from typing import Any, NamedTuple

from firered_lit.config.source import parse

# No plain value is one of these.
_NEVER = {"Tensor", "Module", "Callable", "Optimizer", "LRScheduler", "device", "dtype", "type", "Type"}
_NEVER |= {"Profiler", "Accelerator", "Strategy", "Logger", "timedelta"}
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
    """Return whether a value can be what the expression of an annotation asks for."""
    # Values that are more than they look.
    if known.is_open(value):
        return True
    if known.is_object(value):
        return _takes_object(node)

    # `a | b`, None and forward references, `a[b]`.
    if isinstance(node, ast.BinOp):
        return _fits(node.left, value, known) or _fits(node.right, value, known)
    if isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            return fits(node.value, value, *known)
        return value is None
    if isinstance(node, ast.Subscript):
        return _fits_generic(_last_name(node.value), _arguments(node), value, known)

    # A name.
    name = _last_name(node)
    if name in _SCALARS:
        return _SCALARS[name](value)
    if name in _SEQUENCES:
        return isinstance(value, list)
    if name in _MAPPINGS:
        return isinstance(value, dict)
    return name not in _NEVER


def _fits_generic(name: str, inner: list[ast.expr], value: Any, known: _Known) -> bool:
    """Return whether a value can be what `name[inner]` asks for: unions, literals and containers."""
    if name == "Optional":
        return value is None or _fits(inner[0], value, known)
    if name == "Union":
        return any(_fits(option, value, known) for option in inner)
    if name == "Annotated":
        return _fits(inner[0], value, known)
    if name == "Literal":
        return any(ast.unparse(option) == repr(value) for option in inner)
    if name in _MAPPINGS:
        return isinstance(value, dict) and _mapping_fits(inner, value, known)
    if name in _SEQUENCES:
        is_fixed = name in ("tuple", "Tuple") and ast.unparse(inner[-1]) not in ("...", "()")
        return isinstance(value, list) and _sequence_fits(inner, is_fixed, value, known)
    return name not in _NEVER


def _mapping_fits(inner: list[ast.expr], value: dict[Any, Any], known: _Known) -> bool:
    """Return whether every key and every value of a mapping fits its own annotation."""
    for pair in value.items():
        for annotation, item in zip(inner, pair):
            if not _fits(annotation, item, known):
                return False
    return True


def _sequence_fits(inner: list[ast.expr], is_fixed: bool, value: list[Any], known: _Known) -> bool:
    """Return whether every item of a sequence fits.

    Args:
        inner: the annotations of its items.
        is_fixed: there is one for each item; else the first one is for all.
        value: the items.
        known: see `fits`.
    """
    annotations = inner if is_fixed else [inner[0]] * len(value)
    if len(annotations) != len(value):
        return False
    return all(_fits(annotation, item, known) for annotation, item in zip(annotations, value))


def _takes_object(node: ast.expr) -> bool:
    """Return whether an annotation has an alternative that is no scalar."""
    if isinstance(node, ast.BinOp):
        return _takes_object(node.left) or _takes_object(node.right)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    if not isinstance(node, ast.Subscript):
        return _last_name(node) not in _SCALARS
    name = _last_name(node.value)
    if name == "Union":
        return any(_takes_object(option) for option in _arguments(node))
    if name in ("Optional", "Annotated"):
        return _takes_object(_arguments(node)[0])
    return name != "Literal"


def _last_name(node: ast.expr) -> str:
    """Return the last name of a dotted one: `Sequence` of `typing.Sequence`."""
    return ast.unparse(node).split(".")[-1]


def _arguments(node: ast.Subscript) -> list[ast.expr]:
    """Return the expressions inside of the brackets."""
    if isinstance(node.slice, ast.Tuple):
        return node.slice.elts
    return [node.slice]
