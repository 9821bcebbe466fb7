"""Text in pictures: wrapped to a width, in a font that can draw it, never as boxes."""

import logging
import re
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from firered_lit.errors import UserError

logger = logging.getLogger(__name__)

_FONTS = (  # the first that exists; those that draw Chinese come first
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/google-noto-sans-cjk-fonts/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/usr/share/fonts/truetype/arphic/uming.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "/System/Library/Fonts/Hiragino Sans GB.ttc",
    "/System/Library/Fonts/STHeiti Light.ttc",
    "C:/Windows/Fonts/msyh.ttc",
    "C:/Windows/Fonts/simhei.ttf",
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
)
_WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"  # scripts that break between any two characters
_CHINESE = range(0x4E00, 0xA000)
FONT_HINT = "install one (Debian, Ubuntu: apt install fonts-noto-cjk) or name a font file with font=FILE"
ELLIPSIS = " ..."
_PIECES = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+|\s+")
_NOTHING = "\U0010fffd"  # a private character: drawn as the font draws what it lacks


class Lettering:
    """One font in several sizes.

    Args:
        font: Font file; when None the first that exists of a list of well-known ones, else Pillow's own small font.

    Raises:
        UserError: There is no such file.
    """

    def __init__(self, font: str | None = None) -> None:
        if font is not None and not Path(font).is_file():
            raise UserError(f"font={font}: no such file")
        self.path = font or _installed_font()

    def text(self, text: str, width: int, ink: str, paper: str, size: int = 16, lines: int = 6) -> Image.Image:
        """Return a picture of a text.

        Args:
            text: The text.
            width: Pixels to which it is wrapped.
            ink: Colour of the letters.
            paper: Colour behind them.
            size: Size of the font in pixels.
            lines: The most lines; a longer text is cut with an ellipsis.
        """
        font = _load(self.path, size)
        wrapped = self.wrap(text, width, size)
        if len(wrapped) > lines:
            last = wrapped[lines - 1]
            while last and font.getlength(last + ELLIPSIS) > width:
                last = last[:-1]
            wrapped = [*wrapped[: lines - 1], last + ELLIPSIS]

        height = round(size * 1.4)
        picture = Image.new("RGB", (width, height * len(wrapped)), paper)
        draw = ImageDraw.Draw(picture)
        for i, line in enumerate(wrapped):
            draw.text((0, i * height), line, fill=ink, font=font)
        return picture

    def wrap(self, text: str, width: int, size: int = 16) -> list[str]:
        """Return the lines of a text, each no wider than `width` pixels.

        Latin text breaks at spaces, Chinese anywhere, a long word where it must.
        """
        font = _load(self.path, size)
        lines = [""]
        for piece in _PIECES.findall(self.drawable(text)):
            blank = piece.isspace()
            if "\n" in piece:
                lines.append("")
            elif font.getlength(lines[-1] + piece) <= width:
                begins_line = lines[-1] == ""
                if not (blank and begins_line):
                    lines[-1] += piece
            elif not blank:
                # On a new line, and where it is too long for one on several.
                lines.append("")
                for character in piece:
                    if font.getlength(lines[-1] + character) > width:
                        lines.append("")
                    lines[-1] += character

        filled = [line.rstrip() for line in lines if line.strip()]
        return filled or [""]

    def drawable(self, text: str) -> str:
        """Return a text with the characters that the font lacks written as codes, such as `\\u4f60`.

        The first text with Chinese that the font cannot draw is warned of.
        """
        characters = []
        for character in text:
            if character.isspace() or _has(self.path, character):
                characters.append(character)
                continue
            if ord(character) in _CHINESE:
                _warn_of_no_font()
            characters.append(character.encode("unicode_escape").decode())
        return "".join(characters)


def _installed_font() -> str | None:
    """Return the first of the well-known fonts that this machine has; None when it has none."""
    for path in _FONTS:
        if Path(path).is_file():
            return path
    return None


@cache
def _warn_of_no_font() -> None:
    """Warn once that pictures show Chinese words as codes."""
    logger.warning("Chinese words in pictures are written as \\u codes: no font here draws them; %s", FONT_HINT)


@cache
def _load(path: str | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return a font in a size in pixels; Pillow's own without a path."""
    if path is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(path, size)


@cache
def _has(path: str | None, character: str) -> bool:
    """Return whether a font has a character: it draws it unlike one that it lacks."""
    font = _load(path, 16)
    return bytes(font.getmask(character)) != bytes(font.getmask(_NOTHING))
