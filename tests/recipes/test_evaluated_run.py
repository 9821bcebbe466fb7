"""Benchmarks scored while a model learns: curves in MLflow, the same after a resume, beside an unchanged training."""

from pathlib import Path

import pytest
import torch
from mlflow.tracking import MlflowClient
from standin import write_rededit
from stub_judge import StubJudge

from callbacks.evaluation import Evaluation
from datamodules.world.benchmark import WorldRows
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.errors import UserError
from firered_lit.evaluation import run as evaluation
from firered_lit.evaluation.benchmarks.exact import Exact
from firered_lit.evaluation.benchmarks.subset import Subset
from firered_lit.evaluation.models.local import Local
from firered_lit.evaluation.report.record import RunRecord
from firered_lit.run.store import read_record
from firered_lit.textfiles import read_object

FIT = ["fit", "--recipe", "recipes/tiny/sft_evaluated.yaml", "callbacks.progress=null", "checkpoint.every=2"]
NODE = "callbacks.evaluation"
ROWS = "{_target_: datamodules.world.benchmark.WorldRows, each: 2, families: [color, add]}"
LORA = "{_target_: firered_lit.models.lora.LoRA, rank: 4, alpha: 4, dropout: 0.5}"  # the module's mode matters
SMALL = [f"{NODE}.every=2", f"{NODE}.each=1", f"{NODE}.steps=2", f"{NODE}.benchmarks.world.rows={ROWS}"]
SMALL.append(f"stage.backbone.lora={LORA}")


def command(run: Path, *options: str) -> list[str]:
    return [*FIT, *SMALL, f"run.dir={run}", *options]


def curves(run: Path) -> dict[str, dict[int, float]]:
    """Every curve of the evaluation in MLflow: step -> value."""
    record = read_record(run)
    client = MlflowClient(record["mlflow_uri"])
    names = [name for name in client.get_run(record["mlflow_run_id"]).data.metrics if name.startswith("eval/")]
    found = {}
    for name in names:
        points = {}
        for metric in client.get_metric_history(record["mlflow_run_id"], name):
            assert points.setdefault(metric.step, metric.value) == metric.value, "a repeated step has the same score"
            points[metric.step] = metric.value
        found[name] = points
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of five steps, evaluated every two."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(run, "trainer.max_steps=5")) == 0
    return run


def test_a_run_has_a_curve_per_category_from_the_base_to_the_end(whole):
    found = curves(whole)
    for category in ("color", "add", "overall"):
        assert list(found[f"eval/world/strict/{category}"]) == [0, 2, 4, 5]
    assert found["eval/world/official/items/expected"] == {0: 2, 2: 2, 4: 2, 5: 2}
    assert (whole / "evaluation/report/index.html").is_file()
    report = read_object(whole / "evaluation/report/report.json")
    assert report["models"] == ["step_00000000", "step_00000005"]


def test_a_resumed_run_has_the_same_curves_and_pictures_and_training_is_as_without_them(whole, tmp_path):
    resumed = whole.parent / "resumed"  # in the same store
    assert main(command(resumed, "trainer.max_steps=2")) == 0
    assert main(command(resumed, "trainer.max_steps=5", "run.resume=last")) == 0
    assert curves(resumed) == curves(whole)
    pictures = {path.relative_to(whole): path.read_bytes() for path in whole.glob("evaluation/pictures/**/*.png")}
    assert len(pictures) == 4 * 2
    assert all((resumed / name).read_bytes() == content for name, content in pictures.items())
    drawn = whole / "evaluation/pictures"
    first = [path.read_bytes() for path in sorted(drawn.glob("step_00000000/**/*.png"))]
    last = [path.read_bytes() for path in sorted(drawn.glob("step_00000005/**/*.png"))]
    assert first != last, "the weights that learn draw"

    plain = tmp_path / "plain"
    assert main(command(plain, "trainer.max_steps=5", f"{NODE}=null", "logger=null")) == 0
    evaluated = torch.load(newest(whole), weights_only=True)["state_dict"]
    without = torch.load(newest(plain), weights_only=True)["state_dict"]
    assert evaluated.keys() == without.keys()
    assert all(torch.equal(evaluated[name], without[name]) for name in without)


