"""Checks that load nothing: do recipes fit, is everything installed, what does a data folder hold?"""

import importlib
import json
import logging
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from firered_lit.config import nameable, shipped
from firered_lit.config.build import problems
from firered_lit.config.recipe import TARGET, Overrides, load
from firered_lit.config.reward_check import reward_problems
from firered_lit.errors import UserError, naming
from firered_lit.textfiles import read_object

_PIPELINE = "pipelines/qwenimage/pipeline_qwenimage_edit_plus.py"


class Finding(NamedTuple):
    """One line of the report."""

    line: str
    wrong: bool = False


def report(findings: Iterator[Finding] | Sequence[Finding]) -> int:
    """Print every finding as it comes. Raises UserError when something is wrong, so that the exit code says so."""
    wrong = 0
    for finding in findings:
        print(f"error: {finding.line}" if finding.wrong else finding.line, flush=True)
        wrong += finding.wrong
    if wrong:
        raise UserError(f"check found {wrong} problem{'s' if wrong > 1 else ''}, each on its line above")
    return 0


def recipes(
    paths: Sequence[str] | None = None,
    overrides: Overrides = (),
    allow: Sequence[str] = (),
    *,
    gpus: int | None = None,
    gpu_memory: float = 80,
) -> Iterator[Finding]:
    """Give a line for every recipe whose nodes fit their signatures, and a line for every problem.

    Args:
        paths: Files or names of recipes; all that `everything` finds when None.
        overrides: Changes to the recipes, see `recipe.load`.
        allow: Packages and full names of the user's that a recipe may name.
        gpus: Also estimate the memory that each of so many GPUs needs, when nothing is wrong.
        gpu_memory: Of one GPU, GB.

    Raises:
        UserError: There are overrides and no recipe that they change, or no recipe at all.
    """
    if overrides and not paths:
        raise UserError(f"check: {next(iter(overrides))}: say with --recipe which recipe it changes")
    found = []
    for path in map(shipped.find, paths or everything()):
        of_recipe = list(_of_recipe(path, overrides, allow))
        yield from of_recipe
        found += of_recipe
    if gpus and not any(finding.wrong for finding in found):
        yield from memory(paths or everything(), overrides, gpus, gpu_memory)


def _of_recipe(path: str, overrides: Overrides, allow: Sequence[str]) -> Iterator[Finding]:
    """Give the problems of one recipe, or the line that says which verb runs it."""
    try:
        recipe = load(path, overrides)
    except UserError as error:
        yield Finding(str(error), wrong=True)
        return
    lines = [str(problem) for problem in problems(recipe, allow, supplied=("recipe",))]
    lines += [str(problem) for problem in reward_problems(recipe)]
    for line in lines:
        yield Finding(line if line.startswith(path) else f"{line} (base of {path})", wrong=True)
    if lines:
        return
    verb = nameable.ROOTS.get(str(recipe.root.get(TARGET)))
    if verb is None:
        known = ", ".join(nameable.ROOTS)
        yield Finding(str(recipe.refusal(TARGET, f"no verb runs this; one of {known} does")), wrong=True)
        return
    wants = f" (wants {', '.join(recipe.missing)})" if recipe.missing else ""
    yield Finding(f"{path}: fits `{verb}`{wants}")


def names(allow: Sequence[str] = ()) -> list[str]:
    """Return the lines that say what a recipe may name."""
    lines = ["at the top of a recipe:", *(f"  {name}" for name in nameable.ROOTS)]
    lines += ["below it:", *(f"  {name}" for name in (*nameable.OURS, *nameable.LIBRARIES))]
    if allow:
        lines += ["by --allow, with all that lies in it:", *(f"  {name}" for name in allow)]
    return [*lines, "a package of your own is added by --allow PACKAGE"]


def everything(folder: Path | None = None) -> list[str]:
    """Return all recipes of a folder, by default the shipped ones; those in `base/` are fragments.

    Raises UserError when there are none: a check of nothing must not pass.
    """
    folder = folder or shipped.home()
    found = sorted(path for path in folder.rglob("*.y*ml") if "base" not in path.relative_to(folder).parts[:-1])
    if not found:
        raise UserError(f"{folder}: no recipes here; name one with --recipe")
    return [shipped.shown(path) for path in found]


