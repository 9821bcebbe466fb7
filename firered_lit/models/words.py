"""A frozen text encoder without weights: a small dictionary tells what words mean, a small grammar what they are asked.

For the small world that a CPU can learn. It tells instructions apart in English and Chinese, gives words of one meaning
one vector whatever the language, colours their colour, spells what stands in quotation marks, and says with every word
what is spoken of, what it shall become and where (`roles`), as a language model's vectors do. It does not look at the
references: which picture is which, the transformer sees by their places in the sequence, and the instruction says
by "Picture 2" or 图2.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageColor
from torch import Tensor

from ..draws import generator

if TYPE_CHECKING:
    from .family import Base

VERSION = 4  # of the vectors: another one makes what is cached stale
NAME = "WordEncoder"  # in place of the text encoder's class name in text_encoder/config.json
MEANING, COLOUR, BESIDE, GIST = 92, 4, 32, 64  # numbers of a token: its own, its colour's, each of 3 neighbours', all
SHAPE, TEXTURE, SIZE, PLACE = 8, 4, 2, 3
THING = COLOUR + SHAPE
NUMBERS = ("1", "2", "3")  # of pictures
ROLES = THING + TEXTURE + THING + SIZE + PLACE + len(NUMBERS) * (1 + PLACE)
WIDTH = MEANING + COLOUR + 3 * BESIDE + GIST + ROLES
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
LOUD = 4.0  # a colour beside the other numbers of its word
QUOTED = re.compile('["“]([^"“”]*)["”]')
END = "</s>"
RULER = 8  # tokens before every prompt, one per row and column of a canvas: what pictures find their own places by

# meaning: words, in both languages. A Chinese word of several meanings has them in order.
DICTIONARY = """
red: 红色 红 | green: 绿色 绿 | blue: 蓝色 蓝 | yellow: 黄色 黄 | purple: 紫色 紫 | orange: 橙色 橙 | white: 白色 白
black: 黑色 黑 | grey: gray 灰色 | colour: color 颜色 色彩 | circle: 圆形 | square: 方块 | triangle: 三角形
diamond: 菱形 | cross: 十字 | ring: 圆环 | striped: 条纹 | dotted: 圆点 | small: 小 | large: big 大
top left: 左上角 | top right: 右上角 | bottom left: 左下角 | bottom right: 右下角 | at: in 在 | the: 把 将 给
a: an 一个 | add: put place 添加 加上 放到 放 | remove: delete take 移除 删除 去掉 去除 | replace: swap 代替
into: with to 替换成 换成 变成 改成 改为 替换为 涂成 染成 调得 变 用 | make: turn 让 使其 | background: 背景
picture: photo image 图片 画面 照片 图 | object: 物体 | move: shift drag 移动到 移到 到 | extract: cut 抠出 提取
keep: leave 保留 保持不变 不变 | only: 只 | rest: else 其他地方 其余 | word: 文字 | sign: 招牌 | write: say 写着 应写 写
not: 而不是 不是 | empty: 空 | bright: brighter 更亮 | dark: darker 更暗 | contrast: 对比度 | higher: 更高
paler: 更淡 | old sepia: 复古棕色 | black and white: 黑白 | film negative: 底片 | mosaic: 马赛克 | style: 风格
like: 像 | noise: 噪点 | blur: 模糊 | scratches: 划痕 | restore: repair 修复 还原 | flip: 翻转
horizontally: 水平 | vertically: 垂直 | please: 请 | person: 人 | smile: 微笑 | frown: 难过 | hair: 头发 | close: 闭上
eyes: 眼睛 | glasses: 眼镜 | lipstick: 口红 | cheeks: 脸颊 | blush: 腮红 | spots: 斑点 | skin: 皮肤
face: portrait 面部 肖像 | beauty: retouch 美化
"""


def _dictionary() -> dict[str, tuple[str, ...]]:
    """word -> its meanings."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in DICTIONARY.replace("\n", "|").split("|"):
        meaning, _, words = entry.strip().partition(":")
        found |= {word: tuple(meaning.split()) for word in words.split()}
    return found


MEANINGS = _dictionary()
NOT = ("not", "")
COLOURS = frozenset(ImageColor.colormap)
_KINDS = dict.fromkeys(SHAPES, "shape") | dict.fromkeys(("striped", "dotted"), "texture")
_KINDS |= dict.fromkeys(("small", "large"), "size")
CHINESE = "|".join(sorted((word for word in MEANINGS if not word.isascii()), key=len, reverse=True))
TOKEN = re.compile(rf"[a-z]+|\d|{CHINESE}|[\u3400-\u9fff]")


class WordConditioner:
    """The interface of `Conditioner`: prompts and references in, embeddings (T, WIDTH) out."""

    width = WIDTH

    def __init__(self, base: "Base", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.device, self.dtype = torch.device(device), dtype

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[str], references: Sequence[Sequence[Image.Image]], condition_area: int
    ) -> list[Tensor]:
        """Embeddings (T_i, WIDTH) of each prompt; the references and their area are not looked at."""
        return [embed(prompt).to(self.device, self.dtype) for prompt in prompts]


