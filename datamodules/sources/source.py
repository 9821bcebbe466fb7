"""Sources of rows: a table, a folder of tables, another trainer's data set file, or folders of pictures."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, Union

from firered_lit.errors import UserError
from firered_lit.places import user_path

from .layouts import COLUMNS, Columns, named, renamed
from .picture_folders import PictureFolders

CONTROLS = ("control", "control_2", "control_3")
FOLDERS = ("target", *CONTROLS, "captions")
WORDS = ("layout", *FOLDERS, *(f"columns.{name}" for name in COLUMNS))


@dataclass(frozen=True)
class Source:
    """The place of rows, and how their columns are understood. Either `path` is named, or `target`.

    Args:
        path: A table, a folder of tables or of one folder per task, or a data set file of another trainer.
        layout: Layout of the rows, when their columns do not tell; see `datamodules.sources.layouts`.
        columns: The rows' columns by name, such as source, target and instruction, where no layout has their names;
            see `datamodules.sources.layouts.renamed`.
        target: A folder of pictures to learn, in place of `path`.
        control: The folder of their sources, matched by name; none: text-to-image.
        control_2: The folder of second sources.
        control_3: The folder of third sources.
        captions: The folder of the instructions, text files, or a file of kohya's metadata; the target's folder when
            empty.

    Raises:
        UserError: Both are named, or neither.
    """

    path: str = ""
    layout: str = ""
    columns: Mapping[str, Any] = field(default_factory=dict)
    target: str = ""
    control: str = ""
    control_2: str = ""
    control_3: str = ""
    captions: str = ""

    def __post_init__(self) -> None:
        if self.layout:
            named(self.layout)  # which refuses a name that no layout has
        others = [name for name in (*CONTROLS, "captions") if getattr(self, name)]
        if not self.target and others:
            raise UserError(f"{others[0]}={getattr(self, others[0])}: name the folder of the targets too, target=DIR")
        if not self.target and not self.path:
            raise UserError("no data: name source=TABLE_OR_FOLDER, or folders of pictures, target=DIR control=DIR")
        if self.target and self.path:
            raise UserError(f"source={self.path} and target={self.target}: name one, a source or folders of pictures")
        if self.target and (self.layout or self.given_columns):
            raise UserError(f"target={self.target}: pictures in folders have no columns; leave out layout and columns")

    @property
    def given_columns(self) -> dict[str, str | Sequence[str]]:
        """The columns that are named."""
        return {name: value for name, value in self.columns.items() if value}

    @cached_property
    def chosen(self) -> str | tuple[Columns, ...]:
        """The layout's name, or the columns as the user names them."""
        if not self.given_columns:
            return self.layout
        return renamed(self.layout, self.given_columns)

    @cached_property
    def image_columns(self) -> frozenset[str]:
        """The columns that the user named as images."""
        if isinstance(self.chosen, str):
            return frozenset()
        return frozenset(name for columns in self.chosen for name in (*columns.images, columns.mask))

    @cached_property
    def folders(self) -> PictureFolders | None:
        """The table of `target` and `control`; None where a path is named."""
        if not self.target:
            return None
        controls = {name: user_path(getattr(self, name)).absolute() for name in CONTROLS if getattr(self, name)}
        captions = user_path(self.captions).absolute() if self.captions else None
        table = PictureFolders(user_path(self.target).absolute(), controls, captions)
        table.check()
        return table

    @property
    def name(self) -> str:
        """A short name for people."""
        return Path(self.path).name if self.path else Path(self.target).resolve().name

    def __str__(self) -> str:
        return self.path or str(self.folders)

    def identity(self) -> dict[str, Any]:
        """Return what, beside the rows, samples are made from: the layout and the columns that were named."""
        found: dict[str, Any] = {}
        if self.layout:
            found["layout"] = self.layout
        if self.given_columns:
            found["columns"] = self.given_columns
        return found


Named = Union[str, "os.PathLike[str]", Source]


def source_of(given: Named, layout: str = "") -> Source:
    """Return a source, or a path to one, as a source."""
    if isinstance(given, Source):
        return given
    return Source(os.fspath(given), layout)


def from_words(path: str, layout: str, words: Mapping[str, Any]) -> Source:
    """Return the source that a command line describes.

    Args:
        path: A table or a folder; "" where `words` name folders.
        layout: Its name, or "".
        words: "target", "columns.source", ... and what they are set to.

    Raises:
        UserError: A word is none of a source.
    """
    settings: dict[str, Any] = {"layout": layout}
    columns: dict[str, Any] = {}
    for word, value in words.items():
        if word == "columns" and isinstance(value, Mapping):
            columns |= value
            continue
        if word not in WORDS:
            near = get_close_matches(word, WORDS, 1)
            hint = f"is {near[0]} meant? " if near else ""
            raise UserError(f"{word}={value}: {hint}one of {', '.join(WORDS)}")
        if word.startswith("columns."):
            columns[word.removeprefix("columns.")] = value
        else:
            settings[word] = str(value)
    return Source(path, columns=columns, **settings)
