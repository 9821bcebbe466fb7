"""References named with a noun in a prompt: "Figure 1", "images 1 and 2", "the second photo", 图一, 第二张图, 图B.

The grammar of a mention is head, numbers, tail. A number's pattern says what may not follow it, because most words
that only look like a mention show it there: "image 1920x1080", "image 2 times larger", 图一样, 图四周, 图片二维码.
Numbers without a noun are for `datamodules.references.bare`; `datamodules.references.prompt` puts both together.
"""

import re
from dataclasses import dataclass
from functools import cache

from datamodules.references.numerals import CIRCLED, FULL, HAN, LETTER, NUMBER, ORDINALS, STEMS, WORDS, value


@dataclass(frozen=True)
class Mention:
    """A stretch of a prompt that names references."""

    start: int
    end: int
    head: str  # "the images ", "图", "第", ""
    tokens: tuple[tuple[int, int], ...]  # (start, end) of every number as written
    tail: str  # " photo", "张图", ""
    values: tuple[int, ...]  # the numbers meant: 1, 2, 3 for "images 1-3"
    span: bool  # written as its two ends, or as "the first two images"


def either(words: str) -> str:
    """Return a regular expression for any of the words, which are parted by spaces."""
    return "(?:" + "|".join(words.split()) + ")"


# -- English --
NOUN = either(r"figure fig\.? image img\.? picture pic\.? photograph photo reference ref\.?")
NOUNS = either(r"figures figs\.? images imgs\.? pictures pics\.? photographs photos references refs\.?")
INPUT = either("input source")
HEAD = r"(?<![A-Za-z0-9_])(?:the[ ])?(?:(?:reference|ref|input|source|uploaded|provided|given|attached)[ ])*"
SIGN = r"[ \t_-]*(?:(?:no\.|number|num\.|№|#)[ ]?)?"
AND = r"(?:\s*,\s*(?:(?:and|or)\s+)?|\s+(?:and|or)\s+|\s*[&+]\s*)#?"
OPEN = r"[\[({<（【《〈]"
CLOSE = r"[\])}>）】》〉]"
DASH = r"\s*[-–—~～]\s*#?"
UNITS = either(
    "times px pixels? percent degrees? inch(?:es)? feet cm mm meters? people persons stops? shades? levels? steps? "
    "seconds? minutes? hours? days? weeks? years? megapixels?"
)
FILES = either("png jpe?g webp gif bmp tiff? heic pdf svg psd mp4")
COMPOUNDS = either("tone dimensional d point colou?r(?:ed)? way bit step sided to by up")
COUNTED = either(r"张(?![开力]) \s?倍 个(?![人性]) 寸 厘米 毫米 像素 米(?![色白黄]) 度(?!假) 次(?!要) 秒 岁")
NUMERAL = rf"(?:0?[1-9]|10|[{FULL}]{{1,2}}|[{CIRCLED}])(?![0-9A-Za-z_{FULL}])"
DIGIT = NUMERAL + (
    rf"(?!\.\d|,\d{{3}}|[ ]?[x×*][ ]?\d|:\d|/\d|[ ]?[%％°]|\.{FILES}\b|[ ]+{UNITS}\b|-{COMPOUNDS}\b|{COUNTED})"
)
# What may follow a number that could as well begin a phrase of its own: "image two cats", "image 1, 2 dogs".
ON = either(
    "and or with without to onto on in into inside from for at over under behind beside near next is are was were as "
    "but while so using together side should must can will has have shows? contains? depicts? features? becomes? that "
    "which who where wearing instead respectively then than like via through merged combined after before the "
    "gives provides serves wears holds"
)
GOES_ON = rf"(?=\s*(?:$|[^\w\s]|[\u4e00-\u9fff]|{ON}\b))"
# Capital letters alone: "image a" may go on with "bit larger". "Image A-line" and "Image A4" are other words.
LETTERED = rf"(?-i:[A-H])(?![A-Za-z0-9]|-\w){GOES_ON}"
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
NAME = rf"(?:(?:参考|參考|输入|輸入|素材)?{PICTURE}|参考|參考)(?:编号|序号)?[ ]?[#_-]?[ ]?"
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
ZH_TOO = rf"{ZH}(?![个個只条位名件种片朵棵辆本杯把]|人(?![物像脸体群]))"  # 图1和2, but 图1和2只猫
PLAIN = rf"(?:{NUMERAL}|[{HAN}](?![{HAN}]))"  # the number in 第N张图 may be followed by its measure
NTH = rf"{PLAIN}(?:\s?[张張幅个個副份]?(?:{HE}|\s*[,，]\s*)第?{PLAIN})*"
ALONE = r"(?=\s*(?:$|[^\w\s]|的|中|里|裡|内|內|上|和|与|與|跟|及|作|为|為|是|换|換|放|当|當|做))"
ZH_LAST = rf"{ZH_TOO}(?=\s*(?:$|[^\w\s]|[的中里裡内內上和与與跟及作为為是换換放当當做合拼左右组叠融]))"  # 图1,2合成
ZH_LETTER = rf"(?:[A-H](?![A-Za-z0-9位字型级座面])|[{STEMS[:5]}](?![醇醛酮烷烯苯]))"

