"""The layout-aware OCR reward: the order of wrongs, what does not matter, bounds, and a slow formula beside it."""

import itertools
import math
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firered_lit.rewards.layout_ocr import (
    Char,
    cells,
    covered,
    grow,
    layout_ocr_reward,
    lines,
    locate,
    matches,
    nearest_run,
    scale,
    text_score,
)


def word(text, x=300.0, y=300.0, h=20.0, width=0.6):
    """A line of characters, `width` heights wide each, from its left top corner."""
    return [Char(c, x + i * width * h, y, width * h, h) for i, c in enumerate(text)]


def moved(chars, dx=0.0, dy=0.0):
    return [replace(c, x=c.x + dx, y=c.y + dy) for c in chars]


def enlarged(chars, by, anchor):
    """As drawn with a larger font, keeping its centre, its left top corner or its left bottom corner."""
    left, top = chars[0].x, chars[0].y
    right, bottom = chars[-1].x + chars[-1].w, chars[-1].y + chars[-1].h
    ax, ay = {"centre": ((left + right) / 2, (top + bottom) / 2), "top": (left, top), "bottom": (left, bottom)}[anchor]
    return [Char(c.text, ax + (c.x - ax) * by, ay + (c.y - ay) * by, c.w * by, c.h * by) for c in chars]


COVER = [
    *word("CALCULUS", 80, 60, 48),
    *word("early transcendentals", 90, 130, 24),
    *word("James Stewart", 420, 620, 24),
    *word("with applications", 60, 700, 16),
]
CASES = [
    ("2nd Edition", "3rd Version", 0.6),
    ("OPEN", "SHED", 0.6),
    ("限时特惠", "限量发售", 1.0),
    ("Café 2026", "Caffeine!", 0.5),
]


@pytest.mark.parametrize(("target", "wrong", "width"), CASES)
@pytest.mark.parametrize("anchor", ["centre", "top", "bottom"])
@pytest.mark.parametrize("shift", [(0, 60), (0, -60), (60, 0), (-60, 0)])
@pytest.mark.parametrize("cover", [[], COVER])
def test_right_oversized_displaced_wrong_missing_in_this_order(target, wrong, width, anchor, shift, cover):
    right = word(target, width=width)
    variants = [right, enlarged(right, 3, anchor), moved(right, *shift), word(wrong, width=width), []]
    totals = [float(layout_ocr_reward([*cover, *v], target, right)) for v in variants]
    assert totals == sorted(totals, reverse=True)
    assert len({round(t, 6) for t in totals}) == 5
    assert totals[0] == pytest.approx(1)
    assert totals[1] < 0.7
    assert totals[4] == 0


@pytest.mark.parametrize("by", [1.2, 1.5, 2, 3, 5])
def test_the_larger_the_worse_and_smaller_only_by_its_place(by):
    right = word("2nd Edition")
    larger, even_larger = (
        layout_ocr_reward(enlarged(right, f, "centre"), "2nd Edition", right) for f in (by, by * 1.1)
    )
    assert 1 > larger.layout > even_larger.layout
    assert larger.text == 1
    small = [replace(c, x=c.x + c.w / 4, y=c.y + c.h / 4, w=c.w / 2, h=c.h / 2) for c in right]
    assert layout_ocr_reward(small, "2nd Edition", right).layout == pytest.approx(1)


def test_the_further_the_worse():
    right = word("SALE")
    scores = [layout_ocr_reward(moved(right, dy=d), "SALE", right) for d in (0, 2, 5, 10, 15)]
    assert [s.layout for s in scores] == pytest.approx([math.exp(-d / 20) for d in (0, 2, 5, 10, 15)])
    assert [float(s) for s in scores] == pytest.approx([0.5 + 0.5 * s.layout for s in scores])


def test_the_score_is_the_equation():
    right = word("HELLO")
    read = moved(word("HELPO"), dx=4, dy=3)
    score = layout_ocr_reward(read, "HELLO", right, text_weight=0.7, layout_weight=0.2, gate=0.4)
    assert score.text == pytest.approx(0.8)
    assert score.layout == pytest.approx(4 * math.exp(-5 / 20) / 5)
    assert float(score) == score.total == pytest.approx(0.7 * 0.8 + 0.2 * (0.4 / 0.6) * score.layout)


def test_under_the_gate_place_earns_nothing():
    right = word("ABCDEFGH")
    score = layout_ocr_reward(word("ABCDxxxx"), "ABCDEFGH", right, gate=0.5)
    assert (score.text, score.layout, score.total) == (0.5, 0.5, 0.25)
    assert layout_ocr_reward(word("ABCDxxxx"), "ABCDEFGH", right, gate=0.25).total > 0.25


