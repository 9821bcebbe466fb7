"""Scores of answers: own cases for every rule of the official parsers, and the shared golden cases where they are."""

import itertools
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from firered_lit.errors import UserError
from firered_lit.evaluation import text_scores
from firered_lit.evaluation.scores import (
    GEDIT,
    IMGEDIT,
    REDEDIT,
    ItemScore,
    JudgedItem,
    gedit_item,
    gedit_scores,
    imgedit_score,
    judged_items,
    line_scoring,
    macro_mean,
    oneig_text_score,
    rededit_score,
    score_item,
    score_table,
    score_tables,
    scores_by_category,
    weighted_text_score,
)

COUNTS = ("expected", "scored", "missing", "refused", "unparsed")


def three(first: int, second: int, third: int) -> str:
    return f"Brief reasoning: as asked.\nObedience: {first}\nLooks: {second}\nDetail: {third}"


# Lines: REDEdit-Bench and ImgEdit


LINES = {
    "three criteria": (three(5, 4, 4), 4.33, 4.33),
    "later scores may exceed the first": (three(1, 5, 5), 3.67, 3.67),
    "two spaces before a number hide it from ImgEdit": ("A:  1\nB: 4\nC: 4", 3.0, 4.0),
    "a space after a number goes with the line's ends": ("A: 1 \nB: 4\nC: 4", 3.0, 3.0),
    "a tab before a number": ("A: \t1\nB: 4", 2.5, 4.0),
    "two colons on a line": ("Score: Looks: 5\nB: 2", 2.0, 2.0),
    "no space after the colon": ("A:5\nB: 2", 2.0, 2.0),
    "a fullwidth colon": ("A：5\nB: 2", 2.0, 2.0),
    "of five": ("A: 5/5\nB: 2", 2.0, 2.0),
    "a negative number": ("A: -5\nB: 2", 2.0, 2.0),
    "bold numbers": ("A: **5**\nB: **5**\nC: **5**", None, None),
    "bold names": ("**A**: 5\n**B**: 4\n**C**: 5", 4.67, 4.67),
    "a number in the reasoning": ("Brief reasoning: 3\nA: 5", 4.0, 4.0),
    "Arabic-Indic digits": ("A: ٣\nB: 4", 3.5, 3.5),
    "a status code": ("Error: 503", 503.0, 503.0),
    "zero": ("A: 0\nB: 0\nC: 0", 0.0, 0.0),
    "half to even, as floats round": ("A: 1\nB: 1\nC: 1\nD: 1\nE: 1\nF: 1\nG: 1\nH: 2", 1.12, 1.12),
    "lines of other line ends": ("A: 1\x85B: 2\u2028C: 3\vD: 4", 2.5, 2.5),
    "words alone": ("I cannot help with that.", None, None),
    "empty": ("", None, None),
    "a superscript, at which the official code stops": ("A: ²\nB: 4", None, None),
    "a number beyond all floats": ("A: " + "9" * 400, None, None),
    "a number beyond what Python reads": ("A: " + "9" * 5000, None, None),
    "no answer": (None, None, None),
    "a stored error": ({"error": "timeout"}, None, None),
}


@pytest.mark.parametrize(("answer", "rededit", "imgedit"), LINES.values(), ids=LINES)
def test_lines_score_as_the_official_parsers_score_them(answer, rededit, imgedit) -> None:
    assert rededit_score(answer) == rededit
    assert imgedit_score(answer) == imgedit


@settings(max_examples=40)
@given(st.lists(st.integers(0, 99), min_size=1, max_size=9))
def test_a_line_score_is_the_rounded_mean_of_its_numbers(numbers) -> None:
    answer = "\n".join(f"Criterion {index}: {number}" for index, number in enumerate(numbers))
    assert rededit_score(answer) == imgedit_score(answer) == round(sum(numbers) / len(numbers), 2)


@settings(max_examples=40)
@given(st.text())
def test_no_text_breaks_a_parser(answer) -> None:
    for parser in (rededit_score, imgedit_score):
        score = parser(answer)
        assert score is None or math.isfinite(score)
    assert gedit_scores(answer) is None or isinstance(gedit_scores(answer), list)


# JSON: GEdit-Bench


