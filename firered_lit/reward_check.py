"""Checks of a recipe's reward weights and routes, without building anything."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.recipe import TARGET, Recipe
from firered_lit.rewards.names import check_name, check_routes, check_weights
from firered_lit.signature import signature
from firered_lit.source import NotFoundError

HOLDERS = {"stage": ("callbacks",), "task": ("task", "rewards")}  # where weights and routes stand -> where rewards do
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
        names = {}
        for key, node in nodes.items():
            name = _name(node)
            if name is None:
                continue
            problem = _refusal(check_name, name)
            if problem is None:
                names[key] = name
            else:
                yield UserError(f"{recipe.where('.'.join((*holder, key)))}: {'.'.join((*holder, key))}.name: {problem}")
        if all(_is_judged(node) for node in nodes.values()):
            yield from _uses(recipe, place, settings, set(names.values()))


def _uses(recipe: Recipe, place: str, settings: dict[str, Any], names: Collection[str]) -> Iterator[UserError]:
    """The problems of a stage's or a task's weights and routes."""
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
    """The mapping at some keys; an empty one where there is none."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node if isinstance(node, dict) else {}


def _is_judged(node: Any) -> bool:
    """Return whether a callback's name as a reward is known, or that it is none."""
    if node is None:
        return True
    target = node.get(TARGET) if isinstance(node, dict) else None
    return isinstance(target, str) and target.startswith((OURS, LIBRARIES))


def _name(node: Any) -> Any:
    """The name that one of our rewards will have; None for what is no reward of ours."""
    target = node.get(TARGET) if isinstance(node, dict) else None
    if not isinstance(target, str) or not target.startswith(OURS):
        return None
    if "name" in node:
        return node["name"]
    try:
        parameters = signature(target).parameters
    except (NotFoundError, UserError):
        return None
    defaults = [parameter.default for parameter in parameters if parameter.name == "name"]
    return defaults[0] if defaults else None


def _tasks(recipe: Recipe) -> Collection[str] | None:
    """The tasks of the data that a recipe names; None where that is not a prepared folder of this machine."""
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
