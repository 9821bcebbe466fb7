"""Edits side by side: both orders, ties, strengths, people's pairs, each question once."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image
from support.stub_judge import StubJudge, pictures, words

from firered_lit.errors import UserError
from firered_lit.evaluation.arena import Arena, ask_arena, chosen_items, preference_pairs, verdict
from firered_lit.evaluation.benchmarks.imgedit import ImgEdit
from firered_lit.evaluation.protocols import Asking, EvaluationFolder
from firered_lit.evaluation.scoring import score
from firered_lit.judges.client import Client

ASKING = Asking("judge-7b", {"temperature": 0})
VERDICTS = {
    "A, as it ends": ("B is sharper, but [[B]] fails. [[A]]", "A"),
    "in small letters": ("[[ b ]]", "B"),
    "a tie": ("Both are fine: [[tie]]", "tie"),
    "a tie by its letter": ("[[C]]", "tie"),
    "words alone": ("A is better", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize(("answer", "expected"), VERDICTS.values(), ids=VERDICTS)
def test_a_verdict_is_how_an_answer_ends(answer, expected) -> None:
    assert verdict(answer) == expected


def grey(level):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (level, level, level)).save(file, format="PNG")
    return file.getvalue()


def levels(body):
    """Return the brightness of a question's three pictures."""
    found = []
    for url in pictures(body):
        data = base64.b64decode(url.partition(";base64,")[2])
        found.append(Image.open(io.BytesIO(data)).getpixel((0, 0))[0])
    return found


def brighter(body, digest):
    """A judge that likes light, and takes the first edit where both are nearly as bright."""
    _, first, second = levels(body)
    if abs(first - second) < 8:
        return "Hard to say. [[A]]"
    return f"Light is better. {'[[A]]' if first > second else '[[B]]'}"


@pytest.fixture
def benchmark(tmp_path):
    data = tmp_path / "data"
    index = {}
    for number in range(12):
        name = f"animal/{number}.jpg"
        path = data / "Benchmark" / "singleturn" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
        index[str(number)] = {"id": name, "prompt": f"Make {number}", "edit_type": "add" if number % 2 else "style"}
    (data / "basic_edit.json").write_text(json.dumps(index))
    (data / "prompts.json").write_text(json.dumps({"add": "<edit_prompt>", "style": "<edit_prompt>"}))
    return ImgEdit(str(data), version="any")


def draw(folder, benchmark, model, level):
    for number, item in enumerate(benchmark.items()):
        path = folder.picture(model, item)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey(level(number)))


@pytest.fixture
def folder(tmp_path, benchmark):
    """Three models: bright, middling (two of its pictures are bright), dark (nearly middling)."""
    folder = EvaluationFolder(tmp_path / "out")
    draw(folder, benchmark, "bright", lambda number: 200)
    draw(folder, benchmark, "middling", lambda number: 220 if number < 2 else 100)
    draw(folder, benchmark, "dark", lambda number: 40 if number < 8 else 104)
    return folder


MODELS = ("bright", "middling", "dark")


def fought(folder, benchmark, arena, judge, **options):
    with Client(judge.url, log=str(folder.responses), replay=True) as client:
        kinds = ask_arena(folder, [benchmark], MODELS, client, ASKING, arena, **options)
    score(folder, [benchmark], MODELS, ASKING, 0, arena=arena)
    return kinds, json.loads(folder.statistics.read_text())


def test_models_are_ranked_by_duels_in_both_orders_and_nothing_is_asked_twice(folder, benchmark) -> None:
    arena = Arena()
    with StubJudge(brighter) as judge:
        kinds, told = fought(folder, benchmark, arena, judge)
        assert judge.count == kinds["answered"] == 12 * 3 * 2
        assert {len(levels(body)) for body in judge.bodies} == {3}
        assert any("Make 7" in words(body) for body in judge.bodies)
        assert {body["model"] for body in judge.bodies} == {"judge-7b"}
        kinds, again = fought(folder, benchmark, arena, judge)
        assert judge.count == 12 * 3 * 2
        assert not kinds
    assert told == again
    seen = told["arena"]["imgedit"]
    assert list(seen["models"]) == list(MODELS)
    results = {(row["first"], row["second"]): (row["wins"], row["ties"], row["losses"]) for row in seen["results"]}
    assert results == {
        ("bright", "middling"): (10, 0, 2),
        ("bright", "dark"): (12, 0, 0),
        ("middling", "dark"): (8, 4, 0),  # four times it took the first it saw
    }
    assert (seen["pairs"], seen["left_out"], seen["identical"]) == (36, 0, 0)
    assert seen["same_in_both_orders"]["value"] == 32 / 36
    assert seen["first_shown_wins"]["value"] == (32 + 8) / 72
    for estimate in seen["models"].values():
        assert estimate["low"] <= estimate["value"] <= estimate["high"]


def test_a_spent_budget_ends_the_arena_in_one_line_and_loses_no_answer(folder, benchmark) -> None:
    with StubJudge(brighter, latency=0.02) as judge:
        with (
            Client(judge.url, log=str(folder.responses), budget=9, parallel=4) as client,
            pytest.raises(UserError, match="the budget of 9 requests is spent"),
        ):
            ask_arena(folder, [benchmark], MODELS, client, ASKING, Arena())
        assert judge.count == 9
        fought(folder, benchmark, Arena(), judge)
        assert judge.count == len(judge.asked) == 12 * 3 * 2


