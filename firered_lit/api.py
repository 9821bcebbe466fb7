"""The Python interface: what the commands do, by the same functions. See docs/api.md.

`firered_lit.NAME` is NAME of this page, loaded when it is first used.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firered_lit import checking
from firered_lit.checking import Finding
from firered_lit.config import running
from firered_lit.config.recipe import Recipe
from firered_lit.process import surroundings
from firered_lit.process.stopping import INTERRUPTED

Name = str | os.PathLike[str]  # a recipe's file, or the name of a shipped one


def fit(recipe: Name, /, *, allow: Sequence[str] = (), **overrides: Any) -> Path:
    """Train as a recipe says, like the command `fit`.

    Args:
        recipe: A file, or the name of a shipped recipe such as "sft_lora".
        allow: Packages and full names of yours that the recipe may name.
        overrides: Changes to the recipe: `trainer={"max_steps": 20}` changes what it gives; a dotted key goes as
            `**{"callbacks.ema": None}`.

    Returns:
        The run's folder.

    Raises:
        UserError: Bad input; one line says what and where.
        KeyboardInterrupt: Stopped by Ctrl-C or a notebook's stop button, after saving.
        SystemExit: Stopped by SIGTERM or SIGUSR1, after saving, with the code 75.
    """
    opened = _open("fit", recipe, overrides, allow)
    code = running.run_recipe(opened, allow)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        raise SystemExit(code)
    return Path(opened.root["run"]["dir"])


def prepare(recipe: Name, /, *, allow: Sequence[str] = (), **overrides: Any) -> Path:
    """Encode a data set once, for training, like the command `prepare`.

    Args:
        recipe: A file, or the name of a shipped recipe such as "prepare".
        allow: Packages and full names of yours that the recipe may name.
        overrides: Changes to the recipe, as `source="edits.jsonl", out="data/mine"`.

    Returns:
        The folder of the prepared data.

    Raises:
        UserError: Bad input; one line says what and where.
    """
    return _into_a_folder("prepare", recipe, overrides, allow)


def curate(recipe: Name, /, *, allow: Sequence[str] = (), **overrides: Any) -> Path:
    """Make a training set out of raw pictures and pairs, like the command `curate`.

    Args:
        recipe: A file, or the name of a shipped recipe such as "curate/laptop".
        allow: Packages and full names of yours that the recipe may name.
        overrides: Changes to the recipe, as `source="raw", out="corpus"`.

    Returns:
        The folder that holds `selected.jsonl` and the report.

    Raises:
        UserError: Bad input; one line says what and where.
    """
    return _into_a_folder("curate", recipe, overrides, allow)


def evaluate(recipe: Name, /, *, allow: Sequence[str] = (), **overrides: Any) -> Path:
    """Draw, judge and score a benchmark, like the command `eval`.

    Args:
        recipe: A file, or the name of a shipped recipe such as "eval/world".
        allow: Packages and full names of yours that the recipe may name.
        overrides: Changes to the recipe, as `model="runs/mine", out="evals/mine"`.

    Returns:
        The evaluation's folder.

    Raises:
        UserError: Bad input; one line says what and where.
    """
    return _into_a_folder("eval", recipe, overrides, allow)


def check(
    recipe: Name,
    /,
    *,
    allow: Sequence[str] = (),
    gpus: int | None = None,
    gpu_memory: float = 80,
    **overrides: Any,
) -> list[Finding]:
    """Hold a recipe against what it names, like `check --recipe`. Nothing is loaded, nothing is written.

    Args:
        recipe: A file, or the name of a shipped recipe.
        allow: Packages and full names of yours that the recipe may name.
        gpus: Also estimate the memory that each of so many GPUs needs.
        gpu_memory: Of one GPU, GB.
        overrides: Changes to the recipe, as for `fit`.

    Returns:
        What was found, a `line` each; `wrong` marks what keeps the recipe from running.
    """
    found = checking.recipes([os.fspath(recipe)], overrides, allow, gpus=gpus, gpu_memory=gpu_memory)
    return list(found)


def check_data(source: Name = "", /, *, layout: str = "", allow_urls: bool = False, **words: Any) -> list[Finding]:
    """Say what is understood of a source of rows, or what a prepared folder holds, like `check --data`.

    Args:
        source: A table, a folder of tables, or a folder that `prepare` wrote.
        layout: Of the rows, when their columns do not tell.
        allow_urls: Fetch images that are http(s) addresses.
        words: Folders of pictures in place of a source, or columns by any name, as `prepare` takes them:
            `target="after", control="before"`, `columns={"source": "before"}`.

    Returns:
        What was found, a `line` each; `wrong` marks what keeps the data from being used.

    Raises:
        UserError: The source cannot be read.
    """
    surroundings.refuse_other_rooms()
    return list(checking.data(os.fspath(source), layout, allow_urls, words=words))


def _open(verb: str, recipe: Name, overrides: dict[str, Any], allow: Sequence[str]) -> Recipe:
    """Return a recipe that fits, in a process whose libraries are quiet."""
    surroundings.quiet_libraries()
    surroundings.refuse_other_rooms()
    return running.open_recipe(verb, recipe, overrides, allow)


def _into_a_folder(verb: str, recipe: Name, overrides: dict[str, Any], allow: Sequence[str]) -> Path:
    """Run a recipe whose root writes into the folder `out`, and return that."""
    opened = _open(verb, recipe, overrides, allow)
    running.run_recipe(opened, allow)
    return Path(opened.root["out"])
