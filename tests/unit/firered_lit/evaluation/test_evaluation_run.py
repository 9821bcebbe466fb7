"""An evaluation from the command line to its scores: drawn, judged and scored, once each, in one process or several."""

import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import standin
from PIL import Image, ImageFilter
from stub_judge import StubJudge

from datamodules.world.benchmark import WorldRows
from firered_lit import cli
from firered_lit.evaluation.benchmarks.exact import Exact
from firered_lit.evaluation.benchmarks.gedit import GEdit
from firered_lit.evaluation.benchmarks.imgedit import ImgEdit
from firered_lit.evaluation.judge_server import JudgeServer
from firered_lit.evaluation.models.opening import Drawing
from firered_lit.evaluation.models.planted import Blank, Copier, RandomCrop, RightAnswers
from firered_lit.evaluation.run import evaluate
from firered_lit.evaluation.statistics import compare_models, estimate_means


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("copies")
    standin.write_rededit(folder / "rededit", each=2)
    standin.write_imgedit(folder / "imgedit", each=1)
    standin.write_gedit(folder / "gedit", each=1)
    return folder


def eval_verb(recipe: str, *overrides: str) -> int:
    return cli.main(["eval", "--recipe", f"recipes/eval/{recipe}.yaml", *overrides])


def items_of(out: Path, model: str) -> list[dict]:
    text = (out / "models" / model / "items.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def everything(out: Path) -> dict[str, bytes]:
    """Pictures and scores."""
    names = [*(out / "pictures").rglob("*.png"), *(out / "models").rglob("*.json*"), out / "scores.json"]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(names)}


