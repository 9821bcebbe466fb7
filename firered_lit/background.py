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
    """Does one thing after another in a thread. What fails there is raised by the next `check` or `wait`.

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
        done = [future for future in self._begun if future.done()]
        self._begun = [future for future in self._begun if future not in done]
        for future in done:
            future.result()

    def wait(self) -> None:
        """Until all is done."""
        begun, self._begun = self._begun, []
        for future in begun:
            future.exception()
        for future in begun:
            future.result()


def _unless_failed(before: list["Future[None]"], action: Callable[[], None]) -> None:
    if not any(future.exception() for future in before):
        action()


def on_host(value: Any) -> Any:
    """A copy whose tensors share no memory with training; a sharded one stays the same part of the same whole."""
    if isinstance(value, Tensor):
        return _copied(value)
    if type(value) in (dict, OrderedDict, Counter):
        return type(value)({key: on_host(item) for key, item in value.items()})
    if type(value) in (list, tuple, set):
        return type(value)(on_host(item) for item in value)
    return value


def _copied(tensor: Tensor) -> Tensor:
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
    return free is None or processes * sum(_bytes(value)) < SPARE * free


def _bytes(value: Any) -> Iterator[int]:
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
    """Bytes that this machine, or the control group that a scheduler has put this process in, still has."""
    try:
        facts = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        group = Path("/sys/fs/cgroup") / Path("/proc/self/cgroup").read_text().split("::")[1].strip().lstrip("/")
        limit, used = ((group / f"memory.{name}").read_text() for name in ("max", "current"))
        return free if limit.strip() == "max" else min(free, int(limit) - int(used))
    except (OSError, IndexError, ValueError):
        return free
