"""From a recipe to objects: each `_target_` is held against a list and its signature, then imported and called.

The only dynamic import of the project. A name stands in `firered_lit.config.nameable`, or lies in a package that the
command line has opened; such a name is judged twice, as it is written and by where its definition lies, so that a
module's own imports (`yours.os.system`) are no way around that.
"""

import ast
import enum
import functools
import importlib
import inspect
import os
import types
import typing
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any

from firered_lit.config.annotation import fits
from firered_lit.config.api_keys import is_key_variable
from firered_lit.config.dialect import MISSING, kind
from firered_lit.config.nameable import LIBRARIES, MOVED, NAMES, RENAMED, ROOTS, WITHHELD
from firered_lit.config.ranges import outside
from firered_lit.config.recipe import PARTIAL, TARGET, Recipe, join, nearest
from firered_lit.config.signature import Parameter, Signature, signature
from firered_lit.config.source import NotFoundError, resolve
from firered_lit.errors import UserError, naming

_MADE_OF_PLAIN = (str, int, float, os.PathLike, enum.Enum, type)
_PLAIN = {"str", "int", "float", "StrEnum", "Enum", "str, Enum", "TypedDict", "NamedTuple"}  # bases of plain values


def validate(recipe: Recipe, allow: Sequence[str] = (), supplied: Sequence[str] = ()) -> None:
    """Raise the first UserError of `problems`, with every value required to be there."""
    for problem in problems(recipe, allow, supplied):
        raise problem
    for key in recipe.missing:
        raise recipe.refusal(key, f"needs a value: add {key}=VALUE to the command")


def problems(recipe: Recipe, allow: Sequence[str] = (), supplied: Sequence[str] = ()) -> Iterator[UserError]:
    """Yield every problem that keeps the recipe from being built. Signatures are read, nothing is imported.

    `allow`: packages of the user's, from the command line. `supplied`: root arguments that the caller adds.
    """
    if TARGET not in recipe.root:
        yield recipe.refusal("", f"no {TARGET} at the top, so nothing says what runs it (a fragment for `base`?)")
    yield from _problems(recipe, recipe.root, "", allow, supplied)


def admit(target: object, allow: Sequence[str] = (), nested: bool = False) -> Signature:
    """Return the signature of a target that a recipe may name.

    Args:
        target: the dotted name.
        allow: names and packages from the command line.
        nested: whether it stands below the top of the recipe, where nothing that a verb runs has a place.

    Raises:
        UserError: any other target; the message leaves the place in the recipe to the caller.
    """
    if not isinstance(target, str):
        raise UserError(f"expected the dotted name of a class or function, got {kind(target)} {target!r}")
    if any(name.startswith("_") for name in target.split(".")):
        raise UserError(f"{target!r} names something private")
    if target in RENAMED:
        raise UserError(f"{target!r} is now called {RENAMED[target]!r}; write the new name")
    if nested and target in ROOTS:
        raise UserError(f"{target!r} is what a command runs; it stands at the top of a recipe alone")
    listed = target in NAMES
    if not listed and not _within(target, allow):
        hint = f"{_nearest_name(target)}; a package of your own is added by --allow PACKAGE"
        raise UserError(f"{target!r} is not among the things that a recipe may name{hint}")
    try:
        found = signature(target)
    except NotFoundError as error:
        hint = nearest(error.name, error.known) if error.name else ""
        raise UserError(f"{error}{hint}") from None
    if not listed and target not in allow and not _within(found.home, allow):
        raise UserError(f"{target!r} is really {found.home}.{found.name}, which a recipe may not name")
    return found


def _nearest_name(target: str) -> str:
    """Return "; did you mean 'x'?" for the listed name that ends as the target does, or is spelt most like it."""
    last = target.rpartition(".")[2]
    namesakes = [name for name in NAMES if name.rpartition(".")[2] == last]
    return nearest(target, sorted(namesakes)) or nearest(target, sorted(NAMES))


