"""Names, weights, routes and scales of rewards: what cannot work is refused before anything is drawn."""

import json
from concurrent.futures import Future
from dataclasses import replace

import lightning as L
import pytest
import torch
from toy_prompts import Prompts, sample, trainer

from callbacks.rewards.base import RewardCallback, Sums
from callbacks.rewards.pixel import PixelReward
from firered_lit.checking import recipes
from firered_lit.config.recipe import load
from firered_lit.config.reward_check import reward_problems
from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.rewards.names import absent_tasks, check_name, check_routes
from firered_lit.rewards.protocol import Scores
from firered_lit.rewards.scale import on_unit, refuse_outside
from firered_lit.rewards.statistics import ScoredEdits
from firered_lit.stages.nft import NFT


class Grader(RewardCallback):
    """Gives the same values for every batch."""

    def __init__(self, *values, name="grader", **options):
        super().__init__(name, **options)
        self.values = values

    def submit(self, images, batch):
        future = Future()
        future.set_result(Scores(torch.tensor(self.values), torch.ones(len(self.values), dtype=torch.bool)))
        return future


# names


@pytest.mark.parametrize("name", ["ocr", "my_judge", "judge-2", "好", "two words", "PIXEL"])
def test_a_name_of_letters_and_digits_is_a_rewards_name(name):
    check_name(name)
    assert PixelReward(name).name == name


@pytest.mark.parametrize("name", ["a/b", "/", "", " a", "a.b", "total", "missing", "source_distance", "a\nb", None, 5])
def test_a_name_that_cannot_be_a_curves_is_refused_at_set_up(name):
    with pytest.raises(UserError, match="reward ") as refused:
        PixelReward(name)
    assert "\n" not in str(refused.value)


# routes


TASKS = {"text": 3, "colour": 5, "poster": 1}


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({"orc": ["text"]}, "no such reward: 'orc'; did you mean 'ocr'"),
        ({"ocr": ["txt"]}, "ocr: no such task: 'txt'; did you mean 'text'"),
        ({"ocr": ["text", "postr"]}, "ocr: no such task: 'postr'; did you mean 'poster'"),
        ({"ocr": ["text"], "pixel": ["nowhere"]}, "pixel: no such task: 'nowhere'; the data has"),
        ({"ocr": "text"}, "takes a list of tasks"),
        ({"ocr": [5]}, "takes a list of tasks"),
    ],
)
def test_a_route_of_no_reward_or_to_no_task_is_refused(routes, message):
    with pytest.raises(UserError, match=message) as refused:
        check_routes(routes, ["ocr", "pixel"], TASKS)
    assert "\n" not in str(refused.value)


def test_a_route_may_name_tasks_of_other_data_beside_its_own_and_anything_where_tasks_are_not_known():
    check_routes({"ocr": ["text", "poster"], "pixel": ["portrait", "viewpoint"]}, ["ocr", "pixel"], TASKS)
    shipped = {"ocr": ["text"], "pixel": ["colour", "flip", "text_to_image"]}  # a recipe for several data sets
    check_routes(shipped, ["ocr", "pixel"], TASKS)
    assert absent_tasks(shipped, TASKS) == ["flip", "text_to_image"]
    check_routes({"ocr": ["subject-replace", "subject-remove"]}, ["ocr"], ["subject-replace"])
    check_routes({"ocr": ["anything"]}, ["ocr"])


class Data(L.LightningDataModule):
    """Prompts of two tasks, `odd` and `even`, that counts what is drawn of them."""

    def __init__(self):
        super().__init__()
        self.summary = {"tasks": {"even": 1, "odd": 1}}
        self.weights = None
        self.drawn = 0

    def train_dataloader(self):
        data = self

        class Counted(Prompts):
            def batch(self, step):
                data.drawn += 1
                return super().batch(step)

        return Counted(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"routes": {"grade": ["odd"]}}, "no such reward: 'grade'; did you mean 'grader'"),
        ({"routes": {"grader": ["odd", "evne"]}}, "no such task: 'evne'; did you mean 'even'"),
        ({"routes": {"grader": ["odd"]}}, "no reward scores the task 'even'"),
        ({"weights": {"grader": -1.0}}, "at least 0"),
        ({"weights": {"grader": 0.0}}, "all are 0"),
        ({"weights": {"other": 1.0}}, "name each reward once"),
    ],
)
def test_names_that_do_not_fit_are_refused_before_the_first_rollout(tmp_path, options, message):
    data = Data()
    stage = NFT(Backbone("tiny"), torch.optim.SGD, group_size=2, rollout_steps=1, points=1, **options)
    with pytest.raises(UserError, match=message) as refused:
        trainer(tmp_path, [Grader(0.1, 0.2)], max_steps=1).fit(stage, data, weights_only=True)
    assert data.drawn == 0
    assert not hasattr(stage, "transformer"), "nothing was loaded"
    assert "\n" not in str(refused.value)


