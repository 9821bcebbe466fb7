"""The device of a process that encodes: processes of one machine take a GPU each."""

import fcntl
import os
import tempfile
from pathlib import Path

import torch

_taken: dict[str, int] = {}  # file descriptors of the locks of this process, by the name of the GPU


def chosen_device(device: str) -> str:
    """Return the device that is meant.

    Args:
        device: Its name. "auto" takes the first GPU that no process of this user has taken, until this one ends; where
            all are taken, one of them; without any the CPU.
    """
    if device != "auto":
        return device
    if not torch.cuda.is_available():
        return "cpu"
    count = torch.cuda.device_count()
    if count == 1:
        return "cuda"
    for number in range(count):
        if _take(str(torch.cuda.get_device_properties(number).uuid)):
            return f"cuda:{number}"
    return f"cuda:{os.getpid() % count}"


def _take(name: str) -> bool:
    """Return whether a GPU is this process's now. The lock is the kernel's: it ends with the process."""
    if name in _taken:
        return True
    path = Path(tempfile.gettempdir()) / f"firered-lit-{os.getuid()}-gpu-{name}"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return False
    _taken[name] = descriptor
    return True