def build(node: Any, allow: Sequence[str] = (), key: str = "") -> Any:
    """Build the value that a recipe's node describes, its children first. The node is left as it is.

    `_partial_: true` makes a `functools.partial`. In a list or mapping that holds nodes, entries set to null are left
    out.

    Args:
        node: a value of a recipe.
        allow: names and packages from the command line.
        key: of the node in the recipe, "" at the top.
    """
    if isinstance(node, list):
        return _build_list(node, allow, key)
    if not isinstance(node, dict):
        return node
    if TARGET not in node:
        return _build_mapping(node, allow, key)

    # The arguments, then the object.
    arguments = {}
    for name, value in node.items():
        if name not in (TARGET, PARTIAL):
            arguments[name] = build(value, allow, join(key, name))
    thing = _import(node[TARGET], allow, nested=bool(key))
    for name, value in arguments.items():
        _refuse_other_object(thing, name, value, join(key, name))

    if not node.get(PARTIAL):
        with naming(f"{key or 'the root'} ({node[TARGET]})"):
            return thing(**arguments)
    if not key:
        return functools.partial(thing, **arguments)  # the root, whose own failures are no fault of the recipe
    factory = Factory(thing, **arguments)
    factory.key = key
    return factory


def _build_list(node: list[Any], allow: Sequence[str], key: str) -> list[Any]:
    """Build the items of a list; beside nodes, null is left out."""
    items = [build(item, allow, join(key, place)) for place, item in enumerate(node)]
    if any(map(_is_node, node)):
        return [item for item in items if item is not None]
    return items


def _build_mapping(node: dict[str, Any], allow: Sequence[str], key: str) -> dict[str, Any]:
    """Build the values of a mapping; beside nodes, null is left out."""
    values = {name: build(value, allow, join(key, name)) for name, value in node.items() if name != PARTIAL}
    if any(map(_is_node, node.values())):
        return {name: value for name, value in values.items() if value is not None}
    return values


class Factory(functools.partial[Any]):
    """A `functools.partial` made by `_partial_: true`; its first call turns a misfit into one line.

    key: of the node in the recipe. made: the classes that the code which calls it asks for; None where that is open.
    """

    key = ""
    made: tuple[type, ...] | None = None
    called = False

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if self.called:
            return super().__call__(*args, **kwargs)
        with naming(self.key, self.keywords):
            result = super().__call__(*args, **kwargs)
            if self.made and not isinstance(result, self.made):
                wanted = " or ".join(kind.__name__ for kind in self.made)
                raise UserError(f"{self.key}: {self.func.__name__} makes a {type(result).__name__}, not a {wanted}")
        self.called = True
        return result


def _refuse_other_object(thing: Any, name: str, value: Any, key: str) -> None:
    """Refuse an object of another class than its parameter is annotated with, and a plain value for an object.

    Args:
        thing: the class or function that is called.
        name: of the parameter.
        value: what a node was built to, or a list or mapping of such.
        key: of the value in the recipe.

    Raises:
        UserError: the annotation is known, and the object is none of its kinds.
    """
    hint = _hints(thing).get(name)
    if hint is None:
        return

    # null for an object.
    if value is None and _kinds(hint) and type(None) not in _options(hint):
        parameter = inspect.signature(thing).parameters.get(name)
        if parameter is not None and parameter.default is not None:
            raise UserError(f"{key}: needs a value, got null")

    # An object of another class.
    for place, item, wanted in _objects(value, hint, key):
        if isinstance(item, Factory):
            item.made = _made(wanted)
        kinds = _kinds(wanted)
        if not kinds or isinstance(item, kinds) or _is_plain_for(item, kinds):
            continue
        shown = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{place}: expected {shown}, got {type(item).__name__}")


def _is_plain_for(item: Any, kinds: tuple[type, ...]) -> bool:
    """Return whether a plain value stands for one of these classes, as 1 for 1.0.

    Whether it fits was looked at before anything was built.
    """
    if not isinstance(item, str | int | float | list):
        return False
    made_of = (tuple, Set) if isinstance(item, list) else _MADE_OF_PLAIN
    return any(issubclass(kind, made_of) for kind in kinds)


