"""Numbers that stand without a noun: "the first image ... the second", "Image 1: a man; 2: a dress", 图1是人,2是衣服.

Such a number names a reference where it leans on a mention of its own style (digits on digits, ordinals on ordinals,
letters on letters) and stands where a noun could. A number that may name a reference, but is not sure to, is unclear.
Most numbers count or order other things: "2 birds", "the first floor", "version 2", 第一个人.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from datamodules.references.mentions import (
    AND,
    DIGIT,
    NOUNS,
    ON,
    ORDINAL,
    ORDINAL_LIST,
    PICTURE,
    PLAIN,
    Mention,
    either,
)
from datamodules.references.numerals import CIRCLED, FULL, HAN, LETTER, NUMBER, ORDINALS, STEMS, WORDS, value

Style = Literal["nth", "ordinal", "letter", "numeral", "word", "digit"]  # of a number: 第二, second, B, 二, two, 2
Verdict = Literal["mention", "unclear", "other"]


@dataclass(frozen=True)
class BareNumber:
    """A number without a noun, or a list of them."""

    start: int
    end: int
    head: str  # "the ", "第", ""
    tokens: tuple[tuple[int, int], ...]  # (start, end) of every number as written
    tail: str  # " one", "个", ""
    values: tuple[int, ...]
    style: Style

    def as_mention(self) -> Mention:
        """Return the mention that it is where it is understood."""
        return Mention(self.start, self.end, self.head, self.tokens, self.tail, self.values, span=False)


# -- What a number is, with the groups head, numbers and tail --
# Sheets that are no pictures: 第一张桌子.
FLAT = either(
    "桌 椅 床 纸 紙 脸 臉 嘴 弓 票 卡 沙发 毯 皮 凳 牌 唱片 地图 名片 网 餐 茶几 贴纸 书桌 课桌 邮票 钞 光盘 专辑 "
    "木 小 大 圆 方 办公 长"
)
STEM = STEMS[:5]
FORMS: dict[Style, str] = {
    "nth": (
        rf"(?P<head>第\s?)(?P<numbers>{PLAIN}(?:\s*(?:、|和|与|與|跟|及|[,，])\s*第?{PLAIN})*+)"
        rf"(?P<tail>\s?(?:[张張幅](?!{FLAT})|[个個副份]|))"
    ),
    "ordinal": (
        rf"(?<![\w-])(?P<head>(?:the\s+)?)(?P<numbers>(?>{ORDINAL_LIST})|(?<=the )last\b)"
        r"(?P<tail>(?:\s+ones?\b)?)(?!-\w)"
    ),
    "letter": (
        r"(?P<head>)(?P<numbers>(?<![A-Za-z0-9_'’&#+.-])(?-i:[A-H])(?![A-Za-z0-9_&#+-]|\.[A-Za-z])"
        rf"|(?<![^\s,，;；。、:：自用从在把将和与给穿戴])[{STEM}])(?P<tail>)"
    ),
    "numeral": (
        rf"(?<=[\s,，;；。、:：自用从])(?P<head>)(?P<numbers>[{HAN}])(?P<tail>)(?=\s*(?:是|为|為|：|:|的|$|[,，。;；]))"
    ),
    "word": (
        rf"(?P<head>)(?P<numbers>(?<![\w-])(?:{'|'.join(WORDS[1:])})\b|(?<=from )one\b|(?<=in[t ]o )one\b)(?P<tail>)"
    ),
    "digit": (
        r"(?<![A-Za-z0-9_#$€£¥%°+*^=/-])(?<!\d[.,:/])(?<!\s\.)(?<!第)(?<!第\s)"
        rf"(?P<head>)(?P<numbers>{DIGIT}(?:(?:{AND}|\s+to\s+|\s*[、和与與跟及或]\s*){DIGIT})*+)(?P<tail>)"
        r"(?!['’](?!s\b)|[\"”+]|-[A-Za-z]|\s?[-–—~～]\s?\d)"
    ),
}
# A quick look for each of them.
HINTS: dict[Style, str] = {
    "nth": "第",
    "ordinal": r"(?:st|nd|rd|th)\b|\blast\b",
    "letter": rf"(?<![A-Za-z])(?-i:[A-H])(?![A-Za-z])|[{STEM}]",
    "numeral": f"[{HAN}]",
    "word": r"\b(?:one|t[wh]|f[oi]|s[ie]|eig|nin|ten)",
    "digit": f"[0-9{FULL}{CIRCLED}]",
}

# -- What stands around it --
# After a number that is a name. Any other word is what the number counts or orders.
GOES_ON = either(
    "a an its his her their my your our this that it be may not also only but there here too again now back away up "
    "down off out well goes stays looks comes"
)
AFTER = rf"(?:{ON}|{GOES_ON})\b"
ENDS = r"(?:$|[^\w\s]|[\u4e00-\u9fff])"
ZH_AFTER = re.compile(r"\s*(?:$|[^\w\s]|[的是为為中里裡内內上作当當做来來])")
ZH_VERB = re.compile(r"\s*[和与與跟及或穿戴放换換有在到给給把将將要用号號合拼融叠互交对調]")
ALONE = re.compile(rf"{ZH_AFTER.pattern}|{ZH_VERB.pattern}|\s*{AFTER}", re.IGNORECASE)
NEXT_WORD = re.compile(r"\s*([A-Za-z]+|[\u4e00-\u9fff])")
THIRD_PERSON = re.compile(r"\s+[a-z]+(?<!s)s\b", re.IGNORECASE)  # "provides", and few nouns
# Before a digit or a letter that is a name. "To 2" and "by 2" may be amounts.
PREPOSITION = either(
    "and or with from of in on onto into as than using use like behind beside for over under near take keep put but not"
)
BEFORE = re.compile(
    r"(?:^|[,;.:(（，；。、：\n]|(?<=[\u4e00-\u9fff])\s|[自用从從在把将將和与與跟及给給像按照以对對为為]|"
    rf"\b{PREPOSITION}\s)\s*$",
    re.IGNORECASE,
)
AFTER_A_STOP = re.compile(r"[,;，；、。]\s*$")
FROM_ZH = re.compile(r"[自从從]\s*$")
SENTENCE_START = re.compile(r"(?:^|[.;:!?\n,]|\b(?:and|then|but))\s*$", re.IGNORECASE)
MONTH = r"(?:jan\w*|feb\w*|mar\w*|apr\w*|may|june?|july?|aug\w*|sep\w*|oct\w*|nov\w*|dec\w*)"
# Words that carry a number: "version 2", 版本2.
CARRIERS = either(
    "version ver v level size step stage phase part chapter section page volume vol episode season grade type class "
    "option room floor route road line row column lane gate exit track channel bus day week month year age aged by "
    "scale ratio iso f least most than about around exactly only another every jersey shirt mark mk world war formula "
    "boeing model series iphone windows ps playstation chanel opacity strength intensity radius gamma"
)
AMOUNTS = either("age level factor size value ratio total maximum minimum")
CARRIERS_ZH = either("版本 型号 等级 级别 步骤 方案 选项 楼 乘以 除以 倍数 强度 半径 系数 年 月")
NUMBERED = re.compile(
    rf"(?:\b(?:{MONTH}|{AMOUNTS}\s+of|{CARRIERS})\.?|{CARRIERS_ZH})\s*$",
    re.IGNORECASE,
)
COUNTED_ZH = re.compile(
    r"\s?[个個只隻条條位名件种種片朵棵辆本杯把人头匹双對对套支根颗粒块盏束串幅张張层排行列次倍米厘毫公分秒年月日岁点楼级度寸元"
    r"千百万字座栋间台架艘扇滴圈项份组步页天周小时]"
)
LABELS = re.compile(rf"(?P<number>[{CIRCLED}]|(?<![^\s;；,，。.:：、(（])\d(?=[.)）、．](?!\d)))")
# Ordinals that order no pictures: "at first", "a second", "May 1st", "first of all", "the second from the left".
NO_ORDER_BEFORE = re.compile(
    rf"(?:\b{either('at a an one per each every half split ladies')}|\d|\b{MONTH})[ -]*$", re.IGNORECASE
)
NO_ORDER_AFTER = re.compile(rf"\s+(?:of\s+all\b|to\s+none\b|but\s+not\s+least\b|of\s+{MONTH}\b)", re.IGNORECASE)
OF_A_ROW = re.compile(rf"\s+(?:of\b|from\s+(?:the\s+)?{either('left right top bottom front back')}\b)", re.IGNORECASE)
OF_A_ROW_ZH = re.compile(r"[左右上下前后](?:边|侧|面|方)?(?:起|数|往.)?的?\s*$|[排行列]\s*$")
PAINTING = re.compile(r"(?:油|壁|插|漫)?画|海报")  # a reference, or a picture that hangs in one

# -- What ordinals may lean on, or stand for instead --
SETS = re.compile(  # "two images", "merge the first and the second"
    rf"\b(?:two|three|four|both|these|[2-9])\s+(?:\w+\s+)?(?:{NOUNS}|inputs|sources)\b"
    rf"|\b{either('merge blend combine fuse mix stitch superimpose overlay')}\s+(?:the\s+)?{ORDINAL}"
    rf"\s*(?:,|and|with|into|onto|over|&)\s*(?:the\s+)?{ORDINAL}(?=\s*(?:{ENDS}|{ON}\b))",
    re.IGNORECASE,
)
SETS_ZH = re.compile(rf"[两兩二三四五2-9][张張幅个個](?:参考|輸入|输入)?{PICTURE}")
OTHER_THINGS = re.compile(  # "two dogs"
    rf"\b(?:{either('two three four five six several many both [2-9]')}|(?:couple|pair|row|group)\s+of)\s+"
    rf"(?!(?:\w+\s+)?(?:{NOUNS}|inputs|sources)\b)(?:of\s+)?[a-z]{{3,}}",
    re.IGNORECASE,
)
OTHER_THINGS_ZH = re.compile(r"(?<!第)[两兩二三四五几幾多2-9][个個只隻条條位名件人匹朵棵辆](?!的?(?:参考)?[图圖照])")


@cache
def _compiled() -> dict[Style, tuple[re.Pattern[str], re.Pattern[str]]]:
    """Return the quick look and the form of every style, compiled once."""
    patterns = {}
    for style, form in FORMS.items():
        hint = re.compile(HINTS[style], re.IGNORECASE)
        patterns[style] = (hint, re.compile(form, re.IGNORECASE))
    return patterns


def bare(prompt: str, free: str, n: int, styles: set[str]) -> Iterator[BareNumber]:
    """Yield the numbers without a noun, style by style.

    Args:
        prompt: The text to read.
        free: The prompt with its mentions and quotes blanked.
        n: The number of references; numbers above are no names of any.
        styles: The styles in which the mentions write their numbers.
    """
    taken: list[tuple[int, int]] = []
    for style, (hint, form) in _compiled().items():
        # Words and Chinese numerals are everywhere; they matter beside a mention in their style alone.
        if style in ("word", "numeral") and style not in styles:
            continue
        if hint.search(free) is None:
            continue
        for match in form.finditer(free):
            overlaps = any(match.start() < end and start < match.end() for start, end in taken)
            if overlaps:
                continue
            taken.append(match.span())
            number = _read(match, style, prompt, n)
            if any(1 <= value <= n for value in number.values):
                yield number


def _read(match: re.Match[str], style: Style, prompt: str, n: int) -> BareNumber:
    """Return what a match of a style's form says."""
    pattern = LETTER if style == "letter" else NUMBER
    begin = match.start("numbers")
    tokens = []
    values = []
    for token in pattern.finditer(match["numbers"]):
        start = begin + token.start()
        end = begin + token.end()
        tokens.append((start, end))
        values.append(value(prompt[start:end], n))
    return BareNumber(match.start(), match.end(), match["head"], tuple(tokens), match["tail"], tuple(values), style)