def nft(path, **stage):
    """A recipe whose callbacks are an OCR reward, a judge of another name and what is no reward."""
    path.write_text(
        json.dumps(
            {
                "stage": {"_target_": "firered_lit.stages.nft.NFT"} | stage,
                "callbacks": {
                    "first": {"_target_": "callbacks.rewards.ocr.OCRReward"},
                    "second": {"_target_": "callbacks.rewards.judge.JudgeReward", "name": "looks"},
                    "none": None,
                    "progress": {"_target_": "callbacks.progress.Progress"},
                    "timer": {"_target_": "lightning.pytorch.callbacks.Timer"},
                },
            }
        )
    )
    return load(str(path))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"routes": {"orc": ["text"]}}, "stage.routes: no such reward: 'orc'; did you mean 'ocr'"),
        ({"weights": {"ocr": 1.0}}, "stage.weights: name each reward once"),
        ({"weights": {"ocr": 1.0, "judge": 1.0}}, "there are ['looks', 'ocr']"),
        ({"weights": {"ocr": -1.0, "looks": 1.0}}, "at least 0"),
    ],
)
def test_check_knows_names_that_do_not_fit_from_the_recipe_alone(tmp_path, stage, message):
    (problem,) = map(str, reward_problems(nft(tmp_path / "r.yaml", **stage)))
    assert problem.startswith(str(tmp_path / "r.yaml"))
    assert message in problem
    (tmp_path / "c.yaml").write_text((tmp_path / "r.yaml").read_text())
    lines = [finding.line for finding in recipes([str(tmp_path / "c.yaml")]) if finding.wrong]
    assert any(message in line for line in lines), "`check` says so among the rest"


def test_check_knows_the_tasks_of_data_that_is_there(tmp_path):
    (tmp_path / "data.json").write_text('{"tasks": {"text": 3, "poster": 1}}')
    recipe = nft(tmp_path / "r.yaml", routes={"ocr": ["postr"], "looks": ["color"]})
    assert list(reward_problems(recipe)) == []
    recipe.root["data"] = {"root": str(tmp_path)}
    (problem,) = map(str, reward_problems(recipe))
    assert "ocr: no such task: 'postr'; did you mean 'poster'" in problem


def test_check_refuses_a_name_that_cannot_be_a_curves(tmp_path):
    recipe = nft(tmp_path / "r.yaml")
    recipe.root["callbacks"]["second"]["name"] = "a/b"
    (problem,) = map(str, reward_problems(recipe))
    assert "callbacks.second.name: reward 'a/b'" in problem


def test_check_leaves_what_a_users_own_reward_may_be_called_to_the_run(tmp_path):
    recipe = nft(tmp_path / "r.yaml", routes={"mine": ["text"]}, weights={"mine": 1.0})
    recipe.root["callbacks"]["own"] = {"_target_": "my_package.Grader"}
    assert list(reward_problems(recipe)) == []


def test_check_holds_the_weights_of_a_mining_against_its_rewards(tmp_path):
    task = {"weights": {"judge": 1.0}, "rewards": {"reward": {"_target_": "callbacks.rewards.pixel.PixelReward"}}}
    (tmp_path / "m.yaml").write_text(json.dumps({"task": task}))
    (problem,) = map(str, reward_problems(load(str(tmp_path / "m.yaml"))))
    assert "task.weights: name each reward once: there are ['pixel']" in problem


# scales


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (1.0, 5.0), (-2.0, -1.0), (-100.0, 10.0)])
def test_a_scale_is_laid_on_the_unit_from_its_lowest_to_its_highest_value(low: float, high: float) -> None:
    span = high - low
    values = torch.tensor([low, low + span / 4, high, low - span / 10, high + span / 10])
    laid, stranger = on_unit(Scores(values, torch.ones(5, dtype=torch.bool)), (low, high))
    assert torch.allclose(laid.value[:3], torch.tensor([0.0, 0.25, 1.0]))
    assert laid.valid.tolist() == [True, True, True, False, False]
    assert stranger == pytest.approx(low - span / 10)

    # On one side alone.
    _, stranger = on_unit(Scores(torch.tensor([high + span / 10]), torch.ones(1, dtype=torch.bool)), (low, high))
    assert stranger == pytest.approx(high + span / 10)


