"""Copies of benchmarks that users have, held against the published ones before anything is drawn or asked."""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from firered_lit.config.dialect import is_text
from firered_lit.errors import UserError
from firered_lit.evaluation.protocols import Item
from firered_lit.textfiles import MEGABYTE, read_bytes

logger = logging.getLogger(__name__)
Version = Literal["published", "any"]
LANGUAGES = {"en": "en", "cn": "zh"}  # as recipes and tables write them -> as an item does
LARGEST_PICTURE = 256 * MEGABYTE


def read_file(path: Path, hint: str) -> bytes:
    """Return the content of one file of a benchmark.

    Args:
        path: The file.
        hint: What to do where it is missing.

    Raises:
        UserError: It cannot be read.
    """
    try:
        return read_bytes(path, LARGEST_PICTURE)
    except FileNotFoundError:
        raise UserError(f"{path}: missing; {hint}") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in a text.

    Args:
        text: The text.
        where: The file, and the line in it.

    Raises:
        UserError: It is no JSON object.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{where}: not valid JSON ({problem})") from None
    if not isinstance(content, dict):
        raise UserError(f"{where}: expected a JSON object, not a {type(content).__name__}")
    return content


def text_of(row: Mapping[str, Any], name: str, where: str) -> str:
    """Return the text in a column of a row.

    Raises:
        UserError: There is none.
    """
    value = row.get(name)
    if not isinstance(value, str) or not value.strip() or not is_text(value):
        raise UserError(f"{where}: {name}: expected a text, got {value!r}")
    return value


def chosen_languages(languages: Sequence[str], name: str) -> tuple[str, ...]:
    """Return the languages that a recipe chooses, each once.

    Args:
        languages: As LANGUAGES has them.
        name: The benchmark's, for messages.

    Raises:
        UserError: There is none, or one of another name.
    """
    unknown = [language for language in languages if language not in LANGUAGES]
    if unknown or not languages:
        raise UserError(f"{name}.languages: {list(languages)}: choose en, cn or both")
    return tuple(dict.fromkeys(languages))


def path_below(name: str, where: str) -> str:
    """Return a path that leads to nothing outside of the folder that it is joined to.

    Raises:
        UserError: It is absolute, or climbs by "..".
    """
    path = PurePosixPath(name)
    strange = "\0" in name or "\\" in name or not is_text(name)
    if path.is_absolute() or ".." in path.parts or strange or not path.parts:
        raise UserError(f"{where}: {name!r} does not lie below the benchmark's folder")
    return str(path)


def file_name(name: str, where: str) -> str:
    """Return a name that can be a file's: one part of a path.

    Raises:
        UserError: It cannot.
    """
    if len(PurePosixPath(path_below(name, where)).parts) != 1 or len(name.encode()) > 200:
        raise UserError(f"{where}: {name!r} cannot be a file's name")
    return name


def unique(ids: Iterable[str], where: str) -> None:
    """Refuse ids of which two are the same.

    Raises:
        UserError: Two are the same.
    """
    for name, count in Counter(ids).items():
        if count > 1:
            raise UserError(f"{where}: the id {name!r} stands there {count} times")


def check_version(
    where: str,
    categories: Iterable[str],
    published: Mapping[str, int],
    *,
    version: Version,
    digest: str = "",
    published_digest: str = "",
) -> None:
    """Refuse an index that is not the published one, or warn of it.

    Args:
        where: The index.
        categories: The category of each row.
        published: Category -> how many rows the published index has.
        version: "published" refuses another index, "any" warns of it.
        digest: SHA-256 of the index; "" where there is none to compare.
        published_digest: SHA-256 of the published index, or its beginning.

    Raises:
        UserError: Rows are missing or too many, or the index has another hash, and the published one is wanted.
    """
    found = Counter(categories)
    wrong = []
    for category in {**published, **found}:
        expected = published.get(category, 0)
        if found[category] != expected:
            wrong.append(f"{category} {found[category]} of {expected}")
    other = digest and published_digest and not digest.startswith(published_digest)
    if not wrong and not other:
        return
    parts = []
    if wrong:
        more = "" if len(wrong) <= 3 else f" and {len(wrong) - 3} more"
        rows = f"{found.total()} rows, the published version has {sum(published.values())}"
        parts.append(f"{rows} ({', '.join(wrong[:3])}{more})")
    if other:
        parts.append(f"SHA-256 {digest[:16]}..., the published version's begins with {published_digest[:16]}")
    told = f"{where}: not the published version: {'; '.join(parts)}"
    if version == "published":
        raise UserError(f"{told}; take the published one, or set version=any for this benchmark to score it as it is")
    logger.warning("%s; its scores compare with no published ones", told)


def check_pictures(folder: Path, names: Iterable[str], hint: str) -> None:
    """Refuse a folder without pictures, and warn of one in which some are missing: their items have no score.

    Args:
        folder: What the names lie below.
        names: The files.
        hint: Where they come from.

    Raises:
        UserError: All are missing.
    """
    names = list(dict.fromkeys(names))
    missing = [name for name in names if not (folder / name).is_file()]
    if not missing:
        return
    told = f"{folder}: {len(missing)} of {len(names)} pictures are missing, first {missing[0]}; {hint}"
    if len(missing) == len(names):
        raise UserError(told)
    logger.warning("%s", told)


def first_of_each(items: Sequence[Item], each: int | None) -> list[Item]:
    """Return the first `each` items of every suite and category, in their order; all where `each` is None."""
    if each is None:
        return list(items)
    seen: Counter[tuple[str, str]] = Counter()
    kept = []
    for item in items:
        seen[item.suite, item.category] += 1
        if seen[item.suite, item.category] <= each:
            kept.append(item)
    return kept


def sha256(*contents: bytes) -> str:
    """Return the SHA-256 of several contents, each told apart from the next by its length."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.hexdigest()
