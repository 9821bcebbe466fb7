"""What rows lie in: JSONL, JSON, CSV, Parquet, and folders of images. A row at a time, in memory that does not grow.

JSONL holds an object a line; JSON one array of objects; CSV a header and cells, an empty one being null and one that
begins with "[" a list; Parquet is read some rows at a time, and images that lie in it come as `Embedded`. A folder in
ai-toolkit's manner holds `target/` and `control/` (or `control_1/` to `control_3/`): images of equal stems, and the
instruction as `.txt` beside the target.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.textfiles import open_regular, read_text

from . import parquet
from .refusals import Refuse

LONGEST_LINE = 1 << 24
PIECE = 1 << 16  # characters of a JSON array at a time
BETWEEN = re.compile(r"[\s,]*")
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
TARGET, CONTROLS = "target", ("control", "control_1", "control_2", "control_3")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")

Row = dict[str, Any] | Refuse


def files(source: str | os.PathLike[str]) -> list[Path]:
    """The tables of a source: itself, or those in a folder and in its folders (one per task), in a fixed order.

    A folder in ai-toolkit's manner is one table. Raises UserError when there is none, or when it is not clear which.
    """
    path = Path(source)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such file or folder of edits")
        if path.suffix not in ENDINGS:
            raise UserError(f"{path}: expected a table ({', '.join(ENDINGS)}), not {path.suffix or 'this'}")
        try:
            open_regular(path).close()
        except OSError as problem:
            raise UserError(f"{path}: cannot be read as a table: {problem.strerror}") from None
        return [path]
    if _is_toolkit(path):
        return [path]
    found = sorted(p for p in [*path.glob("*.*"), *path.glob("*/*.*")] if p.suffix in ENDINGS and p.is_file())
    kinds = {ENDINGS[p.suffix] for p in found}
    kinds -= {"json"} if len(kinds) > 1 else set()  # the rest of a data set's belongings
    if len(kinds) > 1:
        raise UserError(f"{path}: holds tables of several kinds ({', '.join(sorted(kinds))}); name the one that counts")
    found = [p for p in found if ENDINGS[p.suffix] in kinds]
    if not found:
        raise UserError(
            f"{path}: no *.jsonl in this folder, nor in the folders in it (one per task), nor another table"
        )
    return found


def rows(path: Path, wanted: parquet.Wanted = lambda number: True) -> Iterator[tuple[str, Row]]:
    """(where, row) of everything that is not blank; what cannot be read as a row is the reason why."""
    if path.is_dir():
        return _toolkit(path)
    kind = ENDINGS[path.suffix]
    if kind == "json" and not _is_array(path):
        kind = "jsonl"
    if kind == "parquet":
        return parquet.rows(path, wanted)
    return {"jsonl": _jsonl, "json": _array, "csv": _csv}[kind](path)


def survey(source: str | os.PathLike[str]) -> tuple[int, str]:
    """How many rows `rows` gives, and a hash of what they are made from. UserError when there is none."""
    count, digest = 0, hashlib.blake2b(digest_size=12)
    for path in files(source):
        digest.update(json.dumps(path.name).encode())
        if path.suffix == ".parquet":
            count += parquet.survey(path, digest.update)
        elif path.is_dir() or ENDINGS[path.suffix] == "csv" or _is_array(path):
            for where, row in rows(path):
                count += 1
                digest.update(json.dumps([where.removeprefix(str(path)), row], default=repr).encode())
        else:
            for _, line in lines(path):
                count += 1
                digest.update(line)
    if not count:
        raise UserError(f"{source}: holds no rows")
    return count, digest.hexdigest()


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number from 1, bytes) of the lines that are not blank; what is longer than 16 MiB comes cut to that."""
    with open_regular(path) as file:
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


def _jsonl(path: Path) -> Iterator[tuple[str, Row]]:
    for number, line in lines(path):
        try:
            if len(line) >= LONGEST_LINE:
                raise Refuse("line", "invalid JSON", f"longer than {LONGEST_LINE} bytes")
            row: Row = _object(json.loads(line.decode("utf-8")), b"\\ud" in line.lower())
        except Refuse as problem:
            row = problem
        except UnicodeDecodeError as problem:
            row = _not_utf8(problem)
        except (ValueError, RecursionError) as problem:
            row = Refuse("line", "invalid JSON", f"not valid JSON ({problem})")
        yield f"{path}:{number}", row


def _object(row: Any, escaped: bool) -> dict[str, Any]:
    """The row, when it is an object whose text is text. escaped: it may hold an escaped half of a surrogate pair."""
    if not isinstance(row, dict):
        raise Refuse("line", "not an object", f"a row is an object {{...}}, this is a {type(row).__name__}")
    if escaped:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as problem:
            raise _not_utf8(problem) from None
    return row