def styles_of(prompt: str, mentions: Sequence[Mention]) -> set[str]:
    """Return the styles in which mentions write their numbers."""
    styles: set[str] = set()
    for mention in mentions:
        written = prompt[slice(*mention.tokens[0])].lower()
        if (mention.head + written).startswith(("第", "最", "首", "末")):
            styles.add("nth")

        if written in WORDS:
            styles.add("word")
        elif written in ORDINALS or written.endswith(("st", "nd", "rd", "th")):
            styles.add("ordinal")
        elif LETTER.fullmatch(written):
            styles.add("letter")
        elif written[0].isdigit():
            styles.add("digit")
        elif written in HAN and not mention.head.startswith("第"):
            styles.add("numeral")
    return styles


class Context:
    """The reading of a prompt's bare numbers.

    Args:
        prompt: The text to read.
        free: The prompt with its mentions and quotes blanked.
        mentions: Mentions with a noun.
    """

    def __init__(self, prompt: str, free: str, mentions: Sequence[Mention]) -> None:
        self.prompt = prompt
        self.free = free
        self.named = bool(mentions)
        self.styles = styles_of(prompt, mentions)

        # "Image 1 wears ..., 2 wears ...": the word after a mention shows what may follow a bare number.
        self.following: set[str] = set()
        for mention in mentions:
            word = NEXT_WORD.match(prompt, mention.end)
            if word:
                self.following.add(word[1].lower())

        # "Image 1 person, 2 dress": labels, and no count of dresses.
        self.labelling = any(ALONE.match(prompt, mention.end) is None for mention in mentions)

    def judge(self, number: BareNumber) -> Verdict:
        """Return whether a bare number names a reference, may name one, or is something else."""
        before = self.prompt[: number.start]
        rest = self.prompt[number.end :]
        match number.style:
            case "ordinal":
                return self._ordinal(number, before, rest)
            case "nth":
                return self._nth(number, before, rest)
            case "letter":
                return self._letter(number, before, rest)
            case "numeral":
                return "mention"
            case "word":
                # "The two", "one of them": never understood without a noun.
                return "unclear" if ALONE.match(rest) else "other"
        return self._digit(number, before, rest)

    def _digit(self, number: BareNumber, before: str, rest: str) -> Verdict:
        """Judge 2, ２ and ②."""
        # "1. add a hat 2. remove the man", "version 2".
        if number.start in self._labels():
            return "other" if self.named else "unclear"
        if NUMBERED.search(before):
            return "other"

        # "put 2 on image 1", where a name may stand.
        known = "digit" in self.styles
        if self._stands_alone(rest):
            return "mention" if known and self._in_place(before, rest) else "unclear"

        # "image 1: a man, 2 a dress" and 从2中, but not "2 birds" or 2只.
        if not known or COUNTED_ZH.match(rest):
            return "other"
        if self.labelling and AFTER_A_STOP.search(before):
            return "unclear"
        return "unclear" if FROM_ZH.search(before) else "other"

    def _ordinal(self, number: BareNumber, before: str, rest: str) -> Verdict:
        """Judge "the second", "2nd" and "the first and third"."""
        # "First, ...", "at first", "the second of May", "the second of the dogs".
        adverb = len(number.tokens) == 1 and not number.head and rest.lstrip().startswith((",", "，"))
        if adverb and SENTENCE_START.search(before):
            return "other"
        if NO_ORDER_BEFORE.search(self.free[: number.start]) or NO_ORDER_AFTER.match(rest):
            return "other"
        if OF_A_ROW.match(rest):
            return "unclear"

        # "put the first on the second", unless two dogs came before.
        known = "ordinal" in self.styles or SETS.search(self.prompt) is not None
        if self._stands_alone(rest):
            return "mention" if known and not OTHER_THINGS.search(before) else "unclear"

        # "the first provides the face".
        verb = known and number.head and THIRD_PERSON.match(rest)
        return "unclear" if verb else "other"

    def _nth(self, number: BareNumber, before: str, rest: str) -> Verdict:
        """Judge 第二, 第二个 and 第二张."""
        # 第一，... orders sentences; 第一幅油画 may hang in a picture.
        measure = number.tail.strip()
        if not measure and SENTENCE_START.search(before) and re.match(r"\s*[,，、:：]", rest):
            return "other"
        if PAINTING.match(rest):
            return "unclear" if "nth" in self.styles else "other"

        # A sheet, 第二张, is a picture; anything else is one where its noun is missing.
        sheet = measure in ("张", "張", "幅")
        known = "nth" in self.styles or SETS_ZH.search(self.prompt) is not None
        if sheet:
            return "mention" if known else "unclear"
        follows = ZH_AFTER.match(rest) or (measure and ZH_VERB.match(rest)) or self._as_after_a_mention(rest)
        if not follows or OF_A_ROW_ZH.search(before):
            return "other"
        return "mention" if known and not OTHER_THINGS_ZH.search(before) else "unclear"

    def _letter(self, number: BareNumber, before: str, rest: str) -> Verdict:
        """Judge B and 乙."""
        # "Put A on B": letters alone are no names unless they count.
        if "letter" not in self.styles:
            form = _compiled()["letter"][1]
            letters = {match["numbers"] for match in form.finditer(self.free)}
            counting = letters >= {"A", "B"} or letters >= {"甲", "乙"}
            return "unclear" if counting and ALONE.match(rest) else "other"

        # "Put B on image A", where a name may stand.
        if self._stands_alone(rest):
            return "mention" if self._in_place(before, rest) else "unclear"

        # "Image A: a man, B a dress".
        article = self.prompt[number.start] == "A"
        label = self.labelling and not article and AFTER_A_STOP.search(before)
        return "unclear" if label else "other"

    def _stands_alone(self, rest: str) -> bool:
        """Return whether a number before `rest` counts nothing, so that it may be a name."""
        return ALONE.match(rest) is not None or self._as_after_a_mention(rest)

    def _in_place(self, before: str, rest: str) -> bool:
        """Return whether a name may stand between `before` and `rest`."""
        if BEFORE.search(before) is None:
            return False
        return self._as_after_a_mention(rest) or not ZH_VERB.match(rest)

    def _as_after_a_mention(self, rest: str) -> bool:
        """Return whether the next word is one that follows a mention elsewhere."""
        word = NEXT_WORD.match(rest)
        return word is not None and word[1].lower() in self.following

    def _labels(self) -> list[int]:
        """Return the starts of a list's labels, as in "1. add a hat 2. remove the man"; none where it is no list."""
        labels = list(LABELS.finditer(self.free))
        first = [value(label["number"], 0) for label in labels[:2]]
        if first != [1, 2]:
            return []
        return [label.start() for label in labels]
