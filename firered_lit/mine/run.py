"""The loop of every mining: begin the missing items, a few ahead; write each line; at the end conclude."""

import errno
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ..errors import UserError
from ..process.locks import in_turn
from .ledger import Ledger, opened

Line = dict[str, Any]
Wanted = Callable[[int], bool]  # is the item of this number still to be made?
WHERE = (  # settings of a reward or a writer that decide where and how fast it runs, not its answers
    *("url", "key_variable", "timeout", "retries", "backoff", "parallel", "patience", "record"),
    *("budget", "log", "longest_wait"),
    *("threads", "batch", "chunk", "limit", "device"),
)


class Task(Protocol):
    """A kind of mining. Items have numbers from 0 to len - 1, and none depends on another."""

    unit: str  # what an item is called
    ahead: int  # how many are begun before the first is waited for

    def made_from(self) -> Line:
        """Return all that decides the content of a line, as JSON holds it; not what decides which are kept."""
        ...

    def __len__(self) -> int: ...

    def open(self, folder: Path) -> None:
        """Make ready to begin items. Other processes may do so in the same folder."""
        ...

    def items(self, wanted: Wanted) -> Iterator[tuple[int, Any]]:
        """Yield the wanted items, with their numbers."""
        ...

    def begin(self, item: Any) -> Any:
        """Start an item, without waiting for rewards or writers."""
        ...

    def finish(self, begun: Any) -> Line:
        """Wait for an item that was begun, and return its line."""
        ...

    def conclude(self, lines: Callable[[], Iterator[Line]], folder: Path) -> list[str]:
        """Write the result of the mining, from all lines by number, and return a report of it."""
        ...

    def close(self) -> None: ...


def mine(task: Task, out: str, shard: int = 0, num_shards: int = 1, recipe: Mapping[str, Any] | None = None) -> None:
    """Mine into a folder; run again, it goes on.

    Args:
        task: the kind of mining.
        out: the folder.
        shard, num_shards: this process makes every num_shards-th item, from item `shard` on. Others that share `out`
            make the rest, and the last one to finish concludes.
        recipe: the resolved one; a folder keeps to one choice of rewards.

    Raises:
        UserError: the folder is made from something else, or the disk is full.
    """
    folder = Path(out).resolve()
    try:
        with opened(folder, task.made_from() | judged_by(recipe), len(task), shard, num_shards) as ledger:
            if ledger.done < ledger.own:
                task.open(folder)
                _work(task, ledger)
            ledger.read()
            if ledger.missing:
                print(f"shard {shard} of {num_shards} is done; {ledger.missing} of {len(task)} are left to the others")
                return
            with in_turn(folder):
                report = task.conclude(ledger.lines, folder)
        print("\n".join([*report, f"in       {folder}"]))
    except OSError as problem:
        if problem.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(f"{folder}: the disk is full; make room and run again, it goes on from there") from None
    finally:
        task.close()


def judged_by(recipe: Mapping[str, Any] | None) -> Line:
    """Return the settings of a recipe that decide the answers of its task's rewards and writer."""
    task = (recipe or {}).get("task", {})
    return {name: _without(task[name], WHERE) for name in ("rewards", "writer") if name in task}


def _without(node: Any, names: Collection[str]) -> Any:
    """Return a copy of a recipe's node without some keys, at any depth."""
    if isinstance(node, Mapping):
        return {key: _without(value, names) for key, value in node.items() if key not in names}
    if isinstance(node, list):
        return [_without(item, names) for item in node]
    return node


def _work(task: Task, ledger: Ledger) -> None:
    """Make every missing item of this process, `task.ahead` of them begun before the first is waited for."""
    waiting: deque[tuple[int, Any]] = deque()
    with tqdm(total=ledger.own, initial=ledger.done, unit=task.unit, desc="mine", smoothing=0.05) as bar:

        def settle() -> None:
            number, begun = waiting.popleft()
            ledger.add(number, task.finish(begun))
            bar.update()

        for number, item in task.items(ledger.wants):
            waiting.append((number, task.begin(item)))
            if len(waiting) > task.ahead:
                settle()
        while waiting:
            settle()
