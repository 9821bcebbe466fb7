"""Words that a first look misses, and the forms that words take: lines, columns, case, marks, size."""

from itertools import pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont
from rendered import paper, write

from callbacks.ocr.closeup import OVERLAP, glyphs, score_where_due, tiles
from callbacks.ocr.engine import reading_order
from callbacks.ocr.layout import Layout, replaced_layout
from callbacks.rewards.ocr import OCRReward, asks_for_case, default_engine, picture, score_images
from firered_lit.errors import UserError
from firered_lit.rewards.layout_ocr import Char, cells, divided, fold, in_place_of, joined, lines

DATA = Path(matplotlib.get_data_path())
WORDS = "2nd Edition"


def read(*images):
    return default_engine().read([picture(image) for image in images])


def counting(asked):
    """The engine, with the number of images of each call kept in `asked`."""

    def count(images):
        asked.append(len(images))
        return default_engine().read(images)

    return count


# the second look


def page():
    """Small words, turned, on a large page."""
    return write(paper((900, 700), "#d8d0c0"), WORDS, (540, 280), 9, angle=35)


def test_small_turned_words_are_found_by_a_second_look():
    image = page()
    asked = []
    (once,) = score_where_due(counting(asked), [picture(image)], [WORDS], [None], looks=())
    (twice,) = score_where_due(counting(asked), [picture(image)], [WORDS], [None])
    assert once.score.text < 0.5
    assert (twice.score.text, twice.looks) == (1.0, 1)
    x, y = np.mean([char.centre for char in twice.chars], axis=0)
    assert (x, y) == pytest.approx((540, 280), abs=12), "in the pixels of the image"


def test_images_that_are_read_at_first_sight_are_read_once():
    images = [picture(write(paper(), WORDS, (256, 144), 30)) for _ in range(3)]
    asked = []
    scored = score_where_due(counting(asked), images, [WORDS] * 3, [None] * 3)
    assert [one.looks for one in scored] == [0, 0, 0]
    assert asked == [3]


def test_a_second_look_finds_nothing_where_nothing_is():
    image = Image.open(DATA / "sample_data" / "grace_hopper.jpg").convert("RGB").crop((0, 200, 512, 600))
    once, again = (score_images([image], [WORDS], look_again=look)[0] for look in (False, True))
    assert once == again
    assert again.total < 0.5


def test_words_are_looked_for_in_their_place_when_it_is_known():
    image = page()
    place = cells((515, 274, 50, 12), WORDS)
    asked = []
    (scored,) = score_where_due(counting(asked), [picture(image)], [WORDS], [Layout(place, (700, 900))])
    assert scored.score.text == 1.0
    assert scored.score.layout > 0.2
    assert max(asked) == 1, "one enlarged place in place of all tiles"


def book(folder, name, size, turn=0):
    image = Image.open(folder / "real_edits" / "images" / f"book_{name}.jpg").convert("RGB")
    image = image.resize((round(image.width * size), round(image.height * size)), Image.Resampling.BICUBIC)
    return image.rotate(turn, Image.Resampling.BICUBIC, expand=True, fillcolor="white")


def test_a_legible_edit_of_a_small_real_book_stands_far_above_its_source(shared_data):
    source, edit = score_images([book(shared_data, name, 0.75) for name in ("source", "longcat")], [WORDS] * 2)
    assert float(edit) >= float(source) + 0.5


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("turn", [0, 25])
@pytest.mark.parametrize("size", [1, 0.75])
def test_every_legible_edit_of_a_real_book_stands_far_above_its_source(shared_data, size, turn):
    shown = [book(shared_data, name, size, turn) for name in ("source", "ours", "qwen2511", "longcat")]
    alone = [float(score) for score in score_images(shown, [WORDS] * 4)]
    assert min(alone[1:]) >= alone[0] + 0.5
    for edit in shown[1:]:
        source, own = score_images([shown[0], edit], [WORDS] * 2, [edit] * 2)
        assert float(own) >= float(source) + 0.5


@given(st.integers(1, 2000), st.integers(1, 2000), st.sampled_from([64, 320, 480]))
def test_tiles_cover_the_region_and_share_a_part_with_the_next(width, height, side):
    found = tiles((10, 20, 10 + width, 20 + height), side)
    for axis, (low, size) in enumerate(((10, width), (20, height))):
        spans = sorted({(tile[axis], tile[axis + 2]) for tile in found})
        assert (spans[0][0], spans[-1][1]) == (low, low + size)
        assert all(stop - start <= side for start, stop in spans)
        for (_, stop), (start, _) in pairwise(spans):
            assert stop - start >= side * OVERLAP - 1


# lines and columns


def sign(*rows, size=30):
    image = paper((512, 220))
    for number, row in enumerate(rows):
        write(image, row, (256, 110 + 44 * (number - (len(rows) - 1) / 2)), size)
    return image


def test_replaced_words_on_two_lines_give_a_layout_of_two_lines():
    (chars,) = read(sign("CLOSED", "SUNDAYS"))
    layout = replaced_layout(chars, "Closed Sundays", "Grand Opening")
    assert [joined(line) for line in lines(layout)] == ["Grand", "Opening"]
    two, tall, one = score_images(
        [sign("GRAND", "OPENING"), sign("GRAND OPENING", size=56), sign("GRAND OPENING")],
        ["Grand Opening"] * 3,
        [layout] * 3,
    )
    assert two.total > 0.9
    assert tall.total < 0.5, "one line, twice as tall"
    assert one.total < two.total - 0.3


