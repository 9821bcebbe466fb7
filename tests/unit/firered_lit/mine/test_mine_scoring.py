"""Rewards in mining: each by its name, their mixture, what is missing, and what deserves another try."""

from concurrent.futures import Future

import pytest
import torch
from toy_prompts import sample

from firered_lit.errors import UserError
from firered_lit.mine.scoring import Scorer
from firered_lit.rewards.protocol import Scores


class Told:
    """A reward that gives what it is told; None is missing. With `fault` it raises, without values it never answers."""

    def __init__(self, name, *values, fault=None, applies=None):
        self.name, self.values, self.fault, self.closed = name, values, fault, False
        if applies is not None:
            self.applies = lambda batch: [applies] * len(batch)

    def submit(self, images, batch):
        assert len(images) == len(batch)
        if self.fault:
            raise self.fault
        future = Future()
        if self.values:
            there = torch.tensor([value is not None for value in self.values])
            future.set_result(Scores(torch.tensor([value or 0.0 for value in self.values]), there))
        return future

    def close(self):
        self.closed = True


IMAGES = torch.zeros(2, 3, 16, 16)


def judged(*rewards, **options):
    scorer = Scorer({str(i): reward for i, reward in enumerate(rewards)}, patience=0.05, **options)
    return scorer.judged(scorer.ask(IMAGES, sample(1)))


def test_the_total_is_the_weighted_mean_and_each_is_noted():
    found = judged(Told("a", 0.2, 1.0), Told("b", 0.8, 0.5), weights={"a": 3.0, "b": 1.0})
    assert found.total == pytest.approx([0.35, 0.875])
    assert found.rewards["a"] == pytest.approx([0.2, 1.0])
    assert found.rewards["b"] == pytest.approx([0.8, 0.5])
    assert not found.again


def test_a_reward_of_no_weight_is_noted_and_decides_nothing():
    found = judged(Told("a", 0.2, 1.0), Told("looks", None, 0.5), weights={"a": 1.0, "looks": 0.0})
    assert found.total == pytest.approx([0.2, 1.0])
    assert found.rewards["looks"] == [None, 0.5]


def test_what_is_missing_is_missing_in_the_total():
    found = judged(Told("a", 0.2, None), Told("b", 0.5, 0.5))
    assert found.total == [pytest.approx(0.35), None]
    assert not found.again


@pytest.mark.parametrize("broken", [Told("a", fault=OSError("gone")), Told("a"), Told("a", None, None)])
def test_a_reward_that_gives_nothing_at_all_asks_for_another_try(broken):
    found = judged(broken, Told("b", 0.5, 0.5))
    assert found.total == [None, None]
    assert found.again
    assert found.rewards["b"] == [0.5, 0.5]


def test_a_reward_that_does_not_mean_to_score_it_asks_for_none():
    assert not judged(Told("ocr", None, None, applies=False)).again
    assert judged(Told("ocr", None, None, applies=True)).again


def test_routes_choose_the_rewards_of_a_task():
    found = judged(Told("a", 0.2, 0.4), Told("b", 1.0, 1.0), routes={"b": ["even"]})  # sample 1 is odd
    assert found.total == pytest.approx([0.2, 0.4])
    assert found.rewards["b"] == [None, None]
    nobody = judged(Told("b", 1.0, 1.0), routes={"b": ["even"]})
    assert (nobody.total, nobody.again) == ([None, None], False)


@pytest.mark.parametrize(("values", "stranger"), [((5.0, 1.0), "5"), ((0.5, 1.5), "1.5"), ((0.5, -0.1), "-0.1")])
def test_a_score_outside_of_the_scale_is_refused_in_mining(values, stranger):
    """On a scale of 0 to 5 the best edits would be those without a reward, and the worst ones would win."""
    with pytest.raises(UserError, match=rf"reward grader: a score of {stranger} lies outside of \[0, 1\]; .*range: "):
        judged(Told("grader", *values))
    with pytest.raises(UserError, match="reward grader"):
        judged(Told("grader", *values), Told("b", 0.5, 0.5), weights={"grader": 0.0, "b": 1.0})


def test_a_range_is_laid_on_the_unit_interval_in_mining():
    grader = Told("grader", 5.0, 1.0)
    grader.range = [0, 5]
    assert judged(grader).total == pytest.approx([1.0, 0.2])
    lower = Told("error", 0.0, -3.0)
    lower.range = (-4, 0)
    found = judged(lower, grader, weights={"error": 1.0, "grader": 1.0})
    assert found.rewards["error"] == pytest.approx([1.0, 0.25])
    assert found.total == pytest.approx([1.0, 0.225])
    grader.range = [0, 4]
    with pytest.raises(UserError, match=r"a score of 5 lies outside of \[0, 4\]"):
        judged(grader)


@pytest.mark.parametrize(
    "limits", [[1, 0], [0], [0, 1, 2], [0, float("inf")], ["a", "b"], 5, [0, float("nan")], "05"[:1]]
)
def test_a_range_that_is_none_is_refused_at_set_up(limits):
    reward = Told("a", 1.0, 1.0)
    reward.range = limits
    with pytest.raises(UserError, match=r"reward a: range=.*: takes two numbers \[low, high\]"):
        Scorer({"a": reward})


def test_what_cannot_decide_is_refused_and_rewards_are_closed():
    with pytest.raises(UserError, match="mining needs a reward"):
        Scorer({"a": None})
    with pytest.raises(UserError, match="all are 0"):
        Scorer({"a": Told("a")}, weights={"a": 0.0})
    with pytest.raises(UserError, match=r"task\.routes: no such reward: 'b'"):
        Scorer({"a": Told("a")}, routes={"b": ["x"]})
    with pytest.raises(UserError, match=r"task\.routes: a: no such task: 'evne'; did you mean 'even'"):
        Scorer({"a": Told("a")}, routes={"a": ["evne"]}, tasks={"even": 2, "odd": 1})
    reward = Told("a", 1.0, 1.0)
    Scorer({"a": reward}).close()
    assert reward.closed
