"""Who does shards: processes of this machine or a Ray cluster, for this command's share of them."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

from firered_lit.errors import UserError

from . import workers
from .cluster import needs_cluster
from .workers import Doer, Heard, ShardWork, ignored

Runner = Literal["processes", "ray"]
W = TypeVar("W", bound=ShardWork)
D = TypeVar("D")


@dataclass(frozen=True)
class Share:
    """The shards of every step that are this command's; others, on any machine that shares the folder, do the rest.

    Args:
        shard: From which one on.
        count: Every how many-th.

    Raises:
        UserError: There is no such share.
    """

    shard: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.shard < self.count:
            said = f"shard={self.shard}, num_shards={self.count}"
            raise UserError(f"{said}: shards are numbered from 0 to num_shards - 1")

    def of(self, numbers: Iterable[int]) -> list[int]:
        """Return those of some shards that are this command's."""
        return [number for number in numbers if number % self.count == self.shard]

    def waits(self, step: str, left: int, total: int) -> bool:
        """Return whether others have shards of a step left to do, and say so."""
        if left:
            print(
                f"{step}: shard {self.shard} of {self.count} is done; {left} of {total} are left to the others;"
                " when they are done too, the same command goes on"
            )
        return left > 0


@dataclass(frozen=True)
class Crew:
    """The processes that do shards.

    Args:
        workers: Processes; 0 works in this one. With "ray", those of a local Ray that is started.
        patience: Seconds after which a process that is at one step is taken to hang.
        runner: "processes" of this machine, or "ray": Daft spreads the shards over a Ray cluster.
        key: The recipe's name for `workers`, for messages.

    Raises:
        UserError: There is no such runner.
    """

    workers: int = 0
    patience: float = 300.0
    runner: Runner = "processes"
    key: str = "workers"

    def __post_init__(self) -> None:
        if self.runner not in get_args(Runner):
            raise UserError(f"runner={self.runner}: one of {', '.join(get_args(Runner))}")
        if self.runner == "ray":
            needs_cluster()

    def do(
        self,
        doer: Doer[W, D],
        todo: Mapping[int, Any],
        done: Callable[[D], None],
        heard: Heard = ignored,
    ) -> None:
        """Do shards, and call `done` with what came of each, in the order in which they are finished.

        Args:
            doer: The step.
            todo: What is to be made of each shard, by its number.
            done: Called in this process.
            heard: Called in this process with every step that a process of this machine says; a cluster says none.

        Raises:
            UserError: Nothing can go on.
        """
        if self.runner == "ray" and todo:
            from .groups import run

            run(doer, todo, self.workers, self.patience, done, self.key)
            return
        workers.run(doer, todo, self.workers, self.patience, done, heard, self.key)
