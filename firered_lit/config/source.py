"""The definition of a dotted name, found by reading source files. Nothing is imported, so nothing is run.

The last parts of the name are followed through re-exports (`from x import y as z`, `from .a import *`, `z = y`), the
likeliest first where a module binds a name more than once.
"""

import ast
import contextlib
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal, NamedTuple


class NotFoundError(LookupError):
    """A dotted name that leads to no class or function, and why.

    Args:
        message: the reason.
        name: the last name that was looked for, if any.
        known: the names where it was looked for.
    """

    def __init__(self, message: str, name: str = "", known: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.known = known


@dataclass(frozen=True)
class ModuleSource:
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
        statements: dict[str, list[ast.stmt]] = {}
        for binding in sorted(_bindings(self.tree.body), key=lambda binding: (binding.rank, -binding.line)):
            statements.setdefault(binding.name, []).append(binding.node)
        return statements


@dataclass(frozen=True)
class Definition:
    """A class or function, in the module that defines it."""

    module: ModuleSource
    node: ast.ClassDef | ast.FunctionDef


_LONGEST = 30  # parts of a dotted name; only a circle such as `x = x.y` makes longer ones
_memory: dict[str, Definition | NotFoundError] = {}
_parsing = threading.Lock()


def resolve(target: str) -> Definition:
    """Return the definition that a dotted name leads to.

    Raises:
        NotFoundError: it leads to none.
    """
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


def _search(target: str) -> Definition:
    """Find the deepest module on the path `target`, then the names left over inside it."""
    names = target.split(".")
    if len(names) > _LONGEST:
        raise NotFoundError(f"{names[0]}.{names[1]} is re-exported in a circle")
    if not all(name.isidentifier() for name in names):
        raise NotFoundError(f"{target!r} is not a dotted name")

    # The module.
    module = _deepest_module(names)
    rest = names[module.name.count(".") + 1 :]
    if not rest:
        raise NotFoundError(f"{target} is a module, not a class or function")

    # Its own statements that bind the name, then its star imports.
    wanted = rest[0]
    failure: NotFoundError | None = None
    for node in module.bindings.get(wanted, ()):
        try:
            return _follow(module, node, rest)
        except NotFoundError as error:
            failure = failure or error
    for node in module.bindings.get("*", ()):
        with contextlib.suppress(NotFoundError):
            return _follow(module, node, rest)

    if failure is not None:
        raise failure
    public = [name for name in module.bindings if not name.startswith("_")]
    raise NotFoundError(f"{module.name} has no {wanted!r}", wanted, (*public, *_submodules(module)))


def _deepest_module(names: list[str]) -> ModuleSource:
    """Return the module that the most of the first names lead to.

    Raises:
        NotFoundError: the package is not installed, or has no source.
    """
    for count in range(len(names), 0, -1):
        module = module_source(".".join(names[:count]))
        if module is not None:
            return module
    if _spec(names[0]) is None:
        raise NotFoundError(f"no package {names[0]!r} is installed")
    raise NotFoundError(f"{names[0]} has no source to read")


def _follow(module: ModuleSource, node: ast.stmt, path: list[str]) -> Definition:
    """Return the definition behind one statement of `module` that binds `path[0]`."""
    name, rest = path[0], path[1:]
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        if rest:
            raise NotFoundError(f"{'.'.join(path)} is inside {module.name}.{name}; name what a module holds itself")
        return Definition(module, node)
    if isinstance(node, ast.ImportFrom):
        base = importlib.util.resolve_name("." * node.level + (node.module or ""), module.package)
        if node.names[0].name == "*" and module_source(base) is None:
            raise NotFoundError(f"{base} has no source to read")
        real_names = {alias.asname or alias.name: alias.name for alias in node.names}
        return resolve(".".join((base, real_names.get(name, name), *rest)))
    if isinstance(node, ast.Import):
        real_names = {alias.asname: alias.name for alias in node.names if alias.asname}
        return resolve(".".join((real_names.get(name, name), *rest)))
    value = getattr(node, "value", None)
    if isinstance(value, ast.Name | ast.Attribute):
        return resolve(".".join((module.name, ast.unparse(value), *rest)))
    raise NotFoundError(f"{module.name}.{name} is not a class or function")


class _Binding(NamedTuple):
    """A statement of a module that binds a name. Lower ranks and later lines are the likelier meaning."""

    rank: int
    line: int
    name: str  # "*" for a star import
    node: ast.stmt


def _bindings(body: list[ast.stmt], rank: int = 0) -> Iterator[_Binding]:
    """Yield the bindings of a module's statements, inside of `if`, `try` and `with` too."""
    for node in body:
        # Definitions, imports and assignments.
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            is_overload = any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)
            yield _Binding(rank + is_overload, node.lineno, node.name, node)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield _Binding(rank, node.lineno, alias.asname or alias.name.partition(".")[0], node)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                star = 9 if alias.name == "*" else 0
                yield _Binding(rank + star, node.lineno, alias.asname or alias.name, node)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield _Binding(rank, node.lineno, target.id, node)

        # Blocks.
        elif isinstance(node, ast.If):
            for_type_checkers = "TYPE_CHECKING" in ast.unparse(node.test)
            yield from _bindings(node.body, rank + for_type_checkers)
            yield from _bindings(node.orelse, rank + (not for_type_checkers))
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
def module_source(name: str) -> ModuleSource | None:
    """Return the source of a module; None when it has none (not there, a C extension, a plain folder)."""
    top, *rest = name.split(".")
    spec = _spec(top)
    if spec is None:
        return None
    for file in _module_files(spec, rest):
        if file.is_file():
            return ModuleSource(name, file, parse(file.read_bytes(), str(file)))
    return None


def _module_files(spec: ModuleSpec, rest: list[str]) -> list[Path]:
    """Return the files that may hold a module's source, the likeliest first.

    Args:
        spec: of the top-level package.
        rest: the names of the module below it.
    """
    if not rest:
        frozen = getattr(spec.loader_state, "filename", None)  # of modules such as `os`
        origin = frozen or spec.origin or ""
        return [Path(origin)] if origin.endswith(".py") else []

    files = []
    for folder in spec.submodule_search_locations or ():
        stem = Path(folder, *rest)
        if stem.name in _stems(stem.parent):
            files += [stem / "__init__.py", stem.parent / f"{stem.name}.py"]
    return files


@cache
def _spec(top: str) -> ModuleSpec | None:
    """Return the spec of a top-level package. (With a dotted name, this would import the parents.)"""
    try:
        return importlib.util.find_spec(top)
    except (ValueError, ImportError):
        return None


@cache
def _stems(folder: Path) -> frozenset[str]:
    """Return the names of the modules in a folder, in their own case.

    `Trainer` is not `trainer`, even on a file system that takes one for the other.
    """
    if not folder.is_dir():
        return frozenset()
    return frozenset(path.stem for path in folder.iterdir() if path.suffix in ("", ".py"))


def _submodules(module: ModuleSource) -> frozenset[str]:
    """Return the modules of a package, for the nearest match."""
    if module.path.name != "__init__.py":
        return frozenset()
    return _stems(module.path.parent)
