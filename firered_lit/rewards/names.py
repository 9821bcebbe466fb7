"""Names of rewards, and the weights and routes that use them: refused before anything is drawn."""

import difflib
import math
import re
from collections.abc import Collection, Iterable, Mapping

from rapidfuzz.distance import OSA

from firered_lit.errors import UserError

# The tasks of REDEdit-Bench (FireRed-Image-Edit, 2602.13344): a route may name them whatever the data holds.
REPORT_TASKS = frozenset(
    (
        *("add", "adjust", "background", "beauty", "color", "compose", "extract", "lowlevel", "motion"),
        *("portrait", "remove", "replace", "stylize", "text", "viewpoint"),
    )
)
TAKEN = ("total", "missing", "source_distance")  # other numbers of a rollout


def check_name(name: object) -> None:
    """Raise UserError unless a reward may be called so: its name becomes part of the names of its curves."""
    spelt_well = isinstance(name, str) and re.fullmatch(r"[\w-]+( [\w-]+)*", name)
    if not spelt_well:
        raise UserError(f"reward {name!r}: a name has letters, digits, `_` and `-`, as those of curves are made of it")
    if name in TAKEN:
        raise UserError(f"reward {name!r}: the name of another curve; choose another one")


def check_weights(weights: Mapping[str, float], names: Collection[str], place: str = "stage") -> None:
    """Raise UserError unless each reward has one weight, none is negative and one is above 0."""
    if set(weights) != set(names):
        weighed = sorted(map(str, weights))
        raise UserError(f"{place}.weights: name each reward once: there are {sorted(names)}, weights for {weighed}")
    bad = {name: weight for name, weight in weights.items() if not 0 <= weight < math.inf}
    if bad:
        raise UserError(f"{place}.weights: must be finite and at least 0: {bad}")
    if not any(weights.values()):
        raise UserError(f"{place}.weights: all are 0, so nothing decides")


def check_routes(
    routes: Mapping[str, Collection[str]],
    names: Collection[str],
    tasks: Collection[str] | None = None,
    place: str = "stage",
) -> None:
    """Raise UserError for a route of no reward, to a misspelt task, or to no task of the data at all.

    A route may name tasks beside the data's: a recipe is written for several data sets. One that is one letter, or the
    order of two, away from a task of the data is taken for a misspelling.

    Args:
        routes: reward -> the tasks that it scores.
        names: of the rewards.
        tasks: that the data has; None where they are not known.
        place: the key of a recipe under which the routes stand.
    """
    for name, routed in routes.items():
        if name not in names:
            known = f"{_nearest(name, names)}; there are {sorted(names)}"
            raise UserError(f"{place}.routes: no such reward: {name!r}{known}")
        if isinstance(routed, str) or not all(isinstance(task, str) for task in routed):
            raise UserError(f"{place}.routes: {name} takes a list of tasks, as [text], not {routed!r}")
        misspelt = None if tasks is None else _misspelt(routed, tasks)
        if misspelt is not None:
            known = f"{_nearest(misspelt, tasks or ())}; the data has {sorted(tasks or ())}"
            raise UserError(f"{place}.routes: {name}: no such task: {misspelt!r}{known}")


def _misspelt(routed: Collection[str], tasks: Collection[str]) -> str | None:
    """Return the first task of a route that is taken for a misspelling; None when there is none.

    It is one letter, or the order of two, away from a task of the data, or no task of the route is known at all.
    """
    strange = [task for task in routed if task not in tasks and task not in REPORT_TASKS]
    for task in strange:
        if any(OSA.distance(task, known) == 1 for known in tasks):
            return task
    if strange and len(strange) == len(routed):
        return strange[0]
    return None


def absent_tasks(routes: Mapping[str, Collection[str]], tasks: Collection[str]) -> list[str]:
    """Return the tasks that routes name and the data does not have."""
    return sorted(_all_routed(routes) - set(tasks))


def check_scored(routes: Mapping[str, Collection[str]], names: Collection[str], tasks: Iterable[str]) -> None:
    """Raise UserError when a task of the data is in no route and every reward has one."""
    scores_everything = set(names) - set(routes)
    if scores_everything:
        return
    lost = sorted(set(tasks) - _all_routed(routes))
    if lost:
        raise UserError(f"stage.routes: no reward scores the task {lost[0]!r}; name it in the route of one")


def _all_routed(routes: Mapping[str, Collection[str]]) -> set[str]:
    """Return the tasks of all routes."""
    return set().union(*routes.values())


def _nearest(name: object, known: Iterable[str]) -> str:
    """Return "; did you mean 'x'?" for the most similar known name, or "" when none is similar."""
    match = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.6)
    return f"; did you mean {match[0]!r}?" if match else ""
