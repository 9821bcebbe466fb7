"""The values of a row's columns: each is what it should be, or the row is refused by the column's name."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .refusals import Refuse

MISSING = frozenset({"", "nan", "none", "null", "<na>"})  # values that are not there, as programs write them
MOST_PIXELS = 10**6  # of a side
LONGEST_NUMBER = 10  # digits; a text that is longer is no number of pixels
CHINESE = re.compile(r"[\u3400-\u9fff]")


@dataclass(frozen=True)
class Unreadable:
    """A value that its table cannot give, and why. It refuses the row only where somebody asks for it."""

    why: str


class Fields(dict[str, Any]):
    """A row. It remembers which column was asked for last, so that whatever goes wrong then can name it.

    Bytes that lie in a column of text are UTF-8 text. Raises Refuse where they are none, and for an `Unreadable`.
    """

    asked = "row"

    def last_asked(self) -> str:
        """Return the column that was asked for last; "row" before the first."""
        return self.asked

    def __getitem__(self, name: str) -> Any:
        self.asked = name
        return _plain(name, super().__getitem__(name))

    def get(self, name: str, default: Any = None) -> Any:
        self.asked = name
        return _plain(name, super().get(name, default))


def _plain(name: str, value: Any) -> Any:
    """Return a value that is no bytes."""
    if isinstance(value, Unreadable):
        raise Refuse(name, "unreadable value", f"its value cannot be read ({value.why})")
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise Refuse(name, "invalid UTF-8", f"expected text, got {len(value)} bytes that are not UTF-8") from None
    if isinstance(value, list) and any(isinstance(item, bytes) for item in value):
        return [_plain(name, item) for item in value]
    return value


def path_of(name: str, value: Any, many: bool = False) -> str:
    """Return a value that is a path.

    Args:
        name: Name of the column.
        value: Its value, or one of its values.
        many: The column may hold several, which the message says.

    Raises:
        Refuse: it is none, or one that no file can have.
    """
    wanted = "a path, a list of paths or null" if many else "a path"
    if not isinstance(value, str):
        raise Refuse(name, "wrong type", f"expected {wanted}, got {shown(value)}")
    if not value.strip():
        raise Refuse(name, "wrong type", f"expected {wanted}, got an empty path")
    if "\0" in value or not _is_utf8(value):
        detail = f"expected {wanted}, got {ascii(value)[:60]}, which no file here can be called"
        raise Refuse(name, "wrong type", detail)
    return value


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def shown(value: Any) -> str:
    """Return a value as a refusal shows it, cut after 60 characters."""
    return json.dumps(value, ensure_ascii=False, default=repr)[:60]


def text_of(row: dict[str, Any], name: str) -> str:
    """Return the text of a column, without the blanks around it; "" when it is missing. Raises Refuse."""
    value = row.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Refuse(name, "wrong type", f"expected text, got {shown(value)}")
    return value.strip()


def is_missing(text: str) -> bool:
    """Return whether a text is how a program writes a value that is not there."""
    return text.strip().casefold() in MISSING


def flag_of(row: dict[str, Any], name: str) -> bool | None:
    """Return true or false, which may be written as 1 or 0; None when it is missing."""
    value = number_of(row, name, "true or false")
    if value is None:
        return None
    if value in (0, 1):
        return bool(value)
    raise Refuse(name, "wrong type", f"expected true or false, got {shown(value)}")


def number_of(row: dict[str, Any], name: str, wanted: str = "a number") -> int | float | None:
    """Return a finite number, or true or false; None when it is missing, as null and NaN are."""
    value = row.get(name)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, int | float) and abs(value) < math.inf:
        return value
    raise Refuse(name, "wrong type", f"expected {wanted}, got {shown(value)}")


def texts_of(row: dict[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """Return the texts by "kind/language". Of a list the first is the original, the others are paraphrases.

    A text such as "nan" or "None" is a value that a program did not have, and no text.
    """
    found: dict[str, str] = {}
    for name, key in names.items():
        # The texts of the column.
        value = row.get(name)
        values = value if name.endswith("_list") and isinstance(value, list) else [value]
        texts = [text_of({name: item}, name) for item in values]
        texts = [text for text in texts if not is_missing(text)]

        # Each by its kind and language.
        kind, _, language = key.partition("/")
        for number, text in enumerate(texts):
            if number > 0:
                kind = f"paraphrase_{number}"
            found[f"{kind}/{language or language_of(text)}"] = text
    return found


def language_of(text: str) -> str:
    """Return what a text is written in: "cn" where it holds a Chinese character, else "en"."""
    return "cn" if CHINESE.search(text) else "en"


def captions_of(row: dict[str, Any], count: int) -> tuple[dict[str, str], ...]:
    """Return what stands for each reference when it is dropped, by language; nothing when the row does not say."""
    found: tuple[dict[str, str], ...] = tuple({} for _ in range(count))
    for name, language in (("reference_captions", ""), ("reference_captions_cn", "cn")):
        captions = row.get(name)
        if captions is None:
            continue
        if not isinstance(captions, list) or len(captions) != count:
            detail = f"expected a list of {count} texts, one per reference, got {shown(captions)}"
            raise Refuse(name, "wrong type", detail)
        for of_reference, caption in zip(found, captions, strict=True):
            text = text_of({name: caption}, name)
            if text:
                of_reference[language or language_of(text)] = text
    return found if any(found) else ()


def size_of(row: dict[str, Any]) -> tuple[int, int]:
    """Return (height, width) of the target when the row says both, else (0, 0)."""
    height = _pixels(row, "height")
    width = _pixels(row, "width")
    if height == 0 or width == 0:
        return 0, 0
    return height, width


def _pixels(row: dict[str, Any], name: str) -> int:
    """Return a number of pixels, which may be written as text; 0 when it is missing. Raises Refuse."""
    value = row.get(name)

    # Digits.
    if isinstance(value, str) and len(value) < LONGEST_NUMBER and value.isascii() and value.isdecimal():
        return int(value)

    # A whole number.
    pixels = number_of(row, name, "a number of pixels") or 0
    in_range = 0 <= pixels <= MOST_PIXELS
    if in_range and pixels == int(pixels) and not isinstance(pixels, bool):
        return int(pixels)
    raise Refuse(name, "wrong type", f"expected a number of pixels, got {shown(value)}")
