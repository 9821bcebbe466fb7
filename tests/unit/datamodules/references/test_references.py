"""Prompts and their references: mentions follow their pictures all at once, or the references keep their order."""

import json
import re
from collections import Counter
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.references.instruction import droppable_references, keeps_order, reindex
from datamodules.references.numerals import HAN, LETTERS, ORDINALS, STEMS, WORDS
from datamodules.references.prompt import find, read


def table():
    """Yield (prompt, order, what it becomes) of references.txt; () and None where the references keep their order."""
    prompt = ""
    for line in (Path(__file__).parent / "references.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("> "):
            prompt = line[2:]
        elif line.strip() == "keeps":
            yield prompt, (), None
        elif line.startswith("  "):
            order, _, text = line.strip().partition(" ")
            yield prompt, tuple(map(int, order)), prompt if text == "=" else text


TABLE = list(table())
MOVED = [(prompt, order, text) for prompt, order, text in TABLE if text is not None]
KEPT = [prompt for prompt, _, text in TABLE if text is None]
# Forms that come back in another one: "the last" as an ordinal, "images 1-3" as a list.
NORMALISED = re.compile(r"\blast\b|最[后後]|首张|末张|\d\s*[-至到]\s*图?\d|(?:first|last) two|前两张")


def back(order):
    """Return the order that puts references in `order` back to their places."""
    return [order.index(number) + 1 for number in range(1, len(order) + 1)]


def names(prompt, n):
    """Return how often each reference is named, in words that are understood."""
    return Counter(value for mention in find(prompt, n) for value in mention.values if value <= n)


def test_the_table_is_large_and_holds_both_languages():
    prompts = [prompt for prompt, _, _ in TABLE]
    assert len(set(prompts)) >= 500
    chinese = [prompt for prompt in prompts if re.search(r"[\u4e00-\u9fff]", prompt)]
    assert min(len(chinese), len(prompts) - len(chinese)) > 200
    assert len(KEPT) > 80
    assert sum(len(order) > 2 for _, order, _ in MOVED) > 40


@pytest.mark.parametrize(("prompt", "order", "expected"), MOVED)
def test_every_mention_follows_its_picture(prompt, order, expected):
    n = len(order)
    assert not keeps_order([prompt], n), read(prompt, n).unclear
    assert reindex(prompt, order) == expected


@pytest.mark.parametrize("prompt", KEPT)
def test_what_is_not_understood_keeps_the_order(prompt):
    assert any(keeps_order([prompt], n) for n in (2, 3))
    assert not keeps_order([prompt], 1)
    assert keeps_order(["Put image 1 on image 2", prompt], 3), "one such prompt of a sample is enough"


@pytest.mark.parametrize("prompt", sorted({prompt for prompt, _, _ in MOVED}))
def test_in_any_order_a_prompt_names_as_many_references_and_comes_back(prompt):
    """No reference is named twice where two were; a prompt that is understood is so in every order."""
    n = max(len(order) for name, order, _ in MOVED if name == prompt)
    for order in permutations(range(1, n + 1)):
        moved = reindex(prompt, order)
        known = names(prompt, n)
        assert names(moved, n) == Counter({order.index(number) + 1: times for number, times in known.items()})
        assert not keeps_order([moved], n), read(moved, n).unclear
        again = reindex(moved, back(order))
        if NORMALISED.search(prompt):
            assert names(again, n) == known
        else:
            assert again == prompt


@pytest.mark.parametrize("prompt", sorted({prompt for prompt, _, _ in TABLE}))
def test_the_own_order_changes_no_byte(prompt):
    for n in (1, 2, 3):
        assert reindex(prompt, range(1, n + 1), n=n) == prompt


# Sentences with slots for the references, by number of slots: o ordinal, d digit, w word, L letter, z 一, s 甲, c ①.
SENTENCES = [
    "The {0:o} image is a room, the {1:o} is a chair.",
    "Use the {0:o} image as background and the {1:o} as the subject.",
    "Blend the {0:o} with the {1:o} image.",
    "Merge the {0:o} and {1:o}.",
    "Given two images, put the {0:o} behind the {1:o}.",
    "Image {0:d}: person; {1:d}: dress.",
    "Person from image {0:d}, clothes from {1:d}.",
    "Picture {0:d} is the man, {1:d} the woman.",
    "Put the hat of image {0:L} on image {1:L}, please.",
    "Image {0:L} is a man, {1:L} is a hat.",
    "photo {0:w} beside photo {1:w}.",
    "Combine images {0:d} and {1:d}, then add #{0:d}.",
    "pic. {0:d} under [image {1:d}].",
    "图{0:d}是模特,{1:d}是衣服。",
    "人物来自图{0:d}，衣服来自{1:d}。",
    "图{0:z}是模特，{1:z}是衣服。",
    "第{0:z}张图是房间，第{1:z}个是椅子。",
    "第{0:d},{1:d}张图拼在一起。",
    "图({0:d})的人放进图【{1:d}】。",
    "图{0:L}的人穿图{1:L}的衣服。",
    "图{0:s}配图{1:s}。",
    "图{0:c}是人，{1:c}是狗。",
    "{0:d}号图的车换成{1:d}号图的。",
]
MORE_SLOTS = [
    "Keep the pose of the {0:o} image but use the outfit of the {1:o} and the background of the {2:o}.",
    "Image {0:d}: man; {1:d}: hat; {2:d}: room.",
    "Use image {0:d} for the face, {1:d} for the hair and {2:d} for the light.",
    "图{0:d}是人，{1:d}是衣服，{2:d}是背景。",
    "第{0:z}张是人物，第{1:z}张是上衣，第{2:z}张是裤子。",
]
BESIDE = [  # what names no reference, and may stand beside any sentence
    "", " Add 2 birds.", " Make it 50 % larger.", " Move the cup to the left.", " Keep the first floor.", "，版本2",
    "，加2只鸟", "，放在左边", " Shot at 1920x1080, 35 mm, f/2.", ' Write "Image 2" on it.', "。第1步完成",
]  # fmt: skip


class Number(int):
    """A number that writes itself in a style."""

    def __format__(self, style):
        names = {"o": ORDINALS, "w": WORDS, "L": LETTERS, "z": HAN, "s": STEMS, "c": "①②③④⑤"}
        return names[style][self - 1] if style in names else str(int(self))


@st.composite
def sentences(draw, n):
    """Return a sentence that names different references of n, as a function of their numbers; and those numbers."""
    form = draw(st.sampled_from(SENTENCES + MORE_SLOTS * (n > 2)))
    form += draw(st.sampled_from(BESIDE))
    slots = len(set(re.findall(r"\{(\d)", form)))
    numbers = draw(st.permutations(range(1, n + 1)))[:slots]
    return lambda values: form.format(*map(Number, values)), numbers


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(2, 4))
def test_a_sentence_in_any_order_is_the_sentence_with_the_new_numbers(data, n):
    """Or the references keep their order, for what stands beside it: never half of both."""
    write, numbers = data.draw(sentences(n))
    order = data.draw(st.permutations(range(1, n + 1)))
    prompt = write(numbers)
    if keeps_order([prompt], n):
        assert "first floor" in prompt, read(prompt, n).unclear
        return
    assert reindex(prompt, order) == write([order.index(number) + 1 for number in numbers])


