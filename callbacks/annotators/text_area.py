"""The share of a picture that text covers, for the corpus engine, read by the OCR engine that is there."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from callbacks.ocr.engine import PaddleEngine
from callbacks.ocr.models import chosen_models
from firered_lit.curation.annotator import Annotator, Columns, Of
from firered_lit.curation.rows import Picture, shrunk
from firered_lit.rewards.layout_ocr import Char, lines

_WATERMARK = re.compile(
    r"\bwww\.|\bhttps?:|\b[\w-]+\.(com|cn|net|org|io|me|co)\b|(^|\s)@\w{3,}|©|\(c\) ?\d{4}|copyright|all rights"
    r"|shutterstock|gettyimages|istock|alamy|dreamstime|123rf|depositphotos|adobe ?stock|freepik|pngtree|水印|版权",
    re.IGNORECASE,
)
_KEPT = 200  # characters of what was read
_LEAST_LETTERS = 3  # of a line that is taken for text; stars and stripes are read as one or two


class TextArea(Annotator):
    """Text that can be read on a picture. Slow: tenths of a second for each on a core.

    Args:
        detection: Folder or name of a PaddleOCR model; that of the rapidocr wheel when None.
        recognition: The same, for reading.
        side: Pixels of the longer side at which pictures are read.
        least: Mean confidence from which on a line counts as read.

    Columns:
        area: The share of the picture that the boxes of its characters cover, 0 to 1; lines of at least three letters
            or digits count.
        characters: The number of these characters.
        text: Their text, at most 200 characters.
        watermark: True where that names a site, an account, an agency or a copyright.
    """

    columns: ClassVar[dict[str, str]] = {
        "area": "number",
        "characters": "count",
        "text": "text",
        "watermark": "flag",
    }
    of: ClassVar[Of] = "picture"

    def __init__(
        self, detection: str | None = None, recognition: str | None = None, side: int = 768, least: float = 0.6
    ) -> None:
        self.detection = detection
        self.recognition = recognition
        self.side = side
        self.least = least
        self._engine: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_engine": None}

    def open(self) -> None:
        """Load the engine.

        Raises:
            UserError: A model is missing.
        """
        models = chosen_models(self.detection, self.recognition)
        self._engine = PaddleEngine(*models, max_side=self.side, least=self.least)

    def annotate(self, batch: Sequence[Picture]) -> Columns:
        """Return the columns of pictures."""
        pictures = [shrunk(picture.pixels, self.side) for picture in batch]
        columns: dict[str, list[Any]] = {name: [] for name in self.columns}
        for picture, read in zip(pictures, self._engine.read(pictures), strict=True):
            characters = _wordy(read)
            text = _text(characters)
            columns["area"].append(_area(characters, picture.shape))
            columns["characters"].append(sum(not character.text.isspace() for character in characters))
            columns["text"].append(text[:_KEPT])
            columns["watermark"].append(_WATERMARK.search(text) is not None)
        return columns


def _wordy(characters: Sequence[Char]) -> list[Char]:
    """Return the characters of lines that have enough letters and digits to be text."""
    letters = Counter(character.line for character in characters if character.text.isalnum())
    return [character for character in characters if letters[character.line] >= _LEAST_LETTERS]


def _area(characters: Sequence[Char], shape: tuple[int, ...]) -> float:
    """Return the share of a picture of `shape` (height, width, ...) that the boxes of characters cover, 0 to 1."""
    covered = sum(character.w * character.h for character in characters)
    return min(1.0, covered / (shape[0] * shape[1]))


def _text(characters: Sequence[Char]) -> str:
    """Return the text of characters, a space between lines."""
    texts = []
    for line in lines(characters):
        texts.append("".join(character.text for character in line))
    return " ".join(texts)
