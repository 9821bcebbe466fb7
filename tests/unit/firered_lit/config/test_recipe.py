"""Recipes: layers, overrides, interpolation, and one clear line for whatever cannot be read."""

import math
import os
from enum import IntEnum, StrEnum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from firered_lit.config.dialect import dump, flow, is_text, parse
from firered_lit.config.recipe import Recipe, lay_over, load
from firered_lit.errors import UserError

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes files in an empty current folder."""
    monkeypatch.chdir(tmp_path)

    def write(**files: str) -> None:
        for name, text in files.items():
            path = tmp_path / f"{name.replace('__', '/')}.yaml"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

    return write


BASE = """
_target_: firered_lit.training.fit
run: {dir: '???', resume: null}
stage:
  optimizer: {_target_: torch.optim.AdamW, _partial_: true, lr: 1e-4, betas: [0.9, 0.999]}
  weights: {1: 0.5, 2: 0.25}
callbacks:
  signals: {_target_: callbacks.signals.Signals}
  progress: {_target_: callbacks.progress.Progress}
grid: ${run.dir}/grid
"""


def test_layers_merge_key_by_key(write):
    write(base="a: {x: 1, y: [1, 2]}\nb: 1", more="a: {z: 3}", top="base: [base.yaml, more.yaml]\na: {y: [3]}\nc: 2")
    assert load("top.yaml").root == {"a": {"x": 1, "y": [3], "z": 3}, "b": 1, "c": 2}


def test_a_run_of_an_earlier_version_is_read_by_the_names_of_this_one(write, tmp_path):
    text = "_target_: firered_lit.fit.fit\nrun: {_target_: firered_lit.fit.Run, dir: x}\nlist: [{_target_: a.b}]"
    write(run__recipe=text, mine=text)
    (tmp_path / "run" / "run.json").write_text("{}")
    root = load("run/recipe.yaml").root
    assert (root["_target_"], root["run"]["_target_"]) == ("firered_lit.training.fit", "firered_lit.training.Run")
    assert root["list"] == [{"_target_": "a.b"}]
    assert load("mine.yaml").root["_target_"] == "firered_lit.fit.fit", "a recipe of the user's stays as it is"


def test_a_whole_node_can_be_added_from_the_command_line(write):
    write(base=BASE)
    root = load("base.yaml", ["callbacks.ema={_target_: callbacks.ema.EMA, decay: 0.9}", "run.dir=x"]).root
    assert root["callbacks"]["ema"] == {"_target_": "callbacks.ema.EMA", "decay": 0.9}
    assert set(root["callbacks"]) == {"signals", "progress", "ema"}


def test_a_new_target_brings_only_its_own_arguments(write):
    write(base=BASE, top="base: [base.yaml]\nstage: {optimizer: {_target_: torch.optim.SGD, lr: 0.1}}")
    root = load("top.yaml").root
    assert root["stage"]["optimizer"] == {"_target_": "torch.optim.SGD", "lr": 0.1}
    assert root["stage"]["weights"] == {1: 0.5, 2: 0.25}


def test_the_same_target_keeps_the_arguments_of_the_base(write):
    write(base=BASE, top="base: base.yaml\nstage: {optimizer: {_target_: torch.optim.AdamW, lr: 0.1}}")
    optimizer = load("top.yaml").root["stage"]["optimizer"]
    assert (optimizer["lr"], optimizer["betas"], optimizer["_partial_"]) == (0.1, [0.9, 0.999], True)


def test_a_target_over_a_fragment_without_one_keeps_the_fragment(write):
    write(base="stage: {seed: 3}", top="base: [base.yaml]\nstage: {_target_: a.b}")
    assert load("top.yaml").root["stage"] == {"seed": 3, "_target_": "a.b"}


def test_loading_leaves_the_layers_as_they_were():
    base = {"a": {"_target_": "x", "b": {"c": 1}}}
    lay_over(base, {"a": {"b": {"c": 2}}})
    assert base == {"a": {"_target_": "x", "b": {"c": 1}}}


def test_bases_lie_relative_to_their_recipe(write):
    write(shared__base="a: 1", tiny__top="base: [../shared/base.yaml]\nb: 2")
    recipe = load("tiny/top.yaml")
    assert recipe.root == {"a": 1, "b": 2}
    assert (recipe.where("a"), recipe.where("b")) == ("shared/base.yaml", "tiny/top.yaml")


SCALARS = [
    ("1e-4", 1e-4),
    ("1E5", 1e5),
    ("-2.5e+3", -2500.0),
    (".5", 0.5),
    ("1.", 1.0),
    ("1_000", 1000),
    ("0x1F", 31),
    ("-3", -3),
    ("010", "010"),
    ("1:30", "1:30"),
    ("no", "no"),
    ("on", "on"),
    ("true", True),
    ("False", False),
    ("~", None),
    ("", None),
    ("null", None),
    ("2026-01-01", "2026-01-01"),
    (".inf", math.inf),
    ("2.15.0", "2.15.0"),
    ("e5", "e5"),
    ("'1'", "1"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalars_mean_the_same_in_files_and_on_the_command_line(write, text, value):
    write(top=f"a: {text}\nb: 0")
    found = [load("top.yaml").root["a"], load("top.yaml", [f"b={text}"]).root["b"]]
    assert [(x, type(x)) for x in found] == [(value, type(value))] * 2


@settings(max_examples=150, deadline=None)
@example("1e5")
@example("010")
@example("no")
@example("???")
@example("a\x85b\u2028\n c")
@example("\n")
@given(st.floats(allow_nan=False) | st.integers() | st.booleans() | st.none() | st.text(max_size=20).filter(is_text))
def test_what_is_saved_is_read_back(value):
    content = {"a": [value], "b": {"c": value}}
    for text in (dump(content), flow(content)):
        back = parse(text, "saved")
        assert back == content
        assert type(back["a"][0]) is type(back["b"]["c"]) is type(value)
    assert "\n" not in flow(content)


def test_a_base_may_have_a_base(write):
    write(low="a: {x: 1, y: 1, z: 1}", middle="base: [low.yaml]\na: {y: 2, z: 2}", top="base: [middle.yaml]\na: {z: 3}")
    recipe = load("top.yaml")
    assert recipe.root == {"a": {"x": 1, "y": 2, "z": 3}}
    assert [recipe.where(f"a.{key}") for key in "xyz"] == ["low.yaml", "middle.yaml", "top.yaml"]


def test_a_base_of_two_bases_does_not_undo_what_the_first_has_changed(write):
    write(low="a: {x: 1, y: 1}", left="base: [low.yaml]\na: {x: 2}", right="base: [low.yaml]\na: {y: 3}")
    write(top="base: [left.yaml, right.yaml]")
    assert load("top.yaml").root == {"a": {"x": 2, "y": 3}}


def test_a_recipe_of_a_user_extends_a_shipped_one_from_anywhere(write):
    write(mine__sft="base: [recipes/tiny/sft.yaml]\nstage: {optimizer: {lr: 0.5}}")
    recipe = load("mine/sft.yaml")
    shipped = load(ROOT / "recipes/tiny/sft.yaml")
    assert recipe.root["stage"]["optimizer"] == {**shipped.root["stage"]["optimizer"], "lr": 0.5}
    assert Path(recipe.where("stage._target_")).resolve() == ROOT / "recipes/tiny/sft.yaml"
    assert recipe.where("stage.optimizer.lr") == "mine/sft.yaml"


def test_a_base_beside_the_recipe_comes_before_a_shipped_one(write):
    Path("mine").mkdir()
    write(mine__top="base: [recipes/sft.yaml]")
    Path("mine/recipes").mkdir()
    Path("mine/recipes/sft.yaml").write_text("a: own")
    assert load("mine/top.yaml").root == {"a": "own"}


@pytest.mark.parametrize("name", ["recipes/../pyproject.toml", "pyproject.toml", "recipes/none.yaml"])
def test_only_recipes_are_looked_for_among_the_shipped_ones(write, name):
    write(top=f"base: [{name}]")
    with pytest.raises(UserError, match="no such recipe"):
        load("top.yaml")


def test_a_fifo_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "r.yaml")
    with pytest.raises(UserError, match=r"r\.yaml: cannot be read as a recipe: not a regular file"):
        load(tmp_path / "r.yaml")


GIVEN = [
    ("stage.weights={1: 3}", {1: 3}),
    ("stage.weights={}", {}),
    ("stage.optimizer={lr: 3}", {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 3, "betas": [0.9, 0.999]}),
    ("stage.optimizer={_target_: torch.optim.SGD, lr: 3}", {"_target_": "torch.optim.SGD", "lr": 3}),
    (
        "stage.optimizer={_target_: torch.optim.AdamW, lr: 3}",
        {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 3, "betas": [0.9, 0.999]},
    ),
    ("stage.weights={_target_: a.B}", {"_target_": "a.B", 1: 0.5, 2: 0.25}),
]


@pytest.mark.parametrize(("override", "value"), GIVEN)
def test_a_plain_mapping_on_the_command_line_replaces_and_one_with_a_target_changes(write, override, value):
    write(base=BASE)
    assert load("base.yaml", [override]).root["stage"][override.split("=")[0].split(".")[1]] == value


def test_captions_given_on_the_command_line_are_the_captions_of_the_run():
    weights = load(ROOT / "recipes/sft.yaml", ["data.captions={original: 1}"]).root["data"]["captions"]
    assert weights == {"original": 1}
    weights = load(ROOT / "recipes/nft.yaml", ["stage.weights={ocr: 1}"]).root["stage"]["weights"]
    assert weights == {"ocr": 1}


@pytest.mark.parametrize("text", ["/data/a #1.jsonl", "a: b", "@x", "*", "C:\\x", "x, y", "- a", "%", "a [1].jsonl"])
def test_a_bare_value_is_taken_to_the_letter(write, text):
    write(top="a: 1")
    assert load("top.yaml", [f"a={text}"]).root["a"] == text


class Choice(StrEnum):
    LAST = "last"


class Level(IntEnum):
    THIRD = 3


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.float64(0.5), 0.5), (Choice.LAST, "last"), (Path("a/b"), "a/b"), ((1, True), [1, True]), (Level.THIRD, 3)],
)
def test_an_override_from_python_is_kept_as_the_plain_value_that_it_stands_for(write, value, plain):
    write(base="a: 1\n")
    root = load("base.yaml", {"a": value}).root
    assert root == {"a": plain}
    assert type(root["a"]) is type(plain)
    assert parse(dump(root), "saved") == root


def test_overrides_reach_lists_and_int_keys(write):
    write(base=BASE)
    root = load("base.yaml", ["stage.optimizer.betas.1=0.95", "stage.weights.2=1", "run.resume=last"]).root
    assert root["stage"]["optimizer"]["betas"] == [0.9, 0.95]
    assert root["stage"]["weights"] == {1: 0.5, 2: 1}
    assert root["run"]["resume"] == "last"


@pytest.mark.parametrize("order", [1, -1])
def test_a_new_target_on_the_command_line_drops_the_old_arguments_in_any_order(write, order):
    write(base=BASE)
    given = ["stage.optimizer._target_=torch.optim.SGD", "stage.optimizer.momentum=0.9"][::order]
    assert load("base.yaml", given).root["stage"]["optimizer"] == {"_target_": "torch.optim.SGD", "momentum": 0.9}


def test_an_override_may_give_a_whole_node_or_take_one_away(write):
    write(base=BASE)
    root = load("base.yaml", ["callbacks.progress=null", "stage.optimizer={_target_: a.B, q: [1, x]}"]).root
    assert root["callbacks"]["progress"] is None
    assert root["stage"]["optimizer"] == {"_target_": "a.B", "q": [1, "x"]}


def test_interpolation_follows_the_override(write):
    write(base=BASE)
    recipe = load("base.yaml", ["run.dir=here"])
    assert recipe.root["grid"] == "here/grid"
    assert recipe.missing == ()


def test_what_waits_for_the_command_line_is_known_by_name(write):
    write(base=BASE)
    recipe = load("base.yaml")
    assert recipe.missing == ("run.dir",)
    assert recipe.root["grid"] == "???"


def test_errors_name_the_file_of_the_nearest_key_above():
    recipe = Recipe("top.yaml", {}, {"stage": "base.yaml", "stage.lr": "top.yaml (command line)"})
    assert str(recipe.refusal("stage.lr", "x")) == "top.yaml (command line): stage.lr: x"
    assert str(recipe.refusal("stage.other.deep", "x")) == "base.yaml: stage.other.deep: x"


BAD_FILES = [
    ("a: [1", "top.yaml:1: not valid YAML"),
    ("a: 1\nb: 2\na: 3", "top.yaml:3: not valid YAML: the key 'a' appears twice"),
    ("x:\n  a: 1\n  a: 1", "top.yaml:3: not valid YAML: the key 'a' appears twice"),
    ("run: {dir: ???}", "inside braces write '???' in quotes"),
    ("a: &x 1\nb: *x", "top.yaml:1: not valid YAML: anchors and aliases"),
    ("a: !!python/object/apply:os.system [x]", "top.yaml:1: not valid YAML: could not determine a constructor"),
    ("a: !!timestamp 2026-01-01", "top.yaml: a: a date has no place in a recipe"),
    ("1.5: a", "1.5 cannot be a key"),
    ("- a", "top.yaml: a recipe is a mapping of keys to values, this is a list"),
    ("", "top.yaml: a recipe is a mapping of keys to values, this is empty"),
    ("a: '\x00'", "not valid YAML"),
    ("base: [other.yaml]", "other.yaml: no such recipe"),
    ("base: 3", "top.yaml: base: expected a list of file names, got 3"),
    ("base: [nested.yaml]", "x.yaml: no such recipe"),
    ("base: [top.yaml]", "top.yaml: base: a circle: top.yaml -> top.yaml"),
    ("base: [round.yaml]", "round.yaml: base: a circle: top.yaml -> round.yaml -> top.yaml"),
    ('base: ["a\\0b"]', "top.yaml:1: not valid YAML: 'a\\x00b' holds what is no text"),
    ('base: ["\\ud800"]', "top.yaml:1: not valid YAML: '\\ud800' holds what is no text"),
    ('"a\\0b": 1', "top.yaml:1: not valid YAML: 'a\\x00b' holds what is no text"),
    ('a: {"\\udfff": 1}', "top.yaml:1: not valid YAML: '\\udfff' holds what is no text"),
    ('a: "\\0?"', "top.yaml:1: not valid YAML: '\\x00?' holds what is no text"),
    ("a: " + "[" * 300 + "]" * 300, "top.yaml:1: not valid YAML: nested more than 50 levels deep"),
    ("a: " + "{a: " * 300 + "1" + "}" * 300, "top.yaml:1: not valid YAML: nested more than 50 levels deep"),
    ("\n".join(" " * n + "a:" for n in range(300)), "not valid YAML: nested more than 50 levels deep"),
    ("a: " + "x" * 300_000, "top.yaml: cannot be read as a recipe: larger than 0.25 MB"),
    ("base: /dev/zero", "/dev/zero: cannot be read as a recipe: not a regular file"),
    ("base: /dev/tty", "/dev/tty: cannot be read as a recipe: "),
    ("base: [fifo.yaml]", "fifo.yaml: cannot be read as a recipe: not a regular file"),
    ("base: [.]", ".: cannot be read as a recipe: Is a directory"),
    ("a: ${oc.env:HOME}", "top.yaml: a: '${oc.env:HOME}': only ${key.path} is replaced"),
    ("a: x ${oc.decode:1} y", "resolvers are not part"),
    ("a: ${b.${c}}", "resolvers are not part"),
    ("a: ${nope.x}", "top.yaml: a: Interpolation key 'nope.x' not found"),
    ("a: ${b}\nb: ${a}", "Recursive interpolation"),
    ("a0: x\n" + "\n".join(f"a{i + 1}: ${{a{i}}}${{a{i}}}" for i in range(40)), "grows beyond 256 kB"),
    (
        "a: {x: 1}\n" + "\n".join(f"b{i}: {{c: '${{b{i + 1}}}', d: '${{b{i + 1}}}'}}" for i in range(40)),
        "grows beyond 256 kB",
    ),
    (
        "\n".join(f"a{i}: ${{a{i + 1}}}" for i in range(3000)) + "\na3000: 1",
        "more than 50 values name each other in a row",
    ),
    (b"a: \xff".decode("latin-1"), None),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES)
def test_a_bad_file_is_one_line(write, tmp_path, text, message):
    write(top=text, nested="base: [x.yaml]", round="base: [top.yaml]")
    os.mkfifo("fifo.yaml")
    if message is None:
        (tmp_path / "top.yaml").write_bytes(b"a: \xff")
        message = "top.yaml: not UTF-8 text (byte 3)"
    with pytest.raises(UserError) as refused:
        load("top.yaml")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_recipe_that_is_not_there_names_its_neighbour(write, tmp_path):
    write(sft="a: 1")
    with pytest.raises(UserError, match=r"^stf.yaml: no such recipe; did you mean 'sft.yaml'\?$"):
        load("stf.yaml")
    with pytest.raises(UserError, match=r"cannot be read as a recipe: Is a directory$"):
        load(str(tmp_path))


BAD_OVERRIDES = [
    ("run.rezume=last", "base.yaml (command line): run.rezume: no such key; did you mean 'resume'?"),
    ("rum.dir=x", "base.yaml (command line): rum: no such key; did you mean 'run'?"),
    ("callbacks.new={}", "base.yaml (command line): callbacks.new: no such key"),
    ("run.dir.x=1", "base.yaml (command line): run.dir.x: no such key; run.dir is text; give run.dir= a whole value"),
    ("stage.optimizer.betas.2=1", "no such item; stage.optimizer.betas is a list of 2, counted from 0"),
    ("run.dir", "command line: 'run.dir': expected key.path=value"),
    ("=x", "command line: '=x': expected key.path=value"),
    ("run.dir=[a", "command line: run.dir:1: not valid YAML"),
    ("run.dir=${oc.env:HOME}", "base.yaml (command line): run.dir: '${oc.env:HOME}'"),
    ("run.dir=a\0b", "command line: run.dir: 'a\\x00b' holds what is no text"),
    ("run.dir=\udcff", "command line: run.dir: '\\udcff' holds what is no text"),
    ("run.dir=" + "[" * 300 + "]" * 300, "nested more than 50 levels deep"),
]


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES)
def test_a_bad_override_is_one_line(write, override, message):
    write(base=BASE)
    with pytest.raises(UserError) as refused:
        load("base.yaml", [override])
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