ZH_TAIL = rf"的?(?:参考|參考|输入|輸入)?{PICTURE}(?![{NO_NAME}])"
LAST_ZH = r"最[后後]一|首|末"

# -- The forms of a mention --
# What a prompt must hold for a form: a quick look, because most prompts name no reference.
ENGLISH = r"fig|image|img|pic|photo|ref|input|source"
CHINESE = r"[图圖照相参參张張幅]"
DIGITS = rf"[0-9{FULL}{CIRCLED}]"
NUMERALS = rf"[0-9{FULL}{CIRCLED}]|\b(?:{'|'.join(WORDS)})\b"
RANKS = r"(?:st|nd|rd|th)\b|\blast\b"
CAPITALS = r"(?<![A-Za-z])(?-i:[A-H])(?![A-Za-z])"
NUMERALS_ZH = rf"[0-9{FULL}{CIRCLED}{HAN}]"
LETTERS_ZH = rf"(?<![A-Za-z])[A-H](?![A-Za-z])|[{STEMS[:5]}]"
# (kind, what a prompt must hold, its regular expression with the groups head, numbers and tail)
FORMS: list[tuple[str, tuple[str, ...], str]] = [
    (  # "the first two images"
        "count",
        (ENGLISH, r"first|last"),
        rf"(?P<head>{THE})(?P<numbers>(?:first|last)\s+(?:{'|'.join(WORDS[1:])}|[2-9]))(?P<tail>{KINDS}\s+{NOUNS}\b)",
    ),
    (  # "images 1-3"
        "span",
        (ENGLISH, DIGITS),
        rf"(?P<head>{HEAD}{NOUNS}{SIGN})(?P<numbers>{DIGIT}(?:{DASH}|\s+(?:to|through)\s+#?){DIGIT})(?P<tail>)",
    ),
    (
        "span",
        (ENGLISH, DIGITS, r"[-–—~～]"),
        rf"(?P<head>{HEAD}{NOUN}{SIGN})(?P<numbers>{DIGIT}{DASH}{DIGIT})(?P<tail>)",
    ),
    (  # "images 1 and 2"
        "list",
        (ENGLISH, NUMERALS),
        rf"(?P<head>{HEAD}{NOUNS}{SIGN})(?P<numbers>{DIGIT}(?:{AND}{DIGIT})*|{WORD}(?:{AND}{WORD})*)(?P<tail>)",
    ),
    (  # "image 1", "image one and two"
        "list",
        (ENGLISH, NUMERALS),
        rf"(?P<head>(?<!this )(?<!that )(?<!\ba )(?<!\ban ){HEAD}{NOUN}{SIGN})"
        rf"(?P<numbers>{DIGIT}(?:{AND}{DIGIT}{GOES_ON})*|{WORD}(?:{AND}{WORD})*)(?P<tail>)",
    ),
    (  # "image (1)"
        "list",
        (ENGLISH, DIGITS, OPEN),
        rf"(?P<head>{HEAD}{NOUN}[ ]?{OPEN})(?P<numbers>{DIGIT})(?P<tail>{CLOSE})",
    ),
    (  # "input 1", "source 2"
        "list",
        (r"input|source", DIGITS),
        rf"(?P<head>(?<!light )(?<!power )(?<!heat )(?<!text )(?<!user )(?<!to ){HEAD}{INPUT}s?{SIGN})"
        rf"(?P<numbers>{DIGIT}{GOES_ON}(?:{AND}{DIGIT}{GOES_ON})*)(?P<tail>)",
    ),
    (  # "the first and second photo"
        "list",
        (ENGLISH, RANKS),
        rf"(?P<head>{NO_ARTICLE}{THE})(?P<numbers>{ORDINAL_LIST}|last)"
        rf"(?P<tail>{KINDS}\s+(?:{NOUNS}|{NOUN}|{INPUT}s?{GOES_ON})\b){INSIDE}",
    ),
    (  # "the first of the two images"
        "list",
        (ENGLISH, RANKS, r"\bof\b"),
        rf"(?P<head>{NO_ARTICLE}{THE})(?P<numbers>{ORDINAL_LIST}|last)"
        rf"(?P<tail>(?:\s+one)?\s+of\s+the\s+(?:\w+\s+)?{NOUNS}\b)",
    ),
    (  # "images A and B"
        "letter",
        (ENGLISH, CAPITALS),
        rf"(?P<head>{HEAD}(?:{NOUNS}|{NOUN}){SIGN})(?P<numbers>{LETTERED}(?:{AND}{LETTERED})*)(?P<tail>)",
    ),
    (  # "image (A)"
        "letter",
        (ENGLISH, CAPITALS, OPEN),
        rf"(?P<head>{HEAD}{NOUN}[ ]?{OPEN})(?P<numbers>(?-i:[A-H]))(?P<tail>{CLOSE})",
    ),
    (  # "#1"
        "list",
        ("#",),
        rf"(?P<head>{RANKED}(?<![\w#&])#[ ]?)(?P<numbers>{DIGIT})(?P<tail>)"
        r"(?![ -]+(?:fan|dad|mom|best|seller|choice|rank|rated|pencil|hit|team|boss)\b)",
    ),
    (  # 前两张图
        "count",
        (CHINESE, "[前后後]"),
        rf"(?P<head>)(?P<numbers>[前后後][两兩{HAN[1:]}2-9])(?P<tail>[张張幅]{ZH_TAIL})",
    ),
    (  # 图1到图3
        "span",
        (CHINESE, NUMERALS_ZH, "[-–—~～至到]"),
        rf"(?P<head>{NAME})(?P<numbers>{ZH}{TO}(?:{NAME})?{ZH})(?P<tail>)",
    ),
    (  # 第1-3张图
        "span",
        ("第", NUMERALS_ZH, "[-–—~～至到]"),
        rf"(?P<head>第)(?P<numbers>{PLAIN}{TO}第?{PLAIN})(?P<tail>[张張幅]的?{PICTURE})",
    ),
    (  # 图1和2
        "list",
        (CHINESE, NUMERALS_ZH),
        rf"(?P<head>{NAME})(?P<numbers>{ZH}(?:{HE}{ZH_TOO}|[,，]{ZH_LAST})*)(?P<tail>)",
    ),
    (  # 图【1】
        "list",
        (CHINESE, NUMERALS_ZH, OPEN),
        rf"(?P<head>{NAME}{OPEN})(?P<numbers>(?:{DIGIT}|{HAN_NUMBER}))(?P<tail>{CLOSE})",
    ),
    (  # 第一和第二张图
        "list",
        ("第", NUMERALS_ZH),
        rf"(?P<head>第\s?)(?P<numbers>{NTH})(?P<tail>\s?[张張幅个個副份]?\s?{ZH_TAIL})",
    ),
    (  # 第一张
        "list",
        ("第", NUMERALS_ZH),
        rf"(?P<head>第\s?)(?P<numbers>{NTH})(?P<tail>\s?[张張幅]){ALONE}",
    ),
    (  # 最后一张图, 首张图
        "list",
        (LAST_ZH,),
        rf"(?P<head>)(?P<numbers>{LAST_ZH})(?P<tail>[张張幅]{ZH_TAIL})",
    ),
    (  # 最后一张, 首张
        "list",
        (LAST_ZH,),
        rf"(?P<head>)(?<![周期岁年])(?P<numbers>{LAST_ZH})(?P<tail>[张張]){ALONE}",
    ),
    (  # 1号图
        "list",
        ("[号號]",),
        rf"(?P<head>)(?<![第{HAN}\d])(?P<numbers>{PLAIN})(?P<tail>[号號]{PICTURE}(?![{NO_NAME}]))",
    ),
    (  # 1图的
        "list",
        (rf"{DIGITS}[图圖]",),
        rf"(?P<head>)(?<![第{HAN}\dA-Za-z.])(?P<numbers>{NUMERAL})(?P<tail>[图圖])(?=[的中里裡内內上])",
    ),
    (  # 图A和B
        "letter",
        (CHINESE, LETTERS_ZH),
        rf"(?P<head>{NAME})(?P<numbers>{ZH_LETTER}(?:{HE}{ZH_LETTER})*)(?P<tail>)",
    ),
    (  # 图(A)
        "letter",
        (CHINESE, LETTERS_ZH, OPEN),
        rf"(?P<head>{NAME}{OPEN})(?P<numbers>{ZH_LETTER})(?P<tail>{CLOSE})",
    ),
    (  # A图, 甲图
        "letter",
        (CHINESE, LETTERS_ZH),
        rf"(?P<head>)(?<![A-Za-z0-9指装盔铠])(?P<numbers>[A-H{STEMS[:5]}])(?P<tail>{PICTURE}(?![{NO_NAME}]))",
    ),
]

