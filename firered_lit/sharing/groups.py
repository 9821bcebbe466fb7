"""Shards in groups over a Ray cluster. Finished files say what is done, whatever becomes of a worker."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from firered_lit.errors import UserError
from firered_lit.sharing.cluster import connect, spread

from . import workers as processes
from .workers import Doer, ShardWork

_GROUP = 16  # shards of a group, at most: to find their rows, a worker reads the table up to them
_EACH = 4  # groups for every processor, where there are shards enough
W = TypeVar("W", bound=ShardWork)
D = TypeVar("D")


@dataclass
class _Answer:
    """The outcome of a group: of each of its shards, and why it could not go on."""

    done: list[Any] = field(default_factory=list)
    problem: UserError | OSError | None = None


def run(
    doer: Doer[W, D],
    todo: Mapping[int, Any],
    workers: int,
    patience: float,
    done: Callable[[D], None],
    key: str = "workers",
) -> None:
    """Do the shards of a step in a Ray cluster, and call `done` with what came of each.

    Args:
        doer: The step.
        todo: What is to be made of each shard, by its number.
        workers: Processors of a Ray that is started here, where no cluster is named.
        patience: Seconds for which a process may be at one step.
        done: Called in this process, when a group of shards is finished.
        key: The recipe's name for `workers`, for messages.

    Raises:
        UserError: Nothing can go on.
    """
    processors = connect(workers)
    size = max(1, min(_GROUP, len(todo) // (_EACH * processors)))
    numbers = sorted(todo)
    groups = [{number: todo[number] for number in numbers[at : at + size]} for at in range(0, len(numbers), size)]
    for answer in spread(partial(_group, doer, patience, key), groups):
        for one in answer.done:
            done(one)
        if answer.problem is not None:
            raise answer.problem


def _group(doer: Doer[W, D], patience: float, key: str, todo: Mapping[int, Any]) -> _Answer:
    """Do what is left of a group in a worker of the cluster, by a process of its own: it may die of a picture."""
    answer = _Answer()
    try:
        processes.run(doer, doer.left(todo), 1, patience, answer.done.append, key=key)
    except (UserError, OSError) as problem:
        answer.problem = problem
    return answer