PIECES = st.sampled_from(
    ["the first image", "the second", "image 1", "image 2", "2", "1", "and", ", ", "; ", ": ", "is a dog", "from", "of",
     "the last", "one", "two dogs", "on the left", "the left image", "the former", "A", "B", "image A", "with", "photo",
     "3", '"2"', "#2", "1.", "2.", "①", "图1", "图二", "第一张", "第二个", "二", "是人", "，", "的", "图B", "左图",
     "2只鸟", "图3", "“图1”"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(PIECES, min_size=1, max_size=9), st.sampled_from(["", " "]), st.integers(2, 3), st.data())
def test_whatever_is_understood_stays_so_in_every_order(pieces, gap, n, data):
    """For words thrown together: as many mentions, each of them moved, and nothing that turns unclear."""
    prompt = gap.join(pieces)
    order = data.draw(st.permutations(range(1, n + 1)))
    if keeps_order([prompt], n):
        return
    moved = reindex(prompt, order)
    known = names(prompt, n)
    assert names(moved, n) == Counter({order.index(number) + 1: times for number, times in known.items()})
    assert not keeps_order([moved], n), read(moved, n).unclear


def test_ordinary_instructions_are_rarely_kept_in_order(shared_data):
    """Of real ones that name no picture by number, with "left", "2" and "first" as people use them."""
    rows = [json.loads(line) for line in (shared_data / "rededit_bench" / "redbench.jsonl").read_text().splitlines()]
    texts = [(row["a_to_b_instructions"], row["a_to_b_instructions_eng"]) for row in rows]
    assert len(texts) > 1500
    for n in (2, 3):
        assert sum(keeps_order(both, n) for both in texts) < 0.02 * len(texts)


def test_the_picture_that_is_edited_stays_where_one_prompt_does_not_name_it():
    captions = [{"en": "a dog"}, {"en": "a cat"}]
    assert droppable_references(["Put image 1 beside image 2", "Put image 2 left of image 1"], 2, captions) == (1, 2)
    assert droppable_references(["Put image 1 beside image 2", "Make image 2 red"], 2, captions) == (2,)


def test_two_references_that_are_named_in_words_keep_their_order():
    assert keeps_order(["Make the former look like the latter"], 2)
    assert not keeps_order(["Make the former look like the latter"], 1)
