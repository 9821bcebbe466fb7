"""Signatures of dotted names, read from their source: a recipe is refused before anything heavy loads."""

import ast
from dataclasses import dataclass
from functools import cache
from typing import Literal

from firered_lit.config.source import Definition, NotFoundError, resolve

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
    """Return the signature of the class or function at the dotted name `target`.

    Raises:
        NotFoundError: the name leads to none.
    """
    found = resolve(target)
    name, home = found.node.name, found.module.name
    if isinstance(found.node, ast.ClassDef):
        parameters, is_open = _of_class(found)
        return Signature(name, home, "class", parameters, is_open)
    parameters, is_open = _of_function(found.node, bound=False)
    return Signature(name, home, "function", parameters, is_open)


def _of_class(found: Definition) -> tuple[tuple[Parameter, ...], bool]:
    """Return the parameters of the class's nearest `__init__`, `__new__` or dataclass."""
    maker = _maker(found)
    if maker is not None and _base_call(maker) is None:  # before its bases, which may be heavy to read
        return _of_function(maker, bound=True)
    line, complete = _line(found)
    return _of_line(line, complete)


def _of_line(line: list[Definition], complete: bool) -> tuple[tuple[Parameter, ...], bool]:
    """Return what the first class of a line of bases accepts.

    Args:
        line: the class and its bases, nearest first.
        complete: whether no base is missing in it.
    """
    for place, base in enumerate(line):
        maker = _maker(base)
        if maker is None and _is_dataclass(base.node):
            return _of_fields([older.node for older in line[place:]]), False
        if maker is None:
            continue
        parameters, is_open = _of_function(maker, bound=True)
        call = _base_call(maker)
        if call is None:
            return parameters, is_open

        # Its `**kwargs` are the arguments of its base.
        of_base, is_open = _of_line(line[place + 1 :], complete)
        return (*parameters, *_left_free(parameters, call, of_base)), is_open
    return (), not complete


def _base_call(maker: ast.FunctionDef) -> ast.Call | None:
    """Return `super().__init__(..., **kwargs)`, when that is all that becomes of a class's `**kwargs`."""
    uses = _uses(maker)
    if len(uses) != 1:
        return None
    for node in ast.walk(maker):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) != "super().__init__":
            continue
        passed = [keyword.value for keyword in node.keywords if keyword.arg is None]
        has_starred = any(isinstance(argument, ast.Starred) for argument in node.args)
        if passed == uses and not has_starred:
            return node
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


def _maker(found: Definition) -> ast.FunctionDef | None:
    """Return the class's own `__init__` or `__new__`; None when it has neither."""
    own = {item.name: item for item in found.node.body if isinstance(item, ast.FunctionDef)}
    return own.get("__init__") or own.get("__new__")


def _line(found: Definition) -> tuple[list[Definition], bool]:
    """Return the class and its bases, nearest first as Python orders them, and whether all could be read."""
    if not isinstance(found.node, ast.ClassDef):
        return [], False
    line = [found]
    complete = True
    for base in found.node.bases:
        # The base's name, without the brackets of a generic one.
        text = ast.unparse(base.value if isinstance(base, ast.Subscript) else base)
        if text.split(".")[-1] in _NO_INIT:
            continue
        try:
            of_base, is_complete = _line(resolve(f"{found.module.name}.{text}"))
        except NotFoundError:
            complete = False
            continue

        # A class that two bases share stands behind both.
        line = [nearer for nearer in line if nearer not in of_base] + of_base
        complete = complete and is_complete
    return line, complete


def _is_dataclass(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Return whether a decorator generates an `__init__` from the fields."""
    for decorator in node.decorator_list:
        text = ast.unparse(decorator)
        name = text.partition("(")[0].split(".")[-1]
        if name == "dataclass" and "init=False" not in text:
            return True
    return False


def _of_fields(line: list[ast.ClassDef | ast.FunctionDef]) -> tuple[Parameter, ...]:
    """Return the fields of a dataclass and of the dataclasses that it extends, oldest first."""
    fields: dict[str, Parameter] = {}
    for node in reversed(line):
        if not isinstance(node, ast.ClassDef) or not _is_dataclass(node):
            continue
        for item in node.body:
            if isinstance(item, ast.AnnAssign):
                field = _of_field(item)
                if field is not None:
                    fields[field.name] = field
    return tuple(fields.values())


def _of_field(item: ast.AnnAssign) -> Parameter | None:
    """Return a dataclass's field as a parameter; None when its `__init__` does not take it."""
    if not isinstance(item.target, ast.Name):
        return None
    name, value = item.target.id, item.value
    annotation = _text(item.annotation) or ""
    if "ClassVar" in annotation or annotation.endswith("KW_ONLY"):
        return None

    # `name: annotation = value`.
    if not isinstance(value, ast.Call) or not ast.unparse(value.func).endswith("field"):
        return Parameter(name, value is None, annotation, _text(value))

    # `name: annotation = field(...)`.
    options = {option.arg: ast.unparse(option.value) for option in value.keywords}
    if options.get("init") == "False":
        return None
    required = "default" not in options and "default_factory" not in options
    return Parameter(name, required, annotation, options.get("default"))


def _of_function(function: ast.FunctionDef, bound: bool) -> tuple[tuple[Parameter, ...], bool]:
    """Return the parameters that can be given by name, and whether any other name is accepted too.

    A `**kwargs` that the body never names accepts nothing: what is given there would be lost.
    """
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    without_default = len(positional) - len(arguments.defaults)
    defaults = [*[None] * without_default, *arguments.defaults]

    # Leave out `self`, and those that can only be given by place.
    unnamed = max(int(bound), len(arguments.posonlyargs))
    named = list(zip(positional, defaults))[unnamed:]
    named += zip(arguments.kwonlyargs, arguments.kw_defaults)

    parameters = []
    for argument, default in named:
        parameters.append(Parameter(argument.arg, default is None, _text(argument.annotation), _text(default)))
    return tuple(parameters), bool(_uses(function))


def _text(expression: ast.expr | None) -> str | None:
    """Return the source text of an annotation or default, without the quotes of a forward reference."""
    if expression is None:
        return None
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return expression.value
    return ast.unparse(expression)
