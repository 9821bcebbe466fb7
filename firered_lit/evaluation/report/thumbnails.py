"""Small copies of an evaluation's pictures, so that the folder of the page needs nothing outside of it."""

import hashlib
import io
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from firered_lit.errors import UserError
from firered_lit.files import replacing
from firered_lit.textfiles import MEGABYTE, read_bytes

if TYPE_CHECKING:
    from PIL import Image

LARGEST = 256 * MEGABYTE  # of one picture's file
QUALITY = 85
AHEAD = 4  # pictures per thread that are held at a time
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Thumbnail:
    """A picture of the page.

    Attributes:
        name: Its file in the folder of thumbnails; made of the picture's hash, never of its name.
        width: Pixels.
        height: Pixels.
    """

    name: str
    width: int
    height: int


@dataclass(frozen=True)
class Thumbnails:
    """A folder of thumbnails. What lies there is not made again.

    Attributes:
        folder: Where they lie.
        side: The longer side, px; smaller pictures stay as they are.
    """

    folder: Path
    side: int = 512

    def of(self, content: bytes) -> Thumbnail | None:
        """Return the thumbnail of a picture's file, made if it is not there; None where it is no picture."""
        from PIL import Image

        name = f"{hashlib.sha256(content).hexdigest()[:32]}_{self.side}.jpg"
        path = self.folder / name
        try:
            with Image.open(path) as known:
                return Thumbnail(name, known.width, known.height)
        except OSError:
            pass
        picture = _smaller(content, self.side)
        if picture is None:
            return None
        with replacing(path, "wb") as file:
            picture.save(file, format="JPEG", quality=QUALITY)
        return Thumbnail(name, picture.width, picture.height)

    def keep_only(self, names: Iterable[str]) -> None:
        """Delete the thumbnails of an earlier report that this one does not show."""
        wanted = set(names)
        for path in self.folder.glob("*.jpg"):
            if path.name not in wanted:
                path.unlink(missing_ok=True)


def _smaller(content: bytes, side: int) -> "Image.Image | None":
    from PIL import Image

    from firered_lit.colours import as_seen

    try:
        with Image.open(io.BytesIO(content)) as opened:
            opened.draft("RGB", (side, side))
            picture = as_seen(opened)
    except Exception:  # a damaged file may fail in any way
        return None
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def read_picture(out: Path, name: object) -> bytes:
    """Return a picture's file.

    Args:
        out: The folder of the evaluation.
        name: Where the picture lies below it.

    Raises:
        UserError: It is not there, or lies outside of the folder.
    """
    if not isinstance(name, str) or not name:
        raise UserError("no picture")
    try:
        path = (out / name).resolve()
        if not path.is_relative_to(out.resolve()):
            raise UserError("its name leads out of the evaluation's folder")
        return read_bytes(path, LARGEST)
    except ValueError:  # a NUL in the name
        raise UserError("no file can have its name") from None
    except OSError as problem:
        raise UserError(f"cannot be read: {problem.strerror}") from None


def in_threads(work: Callable[[T], R], inputs: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """Yield what `work` makes of each input, in their order, with few inputs held at a time."""
    threads = threads or min(os.cpu_count() or 1, 16)
    waiting: list[Future[R]] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="thumbnails") as pool:
        for given in inputs:
            waiting.append(pool.submit(work, given))
            if len(waiting) >= AHEAD * threads:
                yield waiting.pop(0).result()
        for future in waiting:
            yield future.result()
