"""Checks that load nothing: do recipes fit, is everything installed, what does a data folder hold?"""

import json
import logging
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from firered_lit import nameable, shipped
from firered_lit.build import problems
from firered_lit.errors import UserError, naming
from firered_lit.recipe import TARGET, load
from firered_lit.reward_check import reward_problems
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
    roots: dict[str, str] | None = None,
    overrides: Sequence[str] = (),
    allow: Sequence[str] = (),
) -> Iterator[Finding]:
    """Every node of every recipe bound to its signature; one line per recipe, one per problem.

    `paths`: these, instead of all that `everything` finds. `roots`: root `_target_` -> the verb that runs it.
    """
    if overrides and not paths:
        raise UserError(f"check: {overrides[0]}: say with --recipe which recipe it changes")
    for path in paths or everything():
        try:
            recipe = load(path, overrides)
        except UserError as error:
            yield Finding(str(error), wrong=True)
            continue
        lines = [str(problem) for problem in problems(recipe, allow, supplied=("recipe",))]
        lines += [str(problem) for problem in reward_problems(recipe)]
        found = [Finding(x if x.startswith(path) else f"{x} (base of {path})", wrong=True) for x in lines]
        verb = (roots or {}).get(str(recipe.root.get(TARGET)))
        if roots and not verb and not found:
            found = [Finding(str(recipe.refusal(TARGET, f"no verb runs this; one of {', '.join(roots)} does")), True)]
        wants = f" (wants {', '.join(recipe.missing)})" if recipe.missing else ""
        yield from found or [Finding(f"{path}: fits `{verb or 'its target'}`{wants}")]


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


def memory(paths: Sequence[str], overrides: Sequence[str], gpus: int, gpu_memory: float) -> Iterator[Finding]:
    """Yield the memory that each recipe needs on every GPU, item by item, and whether it fits."""
    from firered_lit.memory import report as lines

    logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)  # its traceback; one line says it
    for path in paths:
        recipe = load(path, overrides)
        if recipe.root.get(TARGET) != "firered_lit.fit.fit":
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


def source(name: str, lines: Iterable[str], problem: str) -> Iterator[Finding]:
    """Yield what was understood of a source of rows, and why nothing can be prepared from it, if so."""
    for line in lines:
        yield Finding(line)
    if problem:
        yield Finding(f"{name}: {problem}", wrong=True)


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
