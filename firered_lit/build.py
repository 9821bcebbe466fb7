"""From a recipe to objects: each `_target_` is held against an allow-list and its signature, then imported and called.

The only dynamic import of the project. A name is judged twice, as it is written and by where its definition lies, so
that a module's own imports (`firered_lit.fit.os.system`) are no way around the list.
"""

import functools
import importlib
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from firered_lit.annotation import fits
from firered_lit.dialect import MISSING, kind
from firered_lit.errors import UserError
from firered_lit.recipe import PARTIAL, TARGET, Recipe, join, nearest
from firered_lit.signature import Parameter, Signature, signature
from firered_lit.source import NotFoundError

_ROOMS = ("stages", "models", "flow", "losses", "rewards", "optim", "tracking", "strategy", "fit", "mine")
HOUSE = (*(f"firered_lit.{room}" for room in _ROOMS), "datamodules", "callbacks")
LIBRARIES = (  # classes only
    *(f"lightning.pytorch.{part}" for part in ("loggers", "callbacks", "strategies", "profilers", "Trainer")),
    *("torch.optim", "bitsandbytes.optim", "torchao.optim", "torchmetrics"),
)
_HOMES = (*HOUSE, *LIBRARIES, "lightning.pytorch.trainer")  # where allowed names may be defined


def validate(recipe: Recipe, allow: Sequence[str] = (), supplied: Sequence[str] = ()) -> None:
    """Raise the first UserError of `problems`, with every value required to be there."""
    for problem in problems(recipe, allow, supplied):
        raise problem
    for key in recipe.missing:
        raise recipe.refusal(key, f"needs a value: add {key}=VALUE to the command")


def problems(recipe: Recipe, allow: Sequence[str] = (), supplied: Sequence[str] = ()) -> Iterator[UserError]:
    """What keeps the recipe from being built, read from signatures alone: nothing is imported.

    `allow`: packages of the user's, from the command line. `supplied`: root arguments that the caller adds.
    """
    if TARGET not in recipe.root:
        yield recipe.refusal("", f"no {TARGET} at the top, so nothing says what runs it (a fragment for `base`?)")
    yield from _problems(recipe, recipe.root, "", allow, supplied)


def admit(target: object, allow: Sequence[str] = ()) -> Signature:
    """The signature of a target that a recipe may name. Raises UserError (without the place) for any other."""
    if not isinstance(target, str):
        raise UserError(f"expected the dotted name of a class or function, got {kind(target)} {target!r}")
    parent = target.rpartition(".")[0]
    if any(part.startswith("_") for part in target.split(".")):
        raise UserError(f"{target!r} names something private")
    if not _within(target, (*HOUSE, *LIBRARIES, *allow)):
        hint = nearest(parent, (*HOUSE, *LIBRARIES)) or "; a package of your own is added by --allow PACKAGE"
        raise UserError(f"{target!r} is not among the things that a recipe may name{hint}")
    try:
        found = signature(target)
    except NotFoundError as error:
        raise UserError(f"{error}{nearest(error.name, error.known) if error.name else ''}") from None
    if not _within(found.home, (*_HOMES, *allow)):
        raise UserError(f"{target!r} is really {found.home}.{found.name}, which a recipe may not name")
    if found.kind == "function" and not _within(found.home, (*HOUSE, *allow)):
        raise UserError(f"{target!r} is a function; of libraries a recipe names classes only")
    return found


def build(node: Any, allow: Sequence[str] = (), key: str = "") -> Any:
    """The value that a recipe's node describes, its children built first. The node is left as it is.

    `_partial_: true` gives a `functools.partial`. Beside nodes, entries set to null are left out.
    """
    if isinstance(node, list):
        items = [build(item, allow, join(key, i)) for i, item in enumerate(node)]
        return [item for item in items if item is not None] if any(map(_is_node, node)) else items
    if not isinstance(node, dict):
        return node
    built = {k: build(v, allow, join(key, k)) for k, v in node.items() if k not in (TARGET, PARTIAL)}
    if TARGET not in node:
        holds_nodes = any(map(_is_node, node.values()))
        return {k: v for k, v in built.items() if v is not None} if holds_nodes else built
    thing = _import(node[TARGET], allow)
    if node.get(PARTIAL):
        return functools.partial(thing, **built)
    try:
        return thing(**built)
    except Exception as error:
        error.add_note(f"while building {key or 'the root'} ({node[TARGET]})")
        raise