QUOTED = re.compile(r"\"[^\"\n]+\"|“[^”]+”|「[^」]+」|『[^』]+』|‘[^’]+’|(?<!\w)'[^'\n]+'(?!\w)")
WRITTEN = re.compile(
    r"(?:\b(?:texts?|words?|letters?|say(?:s|ing)?|reads?|reading|writ(?:e|es|ing|ten)|caption(?:ed)?|titled?|labell?(?:ed)?|label|"
    r"heading|slogan|phrase|inscription)\b|文字|字样|文本|标题|标语|文案|写|印)"
    r"(?![^\"“「'‘]*\b(?:from|in|of)\s*$)(?![^\"“「'‘]*[从在把将]$)[^\"“「『.。;；!！]{0,20}$",
    re.IGNORECASE,
)
WRITTEN_AFTER = re.compile(r"\s*(?:的)?(?:字样|文字|标语|标题|几个字|(?:is|are) written)")
ITEM = re.compile(r"(?<![A-Za-z0-9/.#])([12])[.)、．](?!\d)")
ITEM_AFTER = re.compile(r"[.)、．]\s*\S")
NAMED_BEFORE = re.compile(rf"(?:{NOUN}s?|{PICTURE}|第)[\s#]*$", re.IGNORECASE)
INSTEAD = re.compile(
    r"[\"”」』’']\s*(?:with|to|by|into|as|改为|改成|换成|换为|替换为|替换成|变成|变为|为|成)\s*$", re.IGNORECASE
)


