"""Pictures for a judge: opened with care, and encoded as the official scripts encode them."""

import io
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from firered_lit.errors import UserError
from firered_lit.textfiles import open_regular


def opened(data: bytes, name: str) -> Image.Image:
    """Return the picture in a file, all of it decoded and nothing of it changed.

    Args:
        data: The file.
        name: What to call it in an error.

    Raises:
        UserError: The bytes are no picture, or a damaged one.
    """
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as problem:  # a decoder may fail in any way
        reason = " ".join(str(problem).split()) or type(problem).__name__
        raise UserError(f"{name}: cannot be read as a picture: {reason}") from None
    return image


def file_or_none(path: Path) -> bytes | None:
    """Return a picture's file; None where there is none."""
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError:
        return None


def png(image: Image.Image) -> bytes:
    """Return the picture in RGB as a PNG file."""
    return _saved(image.convert("RGB"), "PNG")


def jpeg(image: Image.Image) -> bytes:
    """Return the picture turned upright by its EXIF tag, in RGB, as a JPEG file of Pillow's default quality, 75."""
    upright: Any = ImageOps.exif_transpose(image)
    return _saved(upright.convert("RGB"), "JPEG")


def _saved(image: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form)
    return file.getvalue()
