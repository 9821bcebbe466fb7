"""The definition of a dotted name, found by reading source files. Nothing is imported, so nothing is run.

The last parts of the name are followed through re-exports (`from x import y as z`, `from .a import *`, `z = y`), the
likeliest first where a module binds a name more than once.
"""

import ast
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal


class NotFoundError(LookupError):
    """A dotted name that leads to no class or function, and why. `known`: what stands where `name` was looked for."""

    def __init__(self, message: str, name: str = "", known: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.name, self.known = name, known


@dataclass(frozen=True)
class Source:
    """A module's source, parsed."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """Return the package that its relative imports start from."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @cached_property
    def bindings(self) -> dict[str, list[ast.stmt]]:
        """The statements that bind each name, the likeliest meaning first. `*` for star imports."""
        found: dict[str, list[ast.stmt]] = {}
        for _, _, name, node in sorted(_bindings(self.tree.body), key=lambda b: (b[0], -b[1])):
            found.setdefault(name, []).append(node)
        return found


@dataclass(frozen=True)
class Found:
    """A class or function, in the module that defines it."""

    module: Source
    node: ast.ClassDef | ast.FunctionDef


_LONGEST = 30  # parts of a dotted name; only a circle such as `x = x.y` makes longer ones
_memory: dict[str, Found | NotFoundError] = {}
_parsing = threading.Lock()


def resolve(target: str) -> Found:
    """The definition that a dotted name leads to. Raises NotFoundError."""
    if target not in _memory:
        _memory[target] = NotFoundError(f"{target} is re-exported in a circle")  # met again only inside this search
        try:
            _memory[target] = _search(target)
        except NotFoundError as error:
            _memory[target] = error
    found = _memory[target]
    if isinstance(found, NotFoundError):
        raise found
    return found


def _search(target: str) -> Found:
    """The deepest module on the path `target`, then the names left over inside it."""
    parts = target.split(".")
    if len(parts) > _LONGEST:
        raise NotFoundError(f"{parts[0]}.{parts[1]} is re-exported in a circle")
    if not all(part.isidentifier() for part in parts):
        raise NotFoundError(f"{target!r} is not a dotted name")
    modules = (module_source(".".join(parts[:cut])) for cut in range(len(parts), 0, -1))
    module = next((m for m in modules if m is not None), None)
    if module is None:
        there = _spec(parts[0]) is not None
        raise NotFoundError(f"{parts[0]} has no source to read" if there else f"no package {parts[0]!r} is installed")
    rest = parts[module.name.count(".") + 1 :]
    if not rest:
        raise NotFoundError(f"{target} is a module, not a class or function")
    failure: NotFoundError | None = None
    for name in (rest[0], "*"):
        for node in module.bindings.get(name, ()):
            try:
                return _follow(module, node, rest)
            except NotFoundError as error:
                failure = failure or (error if name != "*" else None)
    known = (*(name for name in module.bindings if not name.startswith("_")), *_submodules(module))
    raise failure or NotFoundError(f"{module.name} has no {rest[0]!r}", rest[0], known)


def _follow(module: Source, node: ast.stmt, path: list[str]) -> Found:
    """The definition behind one statement of `module` that binds `path[0]`."""
    name, rest = path[0], path[1:]
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        if rest:
            raise NotFoundError(f"{'.'.join(path)} is inside {module.name}.{name}; name what a module holds itself")
        return Found(module, node)
    if isinstance(node, ast.ImportFrom):
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.package)
        given = next((alias.name for alias in node.names if (alias.asname or alias.name) == name), name)
        if node.names[0].name == "*" and module_source(base) is None:
            raise NotFoundError(f"{base} has no source to read")
        return resolve(".".join((base, given, *rest)))
    if isinstance(node, ast.Import):
        given = next((alias.name for alias in node.names if alias.asname == name), name)
        return resolve(".".join((given, *rest)))
    value = getattr(node, "value", None)
    if isinstance(value, ast.Name | ast.Attribute):
        return resolve(".".join((module.name, ast.unparse(value), *rest)))
    raise NotFoundError(f"{module.name}.{name} is not a class or function")


def _bindings(body: list[ast.stmt], rank: int = 0) -> Iterator[tuple[int, int, str, ast.stmt]]:
    """(rank, line, name, statement) of what a module binds; lower ranks and later lines are the likelier meaning."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            overload = any(ast.unparse(d).endswith("overload") for d in node.decorator_list)
            yield rank + overload, node.lineno, node.name, node
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                plain = alias.name.partition(".")[0] if isinstance(node, ast.Import) else alias.name
                yield rank + 9 * (alias.name == "*"), node.lineno, alias.asname or plain, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((rank, node.lineno, t.id, node) for t in targets if isinstance(t, ast.Name))
        elif isinstance(node, ast.If):
            typing_only = "TYPE_CHECKING" in ast.unparse(node.test)
            yield from _bindings(node.body, rank + typing_only)
            yield from _bindings(node.orelse, rank + (not typing_only))
        elif isinstance(node, ast.Try):
            yield from _bindings([*node.body, *node.orelse, *node.finalbody], rank)
            for handler in node.handlers:
                yield from _bindings(handler.body, rank + 1)
        elif isinstance(node, ast.With):
            yield from _bindings(node.body, rank)


def parse(text: str | bytes, file_name: str = "<text>", mode: Literal["exec", "eval"] = "exec") -> Any:
    """Return the syntax tree of `text`, whatever other threads do meanwhile.

    Before 3.11.8 and 3.12.2, CPython keeps one recursion depth for all threads that build a syntax tree, and one of
    them ends with a SystemError (gh-106905). The lock keeps our threads apart; a second try is for those of others.

    Raises:
        SyntaxError: The text is not Python.
    """
    with _parsing:
        try:
            return ast.parse(text, file_name, mode)
        except SystemError:
            return ast.parse(text, file_name, mode)


@cache
def module_source(name: str) -> Source | None:
    """The source of a module, or None when it has none (not there, a C extension, a plain folder)."""
    top, *rest = name.split(".")
    spec = _spec(top)
    if spec is None:
        return None
    origin = getattr(spec.loader_state, "filename", None) or spec.origin or ""  # the former of frozen modules, as `os`
    stems = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    files = [
        file for s in stems if s.name in _stems(s.parent) for file in (s / "__init__.py", s.parent / f"{s.name}.py")
    ]
    for file in files if rest else [Path(origin)] if origin.endswith(".py") else []:
        if file.is_file():
            return Source(name, file, parse(file.read_bytes(), str(file)))
    return None


@cache
def _spec(top: str) -> ModuleSpec | None:
    """Return the spec of a top-level package. (With a dotted name, this would import the parents.)"""
    try:
        return importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return None


@cache
def _stems(folder: Path) -> frozenset[str]:
    """Names of the modules in a folder, case by case: `Trainer` is not `trainer`, whatever the file system says."""
    return frozenset(p.stem for p in folder.iterdir() if p.suffix in ("", ".py")) if folder.is_dir() else frozenset()


def _submodules(module: Source) -> frozenset[str]:
    """The modules of a package, for the nearest match."""
    return _stems(module.path.parent) if module.path.name == "__init__.py" else frozenset()
