"""Ends of refusals: the layout that a folder or file without rows is nearest to, and what it lacks for it."""

import json
import re
from pathlib import Path

from firered_lit.textfiles import open_regular

from . import dataset_files, folders
from .picture_folders import CONTROLS, PICTURES, TARGET

SHOWN = 4  # folders that are named
PROBED = 1 << 16  # bytes of a file that are looked at
FIRST_ENTRY = re.compile(r'\s*\{\s*("(?:[^"\\]|\\.)*")\s*:\s*\{')


def of_folder(path: Path) -> str:
    """Return the settings that read the pictures of a folder without tables; "" when nothing is known."""
    described = [file for file in folders.visible(path) if dataset_files.is_dataset_file(file) and file.is_file()]
    if described:
        return f"; to read what {described[0].name} describes: source={described[0]}"
    own = folders.by_stem(path, PICTURES)
    inner = [folder for folder in folders.places(path) if folders.by_stem(folder, PICTURES)]
    if own and not inner:
        return f"; for its pictures: target={path} control=DIR, DIR being the folder of their sources"
    if not inner:
        return ""

    # Folders of pictures, some of them perhaps by ai-toolkit's names.
    names = [folder.name for folder in inner]
    shown = ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
    nearest = "this is nearest to ai-toolkit"
    if TARGET in names:
        nearest += f", whose {CONTROLS[0]}/ is missing"
    elif any(name in CONTROLS for name in names):
        nearest += f", whose {TARGET}/ is missing"
    else:
        nearest += f", whose {TARGET}/ and {CONTROLS[0]}/ are missing"
    say = f"target={path / 'DIR'} control={path / 'DIR'}"
    return f"; {nearest}; say which of its folders ({shown}) is which: {say}"


def is_metadata(path: Path) -> bool:
    """Return whether a file begins as kohya's metadata do: an object of pictures, {"a": {"caption": ...}, ...}."""
    with open_regular(path) as file:
        text = file.read(PROBED).decode("utf-8-sig", "replace")
    match = FIRST_ENTRY.match(text)
    if match is None:
        return False
    try:
        entry, _ = json.JSONDecoder().raw_decode(text, match.end() - 1)
    except ValueError:
        return False
    return "caption" in entry or "tags" in entry
