"""The reading of a prompt: references that it names, and words that may name one but are not understood.

A prompt with anything unclear is left as it is: its references keep their order and none is dropped, see
`datamodules.references.instruction`.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from datamodules.references.bare import AFTER, ENDS, BareNumber, Context, bare
from datamodules.references.mentions import ALONE, NO_NAME, NOUN, NOUNS, ON, PICTURE, QUOTED, Mention, either, named
from datamodules.references.numerals import WORDS

GRAMMAR = 2  # raised when prompts are read in another way; `prepare` notes it

BLANK = "\x00"  # in the place of what is read already: it is no word and no number


@dataclass(frozen=True)
class Reading:
    """The reading of a prompt: what it says of its references."""

    mentions: tuple[Mention, ...]  # from left to right, none overlapping
    unclear: tuple[str, ...]  # words that may name a reference and are not understood
    elliptical: bool  # a mention leans on another
    rest: str  # the prompt with mentions and quotes blanked

    @property
    def needs_all(self) -> bool:
        """True where the prompt speaks of several references at once, or of one without its number."""
        return self.elliptical or bool(_found(self.rest, [*ROLES, *SEVERAL]))


# -- Words that name a picture by its place: never understood --
SIDE = either("left right upper lower top bottom middle center centre leftmost rightmost left-hand right-hand")
KIND = r"(?:(?:reference|input|source|uploaded|provided|given)\s+)?"
NOT_INSIDE = r"(?!\s+(?:books?|frames?|albums?|gallery|walls?|editor|quality|area|plane)\b|-\w)"
THEN = rf"(?=\s*(?:{ENDS}|{ON}\b))"
PLACES = [
    # the former, the latter image
    rf"\b(?:former|latter)\b(?=\s*(?:{ENDS}|{ON}\b|ones?\b|(?:{NOUNS}|{NOUN})\b))",
    # the left image, the image on the right, the one on the left, the left one
    rf"\b(?:{SIDE}|previous|preceding|next)\s+{KIND}(?:{NOUNS}|{NOUN})\b{NOT_INSIDE}",
    rf"\b(?:{NOUNS}|{NOUN})\s+(?:on|at|in)\s+the\s+(?:far\s+)?{SIDE}\b{THEN}",
    rf"\bones?\s+(?:on|at|in)\s+the\s+(?:far\s+)?{SIDE}\b",
    rf"\bthe\s+{SIDE}\s+ones?\b",
    # "use the left as", but no sides: "to the left", "the left and right"
    r"(?<!\bto )(?<!\bon )(?<!\bat )(?<!\bof )(?<!\bin )(?<!\bby )(?<!from )(?<!toward )(?<!towards )(?<!onto )"
    r"(?<!facing )(?<!face )(?<!faces )(?<!looking )(?<!turn )(?<!both )"
    rf"\bthe\s+(?:left|right)\b(?!\s+(?:and|or)\s+(?:the\s+)?(?:left|right)\b|\s+of\b)(?=\s*(?:{ENDS}|{AFTER}))",
    # this image ... that image
    r"\bthis\s+(?:image|picture|photo|one)\b.*\bthat\s+(?:image|picture|photo|one)\b",
]
NUMBERED = [  # image 1/2, Fig. 1a, image II, image b; image one woman, but not "in the image one woman"
    rf"(?<!\bthe )(?<!\bthis )(?<!\bthat )(?<!\ban )(?<!\ba )\b{NOUN}\s(?:{'|'.join(WORDS)})\b",
    rf"\b{NOUN}\s?(?:[1-9]/[1-9](?!\d)|[1-9](?-i:[a-h])\b|(?-i:[IVX]{{2,}})\b|(?-i:[b-h])\b{THEN})",
]
PLACES_ZH = [
    "前者|后者|後者",
    # 左图, 右边的照片, 左边那张, 右边那个
    rf"[左右](?:[边邊侧側面方])?的?[那这這]?一?(?:[张張幅]?的?(?:参考|输入)?{PICTURE}(?![{NO_NAME}])"
    rf"|[张張幅]{ALONE}|[个個位]?(?<=[那这這个個位]){ALONE})",
    # 前一张图, 后面那张; 上图, 下面的图, but 加上图
    rf"[前后後][面边邊]?的?[那这這]?一?[张張幅](?:的?{PICTURE}(?![{NO_NAME}])|{ALONE})",
    r"(?:^|(?<=[\s,，;；。、:：将將把在从從和与與用按]))[上下][面方]?的?[那这這]?(?:一?[张張幅])?"
    rf"{PICTURE}(?![{NO_NAME}])",
    # 首图, 图Ⅱ, 图1/2; 这张图 ... 那张图
    rf"[首末尾][图圖](?![{NO_NAME}])|[图圖]片?\s?[ⅠⅡⅢⅣⅤ]|[图圖]\s?[1-9]/[1-9](?!\d)",
    rf"[这這]一?[张張幅]{PICTURE}.*那一?[张張幅]{PICTURE}",
]
# "The person on the left ... the dress on the right": pictures side by side, where none is named by number.
SIDES = [
    r"\bon\s+the\s+left\b.*\bon\s+the\s+right\b|\bon\s+the\s+right\b.*\bon\s+the\s+left\b",
    r"左[边邊侧側面方].*右[边邊侧側面方]|右[边邊侧側面方].*左[边邊侧側面方]",
]
# -- Words that name a picture by its part in the edit: alone they tell by the order which it is --
ROLES = [
    rf"\b{either('source reference ref original input base initial')}\s+{NOUN}\b(?!s)",
    rf"\bthe\s+(?:reference|source|input)\b{THEN}",
    r"(?<!的)[原源底][图圖](?!案|标|書|书)|原始[图圖]|原照片|(?:参考|參考|素材|输入|輸入|样)[图圖]",
]
# -- Words that name several pictures at once --
SEVERAL = [
    rf"\b(?:{NOUNS}|inputs)\b",
    rf"\b{either('each every other another remaining both all')}\s+(?:of\s+)?(?:the\s+)?(?:\w+\s+)?{NOUN}\b",
    r"\bboth\b|\beach\s+other\b|\ball\s+of\s+them\b|\bthe\s+(?:two|three|four)\b",
    r"(?:[两兩二三四五六2-9多几幾各每双雙]|所有|全部|这些|這些|那些|其余|其他|其它|另外?)的?一?[张張幅个個份]?的?"
    rf"(?:参考|输入|輸入)?{PICTURE}",
    r"两者|二者|兩者|它们|它們|[两兩二][张張幅](?!嘴|脸|桌|椅|纸|床)",
]
# A quick look for each of them.
PLACE_HINT = re.compile(
    r"former|latter|left|right|upper|lower|top|bottom|middle|cent|previous|preceding|next|this", re.IGNORECASE
)
PLACE_HINT_ZH = re.compile(r"[左右前后後上下首末尾者这這ⅠⅡⅢ/]")
NOUN_HINT = re.compile(r"fig|image|img|pic|photo|ref|input|source", re.IGNORECASE)


@lru_cache(maxsize=1024)  # an edit is read once and written in up to 15 orders
def read(prompt: str, n: int) -> Reading:
    """Read what a prompt says of references 1 to n.

    A number without a noun is understood only where nothing else in the prompt names the same reference.
    """
    mentions = named(prompt, n)
    free = _blanked(prompt, mentions)

    # Numbers without a noun.
    context = Context(prompt, free, mentions)
    leaning: list[BareNumber] = []
    unclear: list[BareNumber] = []
    ordering: list[BareNumber] = []  # "the first floor"
    for number in bare(prompt, free, n, context.styles):
        verdict = context.judge(number)
        if verdict == "mention":
            leaning.append(number)
        elif verdict == "unclear":
            unclear.append(number)
        elif number.style == "ordinal" and number.head:
            ordering.append(number)

    # "The first shows a room ... the second nearby": where ordinals stand for pictures, all of them may.
    if any(number.style == "ordinal" for number in leaning):
        unclear += ordering

    # A name that comes twice may be another thing the second time: "the first image ... the first of the dogs".
    leaning_names = [value for number in leaning for value in number.values]
    names = Counter(leaning_names)
    names.update({value for mention in mentions for value in mention.values})
    if any(names[value] > 1 for value in leaning_names):
        unclear += leaning
        leaning = []

    # Words that name a picture in another way.
    words = [prompt[number.start : number.end] for number in unclear]
    if PLACE_HINT.search(free):
        words += _found(free, PLACES)
    if PLACE_HINT_ZH.search(free):
        words += _found(free, PLACES_ZH)
    if NOUN_HINT.search(free):
        words += _found(free, NUMBERED)
    if not mentions and not leaning:
        roles = _found(free, ROLES)
        return Reading((), (*words, *roles, *_found(free, SIDES)), elliptical=False, rest=free)

    # What is understood.
    understood = [*mentions, *(number.as_mention() for number in leaning)]
    understood.sort(key=lambda mention: mention.start)
    return Reading(tuple(understood), tuple(words), elliptical=bool(leaning), rest=free)


def find(prompt: str, n: int) -> tuple[Mention, ...]:
    """Return the mentions of references 1 to n that are understood, from left to right, none overlapping."""
    return read(prompt, n).mentions


def _blanked(prompt: str, mentions: Sequence[Mention]) -> str:
    """Return the prompt with its mentions and its quotes blanked."""
    spans = [quote.span() for quote in QUOTED.finditer(prompt)]
    spans += [(mention.start, mention.end) for mention in mentions]
    for start, end in spans:
        prompt = prompt[:start] + BLANK * (end - start) + prompt[end:]
    return prompt


@cache
def _compiled(*patterns: str) -> re.Pattern[str]:
    """Return one pattern that finds what any of these does, compiled once."""
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns), re.IGNORECASE)


def _found(text: str, patterns: Sequence[str]) -> list[str]:
    return [match[0] for match in _compiled(*patterns).finditer(text)]