def test_fewer_words_than_lines_stand_in_the_middle():
    rows = [cells((0, 0, 60, 10), "closed"), cells((0, 20, 60, 10), "sunday")]
    placed = in_place_of(rows, "Sale")
    assert joined(placed) == "Sale"
    assert {char.centre[1] for char in placed} == {15}


@given(st.lists(st.text("abc", min_size=1, max_size=9), min_size=1, max_size=8), st.integers(1, 5))
def test_a_text_divided_into_lines_is_still_that_text(words, count):
    rows = divided(" ".join(words), [1.0] * count)
    assert len(rows) == min(count, len(words))
    assert " ".join(rows) == " ".join(words)
    longest = max(map(len, rows))
    assert longest <= len(" ".join(words)), "no line is longer than all"


def test_lines_are_divided_by_the_widths_they_have_to_fill():
    assert divided("a bb ccc dddd", [1, 1]) == ["a bb", "ccc dddd"]
    assert divided("aaa bb c", [3, 1]) == ["aaa bb", "c"]
    assert divided("欢迎光临新年", [2, 1]) == ["欢迎光临", "新年"]
    assert divided("one\ntwo three", [1, 1]) == ["one", "two three"]


def test_a_layout_in_place_of_a_turned_line_runs_along_it():
    row = [Char(c, 10 * i, 10 * i, 10, 10) for i, c in enumerate("abcd")]
    placed = in_place_of([row], "xy")
    assert [char.centre for char in placed] == [pytest.approx((12.5, 12.5), abs=4), pytest.approx((27.5, 27.5), abs=4)]
    assert {char.h for char in placed} == {10}


def column(image, text, x, y, size):
    for number, character in enumerate(text):
        write(image, character, (x, y + number * size * 1.1), size)
    return image


def test_columns_of_chinese_are_read_from_right_to_left():
    image = paper((300, 400))
    column(image, "欢迎光临", 200, 80, 40)
    column(image, "新年快乐", 100, 80, 40)
    write(image, "Menu", (150, 360), 30)
    (chars,) = read(image)
    assert ["".join(c.text for c in line) for line in lines(chars)] == ["欢迎光临", "新年快乐", "Menu"]
    (score,) = score_images([image], ["欢迎光临新年快乐"])
    assert score.text == 1.0


def test_lines_that_run_upwards_are_read_from_left_to_right():
    left = np.array([(0, 90), (0, 0), (10, 0), (10, 90)], float)  # along: from (0, 90) to (0, 0)
    right = left + np.array([20, 0])
    assert reading_order([right, left], [True, True]) == [1, 0]
    assert reading_order([left, right], [False, False]) == [1, 0]


# case, marks, size


def test_upper_case_counts_where_the_edit_asks_for_it():
    assert asks_for_case("OPEN", "open", None)
    assert asks_for_case("OPEN", None, "Make the sign upper case")
    assert asks_for_case("OPEN", None, "把招牌改成大写")
    assert asks_for_case("Open", None, "Capitalize the title")
    assert not asks_for_case("OPEN", "shut", "Write OPEN on the sign")
    assert not asks_for_case("OPEN", "OPEN", "Keep the sign of the capital city")
    same = write(paper(), "open", (256, 144), 40)
    done = write(paper(), "OPEN", (256, 144), 40)
    kept = [float(s) for s in score_images([same, done], ["OPEN"] * 2, fold_case=False)]
    assert kept == [0.0, 1.0]
    folded = [float(s) for s in score_images([same, done], ["OPEN"] * 2)]
    assert folded == [1.0, 1.0]
    with pytest.raises(UserError, match="folded, kept, as_asked"):
        OCRReward(case="upper")


@pytest.mark.parametrize(
    "text",
    [
        "“Hello World”",
        "It’s ‘fine’",
        "1990–2020",
        "• Milk • Eggs",
        "½ price",
        "Wait…",
        "10 − 3",
        "A · B",
        "‣ Tea",
        "100°C",
    ],
)
def test_a_perfect_text_with_typographic_marks_scores_in_full(text):
    image = paper((512, 128))
    letters = ImageFont.truetype(DATA / "fonts" / "ttf" / "DejaVuSans.ttf", 36)
    ImageDraw.Draw(image).text((256, 64), text, "black", letters, anchor="mm")
    assert float(score_images([image], [text])[0]) == 1.0


def test_marks_have_one_form_and_words_keep_theirs():
    assert fold("“a” ‘b’ – — ½", case=False, space=True) == "\"a\"'b'--1/2"
    assert fold("十一 一 ー x*y", case=False, space=True) == "十一一ーx*y", "no dash, no bullet"


def test_the_glyph_ratio_is_of_the_text_among_many_other_words():
    def shop(size):
        image = paper((640, 480))
        for number in range(8):
            write(image, f"Other words {number}", (160, 30 + 56 * number), 18)
        return write(image, "SALE", (480, 240), size)

    (wanted,) = read(shop(30))
    layout = Layout(wanted, (480, 640))
    for size, ratio in ((30, 1), (90, 3)):
        (scored,) = score_where_due(default_engine().read, [picture(shop(size))], ["SALE"], [layout])
        height, found = glyphs(scored, (480, 640), "SALE", layout)
        assert found == pytest.approx(ratio, rel=0.15)
        assert height == pytest.approx(size * 0.9 / 480, rel=0.4)