JSON = {
    "an object": ('{"score": [8, 9], "reasoning": "fine"}', [8, 9]),
    "words around it": ('Sure. {"score": [1, 2]} Anything else?', [1, 2]),
    "a fence": ('```json\n{"score": [3, 4],\n "reasoning": "a"}\n```', [3, 4]),
    "delimiters": ('||V^=^V||\n{"score": [3, 4]}\n||V^=^V||', [3, 4]),
    "braces outside of delimiters": ('{no} ||V^=^V||{"score": [3, 4]}||V^=^V|| {no}', [3, 4]),
    "one delimiter only": ('||V^=^V||{"score": [3, 4]}', [3, 4]),
    "nothing between delimiters": ("||V^=^V||||V^=^V||", None),
    "a list between delimiters, at which the official code stops": ("||V^=^V||[3, 4]||V^=^V||", None),
    "a scalar": ('{"score": 7}', [7]),
    "a decimal": ('{"score": [7.5, 8]}', [7.5, 8]),
    "text scores are passed on": ('{"score": ["7", "8"]}', ["7", "8"]),
    "one text score": ('{"score": "7"}', ["7"]),
    "beyond the scale": ('{"score": [12, -9]}', [12, -9]),
    "null": ('{"score": null}', [None]),
    "an unquoted scalar is repaired": ("{score: 7, reasoning: fine}", [7]),
    "an unquoted decimal is repaired": ("{score: -7.5}", [-7.5]),
    "an unquoted list is not": ("{score: [7, 8], reasoning: fine}", None),
    "single quotes": ("{'score': [7, 8]}", None),
    "a trailing comma": ('{"score": [7, 8],}', None),
    "a carriage return within text": ('{"score": [7, 8], "reasoning": "a\r\nb"}', None),
    "a newline within text": ('{"score": [7, 8], "reasoning": "a\nb"}', [7, 8]),
    "a newline within a number": ('{"score": [1\n0, 8]}', [10, 8]),
    "another key": ('{"scores": [7, 8]}', None),
    "two objects": ('{"score": [7, 8]} {"score": [1, 1]}', None),
    "cut short": ('{"score": [7, 8], "reasoning": "it', [7, 8]),
    "cut within the list": ('{"score": [7, 8', None),
    "a list": ("[6, 0]", [6, 0]),
    "a list among words": ("Scores: [6,0].", [6, 0]),
    "a list of two spaces": ("[6,  0]", None),
    "a list of three": ("[6, 0, 1]", None),
    "a list of decimals": ("[6.5, 0]", None),
    "a list of large numbers": ("[60, 0]", [60, 0]),
    "a list with a leading zero, at which the official code stops": ("[06, 0]", None),
    "a number": ("7", [7]),
    "a number and a newline": (" 10\n", [10]),
    "a number off the scale": ("11", None),
    "a decimal number": ("7.5", None),
    "a limit of requests": ("rate_limit_exceeded", None),
    "a refusal": ("I'm sorry, I can't help with that.", None),
    "closing before opening": ("} {", None),
    "empty": ("", None),
    "no answer": (None, None),
    "nested beyond what Python reads": ("{" + "[" * 100_000, None),
}


@pytest.mark.parametrize(("answer", "scores"), JSON.values(), ids=JSON)
def test_json_answers_are_read_as_the_official_parser_reads_them_at_its_first_attempt(answer, scores) -> None:
    assert gedit_scores(answer) == scores


@pytest.mark.parametrize("answer", ["{" + '"' * 100_000 + "}", "{" + "a" * 100_000 + "}", '{"a":' * 4000 + "}"])
def test_a_hostile_answer_is_read_in_a_moment(answer) -> None:
    start = time.process_time()
    assert gedit_scores(answer) is None
    assert time.process_time() - start < 2


ITEMS = [
    ([8, 9], [7, 6], (8, 6, math.sqrt(48))),
    ([7], [7], (7, 7, 7.0)),
    ([12, 11], [10, 10], (11, 10, math.sqrt(110))),
    ([-1, 5], [-4, 5], (-1, -4, 2.0)),
    ([-1, 5], [4, 5], None),
    ([], [4, 5], None),
    (["7", "8"], [4, 5], None),
    (["7"], ["8"], None),
    ([None], [4, 5], None),
    ([math.nan, 5], [4, 5], None),
    ([math.inf], [4, 5], None),
    ([10**400], [4, 5], None),
]


