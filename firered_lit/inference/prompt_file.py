"""A file of prompts, a row of JSON each: what to draw, from which pictures, with which noise."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firered_lit.errors import UserError
from firered_lit.textfiles import open_regular, read_text

if TYPE_CHECKING:
    from PIL import Image

KEYS = ("instruction", "images", "width", "height", "seed")


@dataclass(frozen=True)
class PromptRow:
    """One row of the file.

    Attributes:
        instruction: what the model is asked, in any language.
        images: files of the control pictures; none for text-to-image.
        width: of the drawn picture, px; None takes the shape of the last control picture.
        height: likewise.
        seed: of the noise; None leaves it to who draws.
    """

    instruction: str
    images: tuple[Path, ...] = ()
    width: int | None = None
    height: int | None = None
    seed: int | None = None


def read_prompts(file: Path, name: str) -> list[PromptRow]:
    """Return the prompts of a .jsonl file.

    Args:
        file: the file; paths in it are relative to it.
        name: the option that named the file, for messages.

    Raises:
        UserError: the file or a row of it cannot be used; the message names the line.
    """
    try:
        lines = read_text(file).split("\n")  # a text may hold other line ends
    except FileNotFoundError:
        raise UserError(f"{name} {file}: no such file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{name} {file}: cannot be read ({problem})") from problem
    prompts = [_prompt(line, f"{file}:{number}", file.parent) for number, line in enumerate(lines, 1) if line.strip()]
    if not prompts:
        raise UserError(f"{name} {file}: no prompts in it; write a line of JSON for each")
    return prompts


def _prompt(line: str, where: str, folder: Path) -> PromptRow:
    """Return the prompt of a line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{where}: no JSON ({problem})") from problem
    if not isinstance(row, Mapping):
        raise UserError(f'{where}: a prompt is an object, as in {{"instruction": "Make it red", "images": ["a.png"]}}')
    unknown = [key for key in row if key not in KEYS]
    if unknown:
        raise UserError(f"{where}: {unknown[0]!r} is no key of a prompt; they are {', '.join(KEYS)}")

    # Words and pictures.
    instruction = row.get("instruction")
    if not isinstance(instruction, str) or not instruction.strip():
        raise UserError(f"{where}: instruction: expected text")
    images = row.get("images", [])
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise UserError(f"{where}: images: expected a list of paths")
    paths = tuple(folder / image for image in images)
    for path in paths:
        look_at(path, f"{where}: images")

    width = _whole_number(row, "width", 16, where)
    height = _whole_number(row, "height", 16, where)
    return PromptRow(instruction, paths, width, height, _whole_number(row, "seed", 0, where))


def _whole_number(row: Mapping[str, Any], key: str, lowest: int, where: str) -> int | None:
    """Return a number of a row; None where it has none.

    Raises:
        UserError: it is no whole number from `lowest` to 2^31.
    """
    value = row.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= 2**31:
        raise UserError(f"{where}: {key}: expected a whole number of at least {lowest}, got {value!r}")
    return value


def look_at(path: Path, where: str) -> None:
    """Refuse a file that is no picture, by its first bytes; the pixels are not decoded.

    Args:
        path: the file.
        where: what named it, for the message.

    Raises:
        UserError: it cannot be read.
    """
    with _opened(path, where):
        pass


def open_picture(path: Path, where: str) -> "Image.Image":
    """Return a picture as it is looked at: upright, RGB.

    Args:
        path: the file.
        where: what named it, for the message.

    Raises:
        UserError: it cannot be read.
    """
    from firered_lit.colours import as_seen

    with _opened(path, where) as image:
        return as_seen(image)


@contextmanager
def _opened(path: Path, where: str) -> "Iterator[Image.Image]":
    """Open a picture's file; whatever goes wrong with it inside the `with` block is a UserError that names it."""
    from PIL import Image

    try:
        with open_regular(path) as file, Image.open(file) as image:
            yield image
    except FileNotFoundError:
        raise UserError(f"{where} {path}: no such file") from None
    except Exception as problem:  # a damaged file may raise anything
        raise UserError(f"{where} {path}: cannot be read as an image ({problem})") from problem
