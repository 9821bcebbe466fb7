"""Tables of rows: JSONL, JSON, CSV, Parquet, folders of images. A row at a time, in memory that does not grow.

JSONL holds an object a line; JSON one array of objects; CSV a header and cells, one that begins with "[" being a list
and the others what `datamodules.sources.cells` says; Parquet is read some rows at a time, and images that lie in it
come as `Embedded`. Folders of pictures are tables by `datamodules.sources.picture_folders`, other trainers' files by
`datamodules.sources.dataset_files`. Which files of a folder count says `datamodules.sources.folders`.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, TypeVar

from firered_lit.errors import UserError
from firered_lit.places import on_this_machine
from firered_lit.textfiles import open_regular

from . import cells, dataset_files, folders, hints, parquet, picture_folders
from .picture_folders import PictureFolders
from .refusals import Refuse, refusing
from .source import Named, Source

LONGEST_LINE = 1 << 24
DEEPEST = 100  # lists and objects in each other
PIECE = 1 << 16  # characters of a JSON array at a time
BETWEEN = re.compile(r"[\s,]*")
ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

Table = Path | PictureFolders
Row = dict[str, Any] | Refuse
T = TypeVar("T")


def kind_of(path: Path) -> str:
    """Return what a file's ending, in upper or lower case, says of it: jsonl, json, csv, parquet; "" when nothing."""
    return ENDINGS.get(path.suffix.lower(), "")


def files(source: Named) -> list[Table]:
    """Return the tables of a source: itself, or those in a folder and in its folders (one per task), in a fixed order.

    Folders of pictures are a table; a data set file names several. Raises UserError when there is none, or when it is
    not clear which.
    """
    if isinstance(source, Source) and source.folders is not None:
        return [source.folders]
    path = Path(source.path if isinstance(source, Source) else source)
    if not path.is_dir():
        return _named(path)
    if picture_folders.is_toolkit(path):
        return [picture_folders.toolkit(path)]
    found = [table for folder in (path, *folders.places(path)) for table in folders.visible(folder) if kind_of(table)]
    found = sorted(table for table in found if table.is_file())
    kinds = {kind_of(table) for table in found}
    if len(kinds) > 1:
        kinds.discard("json")  # the rest of a data set's belongings
    if len(kinds) > 1:
        raise UserError(f"{path}: holds tables of several kinds ({', '.join(sorted(kinds))}); name the one that counts")
    chosen = [_openable(table) for table in found if kind_of(table) in kinds]
    if not chosen:
        raise UserError(
            f"{path}: no *.jsonl in this folder, nor in the folders in it (one per task), nor another table"
            f"{hints.of_folder(path)}"
        )
    return list(chosen)


def _named(path: Path) -> list[Table]:
    """Return the tables of a file: itself, or what it describes. Raises UserError."""
    if not path.exists():
        on_this_machine(path)
        raise UserError(f"{path}: no such file or folder of edits")
    if dataset_files.is_dataset_file(path):
        return dataset_files.tables(path)
    if not kind_of(path):
        endings = ", ".join([*ENDINGS, *dataset_files.ENDINGS])
        raise UserError(f"{path}: expected a table ({endings}), not {path.suffix or 'this'}")
    return [_openable(path)]


def _openable(path: Path) -> Path:
    """Return the path. Raises UserError when it is no file that can be read."""
    try:
        open_regular(path).close()
    except OSError as problem:
        raise UserError(f"{path}: cannot be read as a table: {problem.strerror}") from None
    if kind_of(path) == "json" and hints.is_metadata(path):
        raise UserError(f"{path}: kohya's metadata; name the folder of its pictures: target=DIR captions={path}")
    return path


def rows(
    table: Table, wanted: parquet.Wanted = lambda number: True, images: Collection[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) of everything that is not blank; in the place of what cannot be read, the reason why.

    Args:
        table: The table.
        wanted: Return whether a row is wanted, by its number from 0; images that lie in other rows are not read.
        images: The columns of images, besides those that layouts name.
    """
    before = ""
    is_csv = isinstance(table, Path) and kind_of(table) == "csv"
    for number, (where, row) in enumerate(_written(table, wanted, images), 1):
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


def _written(
    path: Table, wanted: parquet.Wanted = lambda number: True, images: Collection[str] = ()
) -> Iterator[tuple[str, Row]]:
    """Yield (where, row) as they are written, the cells of CSV as text and lists of text."""
    if isinstance(path, PictureFolders):
        return path.rows()
    kind = kind_of(path)
    if kind == "parquet":
        return parquet.rows(path, wanted, images)
    if kind == "csv":
        return _csv(path)
    return _array(path) if _is_array(path) else _jsonl(path)


def notes(source: Named) -> list[str]:
    """Return a line for everything that a data set file says and that is left aside."""
    return [note for table in files(source) if isinstance(table, PictureFolders) for note in table.notes]


def survey(source: Named) -> tuple[int, str]:
    """Return how many rows `rows` gives, and a hash of what they are made from. UserError when there is none."""
    count = 0
    digest = hashlib.blake2b(digest_size=12)
    for table in files(source):
        home = table.home if isinstance(table, PictureFolders) else table
        digest.update(json.dumps(home.name).encode())
        if isinstance(table, Path) and kind_of(table) == "parquet":
            count += parquet.survey(table, digest.update)
        elif isinstance(table, PictureFolders) or kind_of(table) == "csv" or _is_array(table):
            for where, row in _written(table):
                count += 1
                digest.update(json.dumps([where.removeprefix(str(home)), row], default=repr).encode())
        else:
            for _, line in lines(table):
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
