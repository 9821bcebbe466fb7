"""Numbers as prompts write them, read and written in their style: digits, words, ordinals, letters, 二, 乙, ②."""

import re

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
HAN = "一二三四五六七八九十"
STEMS = "甲乙丙丁戊己庚辛壬癸"
CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩"
FULL = "０１２３４５６７８９"
LETTERS = "ABCDEFGHIJ"  # read are A to H alone: "I" is a word

LAST = ("last", "最后一", "最後一", "末")  # the number of the last reference, whatever that is
NUMBER = re.compile(
    rf"[0-9]+(?:st|nd|rd|th)?|[{FULL}]+|[{CIRCLED}]|{'|'.join(ORDINALS + WORDS)}|last|最[后後]一|[首末{HAN}]",
    re.IGNORECASE,
)
LETTER = re.compile(rf"(?<![A-Za-z])[A-Ha-h](?![A-Za-z])|[{STEMS}]")

_TO_ASCII = {ord(full): ascii_digit for full, ascii_digit in zip(FULL, "0123456789")}
_TO_FULL = {ord(ascii_digit): full for full, ascii_digit in zip(FULL, "0123456789")}


def is_letter(token: str) -> bool:
    """Return whether a token is one of the letters that count references, in either case."""
    return len(token) == 1 and token.upper() in LETTERS


def value(token: str, n: int) -> int:
    """Return the number that a token stands for.

    Args:
        token: A number as written: "2", "two", "Second", "2nd", "B", "二", "②", "乙", "last".
        n: The number of references, which "last" stands for.
    """
    text = token.lower()
    for names in (WORDS, ORDINALS, list(HAN), list(CIRCLED), list(STEMS), list(LETTERS.lower())):
        if text in names:
            return names.index(text) + 1
    if text in LAST:
        return n
    if text == "首":
        return 1
    return int(re.sub(r"\D", "", text.translate(_TO_ASCII)))


def spell(number: int, like: str) -> str:
    """Write a number in the style of another token: its kind, its case, its leading zeros.

    Args:
        number: From 1 to 10.
        like: The token whose place it takes. "last" becomes an ordinal, 末 becomes 第一, 第二, ...
    """
    lower = like.lower()
    if like in CIRCLED:
        return CIRCLED[number - 1]
    if like in STEMS:
        return STEMS[number - 1]
    if is_letter(like):
        return _cased(LETTERS[number - 1].lower(), like)
    if like[0] in FULL:
        return str(number).translate(_TO_FULL)
    if like in HAN:
        return HAN[number - 1]
    if like in LAST[1:] or like == "首":
        return "第" + HAN[number - 1]
    if lower in WORDS:
        return _cased(WORDS[number - 1], like)
    if lower in ORDINALS or lower == "last":
        return _cased(ORDINALS[number - 1], like)

    # Digits, with the leading zeros and the ending of an ordinal where the other has them.
    digits = str(number)
    if like[0] == "0":
        digits = digits.zfill(len(like))
    if like.isdigit():
        return digits
    return digits + {1: "st", 2: "nd", 3: "rd"}.get(number, "th")


def _cased(word: str, like: str) -> str:
    """Return a word in capitals, capitalized or as it is, as the other word has it."""
    if like.isupper():
        return word.upper()
    if like[0].isupper():
        return word.capitalize()
    return word
