"""The cells of a CSV file as values: a cell is text, and its column says what the text stands for.

A cell that does not fit its column stays text, and is refused where its row is read.
"""

import math
from typing import Any

from .fields import is_missing, shown
from .layouts import SCORES
from .refusals import Refuse

NUMBERS = frozenset({"width", "height"}) | SCORES
FLAGS = frozenset({"held_out", "tie_case"})
TRUE = frozenset({"true", "1", "1.0", "yes"})
FALSE = frozenset({"false", "0", "0.0", "no"})
WORDS = frozenset({"target_text", "replaced_text"})  # a picture may well show the word "None"


def typed(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of cells (text, lists of text, None) with numbers, flags and missing values as what they are.

    Raises:
        Refuse: a word of a picture may as well be a missing value.
    """
    return {name: _value(name, cell) for name, cell in row.items()}


def _value(name: str, cell: Any) -> Any:
    """Return the value of a column's cell; the cell when it does not fit its column. Raises Refuse."""
    if not isinstance(cell, str):
        return cell
    if is_missing(cell):
        if name in WORDS:
            detail = f"{shown(cell)} is a missing value, or a word; leave the cell empty, or write the row in JSONL"
            raise Refuse(name, "wrong type", detail)
        return None
    if name in NUMBERS:
        return _number(cell)
    if name in FLAGS:
        return _flag(cell)
    return cell


def _number(cell: str) -> int | float | str:
    """Return the number that a cell holds; the cell when it holds none."""
    try:
        number = float(cell)
    except ValueError:
        return cell
    if math.isfinite(number) and number.is_integer():
        return int(number)
    return number


def _flag(cell: str) -> bool | str:
    """Return what a cell answers; the cell when it is no answer."""
    word = cell.strip().casefold()
    if word in TRUE:
        return True
    if word in FALSE:
        return False
    return cell
