"""Checkpoints written beside the training: a copy on the host, and one thread that writes it."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

SPARE = 0.8  # of the host's free memory, what a copy may take


class Background:
    """A thread that does one thing after another. A failure there is raised by the next `check` or `wait`.

    The process does not end before all of it is done, not even by an exception.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._begun: list[Future[None]] = []

    def submit(self, action: Callable[[], None]) -> None:
        """Do this when all before it is done, unless something of it has failed."""
        before = list(self._begun)
        self._begun.append(self._thread.submit(_unless_failed, before, action))

    def check(self) -> None:
        """Raise what has failed so far."""
        done = []
        pending = []
        for future in self._begun:
            if future.done():
                done.append(future)
            else:
                pending.append(future)
        self._begun = pending
        for future in done:
            future.result()

    def wait(self) -> None:
        """Wait until all is done, and raise what has failed."""
        begun = self._begun
        self._begun = []
        for future in begun:
            future.exception()
        for future in begun:
            future.result()


def _unless_failed(before: list["Future[None]"], action: Callable[[], None]) -> None:
    if not any(future.exception() for future in before):
        action()


def on_host(value: Any) -> Any:
    """Return a copy whose tensors share no memory with training; a sharded one stays the same shard."""
    if isinstance(value, Tensor):
        return _copied(value)
    if type(value) in (dict, OrderedDict, Counter):
        return type(value)({key: on_host(item) for key, item in value.items()})
    if type(value) in (list, tuple, set):
        return type(value)(on_host(item) for item in value)
    return value


def _copied(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor on the host."""
    if isinstance(tensor, DTensor):
        return DTensor(_copied(tensor._local_tensor.detach()), tensor._spec, requires_grad=False)
    if is_traceable_wrapper_subclass(tensor):  # quantised moments: their own copy on the host would be no copy
        names, context = tensor.__tensor_flatten__()
        inner = {name: _copied(getattr(tensor, name)) for name in names}
        return type(tensor).__tensor_unflatten__(inner, context, tensor.size(), tensor.stride())
    return tensor.detach().to("cpu", copy=True)


def fits_on_host(value: Any, processes: int = 1) -> bool:
    """Return whether so many processes of this machine can each hold a copy. True where nobody knows."""
    free = _free()
    if free is None:
        return True
    return processes * sum(_bytes(value)) < SPARE * free


def _bytes(value: Any) -> Iterator[int]:
    """Yield the bytes of every tensor in a value."""
    if isinstance(value, DTensor):
        value = value._local_tensor
    if isinstance(value, Tensor):
        yield value.numel() * value.element_size()
    elif isinstance(value, dict):
        for item in value.values():
            yield from _bytes(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _bytes(item)


def _free() -> int | None:
    """Return the free bytes of this machine, or of this process's control group; None where nobody knows."""
    try:
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        name = Path("/proc/self/cgroup").read_text().split("::")[1].strip().lstrip("/")
        group = Path("/sys/fs/cgroup") / name
        limit = (group / "memory.max").read_text().strip()
        used = (group / "memory.current").read_text()
        if limit == "max":
            return free
        return min(free, int(limit) - int(used))
    except (OSError, IndexError, ValueError):
        return free
