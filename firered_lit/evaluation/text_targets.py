"""Texts that a picture must and must not show after a text edit, derived from the instruction by rule.

No benchmark comes with such targets. Quotation marks are dirty there (mixed, reversed, unclosed, missing), a deleted
text must be absent, a moved or restyled one must still be there, and a text that only says where ("below 'SALE'") is
neither. A user's own table stands above what is derived.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from firered_lit.errors import UserError
from firered_lit.judges.log import rows

Operation = Literal["replace", "add", "delete", "keep"]
OPERATIONS: tuple[Operation, ...] = get_args(Operation)
Role = Literal["new", "old", "kept", "elsewhere"]


@dataclass(frozen=True)
class TextTarget:
    """The texts to be read on a picture, and those that must be gone.

    Attributes:
        operation: What the instruction asks for.
        must_contain: Texts that must be there, in the order of the instruction.
        must_not_contain: Texts that must be gone.
    """

    operation: Operation
    must_contain: tuple[str, ...] = ()
    must_not_contain: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return the target as JSON holds it."""
        return {
            "op": self.operation,
            "must_contain": list(self.must_contain),
            "must_not_contain": list(self.must_not_contain),
        }


# Quoted texts

DOUBLE = '“”„‟"「」『』＂'
SINGLE = "'‘’‚‛＇"
OPENING = "“„「『‘‚"
WORD = re.compile(r"[A-Za-z0-9]")


@dataclass(frozen=True)
class Quoted:
    """A text in an instruction, and the words around it.

    Attributes:
        text: The text, without quotation marks.
        before: The words since the quoted text before it.
        after: The words up to the quoted text after it.
        followed: Another quoted text comes after it.
    """

    text: str
    before: str
    after: str
    followed: bool


def quoted_texts(instruction: str) -> list[Quoted]:
    """Return the quoted texts of an instruction, however badly they are quoted."""
    spans = list(_spans(instruction))
    found = []
    for number, (start, stop, first, last) in enumerate(spans):
        begin = spans[number - 1][1] if number else 0
        end = spans[number + 1][0] if number + 1 < len(spans) else len(instruction)
        before = _without_translation(instruction[begin:start]) if number else instruction[begin:start]
        after = _without_translation(instruction[stop:end])
        text = instruction[first:last].strip()
        if text:
            found.append(Quoted(text, before, after, number + 1 < len(spans)))
    return found


