"""The results of a mining, a line of JSON for every number, in files that a killed process continues.

mine.json        what the folder is made from; nothing else is added to it
found/0.jsonl    the lines of the process of shard 0, as they come; of two lines of one number the later counts
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from firered_lit.config.nameable import with_new_names

from ..errors import UserError
from ..files import write_json
from ..process.locks import in_turn, shard_held
from ..textfiles import read_object

AGAIN = "again"  # a line that says so is there, but its number is tried again by the next process
FOUND, MADE_FROM = "found", "mine.json"


class Ledger:
    """The lines of numbers 0 .. count - 1 in a folder. This process makes those of its shard. 11 bytes a number."""

    def __init__(self, folder: Path, count: int, shard: int, shards: int, file: IO[bytes]) -> None:
        self.folder = folder
        self.count = count
        self.shard = shard
        self.shards = shards
        self.file = file
        self.read()

    def read(self) -> None:
        """Find the lines of all processes. The beginning of a line that was not finished does not count."""
        self.files = sorted((self.folder / FOUND).glob("*.jsonl"))
        self.file_of = np.full(self.count, -1, np.int16)
        self.offset = np.zeros(self.count, np.int64)
        self.settled = np.zeros(self.count, bool)
        for number_of_file, path in enumerate(self.files):
            for offset, row in _rows(path):
                number = row["number"]
                is_final = not row.get(AGAIN)
                if is_final or not self.settled[number]:
                    self.file_of[number] = number_of_file
                    self.offset[number] = offset
                    self.settled[number] = is_final

    def wants(self, number: int) -> bool:
        """Return whether this process has yet to make the line of a number."""
        return number % self.shards == self.shard and not self.settled[number]

    @property
    def own(self) -> int:
        """Return how many numbers belong to this process."""
        return len(range(self.shard, self.count, self.shards))

    @property
    def done(self) -> int:
        """Return how many of this process's numbers have their line."""
        return int(self.settled[self.shard :: self.shards].sum())

    @property
    def missing(self) -> int:
        """Return how many numbers have no line at all."""
        return int((self.file_of < 0).sum())

    def add(self, number: int, line: Mapping[str, Any]) -> None:
        """Write a line; from here on it survives the process."""
        row = {"number": number} | dict(line)
        self.file.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
        self.file.flush()
        self.settled[number] = not row.get(AGAIN)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield every line, by number."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self.files]
            for number in range(self.count):
                place = int(self.file_of[number])
                if place >= 0:
                    files[place].seek(int(self.offset[number]))
                    yield json.loads(files[place].readline())


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the whole lines of a file, each with the byte where it begins."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            yield offset, json.loads(line)
            offset += len(line)


@contextlib.contextmanager
def opened(folder: Path, made_from: Mapping[str, Any], count: int, shard: int = 0, shards: int = 1) -> Iterator[Ledger]:
    """Open the ledger of a folder, which is made when it is not there.

    Args:
        folder: of the mining.
        made_from: all that decides the content of a line.
        count: of items.
        shard, shards: this process makes every `shards`-th item, from item `shard` on.

    Raises:
        UserError: the folder is made from something else, or another process is at work on this shard.
    """
    if not 0 <= shard < shards:
        raise UserError(f"shard={shard}, num_shards={shards}: shards are numbered from 0 to num_shards - 1")
    path = folder / FOUND / f"{shard}.jsonl"
    with shard_held(folder, "mine", shard, shards):
        with in_turn(folder):
            _note(folder, made_from)
            path.parent.mkdir(exist_ok=True)
        with path.open("a+b") as file:
            _cut(file)
            yield Ledger(folder, count, shard, shards, file)


def _cut(file: IO[bytes], piece: int = 1 << 16) -> None:
    """Drop the beginning of a line that a killed process left at the end."""
    end = file.seek(0, os.SEEK_END)
    place = end
    while place:
        start = max(0, place - piece)
        file.seek(start)
        newline = file.read(place - start).rfind(b"\n")
        if newline >= 0:
            place = start + newline + 1
            break
        place = start
    file.truncate(place)


def _note(folder: Path, made_from: Mapping[str, Any]) -> None:
    """Write mine.json, or refuse to go on with anything else."""
    path = folder / MADE_FROM
    wanted = json.loads(json.dumps(made_from))
    if not path.exists():
        strangers = sorted(beside.name for beside in folder.iterdir() if not beside.name.startswith("."))
        if strangers:
            raise UserError(f"{folder}: not empty ({strangers[0]}) and not begun by mine; choose another out")
        write_json(path, wanted, indent=1)
        return
    before = with_new_names(read_object(path))
    for name in sorted(wanted.keys() | before.keys()):
        if wanted.get(name) != before.get(name):
            change = f"({before.get(name)}, now {wanted.get(name)})"
            raise UserError(f"{folder}: made with another {name} {change}; choose another out, or remove it")