def _not_utf8(problem: UnicodeError) -> Refuse:
    return Refuse("line", "invalid UTF-8", f"not UTF-8 text ({getattr(problem, 'reason', problem)})")


def _is_array(path: Path) -> bool:
    if path.suffix != ".json":
        return False
    with open_regular(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _array(path: Path) -> Iterator[tuple[str, Row]]:
    """The objects of a JSON array, decoded one by one. What follows an error cannot be told apart, so it ends there."""
    decode, number = json.JSONDecoder().raw_decode, 1
    try:
        with io.TextIOWrapper(open_regular(path), encoding="utf-8-sig") as file:
            text, at = file.read(PIECE), 0
            at = text.index("[") + 1
            number += text.count("\n", 0, at)
            while True:
                start = BETWEEN.match(text, at).end()  # type: ignore[union-attr]
                try:
                    if text.startswith("]", start):
                        return
                    row, end = decode(text, start)
                    if end == len(text):
                        raise ValueError("the array does not end")
                except ValueError as problem:
                    more = file.read(max(PIECE, len(text) - at)) if len(text) - at < LONGEST_LINE else ""
                    if not more:
                        raise Refuse("line", "invalid JSON", f"not valid JSON ({problem})") from None
                    text, at = text[at:] + more, 0
                    continue
                number += text.count("\n", at, start)
                yield f"{path}:{number}", _checked(row)
                number, at = number + text.count("\n", start, end), end
    except UnicodeDecodeError as problem:
        yield f"{path}:{number}", _not_utf8(problem)
    except RecursionError:
        yield f"{path}:{number}", Refuse("line", "invalid JSON", "not valid JSON (nested too deeply)")
    except Refuse as problem:
        yield f"{path}:{number}", problem


def _checked(row: Any) -> Row:
    try:
        return _object(row, True)
    except Refuse as problem:
        return problem


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(LONGEST_LINE)
    with io.TextIOWrapper(open_regular(path), "utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, restkey="\0more", restval="\0less")
        while reader.fieldnames:
            number = reader.line_num + 1
            try:
                row = next(reader, None)
                if row is None:
                    return
                yield f"{path}:{number}", _cells(row)
            except Refuse as problem:
                yield f"{path}:{number}", problem
            except csv.Error as problem:
                yield f"{path}:{number}", Refuse("line", "invalid CSV", str(problem))


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    if "\0more" in row or "\0less" in row.values():
        raise Refuse("line", "invalid CSV", "it has not as many cells as the header; quote cells that hold commas")
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError as problem:
        raise _not_utf8(problem) from None
    return {name: _listed(cell) if cell.startswith("[") else cell or None for name, cell in row.items()}


def _listed(cell: str) -> Any:
    """A list of paths, as a cell holds it; any other text as it is."""
    try:
        items = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return items if all(isinstance(item, str) for item in items) else cell


def _is_toolkit(path: Path) -> bool:
    return (path / TARGET).is_dir() and any((path / name).is_dir() for name in CONTROLS)


def _toolkit(path: Path) -> Iterator[tuple[str, Row]]:
    """A row per image in `target/`: {target, control, caption}, the paths relative to the folder."""
    there = {name: _pictures(path / name) for name in (TARGET, *CONTROLS) if (path / name).is_dir()}
    for stem, target in sorted(there[TARGET].items()):
        where, control = f"{path / TARGET / target}", []
        absent = [name for name in list(there)[1:] if stem not in there[name]]
        control = [f"{name}/{there[name][stem]}" for name in list(there)[1:] if name not in absent]
        if absent and (not control or absent[0] < control[-1].partition("/")[0]):
            yield where, Refuse(absent[0], "missing image", f"{path / absent[0] / stem}.* does not exist")
            continue
        caption = path / TARGET / f"{stem}.txt"
        try:
            text = read_text(caption, LONGEST_LINE, "utf-8-sig") if caption.exists() else ""
        except UnicodeDecodeError as problem:
            yield where, _not_utf8(problem)
            continue
        except OSError as problem:
            yield where, Refuse("caption", "unreadable caption", f"{caption}: {problem.strerror}")
            continue
        yield where, {"target": f"{TARGET}/{target}", "control": control, "caption": text}


def _pictures(folder: Path) -> dict[str, str]:
    """Names of the images of a folder, by stem."""
    return {Path(name).stem: name for name in sorted(os.listdir(folder)) if name.lower().endswith(PICTURES)}
