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
_PIECES = re.compile(rf"[{_WIDE}]|[^\s{_WIDE}]+|\s+")
_NOTHING = "\U0010fffd"  # a private character: drawn as the font draws what it lacks


class Lettering:
    """One font in several sizes.

    Args:
        font: a font file; the first of a list of well-known ones, or the small one that Pillow carries, when null.
    """

    def __init__(self, font: str | None = None) -> None:
        if font is not None and not Path(font).is_file():
            raise UserError(f"font={font}: no such file")
        self.path = font or next((path for path in _FONTS if Path(path).is_file()), None)

    def text(self, text: str, width: int, ink: str, paper: str, size: int = 16, lines: int = 6) -> Image.Image:
        """`text` on `paper`, wrapped to `width` px, cut with an ellipsis after so many lines."""
        font = _load(self.path, size)
        wrapped = self.wrap(text, width, size)
        if len(wrapped) > lines:
            wrapped = wrapped[:lines]
            while wrapped[-1] and font.getlength(wrapped[-1] + " ...") > width:
                wrapped[-1] = wrapped[-1][:-1]
            wrapped[-1] += " ..."
        height = round(size * 1.4)
        picture = Image.new("RGB", (width, height * len(wrapped)), paper)
        draw = ImageDraw.Draw(picture)
        for i, line in enumerate(wrapped):
            draw.text((0, i * height), line, fill=ink, font=font)
        return picture

    def wrap(self, text: str, width: int, size: int = 16) -> list[str]:
        """Lines no wider than `width` px: Latin breaks at spaces, Chinese anywhere, a long word where it must."""
        font = _load(self.path, size)
        lines = [""]
        for piece in _PIECES.findall(self.drawable(text)):
            if "\n" in piece:
                lines.append("")
            elif font.getlength(lines[-1] + piece) <= width:
                lines[-1] += piece if lines[-1] or not piece.isspace() else ""
            elif not piece.isspace():
                lines.append("")
                for character in piece:
                    if font.getlength(lines[-1] + character) > width:
                        lines.append("")
                    lines[-1] += character
        return [line.rstrip() for line in lines if line.strip()] or [""]

    def drawable(self, text: str) -> str:
        """`text` with what the font lacks written as `\\u4f60`; the first such text is warned of."""
        if any(ord(character) in _CHINESE and not _has(self.path, character) for character in text):
            _warn_of_no_font()
        return "".join(c if c.isspace() or _has(self.path, c) else c.encode("unicode_escape").decode() for c in text)


@cache
def _warn_of_no_font() -> None:
    """Say once how pictures get their Chinese words."""
    logger.warning("Chinese words in pictures are written as \\u codes: no font here draws them; %s", FONT_HINT)


@cache
def _load(path: str | None, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size) if path is None else ImageFont.truetype(path, size)


@cache
def _has(path: str | None, character: str) -> bool:
    font = _load(path, 16)
    return bytes(font.getmask(character)) != bytes(font.getmask(_NOTHING))
