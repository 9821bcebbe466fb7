"""Checks of a recipe's reward weights and routes, without building anything."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from firered_lit.config.nameable import RENAMED
from firered_lit.config.recipe import TARGET, Recipe
from firered_lit.config.signature import signature
from firered_lit.config.source import NotFoundError
from firered_lit.errors import UserError
from firered_lit.rewards.names import check_name, check_routes, check_weights

# The key under which weights and routes stand -> the keys under which their rewards do.
HOLDERS = {"stage": ("callbacks",), "task": ("task", "rewards")}
OURS, LIBRARIES = "callbacks.", "lightning."


def reward_problems(recipe: Recipe) -> Iterator[UserError]:
    """Yield what is wrong with names of rewards and with the weights and routes that use them.

    A callback of a package that is neither ours nor Lightning's may be a reward of any name: beside one, weights and
    routes are judged when the run begins.
    """
    for place, holder in HOLDERS.items():
        nodes = _at(recipe.root, holder)
        settings = _at(recipe.root, (place,))
        if not nodes or not settings:
            continue

        # Their names.
        names = set()
        for key, node in nodes.items():
            name = _name(node)
            if name is None:
                continue
            problem = _refusal(check_name, name)
            if problem is None:
                names.add(name)
                continue
            dotted = ".".join((*holder, key))
            yield UserError(f"{recipe.where(dotted)}: {dotted}.name: {problem}")

        # The weights and routes that use them.
        if all(_is_judged(node) for node in nodes.values()):
            yield from _uses(recipe, place, settings, names)


def _uses(recipe: Recipe, place: str, settings: dict[str, Any], names: Collection[str]) -> Iterator[UserError]:
    """Yield the problems of a stage's or a task's weights and routes."""
    weights = settings.get("weights")
    if isinstance(weights, dict) and all(isinstance(weight, int | float) for weight in weights.values()):
        problem = _refusal(check_weights, weights, names, place)
        if problem is not None:
            yield UserError(f"{recipe.where(f'{place}.weights')}: {problem}")
    routes = settings.get("routes")
    if isinstance(routes, dict) and all(isinstance(tasks, list) for tasks in routes.values()):
        problem = _refusal(check_routes, routes, names, _tasks(recipe), place)
        if problem is not None:
            yield UserError(f"{recipe.where(f'{place}.routes')}: {problem}")


def _refusal(check: Any, *arguments: Any) -> UserError | None:
    """Return what a check refuses."""
    try:
        check(*arguments)
    except UserError as problem:
        return problem
    return None


def _at(node: Any, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the mapping at some keys; an empty one where there is none."""
    for key in keys:
        if not isinstance(node, dict):
            return {}
        node = node.get(key)
    return node if isinstance(node, dict) else {}


def _is_judged(node: Any) -> bool:
    """Return whether a callback's name as a reward is known, or that it is none; not of a name that is refused."""
    if node is None:
        return True
    target = node.get(TARGET) if isinstance(node, dict) else None
    return isinstance(target, str) and target.startswith((OURS, LIBRARIES)) and target not in RENAMED


def _name(node: Any) -> Any:
    """Return the name that one of our rewards will have; None for what is no reward of ours."""
    target = node.get(TARGET) if isinstance(node, dict) else None
    if not isinstance(target, str) or not target.startswith(OURS):
        return None
    if "name" in node:
        return node["name"]
    try:
        parameters = signature(target).parameters
    except (NotFoundError, UserError):
        return None
    for parameter in parameters:
        if parameter.name == "name":
            return parameter.default
    return None


def _tasks(recipe: Recipe) -> Collection[str] | None:
    """Return the tasks of the data that a recipe names; None where that is no prepared folder of this machine."""
    data = _at(recipe.root, ("data",)) or _at(recipe.root, ("task", "data"))
    root = data.get("root")
    path = Path(root, "data.json") if isinstance(root, str) else None
    if path is None or not path.is_file():
        return None
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    except (OSError, ValueError, KeyError, TypeError):  # `fit` says what is wrong with it
        return None
    return tasks if isinstance(tasks, dict) else None
