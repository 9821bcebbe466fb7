"""Pictures that were made elsewhere, taken as they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from firered_lit.errors import UserError
from firered_lit.evaluation.models import fingerprints
from firered_lit.evaluation.protocols import Item
from firered_lit.places import user_path
from firered_lit.textfiles import MEGABYTE, read_bytes

if TYPE_CHECKING:
    from PIL import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
LARGEST = 256 * MEGABYTE


class Pictures:
    """Take each item's picture from a folder, under the name that the official scripts give it.

    REDEdit-Bench: TASK/TASK-ID.png. ImgEdit: KEY.png. GEdit-Bench: fullset/GROUP/LANGUAGE/KEY.png. Each may have
    another of the endings .png, .jpg, .jpeg and .webp.

    Args:
        folder: The folder. What belongs to a suite may lie below a folder of its name, as FOLDER/rededit_en; pictures
            of two languages whose names do not say which must. Or a mapping, suite -> folder.

    Raises:
        UserError: There is no such folder.
    """

    parallel = 4

    def __init__(self, folder: str | Mapping[str, str]) -> None:
        named = folder if isinstance(folder, Mapping) else {"": folder}
        self.folders = {suite: user_path(path) for suite, path in named.items()}
        for path in self.folders.values():
            if not path.is_dir():
                raise UserError(f"{path}: no folder of pictures there")

    def fingerprint(self) -> str:
        """Return a hash of the names, sizes and times of all pictures."""
        found = {suite: fingerprints.of_folder(path, ENDINGS) for suite, path in self.folders.items()}
        return fingerprints.of_settings(kind="pictures", folders=found)

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> bytes:
        """Return the picture's file.

        Raises:
            UserError: There is none.
        """
        places = self._places(item)
        for place in places:
            for ending in (PurePosixPath(item.output).suffix, *ENDINGS):
                path = place / PurePosixPath(item.output).with_suffix(ending)
                if path.is_file():
                    return _read(path)
        names = " nor ".join(str(place / item.output) for place in places)
        raise UserError(f"no picture {names}")

    def close(self) -> None:
        """Nothing is open."""

    def _places(self, item: Item) -> list[Path]:
        """Return the folders that may hold an item's picture."""
        if item.suite in self.folders:
            return [self.folders[item.suite]]
        if "" not in self.folders:
            raise UserError(f"no folder is named for {item.suite}")
        folder = self.folders[""]
        places = [folder / item.suite]
        language = item.suite.rpartition("_")[2]
        one_of_two = language in ("en", "cn")
        if not one_of_two or language in PurePosixPath(item.output).parts:
            places.append(folder)
        return places


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, LARGEST)
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