@pytest.mark.parametrize(("semantics", "quality", "expected"), ITEMS)
def test_an_item_of_gedit_has_the_lowest_scores_and_their_geometric_mean(semantics, quality, expected) -> None:
    values = gedit_item(semantics, quality)
    assert (values and tuple(values.values())) == expected


def test_an_item_of_gedit_takes_the_first_attempt_whose_two_answers_can_be_read() -> None:
    good = '{"score": [6, 7]}'
    late = JudgedItem("a", "text", (("sorry", '{"score": [9, 9]}'), (good, '{"score": [2, 2]}')))
    score = score_item(GEDIT, late, "official")
    assert score.values == {"SC": 6, "PQ": 2, "O": math.sqrt(12)}
    twice = JudgedItem("a", "text", ((good, good), ('{"score": [9, 9]}',) * 2))
    assert score_item(GEDIT, twice, "official").values["O"] == 6
    again = JudgedItem("a", "text", (("sorry", good),) * 3)
    assert score_item(GEDIT, again, "official").state == "unparsed"


# Modes


def scored(scoring, mode, *answers, **facts) -> ItemScore:
    attempts = (answers,) if answers else ()
    return score_item(scoring, JudgedItem("a", "add", attempts, **facts), mode)


@pytest.mark.parametrize(
    "answer",
    [three(6, 5, 5), three(0, 5, 5), "A: 5\nB: 5", "Error: 429", three(5, 5, 5) + "\nE: 5", "A: 4.5\nB: 4\nC: 4", ""],
)
@pytest.mark.parametrize("scoring", [REDEDIT, IMGEDIT])
def test_a_strict_line_answer_holds_three_numbers_of_one_to_five(scoring, answer) -> None:
    score = scored(scoring, "strict", answer)
    assert (score.state, score.values) == ("unparsed", {"score": 1.0})


@pytest.mark.parametrize(
    "bad", ["[11, 5]", "7", '{"score": [1, 2, 3]}', '{"score": ["1", "2"]}', '{"score": [true, 2]}']
)
def test_a_strict_json_answer_holds_two_numbers_of_zero_to_ten(bad) -> None:
    good = '{"score": [8, 9]}'
    for answers in ((good, bad), (bad, good)):
        score = scored(GEDIT, "strict", *answers)
        assert (score.state, score.values) == ("unparsed", {"SC": 0.0, "PQ": 0.0, "O": 0.0})
    assert scored(GEDIT, "strict", good, good).values == {"SC": 8, "PQ": 8, "O": 8.0}


def test_an_item_without_a_score_says_why() -> None:
    for mode in ("official", "strict"):
        assert scored(REDEDIT, mode).state == "missing"
        assert scored(REDEDIT, mode, None).state == "missing"
        assert scored(REDEDIT, mode, {"error": "timeout"}).state == "missing"
        assert scored(REDEDIT, mode, "I would rather not").state == "unparsed"
        assert scored(REDEDIT, mode, "I would rather not", refused=True).state == "refused"
        assert scored(REDEDIT, mode, refused=True).state == "refused"
        assert scored(GEDIT, mode, '{"score": [8, 9]}', None).state == "missing"
    assert scored(REDEDIT, "official").values == {}
    assert scored(REDEDIT, "strict").values == {"score": 1.0}


def test_another_mode_and_an_answer_too_many_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="official, strict"):
        scored(REDEDIT, "lenient")
    with pytest.raises(UserError, match="item a of gedit: 1 answers"):
        scored(GEDIT, "official", '{"score": [8, 9]}')


def test_a_rubric_of_ones_own_has_its_scale_and_its_number_of_criteria() -> None:
    scoring = line_scoring("mine", lowest=0, highest=100, criteria=1)
    assert scored(scoring, "strict", "Score: 88").values == {"score": 88.0}
    assert scored(scoring, "strict", "Score: 101").values == {"score": 0.0}
    loose = line_scoring("mine", criteria=None)
    assert scored(loose, "strict", "A: 2\nB: 3").values == {"score": 2.5}
    assert scored(loose, "strict", "none").state == "unparsed"


# Tables


