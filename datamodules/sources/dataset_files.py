"""The files in which other trainers describe their data sets, as tables: musubi-tuner's and sd-scripts' TOML,
ai-toolkit's YAML.

Of their settings, those are read that say which picture is a target, a source or an instruction. Folders may be named
from the file's own folder or from the current one.
"""

import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from firered_lit.config.dialect import parse
from firered_lit.errors import UserError
from firered_lit.places import user_path
from firered_lit.textfiles import MEGABYTE, read_text

from .picture_folders import PictureFolders

LARGEST = 4 * MEGABYTE
ENDINGS = (".toml", ".yaml", ".yml")
CAPTIONS = (".txt", ".caption")  # where a file does not say
KOHYA = "[[datasets]] with image_directory (musubi-tuner) or with subsets and image_dir (sd-scripts)"
TOOLKIT = "config.process[].datasets[] with folder_path (ai-toolkit)"
NO_EDITS = ("video_directory", "video_jsonl_file", "multiple_target", "is_reg")
ASIDE = ("num_repeats", "trigger_word", "class_tokens", "caption_prefix", "caption_suffix", "mask_path", "flip_aug",
         "flip_x", "flip_y", "random_crop")  # fmt: skip

Table = Path | PictureFolders
Settings = Mapping[str, Any]


def is_dataset_file(path: Path) -> bool:
    """Return whether a file's ending is that of a data set file."""
    return path.suffix.lower() in ENDINGS


def tables(path: Path) -> list[Table]:
    """Return the tables that a data set file names, in its order.

    Raises:
        UserError: It is no such file, or names what is not there or what is no edit.
    """
    content = _content(path)
    is_toml = path.suffix.lower() == ".toml"
    entries = list(_kohya(content) if is_toml else _toolkit(content))
    if not entries:
        raise UserError(f"{path}: describes no data set; expected {KOHYA if is_toml else TOOLKIT}")
    found = [_table(path, key, entry) for key, entry in entries]
    return _with_own_tasks(found)


def _content(path: Path) -> Any:
    """Return what a TOML or YAML file holds. Raises UserError."""
    try:
        text = read_text(path, LARGEST, "utf-8-sig")
    except UnicodeDecodeError as problem:
        raise UserError(f"{path}: not UTF-8 text ({problem.reason})") from None
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    if path.suffix.lower() != ".toml":
        return parse(text, str(path))
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise UserError(f"{path}: not valid TOML: {problem}") from None


def _kohya(content: Settings) -> Iterator[tuple[str, Settings]]:
    """Yield (key, settings) of every data set, with the settings of `general`; of sd-scripts of every subset."""
    general = _mapping(content.get("general"))
    for number, dataset in enumerate(_list(content.get("datasets"))):
        key = f"datasets[{number}]"
        settings = general | dataset
        subsets = _list(settings.pop("subsets", None))
        for place, subset in enumerate(subsets):
            yield f"{key}.subsets[{place}]", settings | subset
        if not subsets:
            yield key, settings


def _toolkit(content: Any) -> Iterator[tuple[str, Settings]]:
    """Yield (key, settings) of every data set of every process."""
    config = _mapping(_mapping(content).get("config"))
    for number, process in enumerate(_list(config.get("process"))):
        for place, dataset in enumerate(_list(process.get("datasets"))):
            settings = {"trigger_word": process.get("trigger_word")} | dataset
            yield f"config.process[{number}].datasets[{place}]", settings


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        return []
    return [item for item in value if isinstance(item, dict)]


def _table(path: Path, key: str, settings: Settings) -> Table:
    """Return the table of a data set. Raises UserError."""
    where = f"{path}: {key}"
    for name in NO_EDITS:
        if settings.get(name):
            raise UserError(f"{where}: {name}: no edits; leave this data set out")
    rows = settings.get("image_jsonl_file")
    if rows is not None:
        return _existing(path, where, "image_jsonl_file", rows, Path.is_file)
    return _pictures(path, where, settings)


def _pictures(path: Path, where: str, settings: Settings) -> PictureFolders:
    """Return the folders of a data set. Raises UserError."""
    target = _first(settings, "image_directory", "image_dir", "folder_path")
    if not target:
        expected = "image_directory, image_jsonl_file, image_dir or folder_path"
        raise UserError(f"{where}: names no pictures; expected {expected}")

    # The sources; a setting may name several folders.
    controls: dict[str, Path] = {}
    for name in _controls(settings):
        value = settings[name]
        for folder in value if isinstance(value, list) else [value]:
            control = f"control_{len(controls) + 1}" if controls else "control"
            controls[control] = _existing(path, where, name, folder, Path.is_dir)

    # The instructions.
    metadata = settings.get("metadata_file")
    ending = _first(settings, "caption_extension", "caption_ext")
    default = _first(settings, "default_caption")
    notes = []
    for name in ASIDE:
        value = settings.get(name)
        if _changes_data(value):
            notes.append(f"{where}: {name}={'true' if value is True else value} is left aside")
    return PictureFolders(
        target=_existing(path, where, target, settings[target], Path.is_dir),
        controls=controls,
        captions=None if metadata is None else _existing(path, where, "metadata_file", metadata, Path.is_file),
        endings=(f".{str(settings[ending]).lstrip('.').lower()}",) if ending else CAPTIONS,
        default=str(settings[default]) if default else "",
        notes=tuple(notes),
    )


def _changes_data(value: Any) -> bool:
    """Return whether a setting would change the data: it is there, is not off, and is no single repeat."""
    if isinstance(value, bool):
        return value
    return bool(value) and value != 1


def _first(settings: Settings, *names: str) -> str:
    """Return the first of the names that is set; "" when none is."""
    return next((name for name in names if settings.get(name)), "")


def _controls(settings: Settings) -> list[str]:
    """Return the settings that name control folders, in their order."""
    names = ["control_directory", "conditioning_data_dir", "control_path"]
    for number in range(1, 10):
        names += [f"control_path_{number}", f"control_path{number}"]
    return [name for name in names if settings.get(name)]


def _existing(path: Path, where: str, name: str, value: Any, is_there: Callable[[Path], bool]) -> Path:
    """Return the folder or file that a setting names. Raises UserError."""
    if not isinstance(value, str) or "\0" in value:
        raise UserError(f"{where}: {name}: expected a path, got {value!r}")
    named = user_path(value)
    for place in (path.parent / named, named):
        if is_there(place):
            return place.absolute()
    kind = "file" if is_there == Path.is_file else "folder"
    raise UserError(f"{where}: {name}: {value}: no such {kind}, neither beside this file nor in the current folder")


def _with_own_tasks(found: list[Table]) -> list[Table]:
    """Return the tables, with their targets' folders as task groups where several have one nearest folder."""
    homes = [table.home for table in found if isinstance(table, PictureFolders)]
    named: list[Table] = []
    for table in found:
        if isinstance(table, PictureFolders) and homes.count(table.home) > 1:
            table = replace(table, task=table.target.name)
        named.append(table)
    return named