def test_the_last_point_is_the_score_that_the_verb_gives_the_run(whole, tmp_path):
    rows = WorldRows(each=2, families=["color", "add"])
    part = Subset(Exact(rows), each=1, seed=0)
    model = Local(str(whole), steps=2, guidance=1.0)
    steps = ["draw", "score", "report"]
    evaluation.evaluate(str(tmp_path), {"world": part}, model=model, steps=steps, seed=0, mlflow=RunRecord())
    drawn = sorted((tmp_path / "pictures").rglob("*.png"))
    live = sorted((whole / "evaluation/pictures/step_00000005").rglob("*.png"))
    assert [path.read_bytes() for path in drawn] == [path.read_bytes() for path in live]
    (name,) = (path.parent.name for path in (tmp_path / "models").glob("*/scores.json"))
    scores = read_object(tmp_path / "models" / name / "scores.json")
    assert scores == read_object(whole / "evaluation/models/step_00000005/scores.json")

    # It stands in the record of the run, and the curves are as they were.
    record = read_record(whole)
    metrics = MlflowClient(record["mlflow_uri"]).get_run(record["mlflow_run_id"]).data.metrics
    assert metrics["evaluation/world/strict/overall"] == scores["world"]["strict"]["overall"]["score"]
    assert list(curves(whole)["eval/world/strict/overall"]) == [0, 2, 4, 5]


# With a judge


def judged(folder: Path, run: Path, url: str, *options: str) -> list[str]:
    target = "firered_lit.evaluation.benchmarks.rededit.REDEdit"
    benchmark = f"{{_target_: {target}, folder: {folder}, languages: [cn], version: any}}"
    judge = f"{{_target_: firered_lit.evaluation.judge_server.JudgeServer, url: '{url}', retries: 0}}"
    own = [f"{NODE}.benchmarks={{world: null, rededit: {benchmark}}}", f"{NODE}.judge={judge}", f"{NODE}.steps=1"]
    return command(run, "logger=null", *own, *options)


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    return write_rededit(tmp_path_factory.mktemp("rededit"), each=1)


def test_a_judges_answers_are_not_asked_for_again(standin, tmp_path):
    run = tmp_path / "run"
    with StubJudge() as judge:
        assert main(judged(standin, run, judge.url, "trainer.max_steps=2")) == 0
        asked = dict(judge.asked)
        scores = read_object(run / "evaluation/models/step_00000000/scores.json")
        assert scores["rededit_cn"]["strict"]["overall"]["scored"] == 15
        (run / "evaluation/models/step_00000002/scores.json").unlink()  # as if killed before it was written
        assert main(judged(standin, run, judge.url, "trainer.max_steps=3", "run.resume=last")) == 0
        assert set(judge.asked.values()) == {1}
        assert len(judge.asked) > len(asked)


def test_a_judge_that_is_not_there_is_named_before_training(standin, tmp_path, capsys):
    assert main(judged(standin, tmp_path / "run", "http://127.0.0.1:9/v1", "trainer.max_steps=2")) == 2
    assert "callbacks.evaluation: judge http://127.0.0.1:9" in capsys.readouterr().err


def test_a_benchmark_that_needs_a_judge_is_refused_without_one(standin, tmp_path, capsys):
    assert main(judged(standin, tmp_path / "run", "", f"{NODE}.judge=null", "trainer.max_steps=1")) == 2
    assert "rededit_cn is scored by a judge; name its url" in capsys.readouterr().err


@pytest.mark.parametrize("number", [{"every": 0}, {"each": 0}, {"steps": 0}])
def test_numbers_out_of_range_are_refused(number):
    with pytest.raises(UserError, match="at least 1"):
        Evaluation({"world": Exact(WorldRows(each=1))}, **number)


def test_a_subset_is_the_same_items_of_each_category_everywhere():
    whole = Exact(WorldRows(each=5, families=["color", "add"]))
    first = Subset(whole, each=2, seed=1).items()
    assert first == Subset(whole, each=2, seed=1).items()
    assert [item.category for item in first] == ["color", "color", "add", "add"]
    assert first != Subset(whole, each=2, seed=2).items()
    assert list(Subset(whole, each=9).items()) == list(whole.items())


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_curves(whole, tmp_path, launch):
    killed = tmp_path / "killed"
    for step in (2, 4):
        options = [] if step == 2 else ["run.resume=last"]
        process = launch(*command(killed, "trainer.max_steps=5", *options))
        process.until(lambda step=step: (killed / f"evaluation/pictures/step_{step:08d}").exists())
        process.popen.kill()
        process.popen.wait()
    assert main(command(killed, "trainer.max_steps=5", "run.resume=last")) == 0
    assert curves(killed) == curves(whole)