def test_shards_share_the_pairs(folder, benchmark) -> None:
    with StubJudge(brighter) as judge:
        asked = []
        for shard in range(2):
            before = len(judge.bodies)
            _, told = fought(folder, benchmark, Arena(), judge, shard=shard, num_shards=2)
            asked.append({words(body).split("Make ")[1].split()[0] for body in judge.bodies[before:]})
        assert judge.count == len(judge.asked) == 72
    # Each asks about the items that it has drawn.
    assert asked == [{str(number) for number in range(shard, 12, 2)} for shard in range(2)]
    assert told["arena"]["imgedit"]["left_out"] == 0


def test_equal_pictures_are_a_tie_that_is_not_asked_about(folder, benchmark) -> None:
    draw(folder, benchmark, "dark", lambda number: 200)
    with StubJudge(brighter) as judge:
        _, told = fought(folder, benchmark, Arena(), judge)
        assert judge.count == 12 * 2 * 2
    seen = told["arena"]["imgedit"]
    assert seen["identical"] == 12
    assert {"first": "bright", "second": "dark", "wins": 0, "ties": 12, "losses": 0} in seen["results"]


def test_what_has_no_picture_or_no_verdict_is_left_out_and_counted(folder, benchmark) -> None:
    items = benchmark.items()
    folder.picture("dark", items[0]).unlink()
    folder.picture("middling", items[1]).write_bytes(b"no picture")

    def silent(body, digest):
        return "I cannot say." if "Make 3" in words(body) else brighter(body, digest)

    with StubJudge(silent) as judge:
        _, told = fought(folder, benchmark, Arena(), judge)
    seen = told["arena"]["imgedit"]
    assert seen["left_out"] == 3 + 2
    assert seen["pairs"] == 36 - 2 - 5


def test_a_part_of_every_category_is_drawn_by_name(benchmark) -> None:
    chosen = chosen_items(benchmark.items(), 2)
    assert [item.category for item in chosen].count("add") == 2
    assert len(chosen) == 4
    assert chosen == chosen_items(list(benchmark.items()), 2)
    assert {item.id for item in chosen} < {item.id for item in chosen_items(benchmark.items(), 3)}


# Pairs that people decided


@pytest.fixture
def preferences(tmp_path):
    """Twenty pairs of which people chose the brighter edit but for five."""
    table = tmp_path / "pairs" / "preferences.jsonl"
    table.parent.mkdir()
    lines = []
    for number in range(20):
        for name, level in (("source", 0), ("light", 150 + number), ("dark", 50 + number)):
            (table.parent / f"{name}{number}.png").write_bytes(grey(level))
        chosen, rejected = ("dark", "light") if number % 4 == 3 else ("light", "dark")
        row = {"source_image": f"source{number}.png", "instruction_cn": f"变亮 {number}", "instruction": ""}
        lines.append(row | {"chosen_image": f"{chosen}{number}.png", "rejected_image": f"{rejected}{number}.png"})
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return table


def test_the_judge_is_held_against_people_in_both_orders(folder, benchmark, preferences) -> None:
    arena = Arena(duels=False, preferences=str(preferences))
    with StubJudge(brighter) as judge:
        _, told = fought(folder, benchmark, arena, judge)
        assert judge.count == 40
        fought(folder, benchmark, arena, judge)
        assert judge.count == 40
    assert told["arena"] is None
    found = told["agreement"]
    assert found["all"]["value"] == found["decided"]["value"] == 15 / 20
    assert found["all"]["low"] < 0.75 < found["all"]["high"]
    assert found["pairs"] == 20
    assert found["kappa"] is not None
    assert found["first_shown_wins"]["value"] == 0.5


def test_which_edit_comes_first_is_drawn_and_stays(preferences) -> None:
    wanted = [sign for _, sign in preference_pairs(preferences)]
    assert set(wanted) == {1, -1}
    assert wanted == [sign for _, sign in preference_pairs(preferences)]
    for pair, sign in preference_pairs(preferences):
        assert pair.names[0] == ("chosen" if sign == 1 else "rejected")


WRONG = {
    "no picture": ({"chosen_image": "absent.png"}, r"row 1: .*absent\.png: no such picture"),
    "no path": ({"rejected_image": ""}, "row 1: rejected_image"),
    "no instruction": ({"instruction_cn": " "}, "row 1: no instruction"),
}


@pytest.mark.parametrize(("change", "reason"), WRONG.values(), ids=WRONG)
def test_a_wrong_row_of_pairs_is_named_before_anything_is_asked(preferences, change, reason) -> None:
    first, *others = preferences.read_text().splitlines()
    preferences.write_text("\n".join([json.dumps(json.loads(first) | change), *others]))
    with pytest.raises(UserError, match=reason):
        Arena(preferences=str(preferences)).check("judge")


def test_a_prompt_of_ones_own_is_asked_and_must_have_a_place_for_the_instruction(folder, benchmark, tmp_path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Compare for <instruction>. End with [[A]], [[B]] or [[tie]].")
    with StubJudge(brighter) as judge:
        fought(folder, benchmark, Arena(each=1, prompt=str(prompt)), judge)
        assert {body["messages"][0]["content"][-1]["text"][:16] for body in judge.bodies} == {"Compare for Make"}
        fought(folder, benchmark, Arena(each=1), judge)
        assert judge.count == 2 * 2 * 3 * 2  # another prompt is another question
    prompt.write_text("Compare.")
    for wrong, reason in ((prompt, "<instruction> is missing"), (Path("absent"), "cannot be read")):
        with pytest.raises(UserError, match=reason):
            Arena(prompt=str(wrong)).check("judge")
    with pytest.raises(UserError, match=r"judge\.model"):
        Arena().check("")
