"""Measures of a row's texts: how long they are, and in which language."""

import re
from collections.abc import Sequence
from typing import ClassVar

from .annotator import Annotator, Columns, Of, per_item
from .rows import RawRow

_CHINESE = re.compile(r"[\u3400-\u9fff]")
_WORD = re.compile(r"[^\W\d_]+", re.UNICODE)
_LATIN = re.compile(r"[A-Za-z]")
_FOLDED = re.compile(r"[\W_]+", re.UNICODE)


class Words(Annotator):
    """Length and language of a row's original text.

    Columns:
        characters: Its length.
        words: Runs of letters; of Chinese, characters.
        language: cn where a fifth of its letters is Chinese, en where most of its letters are ASCII, else other.
        folded: Its letters and digits in lower case: equal for texts that differ in spaces and marks alone.
    """

    columns: ClassVar[dict[str, str]] = {"characters": "count", "words": "count", "language": "text", "folded": "text"}
    of: ClassVar[Of] = "row"

    def annotate(self, batch: Sequence[RawRow]) -> Columns:
        """Return the measures of rows' texts."""
        return per_item(_measures, tuple(self.columns), batch)


class Instructions(Annotator):
    """The texts of a row in either language, folded: equal for texts that differ in spaces, marks and capitals alone.

    Columns:
        en, cn: Its first English and its first Chinese text; none where there is none.
    """

    columns: ClassVar[dict[str, str]] = {"en": "text", "cn": "text"}
    of: ClassVar[Of] = "row"

    def annotate(self, batch: Sequence[RawRow]) -> Columns:
        """Return the texts of rows."""
        return {name: [_first(row, name) for row in batch] for name in self.columns}


def _first(row: RawRow, wanted: str) -> str | None:
    for name, text in row.texts.items():
        if name.endswith(f"/{wanted}") and folded(text):
            return folded(text)
    return None


def _measures(row: RawRow) -> tuple[int, int, str | None, str]:
    text = row.instruction
    chinese = len(_CHINESE.findall(text))
    words = chinese + len(_WORD.findall(_CHINESE.sub(" ", text)))
    return len(text), words, language(text), folded(text)


def language(text: str) -> str | None:
    """Return cn, en or other; None for a text without letters."""
    letters = sum(character.isalpha() for character in text)
    if not letters:
        return None
    if len(_CHINESE.findall(text)) >= 0.2 * letters:
        return "cn"
    return "en" if len(_LATIN.findall(text)) >= 0.9 * letters else "other"


def folded(text: str) -> str:
    """Return a text's letters and digits in lower case, with one space for whatever stands between them."""
    return _FOLDED.sub(" ", text.casefold()).strip()