def embed(prompt: str) -> Tensor:
    """(T, WIDTH): the ruler, one row per word, digit and quoted letter, and one for the end.

    A row holds the word's meaning, its colour if it names one, the two words before and the one after, the gist, the
    sum of all words, and their `roles`. The transformer's positions are relative; the ruler, which stands at the same
    places before every prompt, tells a token of a picture where it is.
    """
    items = tokens(prompt)
    gist = torch.stack([_vector(word, GIST) for word, _ in items]).sum(0) / len(items) ** 0.5
    asked = roles([word for word, place in items if not place])
    rows = [_vector(f"<{i}>", WIDTH) for i in range(RULER)]
    words = ["<s>", "<s>", *(word for word, _ in items), "<e>"]
    for i, (word, place) in enumerate(items):
        quoted = next((k for k in range(i, -1, -1) if not items[k][1]), -1)  # the word before the quotation
        beside = (words[quoted + 2], place, '"') if place else (words[i], words[i + 1], words[i + 3])
        neighbours = [_vector(f"{'<' * k}{other}", BESIDE) for k, other in enumerate(beside)]
        rows.append(torch.cat([_vector(word, MEANING), _colour(word), *neighbours, gist, asked]))
    return torch.stack(rows)


def tokens(prompt: str) -> list[tuple[str, str]]:
    """(meaning, place): the place of a quoted letter is "new" or "old" and which letter, of other words empty. The last
    quotation is what shall be written, unless it follows a "not"."""
    found: list[tuple[str, str]] = []
    start, quotes = 0, list(QUOTED.finditer(prompt))
    for number, quote in enumerate(quotes):
        between = _words(prompt[start : quote.start()])
        after = _words(prompt[quote.end() : quotes[number + 1].start()]) if number + 1 < len(quotes) else []
        old = (NOT in between) if number + 1 == len(quotes) else (NOT not in after)
        found += between
        found += [(f'"{letter}', f"{'old' if old else 'new'} {i}") for i, letter in enumerate(quote[1])]
        start = quote.end()
    return [*found, *_words(prompt[start:]), (END, "")]


def roles(meanings: Sequence[str]) -> Tensor:
    """What the words of a request are to each other, (ROLES,): the thing spoken of (colour, shape, texture), what is
    new (colour, shape, size), the place, and of each numbered picture if it is the ground and the place of its thing.

    Zeros for what is not said. A thing ends with its shape; a colour without one is new, as is the second thing, and
    the only one where something is added. In "use A to replace B" the first is new. A picture's thing goes to the place
    that is named before the next picture; the picture without one is the ground.
    """
    things: list[tuple[int, dict[str, str]]] = []  # (where it begins, its words by kind)
    bare, begun = "", {}
    for i, word in enumerate((*meanings, END)):
        kind = "colour" if word in COLOURS else _KINDS.get(word, "")
        if kind == "shape":
            things.append((i - len(begun), begun | {"shape": word}))
        bare = begun["colour"] if "colour" in begun and kind not in ("shape", "colour", "texture", "size") else bare
        begun = begun | {kind: word} if kind in ("colour", "texture", "size") else {}
    pictures, place = _placed(meanings)
    subject, new = {}, {}
    if pictures.any():
        things = []
    if things:
        first, second = things[0], things[1] if len(things) > 1 else None
        if second and "into" in meanings[: first[0]] and "replace" in meanings[first[0] : second[0]]:
            first, second = second, first
        if second is None and "add" in meanings:
            new = first[1]
        else:
            subject, new = first[1], second[1] if second else {}
    given = _colour(new.get("colour", bare))
    parts = [_colour(subject.get("colour", "")), _named(subject.get("shape"), SHAPE)]
    parts += [_named(subject.get("texture"), TEXTURE), given, _named(new.get("shape"), SHAPE)]
    return torch.cat([*parts, _named(new.get("size"), SIZE), place, pictures.flatten()])


def _placed(meanings: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Of each picture (NUMBERS, 1 + PLACE) whether it is the ground, and where its thing goes; the place (PLACE,)."""
    pictures, last, numbers = torch.zeros(len(NUMBERS), 1 + PLACE), torch.zeros(PLACE), []
    for word, after in pairwise(meanings):
        if word == "picture" and after in NUMBERS:
            numbers.append(int(after) - 1)
            pictures[numbers[-1], 0] = 2.0
        if word in ("top", "bottom") and after in ("left", "right"):
            last = torch.tensor([2.0, 4.0 * (after == "right") - 2, 4.0 * (word == "bottom") - 2])
            if numbers:
                pictures[numbers[-1]] = torch.cat([torch.zeros(1), last])
    return pictures, torch.zeros(PLACE) if numbers else last


def _named(word: str | None, size: int) -> Tensor:
    return torch.zeros(size) if word is None else _vector(f"={word}", size)


def _words(text: str) -> list[tuple[str, str]]:
    return [(meaning, "") for word in TOKEN.findall(text.lower()) for meaning in MEANINGS.get(word, (word,))]


@lru_cache(maxsize=1 << 14)
def _vector(token: str, size: int) -> Tensor:
    return torch.randn(size, generator=generator("word", token, size))


@lru_cache(maxsize=1 << 10)
def _colour(word: str) -> Tensor:
    """Red, green and blue and their square, LOUD times, of a word that names a colour to the web; else zeros."""
    if word not in COLOURS:
        return torch.zeros(COLOUR)
    rgb = torch.tensor(ImageColor.getrgb(word)[:3]) / 127.5 - 1
    return LOUD * torch.cat([2 * rgb, rgb.square().sum(0, keepdim=True)])