def test_official_drops_what_is_not_scored_and_strict_counts_it_as_the_lowest() -> None:
    categories = dict(zip("abcdefg", ["add", "add", "add", "text", "text", "motion", "motion"]))
    answers = {"a": three(5, 5, 4), "b": "Error: 429", "c": "no", "d": three(3, 3, 4), "f": {"error": "late"}}
    items = judged_items(categories, answers)
    items.append(JudgedItem("h", "text", (("I refuse",),), refused=True))
    tables = score_tables(REDEDIT, items)

    official = tables["official"]
    assert official["add"] == {"score": 216.84, "expected": 3, "scored": 2, "missing": 0, "refused": 0, "unparsed": 1}
    assert official["text"] == {"score": 3.33, "expected": 3, "scored": 1, "missing": 1, "refused": 1, "unparsed": 0}
    assert official["motion"] == {"score": None, "expected": 2, "scored": 0, "missing": 2, "refused": 0, "unparsed": 0}
    assert official["overall"]["score"] == official["overall"]["macro"] == (216.84 + 3.33) / 2
    assert official["overall"]["micro"] == pytest.approx((4.67 + 429 + 3.33) / 3, abs=1e-12)
    assert [official["overall"][name] for name in COUNTS] == [8, 3, 3, 1, 1]

    strict = tables["strict"]
    assert strict["add"] == {"score": 2.22, "expected": 3, "scored": 1, "missing": 0, "refused": 0, "unparsed": 2}
    assert strict["text"]["score"] == round((3.33 + 1 + 1) / 3, 2)
    assert strict["motion"]["score"] == 1.0
    assert strict["overall"]["score"] == pytest.approx((2.22 + 1.78 + 1) / 3, abs=1e-12)
    assert strict["overall"]["micro"] == pytest.approx((4.67 + 3.33 + 6) / 8, abs=1e-12)


def test_a_group_of_gedit_without_a_row_leaves_no_official_overall_score() -> None:
    good = ('{"score": [8, 9]}', '{"score": [2, 9]}')
    tables = score_tables(GEDIT, [JudgedItem("a", "text", (good,)), JudgedItem("b", "tone")])
    assert tables["official"]["text"] == {
        "SC": 8.0, "PQ": 2.0, "score": 4.0, "expected": 1, "scored": 1, "missing": 0, "refused": 0, "unparsed": 0,
    }  # fmt: skip
    assert tables["official"]["overall"]["score"] is None
    assert tables["official"]["overall"]["micro"] == 4.0
    assert (tables["strict"]["overall"]["SC"], tables["strict"]["overall"]["score"]) == (4.0, 2.0)


def test_nothing_at_all_scores_nothing() -> None:
    for scoring in (REDEDIT, IMGEDIT, GEDIT):
        for table in score_tables(scoring, []).values():
            assert table["overall"]["score"] is table["overall"]["micro"] is None
            assert table["overall"]["expected"] == 0


ANSWERS = st.one_of(st.none(), st.just("no"), st.just("A: 9\nB: 1\nC: 1"), st.builds(three, *[st.integers(1, 5)] * 3))
JUDGED = st.lists(st.tuples(st.sampled_from(["add", "text", "motion"]), ANSWERS, st.booleans()), max_size=30)


@settings(max_examples=40)
@given(JUDGED)
def test_every_item_is_counted_once_and_the_modes_agree_where_all_answers_are_usable(rows) -> None:
    items = [
        JudgedItem(str(index), category, ((answer,),), refused and answer == "no")
        for index, (category, answer, refused) in enumerate(rows)
    ]
    tables = score_tables(REDEDIT, items)
    for table in tables.values():
        for row in table.values():
            assert row["expected"] == sum(row[name] for name in COUNTS[1:])
        sums = [sum(row[name] for key, row in table.items() if key != "overall") for name in COUNTS]
        assert sums == [table["overall"][name] for name in COUNTS]
    for category, row in tables["strict"].items():
        assert row["score"] is None or 1 <= row["score"] <= 5
        if row["scored"] == row["expected"]:
            assert row == tables["official"][category]


def test_an_answer_of_no_item_and_a_category_named_overall_are_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="'9'"):
        judged_items({"1": "add"}, {"1": "A: 1", "9": "A: 1"})
    with pytest.raises(UserError, match="overall"):
        score_table(REDEDIT, [ItemScore("1", "overall", "missing")])


def test_scores_by_category_leave_out_what_left_the_mean_and_refuse_an_id_that_stands_twice() -> None:
    items = judged_items({"1": "add", "2": "add"}, {"1": three(4, 4, 4)})
    official = [score_item(REDEDIT, item, "official") for item in items]
    strict = [score_item(REDEDIT, item, "strict") for item in items]
    assert scores_by_category(official) == {"add": {"1": 4.0}}
    assert scores_by_category(strict) == {"add": {"1": 4.0, "2": 1.0}}
    with pytest.raises(UserError, match="twice"):
        scores_by_category(official + official)


