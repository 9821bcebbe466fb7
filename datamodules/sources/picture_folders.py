"""Folders of pictures as a table: targets in one folder, their sources in others, matched by name.

A target `a.png` has the sources `a.*` of every control folder, or `a_0.*`, `a_1.*`, ... where there is one such folder,
and its instruction in `a.txt`. Which files of a folder count says `datamodules.sources.folders`.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.textfiles import read_object, read_text

from . import folders
from .refusals import Refuse

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")
TARGET, CONTROLS = "target", ("control", "control_1", "control_2", "control_3")  # ai-toolkit's names
LONGEST_CAPTION = 1 << 24  # bytes
NUMBERED = re.compile(r"(.+)_(\d+)")

Row = dict[str, Any] | Refuse
Listing = Mapping[str, list[str]]  # stem -> the names of files


@dataclass(frozen=True)
class PictureFolders:
    """A table whose rows are the pictures of a folder: {target, control, caption}.

    Args:
        target: The folder of the pictures to learn.
        controls: The folders of their sources by the name that refusals call them, in the order in which instructions
            count them; without any, rows are text-to-image.
        captions: The folder of text files with the instructions (the target's own when None), or a file of kohya's
            metadata, {"a": {"caption": "..."}}, which also says which pictures count.
        endings: Endings of the text files.
        default: The instruction of a picture without a text file.
        root: The folder that the rows' paths lead from; the nearest that holds all others when None.
        task: The rows' task group; the name of `root` when empty.
        notes: Lines for the user about settings that are left aside.
    """

    target: Path
    controls: Mapping[str, Path] = field(default_factory=dict)
    captions: Path | None = None
    endings: Sequence[str] = (".txt",)
    default: str = ""
    root: Path | None = None
    task: str = ""
    notes: tuple[str, ...] = ()

    @cached_property
    def home(self) -> Path:
        """The folder that the rows' paths lead from."""
        if self.root is not None:
            return self.root
        return Path(os.path.commonpath([os.path.abspath(path) for path in (self.target, *self.controls.values())]))

    @property
    def group(self) -> str:
        """The task group of the rows."""
        return self.task or self.home.resolve().name or self.target.resolve().name

    def __str__(self) -> str:
        named = {TARGET: self.target, **self.controls}
        if self.captions is not None:
            named["captions"] = self.captions
        return " ".join(f"{name}={path}" for name, path in named.items())

    def check(self) -> None:
        """Raise UserError for a folder that is not there."""
        for name, folder in {TARGET: self.target, **self.controls}.items():
            if not folder.is_dir():
                raise UserError(f"{name}={folder}: no such folder of pictures")
        if self.captions is not None and not self.captions.exists():
            raise UserError(f"captions={self.captions}: no such folder of text files, and no such file of metadata")

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield (where, row) of every picture, by name; in the place of what cannot be a row, the reason why."""
        targets = folders.by_stem(self.target, PICTURES)
        sources = self._sources(targets)
        captions = self._captions()
        counting = targets if captions.texts is None else captions.texts
        for stem in sorted(counting):
            names = targets.get(stem, [])
            where = str(self.target / (names[0] if names else stem))
            try:
                if not names:
                    raise Refuse(TARGET, "missing image", f"{self.target / stem}.* does not exist")
                target = folders.only(names, self.target, TARGET)
                row = {TARGET: self._from_home(self.target, target), "control": sources.of(stem)}
                yield where, row | {"caption": captions.of(stem)}
            except Refuse as problem:
                yield where, problem

    def _from_home(self, folder: Path, name: str) -> str:
        return os.path.relpath(folder / name, self.home)

    def _sources(self, targets: Listing) -> "_Sources":
        listed = {name: folders.by_stem(folder, PICTURES) for name, folder in self.controls.items()}
        return _Sources(self, listed, targets)

    def _captions(self) -> "_Captions":
        if self.captions is not None and not self.captions.is_dir():
            return _Captions(self.captions.parent, {}, self.default, metadata(self.captions))
        folder = self.captions or self.target
        return _Captions(folder, folders.by_stem(folder, self.endings), self.default)


class _Sources:
    """The sources of targets, by stem.

    Args:
        table: The table of the targets.
        listed: The pictures of every control folder.
        targets: The pictures of the target folder.
    """

    def __init__(self, table: PictureFolders, listed: Mapping[str, Listing], targets: Listing) -> None:
        self.table = table
        self.listed = listed
        self.numbered = _numbered(next(iter(listed.values())), targets) if len(listed) == 1 else {}

    def of(self, stem: str) -> list[str]:
        """Return the paths of a target's sources, in the order of their folders. Raises Refuse for one left out."""
        if stem in self.numbered:
            return self._numbered(stem)
        absent = [name for name in self.listed if stem not in self.listed[name]]
        present = [name for name in self.listed if name not in absent]
        if absent and (not present or self._order(absent[0]) < self._order(present[-1])):
            # Only the last ones may be left out.
            missing = self.table.controls[absent[0]] / stem
            raise Refuse(absent[0], "missing image", f"{missing}.* does not exist")
        return [self._path(name, stem) for name in present]

    def _numbered(self, stem: str) -> list[str]:
        """Return the paths of stem_0, stem_1, ... of the one control folder. Raises Refuse for a hole or a twin."""
        ((name, folder),) = self.table.controls.items()
        found = sorted(self.numbered[stem])
        if stem in self.listed[name]:
            detail = f"{stem} and {found[0][1]} in {folder} may both be the source of {stem}; keep one manner of naming"
            raise Refuse(name, "several files", detail)

        # The numbers run from 0, or from 1, without a hole.
        first = 1 if found[0][0] == 1 else 0
        for expected, (number, numbered) in enumerate(found, first):
            if number < expected:
                raise Refuse(name, "several files", f"{numbered} in {folder} has the number of another; keep one")
            if number > expected:
                raise Refuse(name, "missing image", f"{folder / stem}_{expected}.* does not exist")
        return [self._path(name, numbered) for _, numbered in found]

    def _order(self, name: str) -> int:
        return list(self.listed).index(name)

    def _path(self, name: str, stem: str) -> str:
        folder = self.table.controls[name]
        return self.table._from_home(folder, folders.only(self.listed[name][stem], folder, name))


def _numbered(listed: Listing, targets: Listing) -> dict[str, list[tuple[int, str]]]:
    """Return (number, stem) of the sources a_0, a_1, ... by their target's stem; not those that are a target's own."""
    found: dict[str, list[tuple[int, str]]] = {}
    for stem in listed:
        match = NUMBERED.fullmatch(stem)
        if match and match[1] in targets and stem not in targets:
            found.setdefault(match[1], []).append((int(match[2]), stem))
    return found


@dataclass(frozen=True)
class _Captions:
    """The instructions of targets, by stem.

    Args:
        folder: The folder of text files, or that of the metadata.
        listed: The text files.
        default: The instruction of a target without a text file.
        texts: The instructions of the pictures that metadata name; None without metadata.
    """

    folder: Path
    listed: Listing
    default: str
    texts: Mapping[str, str] | None = None

    def of(self, stem: str) -> str:
        """Return an instruction; the default, which may be "", where there is none. Raises Refuse."""
        if self.texts is not None:
            return self.texts[stem]
        names = self.listed.get(stem, [])
        if not names:
            return self.default
        path = self.folder / folders.only(names, self.folder, "caption")
        try:
            return read_text(path, LONGEST_CAPTION, "utf-8-sig")
        except UnicodeDecodeError as problem:
            raise Refuse("line", "invalid UTF-8", f"not UTF-8 text ({problem.reason})") from None
        except OSError as problem:
            raise Refuse("caption", "unreadable caption", f"{path}: {problem.strerror}") from None


def metadata(path: Path) -> dict[str, str]:
    """Return the captions of kohya's metadata by the stem of their picture; tags where there is no caption.

    Raises:
        UserError: The file is no such metadata, or names two pictures of one stem.
    """
    found: dict[str, str] = {}
    for key, value in read_object(path).items():
        if not isinstance(value, dict):
            raise UserError(f'{path}: {key}: expected {{"caption": "..."}} of a picture, as in kohya\'s metadata')
        text = value.get("caption") or value.get("tags") or ""
        if not isinstance(text, str):
            raise UserError(f"{path}: {key}: caption: expected text, got a {type(text).__name__}")
        name = Path(key.replace("\\", "/")).name
        stem = Path(name).stem if Path(name).suffix.lower() in PICTURES else name
        if stem in found:
            raise UserError(f"{path}: names two pictures called {stem}; give each folder a file of its own")
        found[stem] = text
    return found


def is_toolkit(path: Path) -> bool:
    """Return whether a folder holds `target/` and `control/`, or `control_1/` to `control_3/`."""
    return (path / TARGET).is_dir() and any((path / name).is_dir() for name in CONTROLS)


def toolkit(path: Path) -> PictureFolders:
    """Return the table of a folder in ai-toolkit's manner, see `is_toolkit`."""
    controls = {name: path / name for name in CONTROLS if (path / name).is_dir()}
    return PictureFolders(path / TARGET, controls, root=path)
