"""Rows of the layouts that users have, as one kind of record. Only the text is opened; memory does not grow with it.

Read here: FireRed's JSONL, as documented and as coded. `source_image` is a path, a list of paths, or null
(text-to-image); the target is `target_image` or `edit_image`; `instruction` (English) and `instruction_cn`, one of them
not empty; optionally `inverse_instruction`, `inverse_instruction_cn`, `task`, `id`, `cluster`, `target_text`. Paths are
relative to the file's folder. A folder is read as tasks: one folder per task, which holds JSONL files.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from firered_lit.draws import seed_of
from firered_lit.errors import UserError

from .images import URL

SOURCE, TARGETS = "source_image", ("target_image", "edit_image")
INSTRUCTIONS = {"instruction": "original/en", "instruction_cn": "original/cn"}
INVERSE = {"inverse_instruction": "original/en", "inverse_instruction_cn": "original/cn"}
LONGEST_LINE = 1 << 24

LAYOUTS: tuple[tuple[str, frozenset[str], str], ...] = tuple(
    (name, frozenset(columns.split()), polarity)
    for name, columns, polarity in [
        ("preference pairs", "chosen_image rejected_image", "a winner and a loser each, for DPO"),
        ("LongCat's preference pairs", "img_path_win img_path_lose", "a winner and a loser each, for DPO"),
        ("EditReward's preference pairs", "path_src path1 path2", "`path1` is preferred to `path2`, for DPO"),
        ("LongCat", "img_path prompt", "`img_path` is the target there, `ref_img_path` the source"),
        ("Edit-R1", "image prompt requirement", "`image` is the source there, and there is no target"),
        ("DiffSynth", "image prompt edit_image", "`image` is the target there, `edit_image` the source"),
        ("DiffSynth or Edit-R1", "image prompt", "`image` is the target in the one and the source in the other"),
        ("musubi", "image_path caption", "`image_path` is the target there, `control_path` the source"),
        ("ImgEdit", "input_images output_images", "`input_images` are the sources, `output_images` the targets"),
        ("OmniEdit", "src_img edited_img", "`src_img` is the source, `edited_img` the target"),
        ("UnicEdit", "src_image edit_image", "`src_image` is the source, `edit_image` the target"),
        (
            "Pico-Banana",
            "local_input_image output_image",
            "`local_input_image` is the source, `output_image` the target",
        ),
        ("MagicBrush", "source_img target_img", "`source_img` is the source, `target_img` the target"),
    ]
)


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
    target_field: str = TARGETS[0]  # the column that named the target


@dataclass(frozen=True)
class Refusal:
    """A row that is left out: where, which field, its category for counting, and a line for the person who mends it."""

    where: str
    field: str
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.detail}"


class _Refuse(Exception):  # noqa: N818, carries a refusal out of the row's reading
    def __init__(self, field: str, reason: str, detail: str) -> None:
        self.args = (field, reason, detail)


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
            except _Refuse as problem:
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
    images = [(TARGETS[0], row[0].target), *((SOURCE, path) for path in row[0].references)]
    for name, path in images:
        if not URL.match(path) and not os.path.exists(path):
            return Refusal(row[0].where, name, "missing image", f"{path} does not exist")
    return None


def _once(name: str, seen: set[int]) -> None:
    key = seed_of("id", name)
    if key in seen:
        raise _Refuse("id", "duplicate id", f"{name!r} stands in an earlier row too")
    seen.add(key)


def _records(line: bytes, path: Path, where: str, base: Path, inverse: bool) -> Iterator[Record]:
    row = _object(line)
    _columns(row)
    folder = path.parent
    target_field = next(name for name in TARGETS if name in row)
    target = _path(target_field, row[target_field])
    references = tuple(_path(SOURCE, name) for name in _listed(row[SOURCE]))
    if any(_place(folder, name) == _place(folder, target) for name in references):
        raise _Refuse(SOURCE, "source is target", f"{SOURCE} and {target_field} are the same file, {target}")
    forward, backward = _texts(row, INSTRUCTIONS), _texts(row, INVERSE)
    if not forward:
        raise _Refuse("instruction", "empty instruction", f"{' and '.join(INSTRUCTIONS)} are both empty")
    task = _text(row, "task") or path.resolve().parent.name
    relative = [_place(path.relative_to(base).parent, name) for name in (*references, target)]
    name = _identity(row, task, relative, forward)
    common = {"task": task, "where": where, "group": relative[0], "cluster": _text(row, "cluster")}
    common["target_field"] = target_field
    images = [_place(folder, name) for name in (*references, target)]
    yield Record(name, target=images[-1], references=tuple(images[:-1]), instructions=forward,
                 target_text=_text(row, "target_text"), **common)  # fmt: skip
    if inverse and backward and len(references) == 1:
        yield Record(f"{name}.inverse", target=images[0], references=(images[1],), instructions=backward, **common)


def _object(line: bytes) -> dict[str, Any]:
    if len(line) >= LONGEST_LINE:
        raise _Refuse("line", "invalid JSON", f"longer than {LONGEST_LINE} bytes")
    try:
        row = json.loads(line.decode("utf-8"))
        json.dumps(row, ensure_ascii=False).encode()  # an escaped half of a surrogate pair passes json, but is no text
    except (UnicodeDecodeError, UnicodeEncodeError) as problem:
        raise _Refuse("line", "invalid UTF-8", f"not UTF-8 text ({problem.reason})") from None
    except (ValueError, RecursionError) as problem:
        raise _Refuse("line", "invalid JSON", f"not valid JSON ({problem})") from None
    if not isinstance(row, dict):
        raise _Refuse("line", "not an object", f"a row is an object {{...}}, this is a {type(row).__name__}")
    return row


def _columns(row: dict[str, Any]) -> None:
    """Refuse a row without FireRed's columns. Which image is the target is never guessed."""
    targets = [name for name in TARGETS if name in row]
    if SOURCE in row and len(targets) == 1 and any(name in row for name in INSTRUCTIONS):
        return
    if SOURCE in row and len(targets) > 1:
        raise _Refuse(targets[0], "several targets", f"{' and '.join(targets)} both name a target; keep one")
    for layout, columns, polarity in LAYOUTS:
        if columns <= row.keys():
            raise _Refuse("columns", "wrong columns", f"this looks like {layout} ({polarity}), expected {_expected()}")
    there = {SOURCE: SOURCE in row, TARGETS[0]: bool(targets), "instruction": any(name in row for name in INSTRUCTIONS)}
    missing = next(name for name, present in there.items() if not present)
    near = get_close_matches(missing, row.keys() - {SOURCE, *TARGETS}, 1, 0.75)
    hint = f"; is {near[0]!r} meant?" if near else "; write null for text-to-image" if missing == SOURCE else ""
    raise _Refuse(missing, "wrong columns", f"no {missing}{hint} (expected {_expected()})")


def _expected() -> str:
    return f"{SOURCE}, {' or '.join(TARGETS)}, {' and/or '.join(INSTRUCTIONS)}"


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        kind = "an empty path" if isinstance(value, str) else json.dumps(value)[:60]
        wanted = "a path, a list of paths or null" if name == SOURCE else "a path"
        raise _Refuse(name, "wrong type", f"expected {wanted}, got {kind}")
    return value


def _place(folder: Path, name: str) -> str:
    """The image as it is opened: a URL as it is, a path relative to the folder of its JSONL."""
    return name if URL.match(name) else os.path.normpath(folder / name)


def _text(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _Refuse(name, "wrong type", f"expected text, got {json.dumps(value, ensure_ascii=False)[:60]}")
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
