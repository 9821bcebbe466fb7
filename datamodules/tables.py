"""Tables of rows: JSONL, JSON, CSV, Parquet, folders of images. A row at a time, in memory that does not grow.

JSONL holds an object a line; JSON one array of objects; CSV a header and cells, one that begins with "[" being a list
and the others what `datamodules.cells` says; Parquet is read some rows at a time, and images that lie in it come as
`Embedded`. A folder in ai-toolkit's manner holds `target/` and `control/` (or `control_1/` to `control_3/`): images of
equal stems, and the instruction as `.txt` beside the target. Which files of a folder count says `datamodules.folders`.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from firered_lit.errors import UserError
from firered_lit.textfiles import open_regular, read_text

from . import cells, folders, parquet
from .refusals import Refuse, refusing

LONGEST_LINE = 1 << 24
DEEPEST = 100  # lists and objects in each other
PIECE = 1 << 16  # characters of a JSON array at a time
BETWEEN = re.compile(r"[\s,]*")
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
TARGET, CONTROLS = "target", ("control", "control_1", "control_2", "control_3")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".tif", ".tiff")

Row = dict[str, Any] | Refuse
T = TypeVar("T")


def kind_of(path: Path) -> str:
    """Return what a file's ending, in upper or lower case, says of it: jsonl, json, csv, parquet; "" when nothing."""
    return ENDINGS.get(path.suffix.lower(), "")


def files(source: str | os.PathLike[str]) -> list[Path]:
    """Return the tables of a source: itself, or those in a folder and in its folders (one per task), in a fixed order.

    A folder in ai-toolkit's manner is one table. Raises UserError when there is none, or when it is not clear which.
    """
    path = Path(source)
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"{path}: no such file or folder of edits")
        if not kind_of(path):
            raise UserError(f"{path}: expected a table ({', '.join(ENDINGS)}), not {path.suffix or 'this'}")
        return [_openable(path)]
    if _is_toolkit(path):
        return [path]
    found = [table for folder in (path, *folders.places(path)) for table in folders.visible(folder) if kind_of(table)]
    found = sorted(table for table in found if table.is_file())
    kinds = {kind_of(table) for table in found}
    if len(kinds) > 1:
        kinds.discard("json")  # the rest of a data set's belongings
    if len(kinds) > 1:
        raise UserError(f"{path}: holds tables of several kinds ({', '.join(sorted(kinds))}); name the one that counts")
    found = [_openable(table) for table in found if kind_of(table) in kinds]
    if not found:
        raise UserError(
            f"{path}: no *.jsonl in this folder, nor in the folders in it (one per task), nor another table"
        )
    return found


def _openable(path: Path) -> Path:
    """Return the path. Raises UserError when it is no file that can be read."""
    try:
        open_regular(path).close()
    except OSError as problem:
        raise UserError(f"{path}: cannot be read as a table: {problem.strerror}") from None
    return path


def rows(path: Path, wanted: parquet.Wanted = lambda number: True) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of everything that is not blank; what cannot be read as a row is the reason why."""
    before = ""
    is_csv = kind_of(path) == "csv"
    for number, (where, row) in enumerate(_written(path, wanted), 1):
        numbered = f"{where}, row {number}" if where == before else where  # several rows stand on one line
        before = where
        yield numbered, _typed(row) if is_csv else row


def _typed(row: Row) -> Row:
    """Return a row of cells as what its columns say, or why it is none."""
    if isinstance(row, Refuse):
        return row
    try:
        return cells.typed(row)
    except Refuse as problem:
        return problem


def _written(path: Path, wanted: parquet.Wanted = lambda number: True) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) as they are written, the cells of CSV as text and lists of text."""
    if path.is_dir():
        return _toolkit(path)
    kind = kind_of(path)
    if kind == "parquet":
        return parquet.rows(path, wanted)
    if kind == "csv":
        return _csv(path)
    return _array(path) if _is_array(path) else _jsonl(path)