def _objects(value: Any, hint: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    """Yield a value and all that it holds, if it is a list or mapping: (key, value, annotation)."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        of_items = _annotations_of_items(hint)
        if len(of_items) == 1:
            for name, item in items:
                yield from _objects(item, of_items[0], join(key, name))
    if value is not None:
        yield key, value, hint


def _annotations_of_items(hint: Any) -> list[Any]:
    """Return the annotation of the items in each alternative of a container's annotation."""
    annotations = []
    for option in _options(hint):
        arguments = typing.get_args(option)
        if arguments:
            annotations.append(arguments[-1])
    return annotations


def _options(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of an annotation."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _kinds(hint: Any) -> tuple[type, ...] | None:
    """Return the classes that an annotation admits; None where one of its alternatives names no class."""
    kinds = []
    for option in _options(hint):
        if option is type(None):
            continue
        kind = typing.get_origin(option) or option
        if not isinstance(kind, type) or kind in (object, Any):
            return None
        if typing.is_typeddict(kind) or getattr(kind, "_is_protocol", False):
            return None
        kinds.append(kind)
    return tuple(kinds)


def _made(hint: Any) -> tuple[type, ...] | None:
    """Return the classes of which an annotation's callable makes one; None where it names none."""
    callables = [option for option in _options(hint) if option is not type(None)]
    if len(callables) != 1:
        return None
    arguments = typing.get_args(callables[0])
    if not arguments:
        return None
    return _kinds(arguments[-1])


@functools.cache
def _hints(thing: Any) -> dict[str, Any]:
    """Return the annotations of what is called, as types; nothing where they cannot be known here."""
    try:
        return typing.get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    except Exception:  # a name that stands there for type checkers alone
        return {}


def _import(target: str, allow: Sequence[str], nested: bool) -> Any:
    """Return the admitted class or function itself, from the module that defines it."""
    found = admit(target, allow, nested)
    try:
        thing = getattr(importlib.import_module(found.home), found.name, None)
    except ModuleNotFoundError as problem:
        if problem.name not in MOVED:
            raise
        new = MOVED[problem.name]
        raise UserError(f"{found.home}: {problem.name!r} is now called {new!r}; import it by the new name") from None
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        raise UserError(f"{target!r} is {type(thing).__name__} once imported, not a class or function")
    if target not in NAMES and target not in allow and not _within(thing.__module__, allow):
        raise UserError(f"{target!r} is really from {thing.__module__}, which a recipe may not name")
    return thing


def _within(name: str, packages: Sequence[str]) -> bool:
    """Return whether `name` is one of the packages or lies inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _is_open(value: Any) -> bool:
    """Return whether a value is not known before the recipe is built."""
    if _is_node(value):
        return not _makes_object(value)
    return value == MISSING


def _makes_object(value: Any) -> bool:
    """Return whether a node makes an object, and no plain value.

    A listed class or function does; a function of the user's own may not.
    """
    if not _is_node(value):
        return False
    target = value[TARGET]
    return isinstance(target, str) and (target in NAMES or value.get(PARTIAL) is True)


def _is_node(value: Any) -> bool:
    """Return whether a value of a recipe names something to call."""
    return isinstance(value, dict) and TARGET in value


def _problems(
    recipe: Recipe, node: Any, key: str, allow: Sequence[str], supplied: Sequence[str] = ()
) -> Iterator[UserError]:
    """Yield the problems of `node` and of everything below it."""
    if _is_node(node):
        try:
            found = admit(node[TARGET], allow, nested=bool(key))
        except UserError as error:
            yield recipe.refusal(join(key, TARGET), str(error))
        else:
            yield from _binding(recipe, node, key, found, supplied)

    for name, child in _children(node):
        if not _is_node(node) and str(name).startswith("_"):
            hint = f" without a {TARGET}" if name == PARTIAL else nearest(str(name), (TARGET, PARTIAL))
            yield recipe.refusal(join(key, name), f"has no meaning here{hint}")
        yield from _problems(recipe, child, join(key, name), allow)


def _children(node: Any) -> Iterable[tuple[Any, Any]]:
    """Return the (name, value) of everything right below a value of a recipe."""
    if isinstance(node, list):
        return enumerate(node)
    if isinstance(node, dict):
        return node.items()
    return ()


def _binding(
    recipe: Recipe, node: dict[str, Any], key: str, found: Signature, supplied: Sequence[str]
) -> Iterator[UserError]:
    """Yield a problem for each argument that the node's signature does not accept, or lacks."""
    # `_partial_`.
    partial = node.get(PARTIAL, False)
    if not isinstance(partial, bool):
        yield recipe.refusal(join(key, PARTIAL), f"expected true or false, got {partial!r}")
    elif partial and not key:
        yield recipe.refusal(join(key, PARTIAL), "the root is called, never partial")

    # The arguments that are given.
    known = {parameter.name: parameter for parameter in found.parameters if parameter.name not in supplied}
    for name, value in node.items():
        if name in (TARGET, PARTIAL):
            continue
        place = join(key, name)
        withheld = _withheld(node[TARGET], name, known.get(name), value)
        if withheld:
            yield recipe.refusal(place, withheld)
        elif name in known:
            yield from _typing(recipe, place, known[name], value)
            if node[TARGET] in NAMES:
                yield from _limits(recipe, place, found, known[name], value)
        elif not found.open or name in supplied or not isinstance(name, str):
            yield recipe.refusal(place, f"{found.name} has no argument {name!r}{nearest(str(name), known)}")

    # Those that are not.
    if partial:
        return
    hint = f" (or `{PARTIAL}: true`, when the code that receives it adds that)" if key else ""
    for parameter in known.values():
        if parameter.required and parameter.name not in node:
            where = recipe.where(join(key, TARGET))  # whoever chose the target owes its arguments
            yield UserError(f"{where}: {key or TARGET}: {found.name} needs the argument {parameter.name!r}{hint}")


def _withheld(target: str, name: str, parameter: Parameter | None, value: Any) -> str:
    """Return why a recipe may not give this argument of a library's class; nothing when it may."""
    if name in WITHHELD.get(target, ()):
        return f"{target.rpartition('.')[2]}.{name} is not for a recipe to give"
    called = parameter is None or "Callable" in (parameter.annotation or "")
    if target in LIBRARIES and called and _is_node(value):
        return "a recipe gives a library nothing to call; write a plain value"
    return ""


def _limits(recipe: Recipe, key: str, found: Signature, parameter: Parameter, value: Any) -> Iterator[UserError]:
    """Yield a problem for a number outside its range, and for a plain value where an object must stand."""
    if _is_node(value):
        return
    expected = outside(found.name, parameter.name, value)
    if expected is not None:
        yield recipe.refusal(key, f"expected {expected}, got {value!r}")

    annotated = parameter.annotation or ""
    if value is None:
        is_optional = "None" in annotated or "Optional" in annotated or parameter.default == "None"
        is_plain = not is_optional
    else:
        is_plain = isinstance(value, str | int | float | list | dict) and value != MISSING
    if is_plain and _asks_for_an_object(annotated, found.home):
        yield recipe.refusal(key, f"expected a {annotated}, named by {TARGET}, got {kind(value)} {value!r}")


def _asks_for_an_object(annotation: str, home: str) -> bool:
    """Return whether an annotation in the module `home` names a class without plain instances."""
    try:
        node = resolve(f"{home}.{annotation.removesuffix(' | None')}").node
    except NotFoundError:
        return False
    return isinstance(node, ast.ClassDef) and _PLAIN.isdisjoint(ast.unparse(base) for base in node.bases)


def _typing(recipe: Recipe, key: str, parameter: Parameter, value: Any) -> Iterator[UserError]:
    """Yield a problem when a plain value cannot be what the parameter's annotation asks for."""
    if parameter.annotation == "KeyVariable" and value != MISSING and not is_key_variable(value):
        yield recipe.refusal(key, f"expected the name of an environment variable that ends in _API_KEY, got {value!r}")
        return
    if value is None and parameter.default == "None":
        return
    if fits(parameter.annotation, value, _is_open, _makes_object):
        return
    hint = ""
    if isinstance(value, int | float) and fits(parameter.annotation, ""):
        hint = "; put text in quotes"
    message = f"expected {parameter.annotation}, got {kind(value)} {value!r}{hint}"
    yield recipe.refusal(key, message.replace("\n", " "))