# Text


def test_the_text_score_is_that_of_oneig() -> None:
    result = oneig_text_score([("GRAND OPENING SALE", "GRAND OPENNG SALE"), ("Hello", "Hello")])
    assert result["ED"] == 0.5
    assert result["CR"] == 0.5
    assert result["WAC"] == 0.75
    assert result["score"] == 1 - 0.5 * 0.5 * 0.25 / 100


TEXTS = {
    "punctuation goes, so prices lose their point": ("$9.99", "999", 0, 1, 1),
    "case matters": ("Open", "open", 1, 0, 1),
    "order of words does not count for WAC": ("b a", "a b", 2, 2, 2),
    "repeated words count once each": ("no no", "no", 3, 1, 2),
    "spaces go where there is Chinese": ("开 门 OK", "开门OK", 0, 4, 4),
    "Chinese read as Latin": ("门", "door", 4, 0, 1),
    "Latin read as Chinese": ("door", "门", 4, 0, 1),
    "French letters stay": ("Café!", "Café", 0, 1, 1),
    "other letters go": ("Straße", "Strae", 0, 1, 1),
    "lines are spaces": ("a\n b", "a b", 0, 2, 2),
    "the reader's phrase goes": ("a", "aNo text recognized.", 0, 1, 1),
    "its phrase without a full stop stays": ("a", "No text recognized", 18, 0, 1),
    "an ideograph beyond U+9FA5 goes": ("龦字", "字", 0, 1, 1),
    "nothing is asked for": ("", "a", 1, 0, 0),
}


@pytest.mark.parametrize(("target", "read", "distance", "matched", "units"), TEXTS.values(), ids=TEXTS)
def test_a_text_is_compared_as_oneig_compares_it(target, read, distance, matched, units) -> None:
    match = text_scores.match_text(target, read)
    assert (match.edit_distance, match.matched, match.units) == (distance, matched, units)


def test_chinese_targets_have_the_limit_of_chinese() -> None:
    pairs = [("电话", "TELEPHONE" * 9), ("字", "")]
    assert oneig_text_score(pairs)["score"] == 1 - 41 / 50
    assert oneig_text_score(pairs, language="en")["score"] == 1 - 41 / 100
    with pytest.raises(UserError, match="en, zh"):
        oneig_text_score(pairs, language="fr")


def test_a_text_score_that_does_not_exist_is_none() -> None:
    assert oneig_text_score([])["score"] is None
    only_empty = oneig_text_score([("", "a")])
    assert (only_empty["ED"], only_empty["WAC"], only_empty["score"]) == (1.0, None, None)
    cyrillic = weighted_text_score([("Привет", "Привет"), ("a", "a")])
    assert (cyrillic["score"], cyrillic["unmeasurable"]) == (1.0, 1)
    assert weighted_text_score([("Привет", "")])["score"] is None


def test_a_missing_picture_is_left_out_or_counts_as_one_without_text() -> None:
    pairs = [("a", "a"), ("b", None)]
    official, strict = (oneig_text_score(pairs, strict=strict) for strict in (False, True))
    assert (official["score"], official["missing"], official["scored"], official["expected"]) == (1.0, 1, 1, 2)
    assert (strict["ED"], strict["CR"], strict["WAC"]) == (0.5, 0.5, 0.5)
    assert weighted_text_score(pairs, strict=True)["score"] == 0.5


def test_the_weighted_text_score_is_the_mean_of_its_three() -> None:
    pairs = [("GRAND OPENING SALE", "GRAND OPENNG SALE")]
    thirds = weighted_text_score(pairs)
    assert thirds["score"] == pytest.approx((1 - 1 / 18 + 0 + 2 / 3) / 3)
    assert weighted_text_score(pairs, weights=(2, 0, 0))["score"] == pytest.approx(1 - 1 / 18)
    assert weighted_text_score(pairs, weights=(0, 1, 0))["score"] == 0
    for weights in [(1, 1), (-1, 1, 1), (0, 0, 0), (math.nan, 1, 1)]:
        with pytest.raises(UserError, match="weights"):
            weighted_text_score(pairs, weights=weights)