def _import(target: str, allow: Sequence[str]) -> Any:
    """The admitted class or function itself, from the module that defines it."""
    found = admit(target, allow)
    thing = getattr(importlib.import_module(found.home), found.name, None)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        raise UserError(f"{target!r} is {type(thing).__name__} once imported, not a class or function")
    if not _within(thing.__module__, (*_HOMES, *allow)):
        raise UserError(f"{target!r} is really from {thing.__module__}, which a recipe may not name")
    return thing


def _within(name: str, packages: Sequence[str]) -> bool:
    """Whether `name` is one of the packages or lies inside one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _is_node(value: Any) -> bool:
    return isinstance(value, dict) and TARGET in value


def _problems(
    recipe: Recipe, node: Any, key: str, allow: Sequence[str], supplied: Sequence[str] = ()
) -> Iterator[UserError]:
    """The problems of `node` and everything below it."""
    children = dict(enumerate(node)) if isinstance(node, list) else node if isinstance(node, dict) else {}
    if _is_node(node):
        try:
            found = admit(node[TARGET], allow)
        except UserError as error:
            yield recipe.refusal(join(key, TARGET), str(error))
        else:
            yield from _binding(recipe, node, key, found, supplied)
    for name, child in children.items():
        if not _is_node(node) and str(name).startswith("_"):
            hint = nearest(str(name), (TARGET, PARTIAL)) if name != PARTIAL else f" without a {TARGET}"
            yield recipe.refusal(join(key, name), f"has no meaning here{hint}")
        yield from _problems(recipe, child, join(key, name), allow)


def _binding(
    recipe: Recipe, node: dict[str, Any], key: str, found: Signature, supplied: Sequence[str]
) -> Iterator[UserError]:
    """Whether the node's arguments are those of its signature."""
    partial = node.get(PARTIAL, False)
    if not isinstance(partial, bool) or (partial and not key):
        what = "the root is called, never partial" if partial is True else f"expected true or false, got {partial!r}"
        yield recipe.refusal(join(key, PARTIAL), what)
    known = {p.name: p for p in found.parameters if p.name not in supplied}
    for name, value in node.items():
        if name in (TARGET, PARTIAL):
            continue
        if name in known:
            yield from _typing(recipe, join(key, name), known[name], value)
        elif not found.open or name in supplied or not isinstance(name, str):
            what = f"{found.name} has no argument {name!r}{nearest(str(name), known)}"
            yield recipe.refusal(join(key, name), what)
    for parameter in known.values():
        if parameter.required and parameter.name not in node and not partial:
            hint = f" (or `{PARTIAL}: true`, when the code that receives it adds that)" if key else ""
            place = recipe.where(join(key, TARGET))  # whoever chose the target owes its arguments
            yield UserError(f"{place}: {key or TARGET}: {found.name} needs the argument {parameter.name!r}{hint}")


def _typing(recipe: Recipe, key: str, parameter: Parameter, value: Any) -> Iterator[UserError]:
    """Whether a plain value can be what the parameter's annotation asks for."""
    implicit = value is None and parameter.default == "None"
    if implicit or fits(parameter.annotation, value, lambda v: _is_node(v) or v == MISSING):
        return
    quotes = "; put text in quotes" if fits(parameter.annotation, "") and isinstance(value, int | float) else ""
    yield recipe.refusal(
        key, f"expected {parameter.annotation}, got {kind(value)} {value!r}{quotes}".replace("\n", " ")
    )
