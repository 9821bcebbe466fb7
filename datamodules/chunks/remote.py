"""Prepared data in object storage, copied piece by piece to a local cache by LitData's downloaders, and patience.

Credentials and endpoint come from the environment alone, as boto3 reads them: AWS_ACCESS_KEY_ID,
AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...; no recipe holds them.
"""

import contextlib
import hashlib
import io
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from firered_lit.errors import UserError
from firered_lit.files import replacing
from firered_lit.places import user_path

from .listing import INDEX, TABLE

PAUSES = (0.1, 0.3, 1.0, 2.0, 4.0, 8.0)  # seconds between tries
PREFIX = "s3://"
USED = 60.0  # seconds after its last use from which a copy may make room for others
T = TypeVar("T")


class Gone(OSError):  # noqa: N818
    """A read that no patience mends: there is no such object, or it may not be read."""


def patiently(read: Callable[[], T], pauses: tuple[float, ...] | None = None) -> T:
    """Return the result of `read`, which is tried again after longer and longer pauses while it raises OSError.

    Args:
        read: The read.
        pauses: Seconds between tries; `PAUSES` when None.

    Raises:
        OSError: The file is missing or may not be read, which is raised at once, or the last try failed.
    """
    for pause in PAUSES if pauses is None else pauses:
        try:
            return read()
        except (FileNotFoundError, PermissionError, Gone):
            raise
        except OSError:
            time.sleep(pause)
    return read()


class Remote:
    """Files under a URL, each copied to a folder when it is first asked for. Threads and processes may share it.

    Args:
        url: The address, s3://bucket/prefix.
        folder: Folder of the copies.
        limit: Bytes of chunks that the folder may hold; those that were not used for longest make room for others.
            Chunks of the last minute stay, so that a limit below the need of all workers at a time does not hold.
    """

    def __init__(self, url: str, folder: Path, limit: int | None = None) -> None:
        self.url = url.rstrip("/")
        self.folder = folder
        self.limit = limit
        self._owner = 0  # the process that made the downloader
        self._downloader: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Remote, (self.url, self.folder, self.limit)

    def fetch(self, name: str, size: int | None = None) -> Path:
        """Return the local copy of a file, of `size` bytes when that is known. Raises OSError."""
        path = self.folder / name
        if not path.exists() or (size is not None and path.stat().st_size != size):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._make_room(size or 0)
            patiently(lambda: self._copy(name, path, size))
        if self.limit is not None:
            os.utime(path)
        return path

    def _make_room(self, size: int) -> None:
        """Remove the chunks that were not used for longest, until one of `size` bytes fits."""
        if self.limit is None:
            return
        copies = []
        for path in self.folder.glob("chunks/*.bin"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room too
                copies.append((path.stat().st_mtime, path.stat().st_size, path))
        total = size + sum(bytes_ for _, bytes_, _ in copies)
        for used, bytes_, path in sorted(copies):
            if total <= self.limit or time.time() - used < USED:
                return
            path.unlink(missing_ok=True)
            total -= bytes_

    def read(self, name: str) -> bytes:
        """Return a file as it is now. Raises OSError."""
        file = io.BytesIO()
        patiently(lambda: self._download(name, file))
        return file.getvalue()

    def part(self, name: str, begin: int, end: int) -> bytes:
        """Return bytes begin to end - 1 of a file, fetched anew each time. Raises OSError."""
        with self._as_os_errors(name):
            return self._client().download_bytes(f"{self.url}/{name}", begin, end - begin, "")

    def _copy(self, name: str, path: Path, size: int | None) -> None:
        """Copy a file, whole or not at all: several processes may do so at the same time."""
        with replacing(path, "wb") as file:
            self._download(name, file)
            count = file.tell()
            if size is not None and count != size:
                raise OSError(f"{self.url}/{name} came with {count} bytes, not {size}")

    def _download(self, name: str, file: Any) -> None:
        """Fill an open file with the content of one in the store."""
        file.seek(0)
        file.truncate()
        with self._as_os_errors(name):
            self._client().download_fileobj(f"{self.url}/{name}", file)

    @contextlib.contextmanager
    def _as_os_errors(self, name: str) -> Iterator[None]:
        """Raise errors of the store as OSError, and as `Gone` where no patience helps."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except NoCredentialsError as problem:
            raise Gone(f"{self.url}: {problem}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
        except ClientError as problem:
            status = problem.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            kind = Gone if 400 <= status < 500 and status not in (408, 429) else OSError
            raise kind(f"{self.url}/{name}: {problem}") from None
        except RetriesExceededError as problem:  # of a body that broke off each time, and nobody's subclass
            raise OSError(f"{self.url}/{name}: {problem.last_exception}") from None
        except (Boto3Error, BotoCoreError) as problem:
            raise OSError(f"{self.url}/{name}: {problem}") from None

    def _client(self) -> Any:
        """Return LitData's downloader, one per process: connections do not outlive a fork."""
        if self._owner != os.getpid():
            from botocore.config import Config
            from litdata.streaming.downloader import get_downloader

            config = Config(retries={"max_attempts": 2}, connect_timeout=10, read_timeout=60)  # the rest is ours
            self._downloader = get_downloader(self.url, str(self.folder), [], {"config": config})
            self._owner = os.getpid()
        return self._downloader


def open_root(
    root: str | Path, cache: str | Path | None = None, limit: int | None = None
) -> tuple[Path, Remote | None]:
    """Return the folder that prepared data is read from, and the store behind it, if it is one.

    Args:
        root: A folder, or s3://bucket/prefix.
        cache: Folder for copies of a store's files, which fills as they are read.
        limit: Bytes of chunks among the copies.

    Raises:
        UserError: There is no finished data.
    """
    if "://" not in str(root):
        return Path(root), None
    if not str(root).startswith(PREFIX):
        raise UserError(f"data.root={root}: a folder, or {PREFIX}bucket/prefix")
    url = str(root).rstrip("/")
    try:
        summary = Remote(url, Path()).read("data.json")
        name = hashlib.blake2b(json.dumps(url).encode() + summary, digest_size=8).hexdigest()
        remote = Remote(url, user_path(cache or Path.home() / ".cache" / "firered_lit" / "data") / name, limit)
        for part in ("index/train/index.safetensors", "index/held_out/index.safetensors"):
            remote.fetch(part)
        try:
            remote.fetch(f"chunks/{TABLE}")
        except Gone:  # data of before
            remote.fetch(f"chunks/{INDEX}")
        remote.fetch("data.json")
    except OSError as problem:
        raise UserError(f"{url}: no finished data can be read there: {' '.join(str(problem).split())}") from None
    return remote.folder, remote