@settings(max_examples=40)
@given(st.text(max_size=20), st.text(max_size=20))
def test_text_scores_lie_between_zero_and_one(target, read) -> None:
    for result in (oneig_text_score([(target, read)]), weighted_text_score([(target, read)])):
        assert result["score"] is None or -1e-12 <= result["score"] <= 1 + 1e-12
    assume(text_scores.without_reader_phrases(target) == target)  # such a phrase is never read
    exact = weighted_text_score([(target, target)])["score"]
    assert exact is None or exact == pytest.approx(1)


def test_a_target_or_a_reading_that_is_no_text_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match="text pair 1"):
        oneig_text_score([("a", "a"), (None, "a")])
    with pytest.raises(UserError, match="text pair 0"):
        oneig_text_score([("a", 3)])


# Published tables: the overall column follows from the row. FireRed-Image-Edit (2602.13344), table 3; ImgEdit's nine
# categories in the order add, adjust, extract, replace, remove, background, style, compose, action.

PUBLISHED = {
    "FireRed-Image-Edit": ([4.55, 4.66, 4.34, 4.75, 4.58, 4.45, 4.97, 4.07, 4.71], 4.56),
    "Nano-Banana-Pro": ([4.44, 4.62, 3.42, 4.60, 4.63, 4.32, 4.97, 3.64, 4.69], 4.37),
    "FLUX.1 Kontext": ([3.99, 3.88, 2.19, 4.27, 3.13, 3.98, 4.51, 3.23, 4.18], 3.71),
}


@pytest.mark.parametrize(("row", "overall"), PUBLISHED.values(), ids=PUBLISHED)
def test_the_published_overall_of_imgedit_is_the_macro_mean(row, overall) -> None:
    assert round(macro_mean(row), 2) == overall


def test_groups_of_gedit_are_averaged_in_the_official_order_which_decides_the_last_digit() -> None:
    groups = list(GEDIT.order)
    assert len(groups) == 11
    values = {group: math.sqrt(2 + 3 * index**2) for index, group in enumerate(groups)}
    expected = float(np.mean([values[group] for group in groups]))
    for order in (groups, groups[::-1], [*groups[5:], *groups[:5]]):
        scores = [ItemScore(group, group, "scored", {"SC": 1, "PQ": 1, "O": values[group]}) for group in order]
        table = score_table(GEDIT, scores)
        assert list(table) == [*groups, "overall"]
        assert table["overall"]["score"] == expected
    assert float(np.mean([values[group] for group in groups[::-1]])) != expected


# The shared golden cases


@pytest.fixture(scope="session")
def golden(root) -> dict:
    folder = Path(os.environ.get("FIRERED_LIT_SHARED", root.parent / "shared" / "data"))
    path = folder / "golden_eval.json"
    if not path.exists():
        pytest.skip("the golden cases are not here: set FIRERED_LIT_SHARED to the folder that holds golden_eval.json")
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "parser"), [("rededit", rededit_score), ("imgedit", imgedit_score)])
def test_golden_line_answers_score_as_the_official_code_scored_them(golden, name, parser) -> None:
    assert len(golden[name]["parse"]) >= 17
    for case in golden[name]["parse"]:
        expected = case["expected"]
        if isinstance(expected, dict):  # the official code stops there
            expected = None
        assert parser(case["response"]) == expected, case["name"]


def test_golden_sets_of_rededit_have_the_official_scores(golden) -> None:
    for case in golden["rededit"]["dataset"]:
        categories = {str(index): row["task"] for index, row in enumerate(case["meta"])}
        items = judged_items(categories, case["judge_outputs"])
        scores = [score_item(REDEDIT, item, "official") for item in items]
        expected = case["expected"]
        assert {score.id: score.values["score"] for score in scores if score.values} == expected["image"]
        table = score_table(REDEDIT, scores)
        assert table["overall"]["score"] == expected["final_score"]
        assert {key: row["score"] for key, row in table.items() if row["score"] and key != "overall"} == expected[
            "task"
        ]


def test_golden_sets_of_imgedit_have_the_official_scores(golden) -> None:
    for case in golden["imgedit"]["dataset"]:
        categories = {key: row["edit_type"] for key, row in case["meta"].items()}
        table = score_tables(IMGEDIT, judged_items(categories, case["judge_outputs"]))["official"]
        assert {key: row["score"] for key, row in table.items() if key != "overall"} == case["expected"]["task"]
        assert table["overall"]["macro"] == case["overall_macro(paper convention, not in official code)"]
        assert table["overall"]["micro"] == case["overall_micro(BAGEL fork)"]


