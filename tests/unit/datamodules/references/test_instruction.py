"""Re-indexing with dropped references, and the draws of orders. The table of prompts is in test_references.py."""

import json
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.references.instruction import as_in_the_row, draw, mentions, orders, reindex
from datamodules.references.numerals import HAN, ORDINALS, WORDS
from firered_lit.errors import UserError


@pytest.mark.parametrize(
    ("prompt", "order", "captions", "expected"),
    [
        ("Put the hat of image 2 on image 1", [1], [None, "a red hat"], "Put the hat of a red hat on image 1"),
        ("Put the first photo on the second photo", [2], ["a cat", None], "Put a cat on the first photo"),
        ("Merge images 1 and 2.", [1], {2: "a dog"}, "Merge image 1 and a dog."),
        ("Merge images 1, 2 and 3.", [3, 1], {2: "a dog"}, "Merge image 2, a dog and image 1."),
        ("图1和图2", [2], {1: "一只猫"}, "一只猫和图1"),
        ("第一和第二张图", [2], {1: "一只猫"}, "一只猫和第一张图"),
        ("the cat of image 1", [1], [None, None], "the cat of image 1"),  # the dropped one is not named
        ("the cat of image 2", [2], [None, "x"], "the cat of image 1"),
        ("images 1-3", [3, 1], {2: "a dog"}, "image 2, a dog and image 1"),
        ("#2 behind #1", [1], {2: "a hill"}, "a hill behind #1"),
    ],
)
def test_a_dropped_reference_is_named_by_its_caption(prompt, order, captions, expected):
    assert reindex(prompt, order, captions) == expected


@pytest.mark.parametrize("captions", [None, [None, None], {}, {2: ""}])
def test_a_dropped_reference_without_caption_is_refused_when_it_is_named(captions):
    with pytest.raises(UserError, match="reference 2 is dropped, but the prompt names it") as error:
        reindex("the hat of image 2", [1], captions, n=2)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("order", [[1, 1], [0, 1], [3]])
def test_an_impossible_order_is_refused(order):
    with pytest.raises(UserError, match="each of the references 1 to 2 may stand in it once"):
        reindex("image 1", order, n=2)


def test_mentions_are_the_numbers_named():
    assert mentions("images 1-3 and 图四, not image 5 or version 2", 4) == {1, 2, 3, 4}
    assert mentions("the last photo", 3) == {3}
    assert mentions("前两张图", 3) == {1, 2}
    assert mentions("2 images", 3) == set()


FRAGMENTS = st.sampled_from(
    ["image {}", "Figure {}", "图{}", "第{}张图", "#{}", "images {} and {}", "图{}和{}", "the {o} photo", "图{h}的",
     "第{h}张图片", "a cat", "version 2", "图一样", "把", " on ", "，", ". ", "image {w},", "“图{}”"]
)  # fmt: skip


@st.composite
def prompts(draw_from, n):
    """Sentences of mentions and other words, with numbers from 1 to n + 1."""
    out = []
    for fragment in draw_from(st.lists(FRAGMENTS, min_size=1, max_size=8)):
        number = draw_from(st.integers(1, n + 1))
        styles = {"o": ORDINALS[number - 1], "h": HAN[number - 1], "w": WORDS[number - 1]}
        out.append(fragment.format(*[number] * fragment.count("{}"), **styles))
    return " ".join(out)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(2, 4))
def test_permuting_and_permuting_back_gives_the_prompt_again(data, n):
    prompt, order = data.draw(prompts(n)), data.draw(st.permutations(range(1, n + 1)))
    back = [order.index(place) + 1 for place in range(1, n + 1)]
    moved = reindex(prompt, order)
    assert reindex(moved, back) == prompt
    assert mentions(moved, n) == {order.index(number) + 1 for number in mentions(prompt, n)}


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_two_permutations_are_their_product(data):
    prompt = data.draw(prompts(3))
    a, b = data.draw(st.permutations([1, 2, 3])), data.draw(st.permutations([1, 2, 3]))
    assert reindex(reindex(prompt, a), b) == reindex(prompt, [a[i - 1] for i in b])


def test_real_instructions_for_one_image_are_never_touched(shared_data):
    """By the identity, by definition; and they name no numbered reference, so by a swap only if a look-alike slips."""
    rows = [json.loads(line) for line in (shared_data / "rededit_bench" / "redbench.jsonl").read_text().splitlines()]
    texts = [row[key] for row in rows for key in ("a_to_b_instructions", "a_to_b_instructions_eng")]
    assert len(texts) > 3000
    for text in texts:
        for order in ([1], [1, 2], [1, 2, 3], [2, 1], [4, 3, 2, 1]):
            assert reindex(text, order) == text


def test_draws_are_a_function_of_the_global_batch():
    assert draw(0, 1, 2, 3, (1, 3)) == draw(0, 1, 2, 3, (1, 3))
    assert len({draw(0, 0, step, 3) for step in range(200)}) == 6
    assert len({draw(seed, 0, 0, 3) for seed in range(200)}) == 6
    assert len({draw(0, epoch, 0, 3) for epoch in range(200)}) == 6


@pytest.mark.parametrize(("n", "droppable"), [(1, (1,)), (2, ()), (2, (1, 2)), (3, (2,)), (3, (1, 2, 3))])
def test_draws_reach_every_order_and_no_other(n, droppable):
    drawn = {draw(0, 0, step, n, droppable, drop=0.5) for step in range(3000)}
    assert drawn == set(orders(n, droppable))
    assert len(orders(n, droppable)) == len(drawn)
    assert all(order and set(range(1, n + 1)) - set(order) <= set(droppable) for order in drawn)


def test_numbers_of_orders_and_shares_of_draws():
    assert [len(orders(n, range(1, n + 1))) for n in (1, 2, 3)] == [1, 4, 15]
    drawn = [draw(0, 0, step, 2, (1,), drop=0.2) for step in range(10_000)]
    assert sum(len(order) == 1 for order in drawn) / 10_000 == pytest.approx(0.2, abs=0.015)
    assert sum(order[0] == 1 for order in drawn if len(order) == 2) / 8000 == pytest.approx(0.5, abs=0.02)
    assert set(orders(3)) == set(permutations([1, 2, 3]))


def test_a_prompt_without_references_stays_as_it_is():
    """As of a text-to-image sample, which is mined and written like any other."""
    for prompt in ("A red square", "Image 1 of a series", ""):
        assert reindex(prompt, (), n=0) == reindex(prompt, ()) == prompt
    meta = {"references": [], "instructions": {"original/en": "A red square"}}
    assert as_in_the_row(meta) == ([], meta["instructions"])
