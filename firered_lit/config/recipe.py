"""A recipe: a YAML file, laid over its bases, changed by `key.path=value`. Nothing is imported or built here.

A string may name other keys, `${run.dir}`, as in OmegaConf, whose resolvers are refused; `???` waits for a value.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from firered_lit.config import shipped
from firered_lit.config.dialect import DEEPEST, MISSING, is_text, kind, parse
from firered_lit.config.nameable import with_new_names
from firered_lit.errors import UserError
from firered_lit.run.store import RECORD
from firered_lit.textfiles import MEGABYTE, read_text

TARGET, PARTIAL = "_target_", "_partial_"
Overrides = Sequence[str] | Mapping[str, Any]  # `key.path=value` of a command line, or key.path -> value
_LARGEST = MEGABYTE // 4  # bytes of one file
_MOST_BASES = 20  # that stand on each other

_KEY = re.compile(r"[\w/-]+(\.[\w/-]+)*")
_INTERPOLATION = re.compile(r"\$\{\w+(\.\w+)*\}")
_HOLE = "\0?"  # stands for MISSING while OmegaConf resolves, which would stop at it


@dataclass(frozen=True)
class Recipe:
    """A resolved recipe: plain mappings, lists and scalars, and where each of its keys was written."""

    path: str
    root: dict[str, Any]
    origins: dict[str, str] = field(default_factory=dict)  # dotted key -> the file, or "FILE (command line)"
    missing: tuple[str, ...] = ()  # the keys that wait for a value from the command line (`???`)

    def where(self, key: str) -> str:
        """Return the file that wrote `key`, or the nearest key above it."""
        while key and key not in self.origins:
            key = key.rpartition(".")[0]
        return self.origins.get(key, self.path)

    def refusal(self, key: str, what: str) -> UserError:
        """Return the error that names the file, the dotted key and the problem there."""
        if not key:
            return UserError(f"{self.path}: {what}")
        return UserError(f"{self.where(key)}: {key}: {what}")


def load(path: str | os.PathLike[str], overrides: Overrides = ()) -> Recipe:
    """Read a recipe over its bases, change values in it, and resolve interpolations.

    Whether the arguments fit their targets is for `build.validate` to say.

    Args:
        path: A file, or the name of a shipped recipe where no such file is, see `shipped.find`.
        overrides: `key.path=value` as on the command line, or a mapping from `key.path` to a plain value.

    Raises:
        UserError: A file cannot be read, or there is no such key.
    """
    path = shipped.find(os.fspath(path))
    origins: dict[str, str] = {}
    root: dict[str, Any] = {}
    for name, content in _layers(path):
        root = lay_over(root, content)
        _mark(origins, "", content, name)
    if isinstance(overrides, Mapping):
        typed = f"{path} (overrides)"
        changes = [_plain_override(key, value) for key, value in overrides.items()]
    else:
        typed = f"{path} (command line)"
        changes = [parse_override(text) for text in overrides]
    for key, value in sorted(changes, key=lambda pair: not pair[0].endswith(TARGET)):
        root = _set(root, key.split("."), value, Recipe(typed, root))
        _mark(origins, key, value, typed)
    missing = tuple(key for key, value in leaves(root) if value == MISSING)
    return Recipe(path, _interpolate(root, Recipe(path, root, origins)), origins, missing)


def fold(path: str) -> str:
    """Return a recipe and all its bases as the text of one file, which reads as they do together.

    Args:
        path: see `load`.

    Raises:
        UserError: a file cannot be read.
    """
    path = shipped.find(path)
    root: dict[str, Any] = {}
    layers = _layers(path)
    for _, content in layers:
        root = lay_over(root, content)
    texts = [(name, read_text(name, _LARGEST)) for name, _ in layers]
    return shipped.folded(texts, root, shipped.opening(Path(path)))


def _layers(path: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the names and contents of the files that make a recipe, the lowest first and `path` last.

    A base may have bases. A file that several name counts once, where it is first needed, so that a base does not undo
    what the one before it has changed in a base of both.
    """
    found: dict[str, tuple[str, dict[str, Any]]] = {}

    def collect(name: str, above: tuple[str, ...]) -> None:
        content = _read(name)
        chain = (*above, name)
        real = os.path.realpath(name)
        if real in map(os.path.realpath, above):
            raise UserError(f"{above[-1]}: base: a circle: {' -> '.join(chain)}")
        if len(chain) > _MOST_BASES:
            raise UserError(f"{name}: base: more than {_MOST_BASES} files stand on each other")
        for base in _bases(name, content.pop("base", [])):
            collect(base, chain)
        found.setdefault(real, (name, content))

    collect(path, ())
    return list(found.values())


