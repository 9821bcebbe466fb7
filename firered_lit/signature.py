"""Signatures of dotted names, read from their source: a recipe is refused before anything heavy loads."""

import ast
from dataclasses import dataclass
from functools import cache
from typing import Literal

from firered_lit.source import Found, NotFoundError, resolve

_NO_INIT = {"object", "Generic", "Protocol", "ABC"}  # bases that take no arguments


@dataclass(frozen=True)
class Parameter:
    """One argument that can be given by name."""

    name: str
    required: bool
    annotation: str | None = None  # its source text
    default: str | None = None  # its source text; None when required, and for fields made by a factory


@dataclass(frozen=True)
class Signature:
    """The parameters that a class or function accepts by name, and the module that defines it."""

    name: str
    home: str  # the module that defines it
    kind: Literal["class", "function"]
    parameters: tuple[Parameter, ...]
    open: bool = False  # accepts names beyond `parameters` (**kwargs)


@cache
def signature(target: str) -> Signature:
    """The signature of the class or function at the dotted name `target`. Raises NotFoundError."""
    found = resolve(target)
    if isinstance(found.node, ast.ClassDef):
        return Signature(found.node.name, found.module.name, "class", *_of_class(found))
    return Signature(found.node.name, found.module.name, "function", *_of_function(found.node, bound=False))


def _of_class(found: Found) -> tuple[tuple[Parameter, ...], bool]:
    """Return the parameters of the class's nearest `__init__`, `__new__` or dataclass."""
    maker = _maker(found)
    if maker is not None and _base_call(maker) is None:  # before its bases, which may be heavy to read
        return _of_function(maker, bound=True)
    return _of_line(*_line(found))


def _of_line(line: list[Found], complete: bool) -> tuple[tuple[Parameter, ...], bool]:
    """Return what the first class of a line of bases accepts.

    Args:
        line: the class and its bases, nearest first.
        complete: whether no base is missing in it.
    """
    for i, base in enumerate(line):
        maker = _maker(base)
        if maker is not None:
            parameters, is_open = _of_function(maker, bound=True)
            call = _base_call(maker)
            if call is None:
                return parameters, is_open
            more, is_open = _of_line(line[i + 1 :], complete)
            return (*parameters, *_left_free(parameters, call, more)), is_open
        if _is_dataclass(base.node):
            return _of_fields([older.node for older in line[i:]]), False
    return (), not complete


def _base_call(maker: ast.FunctionDef) -> ast.Call | None:
    """Return `super().__init__(..., **kwargs)`, when that is all that becomes of a class's `**kwargs`."""
    uses = _uses(maker)
    if len(uses) != 1:
        return None
    calls = [node for node in ast.walk(maker) if isinstance(node, ast.Call)]
    for call in calls:
        passed = [keyword.value for keyword in call.keywords if keyword.arg is None]
        plain = not any(isinstance(argument, ast.Starred) for argument in call.args)
        if plain and passed == uses and ast.unparse(call.func) == "super().__init__":
            return call
    return None


def _uses(function: ast.FunctionDef) -> list[ast.Name]:
    """Return where a function's body names its `**kwargs`."""
    if function.args.kwarg is None:
        return []
    name = function.args.kwarg.arg
    return [node for node in ast.walk(function) if isinstance(node, ast.Name) and node.id == name]


def _left_free(own: tuple[Parameter, ...], call: ast.Call, base: tuple[Parameter, ...]) -> tuple[Parameter, ...]:
    """Return the base's parameters that the class neither has itself nor gives in its call."""
    taken = {parameter.name for parameter in own} | {keyword.arg for keyword in call.keywords}
    return tuple(parameter for parameter in base[len(call.args) :] if parameter.name not in taken)


def _maker(found: Found) -> ast.FunctionDef | None:
    """The class's own `__init__` or `__new__`."""
    own = {item.name: item for item in found.node.body if isinstance(item, ast.FunctionDef)}
    return own.get("__init__") or own.get("__new__")


def _line(found: Found) -> tuple[list[Found], bool]:
    """The class and its bases, nearest first as Python orders them, and whether all of them could be read."""
    if not isinstance(found.node, ast.ClassDef):
        return [], False
    line, complete = [found], True
    for base in found.node.bases:
        text = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if text.split(".")[-1] in _NO_INIT:
            continue
        try:
            more, known = _line(resolve(f"{found.module.name}.{text}"))
        except NotFoundError:
            more, known = [], False
        line, complete = [x for x in line if x not in more] + more, complete and known
    return line, complete


def _is_dataclass(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Return whether a decorator generates an `__init__` from the fields."""
    texts = [ast.unparse(decorator) for decorator in node.decorator_list]
    return any(t.partition("(")[0].split(".")[-1] == "dataclass" and "init=False" not in t for t in texts)


def _of_fields(line: list[ast.ClassDef | ast.FunctionDef]) -> tuple[Parameter, ...]:
    """The fields of a dataclass and of the dataclasses that it extends, oldest first."""
    fields: dict[str, Parameter] = {}
    for node in reversed(line):
        if not isinstance(node, ast.ClassDef) or not _is_dataclass(node):
            continue
        for item in node.body:
            if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                continue
            text, value = _text(item.annotation) or "", item.value
            if "ClassVar" in text or text.endswith("KW_ONLY"):
                continue
            options = (
                value.keywords if isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field") else None
            )
            given = {option.arg: ast.unparse(option.value) for option in options or ()}
            if given.get("init") == "False":
                continue
            required = value is None if options is None else not {"default", "default_factory"} & set(given)
            default = given.get("default") if options is not None else _text(value)
            fields[item.target.id] = Parameter(item.target.id, required, text, default)
    return tuple(fields.values())


def _of_function(function: ast.FunctionDef, bound: bool) -> tuple[tuple[Parameter, ...], bool]:
    """The parameters that can be given by name, and whether any other name is accepted too.

    A `**kwargs` that the body never names accepts nothing: what is given there would be lost.
    """
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = len(positional) - len(arguments.defaults)
    defaults = [*[None] * optional, *arguments.defaults]
    named = list(zip(positional, defaults))[max(bound, len(arguments.posonlyargs)) :]
    named += zip(arguments.kwonlyargs, arguments.kw_defaults)
    parameters = (Parameter(a.arg, value is None, _text(a.annotation), _text(value)) for a, value in named)
    return tuple(parameters), bool(_uses(function))


def _text(expression: ast.expr | None) -> str | None:
    """The source text of an annotation or default, without the quotes of a forward reference."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return expression.value
    return None if expression is None else ast.unparse(expression)