def test_golden_rows_of_imgedit_give_their_published_overall(golden) -> None:
    rows = golden["imgedit"]["overall_from_paper_table3"]["rows"]
    assert rows
    for name, row in rows.items():
        assert round(macro_mean(row["categories"]), 2) == row["overall"], name


def test_golden_json_answers_are_read_as_the_official_code_read_them(golden) -> None:
    assert len(golden["gedit"]["parse"]) >= 15
    for case in golden["gedit"]["parse"]:
        expected = case["expected_score_list"]
        assert gedit_scores(case["response"]) == (None if expected == "RE-ASK" else expected), case["name"]


def test_golden_items_of_gedit_have_the_official_scores(golden) -> None:
    for case in golden["gedit"]["evaluate"]:
        assert list(gedit_item(case["SC"], case["PQ"]).values()) == case["expected"], case["name"]
    for case in golden["gedit"]["evaluate_stateful"]:
        # Its model gives its last answer again and again.
        count = len(case["calls"]) // 2
        semantics = case["SC_outputs"] + case["SC_outputs"][-1:] * count
        quality = case["PQ_outputs"] + case["PQ_outputs"][-1:] * count
        attempts = tuple(itertools.islice(zip(semantics, quality), count))
        score = score_item(GEDIT, JudgedItem("a", "text", attempts), "official")
        if isinstance(case["result_SC_PQ_O"], str):  # the official code throws dice there
            assert (score.state, score.values) == ("unparsed", {})
        else:
            assert list(score.values.values()) == case["result_SC_PQ_O"]


def test_golden_rows_of_gedit_have_the_official_means(golden) -> None:
    case = golden["gedit"]["aggregate"]
    for language, chosen in itertools.product(("en", "cn"), ("avg", "avg_intersection")):
        scores = []
        for index, row in enumerate(case["rows"]):
            if row["instruction_language"] != language:
                continue
            if chosen == "avg_intersection" and not row["intersection_exist"]:
                continue
            values = gedit_item([row["sementics_score"]], [row["quality_score"]])
            scores.append(ItemScore(str(index), row["task_type"], "scored", values))
        table = score_table(GEDIT, scores)
        expected = case["expected"][language]
        assert [table["overall"][name] for name in ("SC", "PQ", "score")] == expected[chosen]
        if chosen == "avg":
            for group, means in expected["per_group"].items():
                assert [round(table[group][name], 6) for name in ("SC", "PQ", "score")] == means
        if chosen == "avg" and language == "en":
            assert table["overall"]["micro"] == pytest.approx(case["wrong_alternatives"]["micro_overall_en"], abs=1e-12)
    assert score_table(GEDIT, [])["overall"]["score"] is None  # "zh", which no row has, is NaN there


def test_golden_texts_have_the_official_scores(golden) -> None:
    cases = golden["ocr_oneig"]
    by_name = {}
    for case in cases["per_sample"]:
        match = text_scores.match_text(case["gt"], case["ocr"])
        by_name[case["name"]] = (case["gt"], case["ocr"])
        assert (match.target, match.read) == (case["gt_preprocessed"], case["ocr_preprocessed"]), case["name"]
        assert match.edit_distance == case["edit_distance"], case["name"]
        assert match.complete == case["completion"], case["name"]
        assert (match.matched, match.units) == (case["match_count"], case["gt_count"]), case["name"]
        assert match.word_accuracy == case["word_accuracy"], case["name"]
    for case in cases["aggregate"]:
        limit = case["MAX_EDIT_DISTANCE"]
        means = case.get("synthetic", case)
        score = text_scores.oneig_formula(means["ED"], means["CR"], means["WAC"], limit)
        assert score == case["text_score"]
        if all(name in by_name for name in case.get("cases", ["absent"])):
            result = oneig_text_score([by_name[name] for name in case["cases"]])
            assert [result[key] for key in ("ED", "CR", "WAC", "score")] == [
                case[key] for key in ("ED", "CR", "WAC", "text_score")
            ]
    cleaner = cases["clean_hallucination"]
    assert [text_scores.without_reader_phrases(text) for text in cleaner["in"]] == cleaner["out"]
