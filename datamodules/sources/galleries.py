"""Pictures that a model made for requests: a folder of files named by their request, or a table of {id, image}.

Each is listed once, and every picture belongs to one request or to none. What belongs to none can be reported.
"""

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

from firered_lit.errors import UserError
from firered_lit.places import user_path

from . import folders, images, tables
from .picture_folders import PICTURES
from .refusals import Refuse

NUMBERED = re.compile(r"(.+)_(\d+)", re.DOTALL)


class Gallery(Protocol):
    """The pictures of one model."""

    def possible(self) -> set[str]:
        """Return all ids that a picture here may have been made for."""
        ...

    def assign(self, ids: Collection[str]) -> list[str]:
        """Give each picture to the request that it was made for. Returns the names of those that belong to none.

        Args:
            ids: Those of `possible` that a request has.
        """
        ...

    def of(self, name: str) -> list[str]:
        """Return the pictures of a request, by its id, in a fixed order. Raises Refuse when it is unclear which."""
        ...


class FolderGallery:
    """Pictures in a folder, named by their request: ID.png, ID_0.png, ID_1.png, ...

    A name that is a request's id belongs to this request, whatever else it could be read as: with the ids `cat` and
    `cat_0`, `cat_0.png` is of the second. Numbers may have gaps.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stems = folders.by_stem(path, PICTURES)
        self.owned: dict[str, list[tuple[int, str]]] = {}  # by id: number and stem of each picture

    def __str__(self) -> str:
        return f"folder {self.path.name}"

    def possible(self) -> set[str]:
        return {owner for stem in self.stems for owner, _ in _owners(stem)}

    def assign(self, ids: Collection[str]) -> list[str]:
        self.owned = {}
        nobody: list[str] = []
        for stem, names in self.stems.items():
            owners = [owner for owner in _owners(stem) if owner[0] in ids]
            if owners:
                name, number = owners[0]
                self.owned.setdefault(name, []).append((number, stem))
            else:
                nobody += names
        return nobody

    def of(self, name: str) -> list[str]:
        found = []
        for _, stem in sorted(self.owned.get(name, [])):
            file = folders.only(self.stems[stem], self.path, "id")
            found.append(str((self.path / file).resolve()))
        return found


def _owners(stem: str) -> list[tuple[str, int]]:
    """Return (id, number) of the requests that a picture of this name may be of, the likelier one first."""
    owners = [(stem, -1)]
    numbered = NUMBERED.fullmatch(stem)
    if numbered:
        owners.append((numbered[1], int(numbered[2])))
    return owners


class TableGallery:
    """Pictures listed by a table of {id, image}."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.images: dict[str, list[str]] = {}
        digest = hashlib.blake2b(digest_size=8)
        for where, row in tables.rows(path):
            if isinstance(row, Refuse):
                raise UserError(f"{where}: {row.field}: {row.detail}")
            if not all(isinstance(row.get(key), str) for key in ("id", "image")):
                raise UserError(f"{where}: a list of candidates has the columns id and image, both text")
            name, image = row["id"], row["image"]
            place = image if images.URL.match(image) else str((path.parent / image).resolve())
            self.images.setdefault(name, []).append(place)
            digest.update(json.dumps([name, image]).encode())
        self.digest = digest.hexdigest()

    def __str__(self) -> str:
        return f"table {self.digest}"

    def possible(self) -> set[str]:
        return set(self.images)

    def assign(self, ids: Collection[str]) -> list[str]:
        return [place for name, places in self.images.items() if name not in ids for place in places]

    def of(self, name: str) -> list[str]:
        return self.images.get(name, [])


def gallery(name: str) -> Gallery:
    """Return the pictures that lie in a folder, or that a table lists. Raises UserError."""
    path = user_path(name)
    if path.is_dir():
        return FolderGallery(path)
    if not path.is_file() or not tables.kind_of(path):
        raise UserError(f"task.candidates: {name}: neither a folder of pictures nor a table of id and image")
    return TableGallery(path)