def lay_over(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay `over` on top of `base`, key by key. Under another `_target_`, the base's arguments are dropped."""
    if _names_another_target(base, over):
        return over
    merged = dict(base)
    for key, value in over.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = lay_over(old, value)
        merged[key] = value
    return merged


def _names_another_target(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Return whether a node's new content names another `_target_` than the old one."""
    return TARGET in old and new.get(TARGET, old[TARGET]) != old[TARGET]


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every scalar below `node`; list items are named by their place."""
    children = _children(node)
    if children is None:
        yield prefix, node
        return
    for key, value in children:
        yield from leaves(value, join(prefix, key))


def _children(node: Any) -> Iterable[tuple[Any, Any]] | None:
    """Return the (key or place, value) of a mapping or list; None for a scalar."""
    if isinstance(node, dict):
        return node.items()
    if isinstance(node, list):
        return enumerate(node)
    return None


def join(prefix: str, key: object) -> str:
    """Return `prefix.key`, or `key` at the root."""
    return f"{prefix}.{key}" if prefix else str(key)


def nearest(name: str, known: Iterable[object]) -> str:
    """Return "; did you mean 'x'?" for the most similar known name, or "" when none is similar."""
    matches = difflib.get_close_matches(name, [str(key) for key in known], n=1, cutoff=0.6)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _read(path: str) -> dict[str, Any]:
    """Read one file as a mapping."""
    try:
        text = read_text(path, _LARGEST)
    except FileNotFoundError:
        raise UserError(f"{path}: no such recipe{_neighbours(path)}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read as a recipe: {error.strerror}") from None
    content = parse(text, path)
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of keys to values, this is {kind(content)}")
    for key, value in leaves(content):
        if not isinstance(value, str | int | float | None):
            raise UserError(f"{path}: {key}: {kind(value)} has no place in a recipe; write a plain value")
    is_of_a_run = Path(path).with_name(RECORD).is_file()
    return with_new_names(content) if is_of_a_run else content


def _neighbours(path: str) -> str:
    """Return the nearest match among the recipes of the same folder and the shipped ones."""
    folder = Path(path).parent
    beside = [str(folder / file.name) for file in folder.glob("*.yaml")] if folder.is_dir() else []
    return nearest(path, beside) or nearest(path, shipped.names())


def _bases(path: str, names: Any) -> list[str]:
    """Return the base files that the recipe `path` names."""
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: base: expected a list of file names, got {names!r}")
    return [_locate(path, name) for name in names]


def _locate(path: str, name: str) -> str:
    """Return where a base lies: beside the recipe `path`, else, for recipes/NAME, among the shipped recipes."""
    beside = os.path.normpath(os.path.join(os.path.dirname(path), name))
    if os.path.lexists(beside) or not os.path.normpath(name).startswith(f"recipes{os.sep}"):
        return beside
    found = shipped.find(name)
    return beside if found == name else found


def _mark(origins: dict[str, str], key: str, value: Any, origin: str) -> None:
    """Note `origin` for `key` and everything below it."""
    if key:
        origins[key] = origin
    for name, child in _children(value) or ():
        _mark(origins, join(key, name), child, origin)


def parse_override(text: str) -> tuple[str, Any]:
    """Read `key.path=value`. A bare value is taken to the letter: only `{`, `[` and quotes begin more."""
    key, equals, raw = text.partition("=")
    if not equals or not _KEY.fullmatch(key):
        raise UserError(f"command line: {text!r}: expected key.path=value")
    if not is_text(raw):
        raise UserError(f"command line: {key}: {raw!r} holds what is no text")
    if raw[:1] in ("{", "[", '"', "'"):
        return key, parse(raw, f"command line: {key}")
    try:
        value = parse(raw, key)
    except UserError:
        return key, raw
    is_to_the_letter = isinstance(value, str | dict | list)
    return key, raw if is_to_the_letter else value


def _plain_override(key: str, value: Any) -> tuple[str, Any]:
    """Return an override that was given as a Python value, in the types that a recipe is made of."""
    if not _KEY.fullmatch(key):
        raise UserError(f"overrides: {key!r} is no dotted key, as in 'trainer.max_steps'")
    return key, _plain(value, f"overrides: {key}")


def _plain(value: Any, where: str) -> Any:
    """Return a Python value in the types that a recipe is made of; a path is text there.

    Raises:
        UserError: It, or something in it, is another kind of object.
    """
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, Mapping):
        return {name: _plain(item, join(where, name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, join(where, number)) for number, item in enumerate(value)]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str) and not is_text(value):
        raise UserError(f"{where}: {value!r} holds what is no text")

    # An instance of a subclass, as numpy's float64 or an Enum's text, becomes one of the type itself.
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise UserError(f"{where}: a {type(value).__name__} has no place in a recipe; give a plain value or a mapping")


def _set(node: Any, parts: list[str], value: Any, recipe: Recipe, at: str = "") -> Any:
    """Return `node` with the key `parts` below it set to `value`.

    Every part must exist, except the last one in a node with a `_target_`, whose signature decides later, and a whole
    new node: `'callbacks.ema={_target_: ...}'`.

    Args:
        node: a value of the recipe, which is left as it is.
        parts: names or places below it, at least one.
        value: the new value.
        recipe: for errors.
        at: the key of `node`.
    """
    here = join(at, parts[0])
    if isinstance(node, list):
        return _set_item(node, parts, value, recipe, at)
    if not isinstance(node, dict):
        raise recipe.refusal(here, f"no such key; {at} is {kind(node)}; give {at}= a whole value")

    # The key must be there, or be one that may be added.
    first, rest = parts[0], parts[1:]
    name: Any = next((key for key in node if str(key) == first), first)  # a number may be a key too
    if name not in node and name != TARGET:
        is_argument = TARGET in node and rest in ([], [TARGET])
        is_new_node = not rest and isinstance(value, dict) and TARGET in value
        if not is_argument and not is_new_node:
            raise recipe.refusal(here, f"no such key{nearest(first, node)}")

    value = _below(node.get(name), rest, value, recipe, here)
    if name == TARGET and node.get(TARGET, value) != value:
        return {TARGET: value}  # another target brings only its own arguments
    return {**node, name: value}


def _set_item(node: list[Any], parts: list[str], value: Any, recipe: Recipe, at: str) -> list[Any]:
    """Return a list with the key `parts` below it set to `value`; see `_set`."""
    first, rest = parts[0], parts[1:]
    here = join(at, first)
    if not first.isdigit() or int(first) >= len(node):
        raise recipe.refusal(here, f"no such item; {at} is a list of {len(node)}, counted from 0")
    place = int(first)
    items = list(node)
    items[place] = _below(node[place], rest, value, recipe, here)
    return items


def _below(old: Any, rest: list[str], value: Any, recipe: Recipe, here: str) -> Any:
    """Return what becomes of an `old` value at `here` when the key `rest` below it is set to `value`."""
    if not rest:
        return _typed_over(old, value)
    if old is None and rest == [TARGET]:
        old = {}
    return _set(old, rest, value, recipe, here)


def _typed_over(old: Any, value: Any) -> Any:
    """Return what a value from the command line makes of the recipe's `old` one.

    A plain mapping takes the place of a plain mapping. Where either has a `_target_`, the entries that are given
    change, and the others stay as long as the target does.
    """
    if not isinstance(old, dict) or not isinstance(value, dict):
        return value
    if TARGET not in old and TARGET not in value:
        return value
    if _names_another_target(old, value):
        return value
    changed = {key: _typed_over(old.get(key), new) for key, new in value.items()}
    return {**old, **changed}


def _interpolate(root: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Replace `${run.dir}` by the value of that key. A value that still waits for the command line stays `???`."""
    for key, value in leaves(root):
        if isinstance(value, str) and "${" in _INTERPOLATION.sub("", value):
            raise recipe.refusal(key, f"{value!r}: only ${{key.path}} is replaced, resolvers are not part of a recipe")
    _refuse_growth(root, recipe)
    try:
        config = OmegaConf.create(_swap(root, MISSING, _HOLE))
        resolved = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        lines = str(error).splitlines()
        raise recipe.refusal(str(error.full_key or ""), lines[0] if lines else type(error).__name__) from None
    return dict(_swap(resolved, _HOLE, MISSING))


def _refuse_growth(root: dict[str, Any], recipe: Recipe) -> None:
    """Refuse values that name each other so often, or in so long a row, that resolving them would not end.

    Raises:
        UserError: a value beyond the size of a recipe, or more than 50 names in a row.
    """
    values = dict(leaves(root))
    naming = [key for key, value in values.items() if isinstance(value, str) and "${" in value]
    sizes: dict[str, int] = {}

    def size(key: str, above: tuple[str, ...]) -> int:
        """Return the characters of a resolved value, or of all values below a mapping."""
        if key in above:
            return 0  # a circle, which OmegaConf names
        if len(above) == DEEPEST:
            raise recipe.refusal(above[0], f"more than {DEEPEST} values name each other in a row")
        if key not in sizes:
            keys = [key] if key in values else [name for name in values if name.startswith(f"{key}.")]
            text = "".join(str(values[name]) for name in keys)
            named = [match.group()[2:-1] for match in _INTERPOLATION.finditer(text)]
            sizes[key] = len(text) + sum(size(name, (*above, key)) for name in named)
        if sizes[key] > _LARGEST:
            raise recipe.refusal(key, f"names other values so often that it grows beyond {_LARGEST // 1024} kB")
        return sizes[key]

    for key in naming:
        size(key, ())


def _swap(node: Any, old: str, new: str) -> Any:
    """Return a copy of `node` where every string that is `old`, or holds the hole, is `new`."""
    if isinstance(node, dict):
        return {key: _swap(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_swap(value, old, new) for value in node]
    if isinstance(node, str) and (node == old or _HOLE in node):
        return new
    return node
