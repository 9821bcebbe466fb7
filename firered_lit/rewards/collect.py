"""Rewards of a group of edits: asked for at once, waited for later; what fails is missing, never made up."""

import time
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from firered_lit.errors import UserError
from firered_lit.rewards.mix import applies_to, mix
from firered_lit.rewards.names import check_name, check_routes, check_weights
from firered_lit.rewards.protocol import Choosy, Reward, Scores
from firered_lit.rewards.scale import UNIT, check_range, on_unit

Routes = Mapping[str, Collection[str]]


def rewards_of(
    callbacks: Iterable[Any],
    weights: Mapping[str, float] | None = None,
    routes: Routes | None = None,
    tasks: Collection[str] | None = None,
    place: str = "stage",
) -> dict[str, Reward]:
    """Return the rewards among a trainer's callbacks, by name.

    Args:
        callbacks: of which some are rewards.
        weights: of each reward; None where all weigh the same.
        routes: reward -> the tasks that it scores.
        tasks: that the data has; None where they are not known.
        place: the key of a recipe under which weights and routes stand.

    Raises:
        UserError: there is none, two have one name, a name cannot be a curve's, a range is none, or weights and routes
            name other rewards or tasks.
    """
    found = [callback for callback in callbacks if isinstance(callback, Reward)]
    names = [reward.name for reward in found]
    if not found:
        raise UserError(
            "callbacks: reinforcement learning needs a reward; add one, as callbacks.rewards.pixel.PixelReward"
        )
    for reward in found:
        check_name(reward.name)
        range_of(reward)
    twice = sorted(name for name in names if names.count(name) > 1)
    if twice:
        raise UserError(f"callbacks: two rewards are named {twice[0]!r}; give one another name")
    if weights is not None:
        check_weights(weights, names, place)
    check_routes(routes or {}, names, tasks, place)
    return dict(zip(names, found))


def range_of(reward: Reward) -> tuple[float, float]:
    """Return the lowest and the highest value of a reward: its `range`, where it has one, else 0 and 1."""
    return check_range(reward.name, getattr(reward, "range", None))


@dataclass
class PendingRewards:
    """The pending rewards of one group's edits, and the failures so far."""

    tasks: tuple[str, ...]  # (K,)
    futures: dict[str, "Future[Scores]"]
    failures: dict[str, str] = field(default_factory=dict)  # reward -> why its scores are missing
    outside: dict[str, float] = field(default_factory=dict)  # reward -> a score clearly outside of its scale
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # reward -> its lowest and highest value
    able: dict[str, list[bool]] = field(default_factory=dict)  # reward -> (K,) what it can score, if it says


def ask(rewards: Mapping[str, Reward], images: Tensor, batch: Any, routes: Routes | None = None) -> PendingRewards:
    """Submit images of a group to the rewards that score it.

    A reward with a route scores its tasks, and must be able to; one without scores what it is able to (`applies`).

    Args:
        rewards: by name.
        images: (K, 3, H, W) in [-1, 1].
        batch: the samples (K) that they were made for.
        routes: reward -> the tasks that it scores.

    Raises:
        UserError: no reward has the task.
    """
    if not any(bool(applies_to(name, batch.tasks, routes).any()) for name in rewards):
        raise UserError(f"stage.routes: no reward scores the task {batch.tasks[0]!r}; name it in the route of one")
    asked = PendingRewards(batch.tasks, {}, ranges={name: range_of(reward) for name, reward in rewards.items()})
    for name, reward in rewards.items():
        if isinstance(reward, Choosy):
            asked.able[name] = reward.applies(batch)
        if not bool(applies_to(name, batch.tasks, routes, asked.able).any()):
            continue
        try:
            asked.futures[name] = reward.submit(images, batch)
        except UserError:
            raise
        except Exception as problem:
            asked.failures[name] = _reason(problem)
    if not asked.futures and not asked.failures:
        asked.failures[", ".join(rewards)] = f"nothing to score samples like {batch.ids[0]!r} by; route their task"
    return asked


def answered(asked: PendingRewards, weights: Mapping[str, float], routes: Routes | None, until: float) -> Scores:
    """Return the mixture of a group's rewards, once all are there or `until` (`time.monotonic`) is over.

    A reward that raises, comes late or answers with something else is missing, as is a score that is no number. One
    clearly outside of the reward's scale is missing as well and is noted in `asked.outside`, for `refuse_outside`.
    `terms` are those of `mix`, with NaN for what is missing or does not apply.
    """
    scores = {name: answer(name, asked, until) for name in weights}
    mixed = mix(scores, weights, asked.tasks, routes, asked.able)

    # NaN in place of a term whose reward is missing or does not apply.
    terms = {}
    for key, value in mixed.terms.items():
        name = key.split("/")[0]
        is_there = scores[name].valid & applies_to(name, asked.tasks, routes, asked.able)
        terms[key] = torch.where(is_there, value, torch.nan)
    return Scores(mixed.value, mixed.valid, terms)


def answer(name: str, asked: PendingRewards, until: float) -> Scores:
    """Return one reward's scores of a group on [0, 1], once they are there or `until` is over.

    What is missing, and a score outside of the reward's scale, is noted in `asked`. The terms are as the reward gave
    them, also where a score is missing.
    """
    scores, stranger = on_unit(_result(name, asked, until), asked.ranges.get(name, UNIT))
    if stranger is not None:
        asked.outside[name] = stranger
    return scores


def missing(count: int) -> Scores:
    """Return the missing scores of so many edits."""
    return Scores(torch.zeros(count), torch.zeros(count, dtype=torch.bool))


def _result(name: str, asked: PendingRewards, until: float) -> Scores:
    """Wait for one reward's scores of a group, and return them on the host."""
    count = len(asked.tasks)
    if name not in asked.futures:
        return missing(count)
    try:
        scores = asked.futures[name].result(max(0.0, until - time.monotonic()))
        if not isinstance(scores, Scores) or len(scores) != count:
            raise ValueError(f"answered with {type(scores).__name__}, not {count} scores")
    except UserError:
        raise
    except Exception as problem:  # an engine may fail in any way
        asked.futures[name].cancel()
        asked.failures[name] = _reason(problem)
        return missing(count)
    terms = {key: term.detach().float().cpu() for key, term in scores.terms.items()}
    return Scores(scores.value.detach().float().cpu(), scores.valid.cpu(), terms)


def _reason(problem: Exception) -> str:
    """Return an exception as one line."""
    if isinstance(problem, TimeoutError) and not str(problem):
        return "late: no answer within its patience"
    return " ".join(f"{type(problem).__name__}: {problem}".split())