def memory(paths: Sequence[str], overrides: Overrides, gpus: int, gpu_memory: float) -> Iterator[Finding]:
    """Yield the memory that each recipe needs on every GPU, item by item, and whether it fits."""
    from firered_lit.models.cost.memory import report as lines

    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # its traceback; one line says it
    for path in paths:
        recipe = load(path, overrides)
        if recipe.root.get(TARGET) != "firered_lit.training.fit":
            raise recipe.refusal(TARGET, "the memory of a `fit` recipe can be estimated, of no other")
        with naming(path):
            found = list(lines(recipe.root, gpus, gpu_memory))
        for line, wrong in found:
            yield Finding(f"{path}: {line}" if wrong else line, wrong)


def environment() -> Iterator[Finding]:
    """Python, the packages that this one asks for, accelerators, and versions known to disagree."""
    yield Finding(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        required = [text for text in metadata.requires("firered-lit") or () if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        yield Finding("firered-lit is not installed; run: pip install -c constraints.txt -e .", wrong=True)
        return
    for text in required:
        yield _package(text)
    yield Finding(f"accelerators: {', '.join(_accelerators()) or 'none seen, the CPU will do the work'}")
    if loses_text_positions():
        pair = f"diffusers {metadata.version('diffusers')} with transformers {metadata.version('transformers')}"
        yield Finding(
            f"note: in {pair} the stock Qwen edit pipelines lose the 3-D text positions that the weights were trained "
            "with; `prepare`, `fit` and `edit` encode prompts themselves and keep them, `edit --stock` does not"
        )


def _package(requirement: str) -> Finding:
    """The installed version of one requirement, and whether it is enough."""
    name, floor = re.match(r"([\w.-]+)[^>]*(?:>=\s*([\w.]+))?", requirement).groups()  # type: ignore[union-attr]
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(f"{name} is not installed; run: pip install -c constraints.txt -e .", wrong=True)
    if floor and _numbers(version) < _numbers(floor):
        return Finding(f"{name} {version} is too old, {floor} or newer is needed", wrong=True)
    return Finding(f"{name} {version}")


def _numbers(version: str) -> list[int]:
    """1.10.2+cpu -> [1, 10, 2]."""
    release = re.match(r"[\d.]*", version).group()  # type: ignore[union-attr]
    return [int(part) for part in release.split(".") if part]


def _accelerators() -> list[str]:
    """Names of the accelerators that the system shows, without loading torch."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    names = [re.search(r"Model:\s*(.+)", card.read_text(errors="replace")) for card in cards]
    apple = ["Apple GPU (mps)"] if (platform.system(), platform.machine()) == ("Darwin", "arm64") else []
    return [found.group(1).strip() if found else "NVIDIA GPU" for found in names] + apple


def loses_text_positions() -> bool:
    """Return whether the installed stock edit pipelines drop the token types that transformers 5 needs."""
    spec = find_spec("diffusers")
    folders = spec.submodule_search_locations if spec else None
    file = Path(next(iter(folders or ["."])), _PIPELINE)
    if not file.is_file():
        return False
    return _numbers(metadata.version("transformers")) >= [5] and "mm_token_type_ids" not in file.read_text("utf-8")


def data(
    path: str,
    layout: str = "",
    allow_urls: bool = False,
    capacity: int | None = None,
    words: Mapping[str, Any] | None = None,
) -> Iterator[Finding]:
    """Say what is understood of a source of rows and what is wrong with it, or what a prepared folder holds.

    Args:
        path: A table, a folder of tables, or a folder that `prepare` wrote.
        layout: Of the rows, when their columns do not tell.
        allow_urls: Fetch images that are http(s) addresses.
        capacity: Tokens of a batch, for the bucket table of a prepared folder; None for that of the recipes.
        words: Folders of pictures in place of a path (""), and columns by any name, as `prepare` takes them: "target",
            "control", "columns.source", ...

    Raises:
        UserError: The source cannot be read.
    """
    summary = importlib.import_module("datamodules.summary")  # above the core, which imports no data modules
    held = prepared(path) if path else None
    if held is not None:
        yield from held
        for line in summary.table(path, capacity):
            yield Finding(line)
        return
    source = importlib.import_module("datamodules.sources.source").from_words(path, layout, words or {})
    found = summary.summary(source, allow_urls=allow_urls)
    for line in found.lines():
        yield Finding(line)
    problem = found.problem()
    if problem:
        yield Finding(f"{source}: {problem}", wrong=True)


def prepared(folder: str) -> Iterator[Finding] | None:
    """Return the findings of `data.json` in a prepared folder; None for any other folder."""
    path = Path(folder, "data.json")
    if not path.is_file():
        return None
    try:
        content = read_object(path)
    except UserError as error:
        raise UserError(f"{error}; this is not what `prepare` writes") from None
    return iter([Finding(f"{name}: {json.dumps(value, ensure_ascii=False)}") for name, value in content.items()])