def survey(source: str | os.PathLike[str]) -> tuple[int, str]:
    """Return how many rows `rows` gives, and a hash of what they are made from. UserError when there is none."""
    count = 0
    digest = hashlib.blake2b(digest_size=12)
    for path in files(source):
        digest.update(json.dumps(path.name).encode())
        if kind_of(path) == "parquet":
            count += parquet.survey(path, digest.update)
        elif path.is_dir() or kind_of(path) == "csv" or _is_array(path):
            for where, row in _written(path):
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
    """Yield (number from 1, bytes) of the lines that are not blank; what is longer than 16 MiB comes cut to that."""
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
        yield f"{path}:{number}", _line(line)


def _line(line: bytes) -> Row:
    """Return the row of a line, or why it is none."""
    try:
        with refusing("line", "invalid JSON"):
            if len(line) >= LONGEST_LINE:
                raise Refuse("line", "invalid JSON", f"longer than {LONGEST_LINE} bytes")
            text = _encodable(line.decode("utf-8", "surrogateescape"))
            return _object(_decoded(json.loads, text), text)
    except Refuse as problem:
        return problem


def _decoded(decode: Callable[..., T], *text: Any) -> T:
    """Return what a decoder makes of a text. Raises Refuse when it is not valid JSON."""
    try:
        return decode(*text)
    except (ValueError, RecursionError) as problem:
        raise Refuse("line", "invalid JSON", f"not valid JSON ({problem})") from None


def _encodable(text: str) -> str:
    """Return the text. Raises Refuse when its bytes were not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise _not_utf8(problem) from None
    return text


def _object(row: Any, text: str) -> dict[str, Any]:
    """Return what `text` was decoded to, when it is an object whose text is text and whose lists are no labyrinth."""
    if not isinstance(row, dict):
        raise Refuse("line", "not an object", f"a row is an object {{...}}, this is a {type(row).__name__}")
    if text.count("[") + text.count("{") > DEEPEST and _depth(row) > DEEPEST:
        raise Refuse("line", "invalid JSON", f"its lists and objects lie more than {DEEPEST} deep in each other")
    if "\\ud" in text.lower():  # half of a surrogate pair may be written so
        _encodable(json.dumps(row, ensure_ascii=False))
    return row


def _depth(row: Any) -> int:
    """Return how deep lists and objects lie in each other."""
    depth, layer = 0, [row]
    while layer:
        depth += 1
        inner = [list(value.values()) if isinstance(value, dict) else value for value in layer]
        layer = [value for values in inner for value in values if isinstance(value, dict | list)]
    return depth


def _not_utf8(problem: UnicodeError) -> Refuse:
    return Refuse("line", "invalid UTF-8", f"not UTF-8 text ({getattr(problem, 'reason', problem)})")


def _is_array(path: Path) -> bool:
    if kind_of(path) != "json":
        return False
    with open_regular(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _array(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield the objects of a JSON array, decoded one by one.

    What follows an error in JSON cannot be told apart, so it ends there.
    """
    decode = json.JSONDecoder().raw_decode
    number = 1
    with io.TextIOWrapper(open_regular(path), "utf-8-sig", errors="surrogateescape") as file:
        text = file.read(PIECE)
        at = text.index("[") + 1
        number += text.count("\n", 0, at)
        while True:
            start = BETWEEN.match(text, at).end()  # type: ignore[union-attr]
            if text.startswith("]", start):
                return
            try:
                with refusing("line", "invalid JSON"):
                    row, end = _decoded(decode, text, start)
                    if end == len(text):
                        raise Refuse("line", "invalid JSON", "not valid JSON (the array does not end)")
            except Refuse as problem:  # or the text ends within the row, and more of it is read
                left = len(text) - at
                more = file.read(max(PIECE, left)) if left < LONGEST_LINE else ""
                if not more:
                    yield f"{path}:{number}", problem
                    return
                text = text[at:] + more
                at = 0
                continue
            number += text.count("\n", at, start)
            yield f"{path}:{number}", _element(row, text[start:end])
            number += text.count("\n", start, end)
            at = end