def test_values_are_laid_linearly_on_the_unit_interval():
    scores = Scores(torch.tensor([0, 5, 2]), torch.tensor([True, True, True]), {"t": torch.tensor([7.0, 8.0, 9.0])})
    laid, stranger = on_unit(scores, (0, 5))
    assert laid.value.tolist() == pytest.approx([0.0, 1.0, 0.4])
    assert laid.terms["t"].tolist() == [7, 8, 9]
    assert stranger is None
    rounded, stranger = on_unit(Scores(torch.tensor([1.004, -0.004]), torch.ones(2, dtype=torch.bool)), (0, 1))
    assert (rounded.value.tolist(), stranger) == ([1, 0], None)


def test_what_is_no_number_is_missing_and_what_is_missing_may_be_anything():
    values = torch.tensor([0.5, torch.nan, torch.inf, -torch.inf, 9.0])
    laid, stranger = on_unit(Scores(values, torch.tensor([True, True, True, True, False])), (0, 1))
    assert laid.valid.tolist() == [True, False, False, False, False]
    assert laid.value.tolist() == [0.5, 0, 0, 0, 0]
    assert stranger is None


class Shows(L.LightningModule):
    def validation_step(self, batch, batch_idx):
        return {"output": batch.pixels}


def validated(tmp_path, reward):
    run = trainer(tmp_path, [reward], limit_val_batches=1.0)
    shown = [replace(sample(1), weight=torch.ones(1))]
    run.validate(Shows(), torch.utils.data.DataLoader(shown, batch_size=None), verbose=False)
    return {name: float(value) for name, value in run.callback_metrics.items()}


def test_a_score_outside_of_the_scale_is_refused_in_validation(tmp_path):
    with pytest.raises(UserError, match=r"reward grader: a score of 4 lies outside of \[0, 1\]; .*`range: "):
        validated(tmp_path, Grader(4.0))
    assert validated(tmp_path, Grader(4.0, range=[0, 5]))["reward/grader"] == pytest.approx(0.8)


def none_of_any_kind():
    """Return rewards that give no score, by what their reasons say."""
    silent = Grader(0.5, patience=0.1)
    silent.submit = lambda images, batch: Future()
    broken = Grader(0.5)
    broken.submit = lambda images, batch: 1 / 0
    return {"late": silent, "ZeroDivisionError": broken, "not 1 scores": Grader(0.5, 0.5)}


@pytest.mark.parametrize("reason", none_of_any_kind())
def test_a_reward_without_an_answer_is_counted_once_for_each_picture_of_validation(tmp_path, reason):
    reward = none_of_any_kind()[reason]
    logged = validated(tmp_path, reward)
    assert logged == {"reward/grader/missing": 1.0}
    assert reward.reasons.total() == 1
    assert reason in next(iter(reward.reasons))


def scored(outside):
    nothing = torch.zeros(2)
    return ScoredEdits(("odd", "odd"), torch.zeros(2).long(), nothing, nothing.bool(), {}, nothing, outside)


def test_what_all_ranks_have_scored_names_a_score_outside_that_one_of_them_saw():
    parts = [scored({}), scored({"grader": 4.0}), scored({"grader": 5.0, "ocr": -1.0})]
    everyone = ScoredEdits.join(parts)
    with pytest.raises(UserError, match="reward grader: a score of 5 lies outside"):
        refuse_outside(everyone.outside, {})
    refuse_outside(ScoredEdits.join(parts[:1]).outside, {})


def test_every_rank_learns_of_a_score_outside_that_one_of_them_saw(monkeypatch):
    """Two ranks' sums, exchanged as the processes do."""
    inside, outside = Sums(), Sums()
    outside.outside = 4.0

    class Two:
        world_size = 2

    def gathered(everyone, mine):
        everyone[:] = [(rank.sums, rank.missing, rank.outside) for rank in (inside, outside)]

    monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
    for rank in (inside, outside):
        rank.over_ranks(Two())
        assert rank.outside == 4.0