def painted(prompt: str) -> list[tuple[int, int]]:
    """Return the (start, end) of quotes that are text to be painted: nothing in them names a reference."""
    found: list[tuple[int, int]] = []
    for quote in QUOTED.finditer(prompt):
        before = prompt[: quote.start()]
        after = prompt[quote.end() :]
        words = WRITTEN.search(before) is not None or WRITTEN_AFTER.match(after) is not None
        if words or (found and _replaces(before, prompt[found[-1][1] - 1])):
            found.append(quote.span())
    return found


def _replaces(before: str, closing: str) -> bool:
    """Return whether a quote takes the place of the painted one before it: the word "OPEN" with "SHUT".

    Args:
        before: The prompt up to the quote.
        closing: The character that closes the painted quote.
    """
    return INSTEAD.search(before) is not None and closing in before


def _enumerated(prompt: str, end: int) -> bool:
    """Return whether the number that ends at `end` is item 1 of a list: "Edit the image 1. add a hat 2. remove it"."""
    in_brackets = prompt.count("(", 0, end) > prompt.count(")", 0, end)
    if in_brackets or not ITEM_AFTER.match(prompt[end:]):
        return False

    # The labels of the list, none of which is a reference's own number.
    labels = []
    for item in ITEM.finditer(prompt):
        if not NAMED_BEFORE.search(prompt[: item.start(1)]):
            labels.append(item[1])
    return "2" in labels and "1" not in labels


