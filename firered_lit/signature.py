"""What a dotted name accepts, read from its source: a recipe is refused before anything heavy loads."""

import ast
from dataclasses import dataclass
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
    """What a class or function accepts by name, and where it is defined."""

    name: str
    home: str  # the module that defines it
    kind: Literal["class", "function"]
    parameters: tuple[Parameter, ...]
    open: bool = False  # accepts names beyond `parameters` (**kwargs)


def signature(target: str) -> Signature:
    """The signature of the class or function at the dotted name `target`. Raises NotFoundError."""
    found = resolve(target)
    if isinstance(found.node, ast.ClassDef):
        return Signature(found.node.name, found.module.name, "class", *_of_class(found))
    return Signature(found.node.name, found.module.name, "function", *_of_arguments(found.node.args, bound=False))


def _of_class(found: Found) -> tuple[tuple[Parameter, ...], bool]:
    """What calling the class accepts: the nearest `__init__`, `__new__` or dataclass on its line of bases."""
    maker = _maker(found)
    if maker is not None:  # before its bases, which may be heavy to read
        return _of_arguments(maker.args, bound=True)
    line, complete = _line(found)
    for i, base in enumerate(line):
        maker = _maker(base)
        if maker is not None:
            return _of_arguments(maker.args, bound=True)
        if _is_dataclass(base.node):
            return _of_fields([older.node for older in line[i:]]), False
    return (), not complete


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
    """Whether a decorator generates an `__init__` from the fields."""
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


def _of_arguments(arguments: ast.arguments, bound: bool) -> tuple[tuple[Parameter, ...], bool]:
    """The parameters that can be given by name, and whether any other name is accepted too."""
    positional = [*arguments.posonlyargs, *arguments.args]
    optional = len(positional) - len(arguments.defaults)
    defaults = [*[None] * optional, *arguments.defaults]
    named = list(zip(positional, defaults))[max(bound, len(arguments.posonlyargs)) :]
    named += zip(arguments.kwonlyargs, arguments.kw_defaults)
    parameters = (Parameter(a.arg, value is None, _text(a.annotation), _text(value)) for a, value in named)
    return tuple(parameters), arguments.kwarg is not None


def _text(expression: ast.expr | None) -> str | None:
    """The source text of an annotation or default, without the quotes of a forward reference."""
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return expression.value
    return None if expression is None else ast.unparse(expression)
