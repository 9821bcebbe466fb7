"""Grids of pictures in a run's folder, RUN/samples/step_00000100.png: their files carry the instructions as text."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, PngImagePlugin

from firered_lit.files import replacing

INSTRUCTIONS = "instructions"  # the name of the text in the file, a JSON list
_LONGEST = 2000  # characters of an instruction in it


def save_grid(picture: Image.Image, path: Path, instructions: Sequence[str]) -> None:
    """Put a grid in the place of a file.

    Args:
        picture: The grid.
        path: A PNG file.
        instructions: What was asked for, row by row.
    """
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt(INSTRUCTIONS, json.dumps([text[:_LONGEST] for text in instructions]))
    with replacing(path, "wb") as file:
        picture.save(file, format="PNG", pnginfo=texts)


def read_instructions(picture: Image.Image) -> list[str]:
    """Return the instructions of an opened grid; none where its file carries none."""
    try:
        found = json.loads(picture.info.get(INSTRUCTIONS, "[]"))
    except (ValueError, TypeError, RecursionError):
        return []
    if not isinstance(found, list):
        return []
    return [text for text in found if isinstance(text, str)]


def grids(folder: Path) -> dict[int, Path]:
    """Return step -> file of the grids in a folder, in the order of the steps."""
    found = {}
    for path in sorted(folder.glob("step_*.png")):
        step = path.stem.removeprefix("step_")
        if step.isdecimal():
            found[int(step)] = path
    return dict(sorted(found.items()))