@cache
def _compiled() -> tuple[list[re.Pattern[str]], list[tuple[str, tuple[int, ...], re.Pattern[str]]]]:
    """Return the quick looks, and (kind, numbers of its quick looks, pattern) of every form; compiled once."""
    hints: dict[str, int] = {}  # the number of each
    forms = []
    for kind, needed, form in FORMS:
        numbers = tuple(hints.setdefault(hint, len(hints)) for hint in needed)
        forms.append((kind, numbers, re.compile(form, re.IGNORECASE)))
    return [re.compile(hint, re.IGNORECASE) for hint in hints], forms


def named(prompt: str, n: int) -> list[Mention]:
    """Return the mentions with a noun of references 1 to n, from left to right, none overlapping.

    Where several begin at one place, the longest counts.
    """
    # The forms that the prompt may hold.
    hints, forms = _compiled()
    held = [hint.search(prompt) is not None for hint in hints]
    matches = []
    for kind, needed, form in forms:
        if all(held[number] for number in needed):
            matches += [(kind, match) for match in form.finditer(prompt)]
    if not matches:
        return []

    # Each that names a reference, and is no text to be painted.
    literals = painted(prompt)
    found: list[Mention] = []
    for kind, match in matches:
        in_a_quote = any(start <= match.start() and match.end() <= end for start, end in literals)
        mention = None if in_a_quote else _read(match, kind, prompt, n)
        if mention is not None:
            found.append(mention)

    # Of those that overlap, the first and longest.
    found.sort(key=lambda mention: (mention.start, -mention.end))
    first = []
    for i, mention in enumerate(found):
        if all(mention.start >= earlier.end for earlier in found[:i]):
            first.append(mention)
    return first


def _read(match: re.Match[str], kind: str, prompt: str, n: int) -> Mention | None:
    """Return the mention that a match is, or None when it names nothing of 1 to n."""
    begin = match.start("numbers")
    pattern = LETTER if kind == "letter" else NUMBER
    tokens = tuple((begin + token.start(), begin + token.end()) for token in pattern.finditer(match["numbers"]))
    numbers = [value(prompt[start:end], n) for start, end in tokens]

    # The numbers meant.
    if kind == "count":
        # "the first two images": the numbers from an end.
        counted = match["numbers"].lower()
        many = 2 if counted.endswith(("两", "兩")) else numbers[-1]
        first = 1 if counted.startswith(("first", "前")) else n - many + 1
        numbers = list(range(first, first + many)) if many <= n else []
        tokens = ((begin, match.end("numbers")),)
    elif kind == "span":
        # "images 3-1": all numbers between its ends.
        first, last = numbers
        step = 1 if first < last else -1
        numbers = list(range(first, last + step, step)) if max(first, last) <= n else []
    if not any(1 <= number <= n for number in numbers):
        return None

    # "Edit the image 1. add a hat 2. remove it": 1 is the label of a list.
    if numbers[-1] == 1 and not match["tail"] and _enumerated(prompt, match.end()):
        return None
    span = kind in ("count", "span")
    return Mention(match.start(), match.end(), match["head"], tokens, match["tail"], tuple(numbers), span)
