"""Run a recipe: read it, refuse what does not fit, build its parts and call its root. The commands and `api` do."""

import os
from collections.abc import Sequence

from firered_lit.config import build
from firered_lit.config.nameable import ROOTS
from firered_lit.config.recipe import PARTIAL, TARGET, Overrides, Recipe, load
from firered_lit.config.signature import signature


def open_recipe(
    verb: str, path: str | os.PathLike[str], overrides: Overrides = (), allow: Sequence[str] = ()
) -> Recipe:
    """Return a recipe with its overrides, every value in place. Nothing heavy is loaded.

    Args:
        verb: What is to run it: "fit", "prepare", "mine", "eval" or "curate".
        path: A file, or the name of a shipped recipe.
        overrides: See `recipe.load`.
        allow: Packages and full names of the user's that the recipe may name.

    Raises:
        UserError: It is a recipe for another verb, or something in it does not fit.
    """
    recipe = load(path, overrides)
    root = recipe.root.get(TARGET)
    runs_it = ROOTS.get(root) if isinstance(root, str) else None
    if runs_it not in (None, verb):
        command = f"python -m firered_lit {runs_it} --recipe ..."
        raise recipe.refusal(TARGET, f"this recipe is for `{runs_it}`: {command}")
    build.validate(recipe, allow, supplied=("recipe",))
    if runs_it is None:
        wanted = next(name for name, runner in ROOTS.items() if runner == verb)
        raise recipe.refusal(TARGET, f"a recipe for `{verb}` starts with `_target_: {wanted}`")
    return recipe


def run_recipe(recipe: Recipe, allow: Sequence[str] = ()) -> int:
    """Build a recipe's parts, call its root, and return the exit code: 0, or what `training.fit` returns.

    Args:
        recipe: As `open_recipe` returns it.
        allow: As there.

    Raises:
        UserError: Bad input that only the work itself shows.
    """
    run = build.build({**recipe.root, PARTIAL: True}, allow)
    wants = any(parameter.name == "recipe" for parameter in signature(recipe.root[TARGET]).parameters)
    result = run(recipe=recipe.root) if wants else run()
    return int(result or 0)
