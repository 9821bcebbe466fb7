"""One process at a time: locks on files, held by the kernel, so that a killed process leaves none behind.

On several machines the file system must know locks, as NFS does; where it knows none, a warning says so.
"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from firered_lit.errors import UserError
from firered_lit.places import make_folder

log = logging.getLogger(__name__)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_held: set[int] = set()  # file descriptors of the locks of this process


@contextlib.contextmanager
def held(path: Path, verb: str, what: str = "") -> Iterator[None]:
    """Hold the lock file `path`, which is made and removed again; refuse at once when another process holds it.

    Args:
        path: The file, in the folder that must not be worked on twice; the folder is made.
        verb: What the holder does there: fit, prepare or mine.
        what: Which part of the folder the lock is for; nothing for the whole.

    Raises:
        UserError: Another process holds the lock; it is named by its number and machine.
    """
    make_folder(path.parent)
    try:
        descriptor = _acquire(path)
    except BlockingIOError:
        part = f" ({what})" if what else ""
        reason = f"another {verb} is at work here{part}{_holder(path)}"
        raise UserError(f"{path.parent}: {reason}; wait until it ends, or stop it first") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # before it is released: whoever has opened it meanwhile sees that it is gone
            _held.discard(descriptor)
            os.close(descriptor)


@contextlib.contextmanager
def shard_held(folder: Path, verb: str, shard: int, shards: int) -> Iterator[None]:
    """Hold one shard of a folder that many processes fill, all with one number of shards.

    Raises:
        UserError: Another process works on this shard, or divides the folder into another number of shards.
    """
    own = folder / f".lock-{shard}-of-{shards}"
    with contextlib.ExitStack() as stack:
        with in_turn(folder):
            for other in sorted(folder.glob(".lock-*-of-*")):
                if not other.name.endswith(f"-of-{shards}"):
                    with held(other, verb, f"shard {other.name.removeprefix('.lock-')}"):
                        """A killed process has left the file: nobody holds it."""
            stack.enter_context(held(own, verb, f"shard {shard}-of-{shards}"))
        yield


@contextlib.contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Wait for the turn to do what only one process in a folder may do at a time. The folder is made."""
    make_folder(folder)
    try:
        file = (folder / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from None
    with file:
        _locked(file.fileno(), fcntl.LOCK_EX)
        yield


def _acquire(path: Path) -> int | None:
    """Return the descriptor of the locked file; None where the file system knows no locks.

    Raises:
        BlockingIOError: Another process holds it.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if not _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
                log.warning("%s: this file system knows no locks; see to it that nothing else works here", path.parent)
                os.close(descriptor)
                return None
            if _is_file(descriptor, path):
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
                _held.add(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed it between our opening and our locking


def _locked(descriptor: int, how: int) -> bool:
    """Lock an open file. Returns False where the file system knows no locks.

    Raises:
        BlockingIOError: Another process holds it, and `how` is not to wait.
    """
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def _is_file(descriptor: int, path: Path) -> bool:
    """Return whether an open file still is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Return who holds a lock, as ": process 123 on host", or nothing when that is not written there."""
    try:
        holder = path.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
    return f": {holder}" if holder else ""


def _forget() -> None:
    """Close the locks of the parent in a forked process, as a data worker: they must not outlive the parent."""
    for descriptor in _held:
        with contextlib.suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)
