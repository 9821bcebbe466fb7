"""What of a language model's answers becomes a compound request."""

import json

import pytest

from firered_lit.mine.compound import Invalid, compound, template

ATOMIC, SECOND = "Make the car red.", "Add snow on the road"
GOOD = {"operations": ["make the car red", SECOND], "instruction": "Make the car red and let snow lie on the road"}


def take(content, operations=2, pictures=1, atomic=ATOMIC):
    return compound(content if isinstance(content, str) else json.dumps(content), atomic, operations, pictures)


def test_a_good_answer_is_taken_with_words_and_fences_around_it():
    made = take(GOOD)
    assert made.instruction == GOOD["instruction"]
    assert made.operations == ("make the car red", SECOND)
    assert take(f"Sure! {{not json}} ```json\n{json.dumps(GOOD)}\n``` Enjoy.") == made


def test_a_chinese_request_stays_chinese():
    answer = {"operations": ["把车变成红色", "加一只猫"], "instruction": "把车变成红色，并在旁边加一只猫"}
    assert take(answer, atomic="把车变成红色。").instruction == answer["instruction"]
    with pytest.raises(Invalid, match="another language"):
        take(answer | {"instruction": "Make the car red and add a cat"}, atomic="把车变成红色。")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("I cannot help with that.", "no JSON"),
        ("[1, 2]", "no JSON"),
        ({"operations": "two"}, "no list"),
        ({"operations": [ATOMIC, ""]}, "no list"),
        ({"instruction": " "}, "no instruction"),
        ({"operations": [ATOMIC]}, "another number"),
        ({"operations": [ATOMIC, SECOND, "Add a cat"]}, "another number"),
        ({"operations": [ATOMIC, "MAKE the car red!"]}, "twice"),
        ({"operations": [SECOND, ATOMIC]}, "first operation"),
        ({"instruction": "Make the car red"}, "no longer"),
        ({"instruction": "Make the car red and\nadd snow on the road"}, "not one line"),
        ({"instruction": "Make the car red and add <|snow|> on the road"}, "not one line"),
        ({"instruction": "Make the car red, " + "and again " * 100}, "not one line"),
        ({"instruction": "Make the car red as in Picture 2, with snow on it"}, "not there"),
        ({"instruction": "把车变成红色，并且在路上铺满白色的雪，让整个画面看起来更冷一些"}, "another language"),
    ],
)
def test_others_are_refused_with_a_reason(change, reason):
    with pytest.raises(Invalid, match=reason):
        take(change if isinstance(change, str) else GOOD | change)


def test_a_picture_that_is_there_may_be_mentioned():
    asked = GOOD | {"instruction": "Make the car of picture 1 red and let the snow of Picture 2 lie on the road"}
    assert take(asked, pictures=2).instruction == asked["instruction"]


@pytest.mark.parametrize(
    ("words", "there"), [("第3个人", True), ("第 2 张图", False), ("图2", False), ("Image2", False)]
)
def test_only_mentions_of_pictures_are_counted(words, there):
    asked = {"operations": ["把车变成红色", "加一只猫"], "instruction": f"把{words}旁边的车变成红色，再加一只猫"}
    if there:
        assert take(asked, atomic="把车变成红色").instruction == asked["instruction"]
        return
    with pytest.raises(Invalid, match="not there"):
        take(asked, atomic="把车变成红色")


def test_the_question_holds_the_request_and_its_hash_is_the_files():
    asked = template().ask(ATOMIC, 3, 2)
    assert ATOMIC in asked
    assert "exactly 3" in asked
    assert "{" not in asked.replace('{"operations": ["the given request", "..."], "instruction":', "")
    assert (template().version, len(template().digest)) == ("1", 16)
