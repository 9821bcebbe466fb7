"""Parquet files with pictures in a column: rows without them at once, a picture when it is asked for."""

import bisect
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.judges.reply import one_line


class PictureTable:
    """The rows of several parquet files, one after another. One row group of pictures is held at a time.

    Args:
        files: The files, in their order.
        columns: The columns of text and numbers.
        pictures: The column of pictures: files as bytes, or a struct with `bytes`.

    Raises:
        UserError: A file cannot be read, or a column is missing.
    """

    def __init__(self, files: Sequence[Path], columns: Sequence[str], pictures: str) -> None:
        self.files = list(files)
        self.pictures = pictures
        self.rows: list[dict[str, Any]] = []
        self._groups: list[tuple[int, Path, int]] = []  # first row, file, row group
        self._held: tuple[int, list[Any]] = (-1, [])
        self._lock = threading.Lock()
        for path in self.files:
            self._add(path, columns)

    def _add(self, path: Path, columns: Sequence[str]) -> None:
        import pyarrow
        import pyarrow.parquet

        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                names = file.schema_arrow.names
                missing = [name for name in (*columns, self.pictures) if name not in names]
                if missing:
                    raise UserError(f"{path}: no column {missing[0]!r}; it has {', '.join(names)}")
                first = len(self.rows)
                for group in range(file.num_row_groups):
                    self._groups.append((first, path, group))
                    first += file.metadata.row_group(group).num_rows
                self.rows += file.read(columns=list(columns)).to_pylist()
        except (OSError, pyarrow.ArrowException) as problem:
            raise UserError(f"{path}: cannot be read as parquet ({one_line(problem)})") from None

    def name(self, row: int) -> str:
        """Return what a message calls the picture of a row."""
        _, path, _ = self._groups[self._group_of(row)]
        return f"{path.name}#{row}"

    def picture(self, row: int) -> bytes:
        """Return the file of a row's picture.

        Raises:
            UserError: There is none, or the table cannot be read.
        """
        group = self._group_of(row)
        with self._lock:
            if self._held[0] != group:
                self._held = (group, self._read(group))
            value = self._held[1][row - self._groups[group][0]]
        if isinstance(value, dict):
            value = value.get("bytes")
        if not isinstance(value, bytes) or not value:
            raise UserError(f"{self.name(row)}: holds no picture")
        return value

    def _group_of(self, row: int) -> int:
        return bisect.bisect_right(self._groups, row, key=lambda group: group[0]) - 1

    def _read(self, group: int) -> list[Any]:
        import pyarrow
        import pyarrow.parquet

        _, path, number = self._groups[group]
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                return file.read_row_group(number, columns=[self.pictures]).column(0).to_pylist()
        except (OSError, pyarrow.ArrowException) as problem:
            raise UserError(f"{path}: cannot be read as parquet ({one_line(problem)})") from None


def parquet_files(folder: Path) -> list[Path]:
    """Return the parquet files of a folder and its subfolder `data`, in the order of their names."""
    return sorted([*folder.glob("*.parquet"), *(folder / "data").glob("*.parquet")])