def test_missing_and_spurious_characters_both_cost_text_and_layout():
    right = word("EDITION")
    exact = layout_ocr_reward(right, "EDITION", right)
    missing = layout_ocr_reward(right[:-1], "EDITION", right)
    spurious = layout_ocr_reward([*right, Char("S", right[-1].x + 12, 300, 12, 20)], "EDITION", right)
    below = layout_ocr_reward([*right, *word("OLD", 310, 322)], "EDITION", right)
    for score in (missing, spurious, below):
        assert score.text < exact.text
        assert score.layout < exact.layout
    assert missing.layout == pytest.approx(6 / 7)
    assert spurious.layout == pytest.approx(7 / 8)
    assert below.text == pytest.approx(1 - 3 / 7)


def test_other_words_of_the_picture_do_not_count():
    right = word("2nd Edition")
    for reference in (right, None, [*COVER, *right]):
        for read in (right, word("2nd Editiom")):
            alone = layout_ocr_reward(read, "2nd Edition", reference)
            assert layout_ocr_reward([*COVER[:29], *read, *COVER[29:]], "2nd Edition", reference) == alone
    assert float(layout_ocr_reward([*COVER[:29], *right, *COVER[29:]], "2nd Edition")) == 1


def test_words_right_beside_the_text_do_not_count_when_the_reference_has_them():
    right, title, author = word("2nd Edition"), word("CALCULUS", 300, 276), word("Stewart", 310, 323)
    page = [*title, *right, *author]
    assert float(layout_ocr_reward(page, "2nd Edition", page)) == pytest.approx(1)
    assert layout_ocr_reward(page, "2nd Edition", right).text < 0.5
    assert layout_ocr_reward([*title, *word("1st Edition"), *author], "2nd Edition", page).text == pytest.approx(0.7)


def test_a_reference_that_does_not_hold_the_text_is_none():
    read = word("SALE")
    assert (
        layout_ocr_reward(read, "SALE", COVER) == layout_ocr_reward(read, "SALE") == layout_ocr_reward(read, "SALE", [])
    )
    assert layout_ocr_reward(read, "SALE").layout is None
    assert layout_ocr_reward(word("SAIE"), "SALE").total == 0.75


def test_a_misread_reference_character_keeps_its_place():
    right = word("EDITION")
    misread = [replace(c, text="1") if c.text == "I" else c for c in right]
    assert layout_ocr_reward(right, "EDITION", misread).total == pytest.approx(1)
    assert [c is None for c in locate(right[:-1], "EDITION")] == [False] * 6 + [True]


def test_text_that_is_right_elsewhere_is_worth_less_than_in_place_and_more_than_nothing():
    right, far = word("SALE"), word("SALE", 800, 900)
    score = layout_ocr_reward(far, "SALE", right)
    assert score.text == 0.5
    assert score.total == 0.25
    assert layout_ocr_reward(far, "SALE", right, elsewhere=0).total == 0
    assert layout_ocr_reward(word("SAxx", 800, 900), "SALE", right).total == 0
    stays = layout_ocr_reward([*word("OLD!"), *far], "SALE", right)
    assert stays.total == 0.25


def test_the_nearest_run_of_lines_may_span_several_and_leaves_the_rest():
    page = [word("GRAND", 0, 0), word("2nd", 50, 30), word("Edition", 50, 60), word("by nobody", 0, 90)]
    run = nearest_run(page, "2ndEdition")
    assert run == [*page[1], *page[2]]
    for wanted in ("2ndEdition", "GRAND", "nothing like it", "by nobodyx", "n"):
        spans = [[c for line in page[i:j] for c in line] for i, j in itertools.combinations(range(5), 2)]
        best = min(naive("".join(c.text for c in s), wanted) for s in spans)
        assert naive("".join(c.text for c in nearest_run(page, wanted)), wanted) == best
    assert nearest_run([], "x") == []
    assert nearest_run([word("abx"), word("zzz"), word("ayc")], "abc") == word("abx")


