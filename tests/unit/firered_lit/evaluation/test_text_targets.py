"""Texts that a picture must show after an edit: derived from badly quoted instructions in two languages."""

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firered_lit.errors import UserError
from firered_lit.evaluation.text_targets import TextTarget, quoted_texts, read_targets, text_target

REPLACE = {
    "plain": ("将“早安”改成“晚安”", "晚安", "早安"),
    "plain, English": ("Change 'MORNING' to 'NIGHT', keeping the font.", "NIGHT", "MORNING"),
    "reversed marks": ("把封面的”旧书“替换为”新书“，保持风格", "新书", "旧书"),
    "the first mark twice": ("把“旧书“改为“新书“", "新书", "旧书"),
    "mixed marks": ("将'旧'改为'新”", "新", "旧"),
    "mixed marks the other way": ("将“旧'改为“新'", "新", "旧"),
    "straight marks": ('将招牌上的"OPEN"换成"CLOSED"，字体不变', "CLOSED", "OPEN"),
    "brackets of the language": ("将「開門」改為「關門」".replace("為", "为"), "關門", "開門"),
    "a translation behind": ("Replace '早安' (Good morning) on the door with '晚安' (Good night).", "晚安", "早安"),
    "an apostrophe inside": ("Change 'Don’t' to 'I’m here; it’s fine'", "I’m here; it’s fine", "Don’t"),
    "a straight apostrophe inside": ("Change 'Don't' to 'It's'", "It's", "Don't"),
    "words between": ("Change the big text 'A B' on the left of the wall to lowercase 'a b'", "a b", "A B"),
    "the place has the same text": ("将写有“茶”的牌子上的文字“茶”改为“酒”", "酒", "茶"),
    "to is a word of the text": ("Change 'Welcome to us' to 'Go to them'", "Go to them", "Welcome to us"),
}


@pytest.mark.parametrize(("instruction", "new", "old"), REPLACE.values(), ids=REPLACE)
def test_a_replaced_text_must_be_gone_and_the_new_one_there(instruction, new, old) -> None:
    assert text_target(instruction) == TextTarget("replace", (new,), (old,))


def test_an_old_text_that_the_new_one_contains_need_not_be_gone() -> None:
    for instruction in ("将“ART”改为“ART HOUSE”", "Change 'ART' to 'ART HOUSE'"):
        assert text_target(instruction) == TextTarget("replace", ("ART HOUSE",))


def test_a_text_may_take_the_place_of_what_is_not_named() -> None:
    for instruction in ("将牌子上的所有文字替换为“休息”", "Replace all text on the sign with '休息'"):
        assert text_target(instruction) == TextTarget("replace", ("休息",))


ADD = {
    "plain": ("在墙上添加“Hello”", ("Hello",)),
    "plain, English": ("Add 'Hello' on the red wall.", ("Hello",)),
    "below another text": ("在“SALE”下方添加文字“TODAY”，字体与“SALE”保持一致", ("TODAY",)),
    "below another text, English": ("Below the text 'SALE', add a line of white text 'TODAY'.", ("TODAY",)),
    "like another text": ("Add 'TODAY' below 'SALE', with the same font as 'BIG' and aligned with 'SALE'.", ("TODAY",)),
    "like another text, aligned": ("在“SALE”后面加上“!”，并与上方的“BIG”居中对齐，使用与“BIG”相同的颜色", ("!",)),
    "on what a text names": ("在写着“待办”的纸上，添加文字“买菜”", ("买菜",)),
    "on what a text names, English": ("On the note that says 'TO DO', add the text 'Milk'", ("Milk",)),
    "several": ("写上名字“ANNA”和号码“7”", ("ANNA", "7")),
    "several, English": ("Write the letters 'X', 'Y' and 'Z' in chalk", ("X", "Y", "Z")),
    "lines of a new picture": ("生成一张新图。第一行内容为“春”，第二行内容为“夏，秋”", ("春", "夏，秋")),
    "lines of a new picture, English": (
        "Make a new image. The first line is 'A b', the second line is 'C'",
        ("A b", "C"),
    ),
    "unclosed": ("在“LOVE”后添加“ & PEACE", ("& PEACE",)),
    "unclosed, with a full stop": ("在“LOVE”后添加“PEACE。", ("PEACE",)),
    "written": ("Put a note on the desk with '你好' written on it", ("你好",)),
    "a list without marks": ("写三行，依次是：1. 面包 2. 牛奶 3. 茶叶。", ("面包", "牛奶", "茶叶")),
    "a list without marks, English": ("Add two lines: 1. Buy bread 2. Drink tea", ("Buy bread", "Drink tea")),
}


@pytest.mark.parametrize(("instruction", "texts"), ADD.values(), ids=ADD)
def test_an_added_text_must_be_there_and_one_that_says_where_is_not_asked_for(instruction, texts) -> None:
    assert text_target(instruction) == TextTarget("add", texts)


