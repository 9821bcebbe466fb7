"""Rows of the layouts that users have, as one kind of record. Only the text is opened; memory does not grow with it.

Read here: FireRed's JSONL, as documented and as coded. `source_image` is a path, a list of paths, or null
(text-to-image); the target is `target_image` or `edit_image`; `instruction` (English) and `instruction_cn`, one of them
not empty; optionally `inverse_instruction`, `inverse_instruction_cn`, `task`, `id`, `cluster`, `target_text`. Paths are
relative to the file's folder. A folder is read as tasks: one folder per task, which holds JSONL files.

Preference pairs, a winner and a loser of one edit, are read in three layouts, with the same optional columns: this
project's own (`source_image`, `chosen_image`, `rejected_image`, `instruction`, `instruction_cn`), EditReward's
(`path_src`, `path1`, `path2`, `prompt`) and LongCat's (`ref_img_path`, `img_path_win`, `img_path_lose`, `prompt`).
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firered_lit.draws import seed_of
from firered_lit.errors import UserError

from .images import URL
from .layouts import EDITS, INSTRUCTIONS, INVERSE, PAIRS, SOURCE, Columns, Refuse, columns_of

LONGEST_LINE = 1 << 24


@dataclass(frozen=True)
class Record:
    """One edit: references and an instruction in, the target out. Image paths are ready to open."""

    id: str
    task: str
    target: str
    references: tuple[str, ...]  # in the order in which the instruction counts them; empty: text-to-image
    instructions: dict[str, str]  # "kind/language" -> text: "original/en", "original/cn"
    where: str  # "file:line"
    group: str = ""  # records of one group are held out together: their first image, relative to the data
    cluster: str = ""
    target_text: str = ""  # words that the target shows, for OCR
    loser: str = ""  # of a preference pair, whose winner is the target
    captions: tuple[str, ...] = ()  # of every reference: what prompts say in its place when it is dropped, or ""
    columns: Columns = EDITS  # that named the images


@dataclass(frozen=True)
class Refusal:
    """A row that is left out: where, which field, its category for counting, and a line for the person who mends it."""

    where: str
    field: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.detail}"


def files(source: str | os.PathLike[str]) -> list[Path]:
    """The JSONL files of a source: itself, or those in a folder and in its folders (one per task), in a fixed order.

    Raises UserError when there is none.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted([*path.glob("*.jsonl"), *path.glob("*/*.jsonl")])
        if not found:
            raise UserError(f"{path}: no *.jsonl in this folder, nor in the folders in it (one per task)")
        return found
    if not path.exists():
        raise UserError(f"{path}: no such file or folder of edits")
    if path.suffix not in (".jsonl", ".json", ".ndjson"):
        raise UserError(f"{path}: expected FireRed's JSONL (one object per line), not {path.suffix or 'this'}")
    return [path]


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of the lines that are not blank; what is longer than 16 MiB comes cut to that."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(LONGEST_LINE):
            number += 1
            rest = line
            while len(rest) == LONGEST_LINE and not rest.endswith(b"\n"):
                rest = file.readline(LONGEST_LINE)
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, line


def rows(source: str | os.PathLike[str], *, inverse: bool = True) -> Iterator[list[Record] | Refusal]:
    """Every row, in order: its records (the edit and, when it has an inverse instruction and exactly one reference, the
    inverted edit with an id of its own), or the refusal of the whole row. Memory holds one row and 8 bytes per id."""
    base = Path(source) if Path(source).is_dir() else Path(source).parent
    seen: set[int] = set()
    for path in files(source):
        for number, line in lines(path):
            try:
                records = list(_records(line, path, f"{path}:{number}", base, inverse))
                for record in records:
                    _once(record.id, seen)
            except Refuse as problem:
                yield Refusal(f"{path}:{number}", *problem.args)
            else:
                yield records


def read(source: str | os.PathLike[str], *, inverse: bool = True) -> Iterator[Record | Refusal]:
    """`rows`, one by one."""
    for row in rows(source, inverse=inverse):
        if isinstance(row, Refusal):
            yield row
        else:
            yield from row


@dataclass
class Summary:
    """What a source holds, before anything is encoded."""

    rows: int = 0
    tasks: Counter[str] = field(default_factory=Counter)
    references: Counter[int] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    inverted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    problems: list[Refusal] = field(default_factory=list)  # the first ones
    first: list[Record] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """The report of `check --data`."""
        refused = self.refused.total()
        yield f"rows        {self.rows}: {self.rows - refused} good, {refused} refused; {self.inverted} inverted edits"
        for name, counts in (("tasks", self.tasks), ("references", self.references), ("languages", self.languages)):
            yield f"{name:<11} " + ", ".join(f"{key} {count}" for key, count in sorted(counts.items()))
        yield from (f"refused     {count:>6} {reason}" for reason, count in self.refused.most_common())
        yield from (f"  {problem}" for problem in self.problems)
        yield from (f"e.g. {r.where}: {len(r.references)} -> {r.target}: {r.instructions}" for r in self.first)


def summary(source: str | os.PathLike[str], *, shown: int = 5, looked_up: int = 10_000) -> Summary:
    """Counts by task, number of references and language, the first problems and the first records.

    Images are not opened; whether they are there is looked up for the first `looked_up` rows.
    """
    total = Summary()
    for row in rows(source):
        total.rows += 1
        if not isinstance(row, Refusal) and total.rows <= looked_up:
            row = _absent(row) or row
        if isinstance(row, Refusal):
            total.refused[row.reason] += 1
            total.problems += [row] * (len(total.problems) < shown)
            continue
        total.inverted += len(row) - 1
        total.first += row[: max(0, shown - len(total.first))]
        for record in row:
            total.tasks[record.task] += 1
            total.references[len(record.references)] += 1
            total.languages.update(key.partition("/")[2] for key in record.instructions)
    return total