def test_a_model_is_drawn_judged_and_scored_by_one_command_and_nothing_twice(copies, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    with StubJudge() as judge:
        command = ["rededit", f"data={copies / 'rededit'}", "model=world", f"out={out}", f"judge.url={judge.url}"]
        command += ["benchmarks.rededit.version=any", "drawing.steps=1", "drawing.guidance=1"]
        command += ["steps=[draw, judge, score]"]
        assert eval_verb(*command) == 0
        told = capsys.readouterr().out
        asked = sum(judge.asked.values())
        whole = everything(out)
        assert eval_verb(*command) == 0
        assert sum(judge.asked.values()) == asked == 60

    # Every item of every category, in both languages.
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    assert list(scores) == ["rededit_en", "rededit_cn"]
    for suite, modes in scores.items():
        for mode in ("official", "strict"):
            assert set(modes[mode]) == {*standin.REDEDIT, "overall"}
            assert all(modes[mode][task]["scored"] == 2 for task in standin.REDEDIT)
            overall = modes[mode]["overall"]
            assert (overall["expected"], overall["scored"], overall["missing"]) == (30, 30, 0)
        assert f"score   {suite} world: official {modes['official']['overall']['score']:.4f}" in told
    assert "draw    world: 60 drawn, 0 were there, 0 failed" in told
    assert len([name for name in whole if name.endswith(".png")]) == 60

    # Run again, it changes nothing.
    assert "draw    world: 0 drawn, 60 were there, 0 failed" in capsys.readouterr().out
    assert everything(out) == whole


def test_what_was_judged_is_scored_again_without_naming_the_judge_and_never_as_another_ones(
    copies, tmp_path, capsys
) -> None:
    out = tmp_path / "out"
    shutil.copytree(copies / "rededit" / "targets", tmp_path / "right" / "rededit_en")
    command = ["rededit", f"data={copies / 'rededit'}", f"model={tmp_path / 'right'}", f"out={out}"]
    command += ["benchmarks.rededit.version=any", "benchmarks.rededit.languages=[en]"]
    with StubJudge() as judge:
        judged = ["steps=[draw, judge, score]", f"judge.url={judge.url}", "judge.model=judge-7b"]
        assert eval_verb(*command, *judged, "judge.settings={temperature: 0.5}") == 0
    before = (out / "scores.json").read_bytes()
    assert eval_verb(*command, "steps=[score]") == 0
    assert (out / "scores.json").read_bytes() == before
    assert eval_verb(*command, "steps=[score]") == 0, "the note of the judge has stayed"
    assert eval_verb(*command, "steps=[score]", "judge.model=other-7b") == 2
    assert "holds no answer of judge other-7b" in capsys.readouterr().err
    assert (out / "scores.json").read_bytes() == before


def test_text_and_an_arena_are_asked_for_and_scored_by_the_same_command(copies, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    for name in ("right", "blurred"):
        shutil.copytree(copies / "rededit" / "targets", tmp_path / name / "rededit_en")
    for path in (tmp_path / "blurred").rglob("*.png"):
        Image.open(path).filter(ImageFilter.GaussianBlur(1)).save(path)
    models = f"models={{right: {tmp_path / 'right'}, blurred: {tmp_path / 'blurred'}}}"
    command = ["rededit", f"data={copies / 'rededit'}", models]
    command += [f"out={out}", "benchmarks.rededit.version=any", "benchmarks.rededit.languages=[en]"]
    command += ["text={_target_: firered_lit.evaluation.text_reading.TextReading}", "judge.model=judge-7b"]
    command += ["arena={_target_: firered_lit.evaluation.arena.Arena, each: 1}", "steps=[draw, judge, score]"]
    with StubJudge() as judge:
        assert eval_verb(*command, f"judge.url={judge.url}") == 0
        asked = judge.count
        assert asked == 60 + 2 * 15 + 4  # scores, both orders of a pair per task, texts
        assert eval_verb(*command, f"judge.url={judge.url}") == 0
        assert judge.count == asked
    told = json.loads((out / "statistics.json").read_text(encoding="utf-8"))
    assert set(told["arena"]["rededit_en"]["models"]) == {"right", "blurred"}
    assert told["text"]["rededit_en"]["right"]["items_read"] == 2
    assert told["agreement"] is None
    assert "arena   30 answered" in capsys.readouterr().out


def test_hostile_words_of_instructions_and_answers_are_text_from_end_to_end(copies, tmp_path) -> None:
    data = tmp_path / "data"
    shutil.copytree(copies / "rededit", data)
    hostile = "</script><script>alert(1)</script> \u202e \"'` {0} %s ../../etc"
    lines = [json.loads(line) for line in (data / "redbench.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in lines:
        row["a_to_b_instructions_eng"] = hostile
    (data / "redbench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    shutil.copytree(data / "targets", tmp_path / "right" / "rededit_en")
    out = tmp_path / "out"

    def echo(body, digest):
        return f"{hostile} half \ud83d\nA: 5\nB: 4\nC: 4"

    with StubJudge(echo) as judge:
        command = ["rededit", f"data={data}", f"model={tmp_path / 'right'}", f"out={out}", f"judge.url={judge.url}"]
        command += ["benchmarks.rededit.version=any", "benchmarks.rededit.languages=[en]"]
        command += ["text={_target_: firered_lit.evaluation.text_reading.TextReading}", "judge.model=j"]
        assert eval_verb(*command) == 0
        assert hostile in judge.bodies[0]["messages"][0]["content"][-1]["text"]
    for line in items_of(out, "right"):
        assert line["instruction"] == hostile
        assert line["answers"][0][0].startswith(hostile)
        assert line["official"]["values"] == {"score": 4.33}
    assert "<script>alert(1)" not in (out / "report" / "index.html").read_text(encoding="utf-8")


def test_planted_models_of_the_world_rank_as_they_are(tmp_path) -> None:
    rows = WorldRows(each=3)
    models = {"right": RightAnswers(rows), "sft": "world", "copier": Copier()}
    models |= {"crop": RandomCrop(), "blank": Blank()}
    drawing = Drawing(steps=4, guidance=1.0)
    evaluate(str(tmp_path), {"world": Exact(rows)}, models=models, drawing=drawing, steps=["draw", "score"], seed=0)
    values: dict[str, dict[str, dict[str, dict[str, float]]]] = {"score": {}, "near": {}}
    for model in models:
        for line in items_of(tmp_path, model):
            assert line["strict"]["state"] == "scored"
            for dimension, by_model in values.items():
                by_category = by_model.setdefault(model, {}).setdefault(line["category"], {})
                by_category[line["id"]] = line["strict"]["values"][dimension]

    # Right edits: the answers all, the trained model some, a copier none.
    estimates = {model: estimate_means(found, seed=0).macro for model, found in values["score"].items()}
    assert estimates["right"].value == pytest.approx(1.0)
    assert estimates["right"].low > estimates["sft"].high
    assert estimates["sft"].low > max(estimates[name].high for name in ("copier", "crop", "blank"))

    # How near the others come: a copy keeps more than a crop, a crop more than nothing.
    order = ["right", "sft", "copier", "crop", "blank"]
    near = [estimate_means(values["near"][model], seed=0).macro for model in order]
    for better, worse in pairwise(near):
        assert better.value > worse.value
    assert near[1].low > near[2].high
    assert near[2].low > near[3].high
    verdict = compare_models({name: values["score"][name] for name in ("sft", "copier")}, seed=0)[0].overall
    assert verdict.estimate.low > 0


def test_the_answers_of_the_world_do_not_depend_on_its_side(tmp_path) -> None:
    for side in (64, 96):
        rows = WorldRows(each=2, seed=3, side=side, language="cn")
        benchmark = Exact(rows)
        for item in benchmark.items():
            assert benchmark.measure(item, rows.target(item.id)) == {"near": 1.0, "score": 1.0}
            assert benchmark.measure(item, benchmark.sources(item)[0])["score"] == 0.0
            assert item.language == "zh"


def test_shards_judge_what_they_have_drawn_of_every_model(copies, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    benchmarks = {  # 9 and 22 items: no multiple of the shards
        "imgedit": ImgEdit(str(copies / "imgedit"), version="any"),
        "world": Exact(WorldRows(each=1, families=["add", "color"])),
        "gedit": GEdit(str(copies / "gedit"), version="any"),
    }
    with StubJudge() as judge:
        for shard in range(4):
            evaluate(
                str(out),
                benchmarks,
                models={"copier": Copier(), "blank": Blank()},
                judge=JudgeServer(judge.url),
                steps=["draw", "judge", "score"],
                shard=shard,
                num_shards=4,
            )
            assert (out / "scores.json").exists() == (shard == 3)
    for model in ("copier", "blank"):
        states = Counter(line["official"]["state"] for line in items_of(out, model))
        assert states == {"scored": 9 + 2 + 22}


def test_three_benchmarks_are_scored_by_one_recipe(copies, tmp_path) -> None:
    out = tmp_path / "out"
    with StubJudge() as judge:
        versions = [f"benchmarks.{name}.version=any" for name in ("rededit", "imgedit", "gedit")]
        planted = "models={copier: {_target_: firered_lit.evaluation.models.planted.Copier}, other: null}"
        command = [f"data={copies}", f"out={out}", planted, f"judge.url={judge.url}", *versions]
        assert eval_verb("all", *command, "steps=[draw, judge, score]") == 0
        assert sum(judge.asked.values()) == 60 + 9 + 2 * 22
    suites = list(json.loads((out / "scores.json").read_text(encoding="utf-8")))
    own = [suite for suite in suites if not suite.endswith("_intersection")]
    assert own == ["rededit_en", "rededit_cn", "imgedit", "gedit_en", "gedit_cn"]

    # One of them alone, of the same recipe.
    alone = ["benchmarks.rededit=null", "benchmarks.gedit=null", f"out={tmp_path / 'alone'}", "steps=[draw]"]
    assert eval_verb("all", f"data={copies}", planted, *alone) == 0
    assert {path.parent.name for path in (tmp_path / "alone" / "pictures").rglob("*.png")} == {"imgedit"}


def test_answers_made_elsewhere_are_scored_without_a_model(copies, tmp_path) -> None:
    answers = tmp_path / "evaluation_details.json"
    answers.write_text(json.dumps({str(i): f"Brief reasoning: x\nA: {1 + i % 5}\nB: 4\nC: 4" for i in range(30)}))
    command = ["rededit", f"data={copies / 'rededit'}", f"out={tmp_path / 'out'}"]
    command += [f"answers={{rededit_en: '{answers}'}}", "benchmarks.rededit.languages=[en]"]
    assert eval_verb(*command, "benchmarks.rededit.version=any", "steps=[score]") == 0
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert scores["rededit_en"]["official"]["overall"]["scored"] == 30
    assert scores["rededit_en"]["official"]["add"]["score"] == round((3.0 + 3.33) / 2, 2)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data=/nowhere"], "/nowhere/redbench.jsonl: missing; "),
        (["benchmarks.rededit.version=published"], "30 rows, the published version has 1542"),
        (["judge.url=null"], "judge.url: rededit_en, rededit_cn is scored by a judge"),
        (["benchmarks.rededit.prompts=/nowhere.json"], "/nowhere.json: missing; "),
        (["model=/nowhere"], "/nowhere: no such folder, and not a hub id"),
        (["model=null"], "model: name one: a run, an export, a hub id or a folder of pictures"),
        (["steps=[draw, jugde]"], "steps: no step 'jugde'"),
        (["drawing.steps=0"], "drawing.steps: expected a number >= 1, got 0"),
        (["out=/proc/nowhere"], "/proc/nowhere: cannot be made a folder to write into"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(overrides, message, copies, tmp_path, capsys) -> None:
    command = [f"data={copies / 'rededit'}", "model=world", f"out={tmp_path}", "benchmarks.rededit.version=any"]
    command += ["judge.url=http://127.0.0.1:9/v1", *overrides]
    assert eval_verb("rededit", *command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert not (tmp_path / "pictures").exists()