def _spans(text: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield where each quoted text begins and ends, with its marks and without."""
    position = 0
    while position < len(text):
        if not _is_mark(text, position):
            position += 1
            continue
        word = re.search(r"[A-Za-z0-9]+$", text[:position])
        if word is not None and text[position] in SINGLE:  # H' for 'H': the opening mark is missing
            yield word.start(), position + 1, word.start(), position
            position += 1
            continue
        close = _closing(text, position)
        stop = min(close + 1, len(text))
        yield position, stop, position + 1, close
        position = stop


def _closing(text: str, opening: int) -> int:
    """Return where the mark stands that closes a text; the end of the instruction without one."""
    own, other = (DOUBLE, SINGLE) if text[opening] in DOUBLE else (SINGLE, DOUBLE)
    close = _next_mark(text, opening, own)
    mixed = _next_mark(text, opening, other)
    if close is None:
        return mixed if mixed is not None else len(text.rstrip("。.，, "))
    if mixed is not None and mixed < close and text[close] in OPENING:  # “A' and “B': the next text begins there
        return mixed
    return close


def _next_mark(text: str, start: int, marks: str) -> int | None:
    """Return where the next of some marks stands after a place; None without one."""
    for position in range(start + 1, len(text)):
        if text[position] in marks and _is_mark(text, position):
            return position
    return None


def _is_mark(text: str, position: int) -> bool:
    """Return whether a character is a quotation mark, and no apostrophe inside of a word."""
    character = text[position]
    if character in DOUBLE:
        return True
    if character not in SINGLE:
        return False
    return not (_is_word(text, position - 1) and _is_word(text, position + 1))


def _is_word(text: str, position: int) -> bool:
    return 0 <= position < len(text) and WORD.match(text[position]) is not None


def _without_translation(words: str) -> str:
    """Delete a translation in brackets that follows a quoted text."""
    return re.sub(r"^\s*[(（][^)）]*[)）]", "", words)


# What each of them is

CLAUSE = r"[^,，.。;；:：]*"


@dataclass(frozen=True)
class _Grammar:
    """The words by which a language says what is done to a text.

    Attributes:
        adds, replaces, deletes, keeps: Verbs; the last one before a text decides.
        into: What stands between an old and a new text, up to the new one.
        elsewhere_before: What stands before a text that only says where or like what.
        elsewhere_after: What stands after such a text.
        new_before: What stands before a text that is new whatever the verb.
        new_after: What stands after such a text.
        kept_before: What stands before a text that stays.
    """

    adds: re.Pattern[str]
    replaces: re.Pattern[str]
    deletes: re.Pattern[str]
    keeps: re.Pattern[str]
    into: re.Pattern[str]
    elsewhere_before: re.Pattern[str]
    elsewhere_after: re.Pattern[str]
    new_before: re.Pattern[str]
    new_after: re.Pattern[str]
    kept_before: re.Pattern[str]


STYLES_ZH = "下划线|删除线|描边|阴影|边框|底色"
CHINESE = _Grammar(
    adds=re.compile(rf"(?:添加|增加|新增|加上|写上|写下|印上|题写|写|加)(?!粗)(?!{CLAUSE}(?:{STYLES_ZH}))"),
    replaces=re.compile(r"修改|替换|改为|改成|换成|变为|变成|换为|更换|更改"),
    deletes=re.compile(r"(?:删除|移除|去除|去掉|擦除|抹去|清除|删掉)(?!线)"),
    keeps=re.compile(rf"移动|移到|放大|缩小|加粗|斜体|旋转|居中|加深|{STYLES_ZH}"),
    into=re.compile(r"(?:修改|替换|更换|更改|改|换|变)(?:为|成)[^,，。;；]*$"),
    elsewhere_before=re.compile(r"(?:(?:写着|写有|标有|印有|标着)|(?:与|跟|同|和)[^,，。;；]{0,8}(?:方|面|边|中)的?)$"),
    elsewhere_after=re.compile(
        r"^(?:文字|字样|牌匾|标牌|招牌|标志|标题|单词)?的?(?:(?:正?[下上]方|[下上左右前后]面|[左右]侧|[左右]边|旁边?|之间|中间|[前后上下])"
        r"(?!移)|[^,，。;；]{0,6}(?:相同|一致|相似|类似|对齐|相匹配)|[^,，。;；]{0,4}的[^,，。;；]{0,8}上)"
    ),
    new_before=re.compile(r"(?:内容[^,，。;；]{0,4}[为是]|内容[:：]|显示为)$"),
    new_after=re.compile(r"(?!)"),
    kept_before=re.compile(r"(?:留下|保留|仅留|只留)[^,，。;；]*$"),
)
STYLES_EN = "underline|strikethrough|strike|outline|shadow|border|highlight"
NEAR = r"(?:below|above|under|underneath|beneath|beside|behind|before|after|next to|near|between|beyond|around|over)"
ENGLISH = _Grammar(
    adds=re.compile(rf"\b(?:add|write|insert|append|put|place|generate|include)\b(?! an? (?:{STYLES_EN}))", re.I),
    replaces=re.compile(r"\b(?:change|replace|modify|turn|convert|edit|update|swap|alter|rewrite)\b", re.I),
    deletes=re.compile(r"\b(?:delete|remove|erase|clear|get rid of|eliminate)\b", re.I),
    keeps=re.compile(rf"\b(?:move|make|bold|italici[sz]e|{STYLES_EN}|enlarge|shrink|rotate|resize|recolor)\b", re.I),
    into=re.compile(r"\b(?:to|with|into|by)\s+(?:[\w-]+\s+){0,4}$", re.I),
    elsewhere_before=re.compile(
        rf"\b(?:{NEAR}|with|as|(?:style|font|colou?r|size|look) of|on|says|saying|reads|reading|matching|from|in)"
        r"\s+(?:the\s+)?(?:[\w-]+\s+){0,3}$",
        re.I,
    ),
    elsewhere_after=re.compile(r"^\s+(?:plaque|sign|signboard|board|above|below)\b(?=[^,.;]*,\s+(?:\w+\s+)?add)", re.I),
    new_before=re.compile(r"\bline(?: content)? is\s+$|\b(?:content|text)s? (?:is|reads?|are)\s+$", re.I),
    new_after=re.compile(r"^\s+(?:written|printed|painted|engraved)\b", re.I),
    kept_before=re.compile(r"\b(?:leaving|keeping|keep|leave)\s+only\s+(?:[\w-]+\s+){0,3}$", re.I),
)
IDEOGRAPH = re.compile(r"[\u3400-\u9fff]")
NUMBERED = re.compile(r"[:：]\s*1\s*[.、)）]\s*(?P<rest>.+)$", re.S)


def text_target(instruction: str) -> TextTarget | None:
    """Return what a picture must show after an edit of its text; None where the rules find no text.

    Args:
        instruction: In English or Chinese.
    """
    texts = quoted_texts(instruction)
    grammar = CHINESE if _is_chinese(instruction, texts) else ENGLISH
    if not texts:
        return _numbered_lines(instruction, grammar)
    roles = _roles(texts, grammar)
    new = [quoted.text for quoted, role in zip(texts, roles) if role == "new"]
    kept = [quoted.text for quoted, role in zip(texts, roles) if role == "kept"]
    old = [quoted.text for quoted, role in zip(texts, roles) if role == "old"]
    gone = [text for text in old if not any(text in other for other in (*new, *kept))]
    if new:
        replaces = old or any(grammar.replaces.search(quoted.before) for quoted in texts)
        operation: Operation = "replace" if replaces else "add"
    elif old:
        operation = "delete"
    elif kept:
        operation = "keep"
    else:
        return None
    return TextTarget(operation, tuple(dict.fromkeys((*new, *kept))), tuple(dict.fromkeys(gone)))


def _is_chinese(instruction: str, texts: list[Quoted]) -> bool:
    """Return whether the words around the quoted texts are Chinese."""
    if not texts:
        return IDEOGRAPH.search(instruction) is not None
    return any(IDEOGRAPH.search(quoted.before + quoted.after) for quoted in texts)


def _roles(texts: list[Quoted], grammar: _Grammar) -> list[Role]:
    """Return what each text is, from the words around it and the last verb before it."""
    roles: list[Role] = []
    verb: Role | None = None
    replacing = False
    for quoted in texts:
        verb, replacing = _last_verb(quoted.before, grammar, verb, replacing)
        roles.append(_role(quoted, grammar, verb, replacing))
    return roles


def _last_verb(words: str, grammar: _Grammar, verb: Role | None, replacing: bool) -> tuple[Role | None, bool]:
    """Return what the last verb in some words does to a text, and whether it replaces; else as it was."""
    last = -1
    meanings: tuple[tuple[re.Pattern[str], Role, bool], ...] = (
        (grammar.adds, "new", False),
        (grammar.replaces, "old", True),
        (grammar.deletes, "old", False),
        (grammar.keeps, "kept", False),
    )
    for pattern, role, replaces in meanings:
        for match in pattern.finditer(words):
            if match.start() > last:
                last, verb, replacing = match.start(), role, replaces
    return verb, replacing


def _role(quoted: Quoted, grammar: _Grammar, verb: Role | None, replacing: bool) -> Role:
    """Return what one text is."""
    if grammar.kept_before.search(quoted.before):
        return "kept"
    if replacing and grammar.into.search(quoted.before):
        return "new"
    if grammar.new_before.search(quoted.before) or grammar.new_after.search(quoted.after):
        return "new"
    if quoted.followed and grammar.into.search(quoted.after) and (replacing or grammar.replaces.search(quoted.after)):
        return "old"
    if grammar.elsewhere_before.search(quoted.before) or grammar.elsewhere_after.search(quoted.after):
        return "elsewhere"
    if verb is None or replacing:  # moved or restyled: "change 'SALE' to green"
        return "kept"
    return verb


def _numbered_lines(instruction: str, grammar: _Grammar) -> TextTarget | None:
    """Return the lines of a list without quotation marks: "...: 1. Milk 2. Bread"."""
    listed = NUMBERED.search(instruction)
    if listed is None or not grammar.adds.search(instruction):
        return None
    lines = re.split(r"\s*\b\d\s*[.、)）]\s*", " " + listed["rest"])
    texts = [line.strip(" 。.;；,，") for line in lines]
    return TextTarget("add", tuple(text for text in texts if text))


# A user's own table


def read_targets(path: Path) -> dict[str, TextTarget]:
    """Return item -> target out of a user's table of rows {"id", "op", "must_contain", "must_not_contain"}.

    A row without any text takes its item out of the text metrics.

    Raises:
        UserError: The file cannot be read, or a row has another form.
    """
    targets = {}
    try:
        for number, row in enumerate(rows(path), start=1):
            targets[str(row.get("id"))] = _target_of(row, f"{path}: row {number}")
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    return targets


def _target_of(row: Mapping[str, Any], where: str) -> TextTarget:
    operation: Any = row.get("op")
    if operation not in OPERATIONS:
        raise UserError(f"{where}: op {operation!r}: choose one of {', '.join(OPERATIONS)}")
    if "id" not in row:
        raise UserError(f"{where}: the id of the item is missing")
    texts = []
    for name in ("must_contain", "must_not_contain"):
        given = row.get(name, [])
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise UserError(f"{where}: {name}: a list of texts is needed")
        texts.append(tuple(given))
    return TextTarget(operation, *texts)