def _absent(row: list[Record]) -> Refusal | None:
    for name, path in named_images(row[0]):
        if not URL.match(path) and not os.path.exists(path):
            return Refusal(row[0].where, name, "missing image", f"{path} does not exist")
    return None


def named_images(record: Record) -> Iterator[tuple[str, str]]:
    """(column, path) of every image: the references, the target, and of a pair the loser."""
    columns, many = record.columns, len(record.references) > 1
    yield from ((f"{columns.source}[{i}]" if many else columns.source, x) for i, x in enumerate(record.references))
    yield columns.target, record.target
    if record.loser:
        yield columns.loser, record.loser


def _once(name: str, seen: set[int]) -> None:
    key = seed_of("id", name)
    if key in seen:
        raise Refuse("id", "duplicate id", f"{name!r} stands in an earlier row too")
    seen.add(key)


def _records(line: bytes, path: Path, where: str, base: Path, inverse: bool) -> Iterator[Record]:
    row = _object(line)
    columns = columns_of(row)
    folder = path.parent
    references = [_path(columns.source, name) for name in _listed(row[columns.source])]
    edits = [_path(name, row[name]) for name in (columns.target, columns.loser) if name]
    _different(folder, columns, references, edits)
    forward, backward = _instructions(row, columns), _texts(row, INVERSE)
    task = _text(row, "task") or path.resolve().parent.name
    relative = [_place(path.relative_to(base).parent, name) for name in (*references, *edits)]
    name = _identity(row, task, relative, forward)
    common = {"task": task, "where": where, "group": relative[0], "cluster": _text(row, "cluster"), "columns": columns}
    sources, (target, *losers) = ([_place(folder, name) for name in names] for names in (references, edits))
    yield Record(name, target=target, references=tuple(sources), instructions=forward, loser="".join(losers),
                 target_text=_text(row, "target_text"), **common)  # fmt: skip
    if inverse and backward and len(references) == 1 and not losers:
        yield Record(f"{name}.inverse", target=sources[0], references=(target,), instructions=backward, **common)


def _different(folder: Path, columns: Columns, references: list[str], edits: list[str]) -> None:
    """Refuse a row in which two columns name one file: it would train nothing, or to copy."""
    places = [_place(folder, name) for name in edits]
    if len(places) > 1 and places[0] == places[1]:
        raise Refuse(columns.loser, "winner is loser", f"{columns.target} and {columns.loser} are the same file")
    for role, column, place in zip(_roles(columns), (columns.target, columns.loser), places):
        if any(_place(folder, name) == place for name in references):
            detail = f"{columns.source} and {column} are the same file, {place}"
            raise Refuse(columns.source, f"source is {role}", detail)


def _roles(columns: Columns) -> tuple[str, ...]:
    return ("winner", "loser") if columns.loser else ("target",)


def _instructions(row: dict[str, Any], columns: Columns) -> dict[str, str]:
    """The texts of the edit, by "kind/language". Refuses a row without any."""
    names = INSTRUCTIONS
    if columns.prompt:
        chinese = re.search(r"[\u3400-\u9fff]", _text(row, columns.prompt))
        names = {columns.prompt: "original/cn" if chinese else "original/en"}
    found = _texts(row, names)
    if not found:
        empty = f"{' and '.join(names)} {'are both' if len(names) > 1 else 'is'} empty"
        raise Refuse(next(iter(names)), "empty instruction", empty)
    return found


def _object(line: bytes) -> dict[str, Any]:
    if len(line) >= LONGEST_LINE:
        raise Refuse("line", "invalid JSON", f"longer than {LONGEST_LINE} bytes")
    try:
        row = json.loads(line.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode()  # an escaped half of a surrogate pair passes json, but is no text
    except (UnicodeDecodeError, UnicodeEncodeError) as problem:
        raise Refuse("line", "invalid UTF-8", f"not UTF-8 text ({problem.reason})") from None
    except (ValueError, RecursionError) as problem:
        raise Refuse("line", "invalid JSON", f"not valid JSON ({problem})") from None
    if not isinstance(row, dict):
        raise Refuse("line", "not an object", f"a row is an object {{...}}, this is a {type(row).__name__}")
    return row


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        kind = "an empty path" if isinstance(value, str) else json.dumps(value)[:60]
        wanted = "a path, a list of paths or null" if name in {SOURCE, *(pair.source for pair in PAIRS)} else "a path"
        raise Refuse(name, "wrong type", f"expected {wanted}, got {kind}")
    return value


def _place(folder: Path, name: str) -> str:
    """The image as it is opened: a URL as it is, a path relative to the folder of its JSONL."""
    return name if URL.match(name) else os.path.normpath(folder / name)


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refuse(name, "wrong type", f"expected text, got {json.dumps(value, ensure_ascii=False)[:60]}")
    return value.strip()


def _texts(row: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
    return {key: text for name, key in names.items() if (text := _text(row, name))}


def _identity(row: dict[str, Any], task: str, images: list[str], instructions: dict[str, str]) -> str:
    """The row's own id, or a hash of what it says; the latter does not depend on where the data lies."""
    value = row.get("id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if name := _text(row, "id"):
        return name
    content = json.dumps([task, images, instructions], ensure_ascii=False)
    return hashlib.blake2b(content.encode(), digest_size=10).hexdigest()