def _element(row: Any, text: str) -> Row:
    """Return the row of an array's element, or why it is none."""
    try:
        return _object(row, _encodable(text))
    except Refuse as problem:
        return problem


def _csv(path: Path) -> Iterator[tuple[str, Row]]:
    csv.field_size_limit(LONGEST_LINE)
    with io.TextIOWrapper(open_regular(path), "utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.DictReader(file, restkey="\0more", restval="\0less")
        if not _header(path, reader):
            return
        while True:
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


def _header(path: Path, reader: "csv.DictReader[str]") -> list[str]:
    """Return the names of a CSV file's columns. Raises UserError when they are none that a row can be read by."""
    try:
        names = [_encodable(name) for name in reader.fieldnames or ()]
    except Refuse as problem:
        raise UserError(f"{path}:1: its header cannot be read ({problem.detail})") from None
    except csv.Error as problem:
        raise UserError(f"{path}:1: its header cannot be read ({problem})") from None
    if twice := next((name for name in names if name and names.count(name) > 1), None):
        raise UserError(f"{path}:1: two columns are called {twice!r}; keep one")
    return names


def _cells(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's cells as text, lists of text and None. Raises Refuse when they are not one for each column."""
    if "\0more" in row or "\0less" in row.values():
        raise Refuse("line", "invalid CSV", "it has not as many cells as the header; quote cells that hold commas")
    try:
        "".join(row.values()).encode()
    except UnicodeEncodeError as problem:
        raise _not_utf8(problem) from None
    return {name: _listed(cell) if cell.startswith("[") else (cell or None) for name, cell in row.items()}


def _listed(cell: str) -> Any:
    """Return a list of paths, as a cell holds it; any other text as it is."""
    try:
        items = json.loads(cell)
    except (ValueError, RecursionError):
        return cell
    return items if all(isinstance(item, str) for item in items) else cell


def _is_toolkit(path: Path) -> bool:
    return (path / TARGET).is_dir() and any((path / name).is_dir() for name in CONTROLS)


def _toolkit(path: Path) -> Iterator[tuple[str, Row]]:
    """Yield a row per image in `target/`: {target, control, caption}, the paths relative to the folder."""
    targets = folders.by_stem(path / TARGET, PICTURES)
    captions = folders.by_stem(path / TARGET, (".txt",))
    controls = {name: folders.by_stem(path / name, PICTURES) for name in CONTROLS if (path / name).is_dir()}
    for stem, names in sorted(targets.items()):
        where = f"{path / TARGET / names[0]}"
        try:
            target = folders.only(names, path / TARGET, TARGET)
            row = {"target": f"{TARGET}/{target}", "control": _controls(path, stem, controls)}
            yield where, row | {"caption": _caption(path / TARGET, captions.get(stem, []))}
        except Refuse as problem:
            yield where, problem


def _controls(path: Path, stem: str, controls: Mapping[str, Mapping[str, list[str]]]) -> list[str]:
    """Return the paths of a target's controls, in the order of their folders. Raises Refuse for one left out."""
    absent = [name for name in controls if stem not in controls[name]]
    there = [name for name in controls if name not in absent]
    if absent and (not there or absent[0] < there[-1]):  # only the last ones may be left out
        raise Refuse(absent[0], "missing image", f"{path / absent[0] / stem}.* does not exist")
    return [f"{name}/{folders.only(controls[name][stem], path / name, name)}" for name in there]


def _caption(folder: Path, names: list[str]) -> str:
    """Return the text of a caption file; "" when there is none. Raises Refuse."""
    if not names:
        return ""
    path = folder / folders.only(names, folder, "caption")
    try:
        return read_text(path, LONGEST_LINE, "utf-8-sig")
    except UnicodeDecodeError as problem:
        raise _not_utf8(problem) from None
    except OSError as problem:
        raise Refuse("caption", "unreadable caption", f"{path}: {problem.strerror}") from None