def test_lines_are_told_apart_by_boxes_or_by_the_reader():
    split = lines(
        [*word("one"), *word("two", 600), *word("under", 300, 330), *enlarged(word("big", 300, 400), 2, "top")]
    )
    assert ["".join(c.text for c in line) for line in split] == ["one", "two", "under", "big"]
    turned = [replace(c, y=c.y + 6 * i) for i, c in enumerate(word("tilted"))]
    assert len(lines(turned)) == 1
    read = [replace(c, line=i // 2) for i, c in enumerate(word("aabb"))]
    assert [len(line) for line in lines(read)] == [2, 2]
    assert layout_ocr_reward(read, "bb").total == 1


def tilted(text, x, y, h=20.0):
    """A line that falls by half its advance: boxes of neighbouring lines overlap."""
    return [Char(c, x + 12 * i, y + 6 * i, 14, h, line=int(y)) for i, c in enumerate(text)]


def test_on_a_tilted_page_each_line_keeps_its_own_characters():
    page = [*tilted("for Unix and Linux", 300, 200), *tilted("2nd Edition", 330, 190), *tilted("Sebastopol", 260, 230)]
    assert layout_ocr_reward(page, "2nd Edition", page).total == pytest.approx(1)
    unedited = [c for c in page if c.line != 190]
    assert layout_ocr_reward(unedited, "2nd Edition", page).total == 0
    other_place = [*unedited, *tilted("2nd Edition", 500, 90)]
    assert layout_ocr_reward(other_place, "2nd Edition", page).total == 0.25


def test_text_over_another_word_stands_elsewhere_even_where_its_boxes_reach_the_place():
    right, below = word("SALE"), word("shop", 300, 320)
    over = [replace(c, text=t, y=c.y - 30, h=80) for c, t in zip(below, "SALE")]
    assert over[0].centre == below[0].centre
    assert covered(right, over) == 1
    assert layout_ocr_reward(over, "SALE", [*right, *below]).total == 0.25
    assert layout_ocr_reward(over, "SALE", right).total > 0.5


@pytest.mark.parametrize(
    ("read", "target"),
    [
        ("2ND EDITION", "2nd edition"),
        ("２ｎｄ", "2nd"),
        ("2nd  Edition", "2ndEdition"),
        ("Straße", "STRASSE"),
        ("ﬁne", "fine"),
        ("カフェ", "ｶﾌｪ"),
    ],
)
def test_folding_makes_equal(read, target):
    assert layout_ocr_reward(word(read), target).total == 1
    assert layout_ocr_reward(word(read), target, word(read)).total == pytest.approx(1)
    assert layout_ocr_reward(word(target), read).total == 1


def test_folding_is_an_option():
    assert layout_ocr_reward(word("SALE"), "Sale", fold_case=False).total == 0.25
    assert layout_ocr_reward(word("A B"), "AB", fold_space=False).total == 0.5


def test_words_with_one_box_are_equal_cells():
    right = word("Edition")
    whole = [Char("Edition", 300, 300, 7 * 12, 20)]
    assert layout_ocr_reward(whole, "Edition", right).total == pytest.approx(1)
    assert layout_ocr_reward(right, "Edition", whole).total == pytest.approx(1)


def test_cells_divide_the_line_equally():
    got = cells((10, 20, 60, 30), "ＡB 限")
    assert "".join(c.text for c in got) == "AB 限"
    assert [(c.x, c.y, c.w, c.h) for c in got] == [
        (10, 20, 15, 30),
        (25, 20, 15, 30),
        (40, 20, 15, 30),
        (55, 20, 15, 30),
    ]
    assert layout_ocr_reward(word("AB限", 10, 20, 30), "AB 限", got).text == 1


def test_boxes_of_a_picture_that_is_stretched_are_stretched_with_it():
    (box,) = scale([Char("a", 10.0, 20.0, 30.0, 40.0)], (100, 200), (300, 100))
    assert (box.x, box.y, box.w, box.h) == (5.0, 60.0, 15.0, 120.0)


@pytest.mark.parametrize("factor", [(0.5, 0.5), (2, 2), (1.5, 3)])
def test_a_picture_of_another_size_is_scaled_first(factor):
    read = [*COVER, *moved(word("2nd Editiom"), 5, 5)]
    reference, size = word("2nd Edition"), (800, 600)
    other = (int(800 * factor[0]), int(600 * factor[1]))
    elsewhere = scale(read, size, other)
    assert elsewhere[0].h == pytest.approx(read[0].h * factor[0])
    assert elsewhere[0].w == pytest.approx(read[0].w * factor[1])
    back = layout_ocr_reward(scale(elsewhere, other, size), "2nd Edition", reference)
    assert back.total == pytest.approx(layout_ocr_reward(read, "2nd Edition", reference).total)
    both = layout_ocr_reward(scale(read, size, (1600, 1200)), "2nd Edition", scale(reference, size, (1600, 1200)))
    assert both.total == pytest.approx(back.total)
    assert layout_ocr_reward(scale(read, size, (1600, 1200)), "2nd Edition", reference).total < back.total - 0.1


def test_grow_is_one_own_height_on_every_side():
    assert grow([Char("a", 10, 20, 5, 8)]) == [(2, 12, 23, 36)]
    assert covered([Char("a", 0, 0, 10, 10)], [Char("b", 5, 5, 50, 50)]) == 0.25
    assert covered([Char("a", 0, 0, 10, 10)], [Char("b", 20, 5, 50, 50)]) == 0


def test_without_text_to_show_only_silence_is_right():
    assert layout_ocr_reward([], "").total == 1
    assert layout_ocr_reward(word("x"), " ").total == 0


@pytest.mark.parametrize("box", [(0, 0, 5, 0), (0, 0, -1, 5), (float("nan"), 0, 1, 1), (0, float("inf"), 1, 1)])
def test_a_character_without_a_box_is_refused(box):
    with pytest.raises(ValueError, match="no box"):
        Char("a", *box)


@pytest.mark.parametrize("options", [{"text_weight": 0.8, "layout_weight": 0.5}, {"text_weight": -0.1}, {"gate": 1.0}])
def test_weights_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="out of range"):
        layout_ocr_reward([], "a", **options)


@cache
def naive(a: str, b: str) -> int:
    """Levenshtein by its definition."""
    if not a or not b:
        return len(a) + len(b)
    return min(naive(a[1:], b) + 1, naive(a, b[1:]) + 1, naive(a[1:], b[1:]) + (a[0] != b[0]))


@cache
def alignments(a: str, b: str, i: int = 0, j: int = 0) -> frozenset[tuple[tuple[int, int], ...]]:
    """Every set of equal pairs that a least-edit alignment can have."""
    if not a or not b:
        return frozenset([()])
    found = set()
    if naive(a, b) == naive(a[1:], b[1:]) + (a[0] != b[0]):
        pair = ((i, j),) if a[0] == b[0] else ()
        found |= {pair + rest for rest in alignments(a[1:], b[1:], i + 1, j + 1)}
    if naive(a, b) == naive(a[1:], b) + 1:
        found |= alignments(a[1:], b, i + 1, j)
    if naive(a, b) == naive(a, b[1:]) + 1:
        found |= alignments(a, b[1:], i, j + 1)
    return frozenset(found)


short = st.text("abc", min_size=1, max_size=5)


@settings(deadline=None, max_examples=200)
@given(short, short)
def test_text_and_matches_equal_the_slow_definitions(read, wanted):
    assert text_score(read, wanted) == pytest.approx(max(0, 1 - naive(read, wanted) / len(wanted)))
    assert tuple(matches(read, wanted, equal_only=True)) in alignments(read, wanted)


@settings(deadline=None, max_examples=200)
@given(short, short, st.floats(-15, 15), st.floats(-15, 15), st.floats(0.5, 1.5), st.floats(0, 0.9))
def test_the_whole_score_equals_a_slow_formula(read, wanted, dx, dy, size, gate):
    reference = word(wanted)
    seen = [replace(c, x=c.x + dx, y=c.y + dy, w=c.w * size, h=c.h * size) for c in word(read)]
    score = layout_ocr_reward(seen, wanted, reference, text_weight=0.6, layout_weight=0.4, gate=gate, elsewhere=0)

    def totals(chars):
        text, string = (
            max(0, 1 - naive("".join(c.text for c in chars), wanted) / len(wanted)),
            "".join(c.text for c in chars),
        )
        for pairs in alignments(string, wanted):
            layout = 0.0
            for i, j in pairs:
                a, b = chars[i], reference[j]
                d = math.hypot(a.x + a.w / 2 - b.x - b.w / 2, a.y + a.h / 2 - b.y - b.h / 2) / b.h
                layout += math.exp(-d) * math.exp(-max(0, math.log(a.h / b.h)))
            layout /= max(len(chars), len(wanted), 1)
            yield 0.6 * text + 0.4 * max(0, (text - gate) / (1 - gate)) * layout

    x_end, inside = reference[-1].x + 12, []
    for c in seen:
        x, y = c.x + c.w / 2, c.y + c.h / 2
        if 280 <= x <= x_end + 20 and 280 <= y <= 340:
            inside.append(c)
    possible = [*totals(inside), *totals(seen)]
    assert any(score.total == pytest.approx(t, abs=1e-9) for t in possible)
    assert score.total >= min(totals(inside)) - 1e-9


chars = st.builds(
    Char, st.sampled_from("abcé限 ﬁ"), st.floats(0, 500), st.floats(0, 500), st.floats(0, 60), st.floats(1, 60)
)


@settings(deadline=None, max_examples=200)
@given(st.lists(chars, max_size=12), st.text("abcé限 ﬁ", max_size=6), st.lists(chars, max_size=8), st.floats(0, 0.99))
def test_every_score_lies_in_the_unit_interval(read, target, reference, gate):
    for score in (layout_ocr_reward(read, target, reference, gate=gate), layout_ocr_reward(read, target)):
        assert 0 <= score.total <= 1
        assert 0 <= score.text <= 1
        assert score.layout is None or 0 <= score.layout <= 1


@settings(deadline=None, max_examples=200)
@given(st.lists(chars, min_size=1, max_size=14, unique_by=lambda c: c.centre), st.integers(0, 13))
def test_a_page_scored_against_itself_is_perfect(page, number):
    split = lines([c for c in page if c.text.strip()])
    if split:
        target = "".join(c.text for c in split[number % len(split)])
        assert layout_ocr_reward(page, target, page).total == pytest.approx(1)
