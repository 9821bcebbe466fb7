"""Where a prompt names its references: "Figure 1", "images 1 and 2", "the second photo", 图一, 第二张图, 图1-3.

The grammar of a mention is head, numbers, tail. Numbers carry what may not follow them, because most of what only
looks like a mention shows itself there: "image 1920x1080", "image 2 times larger", 图一样, 图四周, 图片二维码.
"""

import re
from dataclasses import dataclass
from functools import cache

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth"]
HAN = "一二三四五六七八九十"
CIRCLED, FULL = "①②③④⑤⑥⑦⑧⑨⑩", "０１２３４５６７８９"


@dataclass(frozen=True)
class Mention:
    """A place in the prompt that names references."""

    start: int
    end: int
    head: str  # "the images ", "图", "第", ""
    tokens: tuple[tuple[int, int], ...]  # (start, end) of every number as written
    tail: str  # " photo", "张图", ""
    values: tuple[int, ...]  # the numbers meant: 1, 2, 3 for "images 1-3"
    span: bool  # written as its two ends, or as "the first two images"


def _any(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


# -- English --
NOUN = _any(r"figure fig\.? image img picture pic photograph photo reference ref\.?")
NOUNS = _any(r"figures figs\.? images imgs pictures pics photographs photos references refs\.?")
HEAD = r"(?<![A-Za-z0-9_])(?:the[ ])?(?:(?:reference|ref|input|source|uploaded|provided|given|attached)[ ])*"
SIGN = r"[ \t_-]*(?:(?:no\.|number|num\.|№|#)[ ]?)?"
AND = r"(?:\s*,\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+|\s*[&+]\s*)#?"
DASH = r"\s*[-–—~～]\s*#?"
UNITS = _any(
    "times px pixels? percent degrees? inch(?:es)? feet cm mm meters? people persons stops? shades? levels? steps? "
    "seconds? minutes? hours? days? weeks? years? megapixels?"
)
FILES = _any("png jpe?g webp gif bmp tiff? heic pdf svg psd mp4")
COMPOUNDS = _any("tone dimensional d point colou?r(?:ed)? way bit step sided to by up")
COUNTED = _any(r"张(?![开力]) \s?倍 个(?![人性]) 寸 厘米 毫米 像素 米(?![色白黄]) 度(?!假) 次(?!要) 秒 岁")
NUMERAL = rf"(?:0?[1-9]|10|[{FULL}]{{1,2}}|[{CIRCLED}])(?![0-9A-Za-z_{FULL}])"
DIGIT = NUMERAL + (
    rf"(?!\.\d|,\d{{3}}|[ ]?[x×*][ ]?\d|:\d|/\d|[ ]?[%％°]|\.{FILES}\b|[ ]+{UNITS}\b|-{COMPOUNDS}\b|{COUNTED})"
)
# What may follow a number that could as well begin a phrase of its own: "image two cats", "image 1, 2 dogs".
ON = _any(
    "and or with without to onto on in into inside from for at over under behind beside near next is are was were as "
    "but while so using together side should must can will has have shows? contains? depicts? features? becomes? that "
    "which who where wearing instead respectively then than like via through merged combined after before the"
)
GOES_ON = rf"(?=\s*(?:$|[^\w\s]|[\u4e00-\u9fff]|{ON}\b))"
WORD = rf"(?:{'|'.join(WORDS)})\b{GOES_ON}"
ORDINAL = rf"(?:{'|'.join(ORDINALS)}|[1-9](?:st|nd|rd|th))\b"
ORDINAL_LIST = rf"{ORDINAL}(?:{AND}(?:the\s+)?{ORDINAL})*"
KINDS = r"(?:\s+(?:reference|input|source|uploaded|provided|given|attached))*"
THE = r"(?:(?:the|my|your|our|these)\s+)?"
NO_ARTICLE = r"(?<![\w-])(?<!\ba )(?<!\ban )(?<!other )(?<!\bhis )(?<!\bher )(?<!their )(?<!\bits )(?<!every )(?<!\d )"
INSIDE = (  # "the second photo from the left", "the first picture on the wall", "the first picture book"
    r"(?![- ]?\d|\s+from\s+(?:the\s+)?(?:left|right|top|bottom)\b|\s+on\s+(?:the|a)\s+(?:wall|shelf|desk|table)\b"
    r"|\s+(?:books?|frames?|albums?|shoot|gallery|walls?|skat\w+)\b)"
)
RANKED = (
    r"(?<!\bare )(?<!\bis )(?<!jersey )(?<!player )(?<!ranked )(?<!number )(?<!room )(?<!shirt )(?<!top )(?<!we're )"
)

# -- Chinese --
PICTURE = r"(?:[图圖]片|[图圖]像|照片|相片|(?<![地企试試意力妄构構视視版蓝藍拼])[图圖])"
NAME = rf"(?:(?:参考|參考|输入|輸入|素材)?{PICTURE}|参考|參考)(?:编号|序号)?[ ]?#?[ ]?"
NO_NAME = "书書纸紙标標案表形层層章腾鉴"  # 图书, 图纸, 图标 ...
HE = r"\s*(?:、|和|与|與|及|跟|或|以及|[&+])\s*"
TO = r"\s*(?:[-–—~～]|至|到)\s*"
# What after a numeral makes it no number of an image, by numeral: 图一样, but not 图一样式 (the style of image one).
AFTER_HAN = {
    "一二三四五六七八九十": "十 百 千 万 亿",
    "一三四五六七八九十": (
        "样(?![式子本貌]) 致 起(?!来) 定(?!位) 直(?!接) 切(?![换割成]) 般 共(?!同) 旦 律 半(?![身部]) 些 模一样 "
        "点(?!缀) 下(?![面方的半]) 侧(?![面脸影身]) 端 角(?![色度]) 边(?![缘框]) 种(?![类子]) 个(?![人性]) 键 寸 目 "
        "张(?![开嘴力大]) 幅(?!度) 只(?![保留有要是取改用需]) 条(?![纹件]) 位(?!置) 名(?![字称]) 件 层(?!次) 维 "
        "次(?!要) 份 束 堆 排 群 片(?!段) 道(?![具路]) 座(?![位椅垫]) 辆 棵 朵 匹 根(?!据) 支(?![架撑]) 圈 抹 股 副 "
        "套(?!装) 双(?![手眼腿脚臂耳人肩]) 丝 杯 瓶 本(?![身来]) 栋 间 分为 分之"
    ),
    "二": "维 次元 手 级 分之",
    "三": "色",
    "四": "周 处 季 肢 面",
    "五": "官 彩 颜",
    "六": "面体",
    "七": "彩 夕",
    "八": "卦",
    "九": "宫",
    "十": "字 分 足",
}  # fmt: skip
HAN_NUMBER = rf"[{HAN}]" + "".join(
    rf"(?!(?<=[{numerals}])(?:{'|'.join(words.split())}))" for numerals, words in AFTER_HAN.items()
)
ZH = rf"(?:{DIGIT}|{HAN_NUMBER})"
ZH_TOO = rf"{ZH}(?![只条位名件种片朵棵辆本杯把])"  # 图1和2, but 图1和2只猫
PLAIN = rf"(?:{NUMERAL}|[{HAN}](?![{HAN}]))"  # the number in 第N张图 may be followed by its measure
NTH = rf"{PLAIN}(?:\s?[张張幅个個副份]?{HE}第?{PLAIN})*"
ALONE = r"(?=\s*(?:$|[^\w\s]|的|中|里|裡|内|內|上|和|与|跟|及|作|为|是|换|換|放|当|當|做))"

LISTS = [  # regular expressions with the groups head, numbers and tail
    rf"(?P<head>{HEAD}{NOUNS}{SIGN})(?P<numbers>{DIGIT}(?:{AND}{DIGIT})*|{WORD}(?:{AND}{WORD})*)(?P<tail>)",
    rf"(?P<head>(?<!this )(?<!that )(?<!\ba )(?<!\ban ){HEAD}{NOUN}{SIGN})"
    rf"(?P<numbers>{DIGIT}(?:{AND}{DIGIT}{GOES_ON})*|{WORD}(?:{AND}{WORD})*)(?P<tail>)",
    rf"(?P<head>{HEAD}{NOUN}[ ]?\()(?P<numbers>{DIGIT})(?P<tail>\))",
    rf"(?P<head>{NO_ARTICLE}{THE})(?P<numbers>{ORDINAL_LIST}|last)(?P<tail>{KINDS}\s+(?:{NOUNS}|{NOUN})\b){INSIDE}",
    rf"(?P<head>{NO_ARTICLE}{THE})(?P<numbers>{ORDINAL_LIST}|last)(?P<tail>\s+of\s+the\s+(?:\w+\s+)?{NOUNS}\b)",
    rf"(?P<head>{RANKED}(?<![\w#&])#[ ]?)(?P<numbers>{DIGIT})(?P<tail>)"
    r"(?![ -]+(?:fan|dad|mom|best|seller|choice|rank|rated|pencil|hit|team|boss)\b)",
    rf"(?P<head>{NAME})(?P<numbers>{ZH}(?:{HE}{ZH_TOO})*)(?P<tail>)",
    rf"(?P<head>第\s?)(?P<numbers>{NTH})(?P<tail>\s?[张張幅个個副份]?\s?的?(?:参考|參考|输入|輸入)?{PICTURE}(?![{NO_NAME}]))",
    rf"(?P<head>第\s?)(?P<numbers>{NTH})(?P<tail>\s?[张張幅]){ALONE}",
    rf"(?P<head>)(?P<numbers>最后一)(?P<tail>[张張幅]的?(?:参考|參考|输入|輸入)?{PICTURE}(?![{NO_NAME}]))",
    rf"(?P<head>)(?<![第{HAN}\d])(?P<numbers>{PLAIN})(?P<tail>[号號]{PICTURE}(?![{NO_NAME}]))",
]
SPANS = [
    rf"(?P<head>{HEAD}{NOUNS}{SIGN})(?P<numbers>{DIGIT}(?:{DASH}|\s+(?:to|through)\s+#?){DIGIT})(?P<tail>)",
    rf"(?P<head>{HEAD}{NOUN}{SIGN})(?P<numbers>{DIGIT}{DASH}{DIGIT})(?P<tail>)",
    rf"(?P<head>{NAME})(?P<numbers>{ZH}{TO}(?:{NAME})?{ZH})(?P<tail>)",
    rf"(?P<head>第)(?P<numbers>{PLAIN}{TO}第?{PLAIN})(?P<tail>[张張幅]的?{PICTURE})",
]
COUNTS = [
    rf"(?P<head>{THE})(?P<numbers>(?:first|last)\s+(?:{'|'.join(WORDS[1:])}|[2-9]))(?P<tail>{KINDS}\s+{NOUNS}\b)",
    rf"(?P<head>)(?P<numbers>[前后後][两兩{HAN[1:]}2-9])(?P<tail>[张張幅]的?(?:参考|參考|输入|輸入)?{PICTURE}(?![{NO_NAME}]))",
]
# "the first image onto the second.": an ordinal that goes without its noun, once a mention has set the subject
SECOND = rf"(?P<head>(?<=\b)(?:(?<=in )|(?<=of )|(?<=to )|(?<=from )|(?<=onto )|(?<=into )|(?<=with )|(?<=and )|(?<=on ))the\s+)(?P<numbers>{ORDINAL})(?P<tail>)(?=(?:\s+one)?\s*(?:$|[.,;!?)]|'s\b))"  # noqa: E501
NUMBER = re.compile(
    rf"[0-9]+(?:st|nd|rd|th)?|[{FULL}]+|[{CIRCLED}]|{'|'.join(ORDINALS + WORDS)}|last|最后一|[{HAN}]", re.IGNORECASE
)


def value(text: str, n: int) -> int:
    """The number that a token stands for; "last" is n."""
    text = text.lower()
    for names in (WORDS, ORDINALS, list(HAN), list(CIRCLED)):
        if text in names:
            return names.index(text) + 1
    return n if text in ("last", "最后一") else int(re.sub(r"\D", "", text.translate(_ASCII)))


def spell(number: int, like: str) -> str:
    """A number in the style of the token `like`: digits, words, ordinals, Chinese numerals; its case and its zeros."""
    old = like.lower()
    if like in CIRCLED:
        return CIRCLED[number - 1]
    if like[0] in FULL:
        return str(number).translate({ord(a): b for a, b in zip("0123456789", FULL)})
    if like in HAN or like == "最后一":
        return ("第" if like not in HAN else "") + HAN[number - 1]
    if old in WORDS:
        return _cased(WORDS[number - 1], like)
    if old in ORDINALS or old == "last":
        return _cased(ORDINALS[number - 1], like)
    suffix = {1: "st", 2: "nd", 3: "rd"}.get(number, "th") if not like.isdigit() else ""
    return str(number).zfill(len(like) if like[0] == "0" else 1) + suffix


_ASCII = {ord(a): b for a, b in zip(FULL, "0123456789")}


def _cased(word: str, like: str) -> str:
    return word.upper() if like.isupper() else word.capitalize() if like[0].isupper() else word


QUOTED = re.compile(r"\"[^\"\n]+\"|“[^”]+”|「[^」]+」|『[^』]+』|‘[^’]+’|(?<!\w)'[^'\n]+'(?!\w)")
WRITTEN = re.compile(
    r"(?:\b(?:texts?|words?|letters?|say(?:s|ing)?|reads?|reading|writ(?:e|es|ing|ten)|caption(?:ed)?|titled?|labell?(?:ed)?|label|"
    r"heading|slogan|phrase|inscription)\b|文字|字样|文本|标题|标语|文案|写|印)"
    r"(?![^\"“「'‘]*\b(?:from|in|of)\s*$)(?![^\"“「'‘]*[从在把将]$)[^\"“「『.。;；!！]{0,20}$",
    re.IGNORECASE,
)
INSTEAD = re.compile(
    r"[\"”」』’']\s*(?:with|to|by|into|as|改为|改成|换成|换为|替换为|替换成|变成|变为|为|成)\s*$", re.IGNORECASE
)


def _literals(prompt: str) -> list[tuple[int, int]]:
    """Quoted stretches that are text to be painted, so nothing in them names a reference."""
    found: list[tuple[int, int]] = []
    for quote in QUOTED.finditer(prompt):
        before, after = prompt[: quote.start()], prompt[quote.end() :]
        follows = bool(found) and INSTEAD.search(before) is not None and before.rfind(prompt[found[-1][1] - 1]) >= 0
        if (
            follows
            or WRITTEN.search(before)
            or re.match(r"\s*(?:的)?(?:字样|文字|标语|标题|几个字|(?:is|are) written)", after)
        ):
            found.append(quote.span())
    return found


def _enumerated(prompt: str, end: int) -> bool:
    """Whether the number that ends at `end` is item 1 of a list: "Edit the image 1. add a hat 2. remove the man"."""
    if not re.match(r"[.)、．]\s*\S", prompt[end:]):
        return False
    return any(
        not re.search(rf"(?:{NOUN}s?|{PICTURE}|第)[\s#]*$", prompt[: item.start(1)], re.IGNORECASE)
        for item in re.finditer(r"(?<!\d)(2)[.)、．](?!\d)", prompt)
    )


@cache
def _patterns() -> list[tuple[str, re.Pattern[str]]]:
    kinds = {"count": COUNTS, "span": SPANS, "list": LISTS, "second": [SECOND]}
    return [(kind, re.compile(pattern, re.IGNORECASE)) for kind, patterns in kinds.items() for pattern in patterns]


def find(prompt: str, n: int) -> list[Mention]:
    """All mentions of references 1 to n, from left to right, none overlapping; the longest where several begin."""
    literals = _literals(prompt)
    found: list[Mention] = []
    for kind, pattern in _patterns():
        for match in pattern.finditer(prompt):
            inside = any(a <= match.start() and match.end() <= b for a, b in literals)
            if not inside and (kind != "second" or found) and (mention := _read(match, kind, prompt, n)):
                found.append(mention)
    found.sort(key=lambda mention: (mention.start, -mention.end))
    return [m for i, m in enumerate(found) if all(m.start >= other.end for other in found[:i])]


def _read(match: re.Match[str], kind: str, prompt: str, n: int) -> Mention | None:
    """The mention that a match is, or None when it names nothing of 1 to n."""
    begin = match.start("numbers")
    tokens = tuple((begin + t.start(), begin + t.end()) for t in NUMBER.finditer(match["numbers"]))
    if kind == "count":
        k = 2 if match["numbers"].endswith(("两", "兩")) else value(prompt[slice(*tokens[-1])], n)
        leading = match["numbers"].lower().startswith(("first", "前"))
        values = tuple(range(1, k + 1) if leading else range(n - k + 1, n + 1)) if k <= n else ()
        tokens = ((begin, match.end("numbers")),)
    else:
        values = tuple(value(prompt[slice(*token)], n) for token in tokens)
        if kind == "span":
            step = 1 if values[0] < values[1] else -1
            values = tuple(range(values[0], values[1] + step, step)) if max(values) <= n else ()
    if not any(1 <= v <= n for v in values) or _enumerated(prompt, match.end("numbers")):
        return None
    span = kind == "count" or (kind == "span" and len(values) > 2)  # two ends that are neighbours are a list of two
    return Mention(match.start(), match.end(), match["head"], tokens, match["tail"], values, span)
