"""Change the product in one place at a time, and see a test fail: tests that let a change pass protect nothing.

    python benchmarks/mutants.py              # all of them, a line each; exit code 1 if one lives or does not apply
    python benchmarks/mutants.py losses flow  # those of files whose path holds one of the words
    python benchmarks/mutants.py --check      # only look whether each still applies, without a test

`mutants.yaml` beside this file lists them: file -> function -> [expression, another one]. An expression must stand in
its function exactly once; how it is laid out does not matter. The tests of a file are those under `tests`, or, for one
change, under the third entry. A change that no test can see is listed as `equivalent: why`, and is looked at only by
`--check`.

Each change is made in a copy of the checkout, in a process of its own that stops at the first test that fails.
"""

import argparse
import ast
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".yaml")
PATIENCE = 300.0  # seconds that the tests of one change may take
ENDINGS = {0: "ALIVE", 1: "killed"}  # by pytest's exit code


class DoesNotApplyError(ValueError):
    """An expression that does not stand in its function exactly once."""


@dataclass(frozen=True)
class Mutant:
    """One change.

    Args:
        file: Path in the repository.
        function: Qualified name of the function, such as Sampler.draw; "" for the module's own lines.
        old: The expression that is replaced.
        new: The one in its place.
        tests: Paths of the tests of which one must fail.
        equivalent: Why no test can see the change; "" for the others.
    """

    file: str
    function: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""

    def __str__(self) -> str:
        return f"{self.file} {self.function}: {self.old} -> {self.new}"


def read(table: Path = TABLE) -> list[Mutant]:
    """Return all changes of the table, in its order."""
    found = []
    for file, content in yaml.safe_load(table.read_text("utf-8")).items():
        tests = tuple(content.pop("tests").split())
        for function, changes in content.items():
            for old, new, *more in changes:
                found.append(_mutant(file, function, old, new, tests, more[0] if more else None))
    return found


def _mutant(file: str, function: str, old: str, new: str, tests: tuple[str, ...], more: Any) -> Mutant:
    """Return one change; `more` are tests of its own, or {equivalent: why}."""
    where = "" if function == "module" else function
    if isinstance(more, Mapping):
        return Mutant(file, where, old, new, tests, more["equivalent"])
    return Mutant(file, where, old, new, tuple(more.split()) if more else tests)


def applied(source: str, mutant: Mutant) -> str:
    """Return a file's text with the change made.

    Args:
        source: The file's text.
        mutant: The change.

    Raises:
        DoesNotApplyError: The function is not there, or the expression does not stand in it exactly once.
    """
    scope = _function(ast.parse(source), mutant.function)
    if scope is None:
        raise DoesNotApplyError(f"{mutant.file}: no function {mutant.function}")
    wanted = _text(ast.parse(mutant.old, mode="eval").body)
    places = [node for node in ast.walk(scope) if isinstance(node, ast.expr) and _text(node) == wanted]
    if len(places) != 1:
        raise DoesNotApplyError(f"{mutant.file} {mutant.function}: {mutant.old} stands there {len(places)} times")
    return _replaced(source, places[0], f"({mutant.new})")


def _text(node: ast.expr) -> str:
    """Return an expression in one form, whatever its layout and whether it is read or written."""
    return ast.unparse(node)


def _function(tree: ast.Module, name: str) -> ast.AST | None:
    """Return the function or class of a qualified name; the module for none."""
    scope: ast.AST = tree
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for part in filter(None, name.split(".")):
        inside = [node for node in ast.walk(scope) if isinstance(node, kinds) and node.name == part]
        if not inside:
            return None
        scope = inside[0]
    return scope


def _replaced(source: str, node: ast.expr, new: str) -> str:
    """Return the text with a node's own characters replaced. Columns of `ast` count bytes."""
    lines = source.encode().splitlines(keepends=True)
    first = node.lineno - 1
    last = (node.end_lineno or node.lineno) - 1
    before = b"".join(lines[:first]) + lines[first][: node.col_offset]
    after = lines[last][node.end_col_offset :] + b"".join(lines[last + 1 :])
    return (before + new.encode() + after).decode()


def copied(folder: Path) -> Path:
    """Return a copy of the checkout: the files that git knows, as they are now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def tried(mutant: Mutant, folder: Path) -> str:
    """Make a change in the copy, run its tests, take it back; return what came of it."""
    path = folder / mutant.file
    source = path.read_text("utf-8")
    path.write_text(applied(source, mutant), "utf-8")
    try:
        child = multiprocessing.get_context("fork").Process(target=_run, args=(folder, mutant.tests))
        child.start()
        child.join(PATIENCE)
        if child.is_alive():
            child.kill()
            child.join()
            return "killed (hangs)"
        return ENDINGS.get(child.exitcode or 0, f"pytest ended with {child.exitcode}")
    finally:
        path.write_text(source, "utf-8")


def _run(folder: Path, tests: Sequence[str]) -> None:
    """Run tests of a folder in this process, quietly, up to the first that fails; end with pytest's exit code."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = str(folder)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os._exit(int(pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"])))


def chosen(words: Sequence[str]) -> Iterator[Mutant]:
    """Yield the changes of files whose path holds one of the words; all where there are none."""
    for mutant in read():
        if not words or any(word in mutant.file for word in words):
            yield mutant


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="of paths")
    parser.add_argument("--check", action="store_true", help="make no change, only look whether each applies")
    given = parser.parse_args()
    mutants = list(chosen(given.words))
    lost = 0
    for mutant in mutants:
        try:
            applied((ROOT / mutant.file).read_text("utf-8"), mutant)
        except (DoesNotApplyError, OSError, SyntaxError) as problem:
            print(f"does not apply: {problem}")
            lost += 1
    if given.check or lost:
        print(f"{len(mutants)} changes, {lost} of them do not apply")
        return int(lost > 0)

    # What all tests load, once: each change then runs in a fork.
    import diffusers  # noqa: F401
    import lightning  # noqa: F401
    import torch

    torch.set_num_threads(1)
    endings: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = copied(Path(scratch))
        for mutant in mutants:
            begin = time.perf_counter()
            ending = f"equivalent: {mutant.equivalent}" if mutant.equivalent else tried(mutant, folder)
            print(f"{ending:8} {time.perf_counter() - begin:5.1f} s  {mutant}", flush=True)
            kind = ending.split()[0].rstrip(":")
            endings[kind] = endings.get(kind, 0) + 1
    print(", ".join(f"{count} {ending}" for ending, count in endings.items()))
    return int(set(endings) - {"killed", "equivalent"} != set())


if __name__ == "__main__":
    sys.exit(main())