DELETE = {
    "plain": ("删除“旧”文字", ("旧",), ()),
    "plain, English": ("Remove the text 'OLD' from the sign", ("OLD",), ()),
    "several": ("移除牌子上的“A1”和“B2”这两个单词", ("A1", "B2"), ()),
    "a missing mark": ("移除字母'P'、Q'、'R'", ("P", "Q", "R"), ()),
    "closed by another mark": ('删除瓶上的“Old Name"', ("Old Name",), ()),
    "below another text": ("删除“TOP”下方的“LOW”文字", ("LOW",), ()),
    "below another text, English": ("Delete the 'LOW' text below 'TOP'.", ("LOW",), ()),
    "what is left": ("删除“UP”，只留下“DOWN”", ("UP",), ("DOWN",)),
    "what is left, English": ("Delete 'UP' from the banner, leaving only 'DOWN'", ("UP",), ("DOWN",)),
}


@pytest.mark.parametrize(("instruction", "gone", "left"), DELETE.values(), ids=DELETE)
def test_a_deleted_text_must_be_gone(instruction, gone, left) -> None:
    assert text_target(instruction) == TextTarget("delete", left, gone)


def test_a_text_may_be_replaced_and_another_deleted() -> None:
    expected = TextTarget("replace", ("BAR",), ("SHOP", "SMALL"))
    assert text_target("将“SHOP”替换为“BAR”，并移除“SMALL”。") == expected
    assert text_target("Replace 'SHOP' with 'BAR' and remove 'SMALL'") == expected


KEEP = (
    *("将“教育”改成绿色", "将“教育”放大一点", "将“教育”移动到地球下方", "给“教育”添加下划线", "将“教育”进行加粗处理"),
    *(
        "给 “教育”添加删除线",
        "Change '教育' (Education) to green.",
        "Make '教育' a bit larger.",
        "Bold the text '教育'.",
    ),
    *("Add a strikethrough to '教育'.", "Move '教育' to below the earth.", "Italicize '教育'."),
)


@pytest.mark.parametrize("instruction", KEEP)
def test_a_moved_or_restyled_text_must_still_be_there(instruction) -> None:
    assert text_target(instruction) == TextTarget("keep", ("教育",))


def test_an_instruction_without_a_text_has_no_target() -> None:
    for instruction in ("", "删除所有文字", "Remove all text", "“", "''", "Make it prettier: 1"):
        assert text_target(instruction) is None


@settings(max_examples=150)
@given(st.text(alphabet=st.sampled_from("将把“”\"'‘’改成为添加删除a bTo,。：1.")))
def test_no_instruction_breaks_the_rules(instruction) -> None:
    target = text_target(instruction)
    if target is not None:
        assert target.must_contain or target.must_not_contain
        assert all(text.strip() for text in (*target.must_contain, *target.must_not_contain))
    assert all(quoted.text in instruction for quoted in quoted_texts(instruction))


# A user's own table


def test_a_users_table_is_read_as_it_is_written(tmp_path) -> None:
    rows = [
        {"id": "7", "op": "replace", "must_contain": ["a"], "must_not_contain": ["b"]},
        {"id": 8, "op": "delete"},
    ]
    path = tmp_path / "targets.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    assert read_targets(path) == {"7": TextTarget("replace", ("a",), ("b",)), "8": TextTarget("delete")}
    assert TextTarget("replace", ("a",), ("b",)).plain() | {"id": "7"} == rows[0]


WRONG = {
    "an operation": ({"id": "1", "op": "paint"}, "choose one of"),
    "no id": ({"op": "add"}, "id of the item"),
    "texts": ({"id": "1", "op": "add", "must_contain": "a"}, "a list of texts"),
    "a text": ({"id": "1", "op": "add", "must_not_contain": [1]}, "a list of texts"),
}


@pytest.mark.parametrize(("row", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_row_of_a_table_is_named(tmp_path, row, reason) -> None:
    path = tmp_path / "targets.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=reason):
        read_targets(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_targets(tmp_path / "absent.jsonl")


# The real instructions, where they are


def test_both_languages_of_the_real_instructions_have_the_same_targets(root) -> None:
    folder = Path(os.environ.get("FIRERED_LIT_SHARED", root.parent / "shared" / "data"))
    path = folder / "rededit_bench" / "redbench.jsonl"
    if not path.exists():
        pytest.skip("the instructions are not here: set FIRERED_LIT_SHARED to the folder that holds rededit_bench/")
    items = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    items = [item for item in items if item["task"] == "text"]
    without = []
    differ = []
    for item in items:
        chinese = text_target(item["a_to_b_instructions"])
        english = text_target(item["a_to_b_instructions_eng"])
        if chinese is None:
            without.append(item["id"])
        elif english is None or _folded(chinese) != _folded(english):
            differ.append(item["id"])
    assert len(items) == 123
    assert without == ["1413"]  # all text of a sign, whatever it is
    assert differ == ["1468"]  # a list that each language writes in its own words


def _folded(target):
    """A target with its wide spaces as plain ones."""
    return json.dumps(target.plain(), ensure_ascii=False).replace("\u3000", " ")
