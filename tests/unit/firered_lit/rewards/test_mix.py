"""Mixing rewards: weights, routes, missing parts, refusals; and the protocol that stages look for."""

from concurrent.futures import Future

import pytest
import torch

from firered_lit.errors import UserError
from firered_lit.rewards.mix import mix
from firered_lit.rewards.protocol import Reward, Scores


def scores(*values, valid=None, **terms):
    value = torch.tensor(values)
    return Scores(value, torch.ones(len(values), dtype=torch.bool) if valid is None else torch.tensor(valid), terms)


OCR, JUDGE = scores(0.2, 0.4, 1.0), scores(0.9, 0.6, 0.0)
TASKS = ("text", "add", "text")
BOTH = {"ocr": OCR, "judge": JUDGE}


def test_the_value_is_the_weighted_mean():
    mixed = mix(BOTH, {"ocr": 3.0, "judge": 1.0}, TASKS)
    assert mixed.value.tolist() == pytest.approx([0.375, 0.45, 0.75])
    assert mixed.valid.all()
    assert torch.equal(mix(BOTH, {"ocr": 30.0, "judge": 10.0}, TASKS).value, mixed.value)
    assert mix(BOTH, {"ocr": 0, "judge": 2}, TASKS).value.tolist() == pytest.approx(JUDGE.value.tolist())


def test_a_route_leaves_the_other_tasks_to_the_other_rewards():
    mixed = mix(BOTH, {"ocr": 1.0, "judge": 1.0}, TASKS, {"ocr": ["text"]})
    assert mixed.value.tolist() == pytest.approx([0.55, 0.6, 0.5])
    assert mixed.terms["ocr"].tolist() == pytest.approx([0.2, 0, 1])


def test_without_a_route_a_reward_scores_what_it_is_able_to_and_a_route_holds_it_to_its_tasks():
    both = {"ocr": scores(1.0, 0.0, valid=[True, False]), "style": scores(0.4, 0.4)}
    weights, able = {"ocr": 1.0, "style": 1.0}, {"ocr": [True, False]}
    mixed = mix(both, weights, ["text", "text"], able=able)
    assert mixed.valid.tolist() == [True, True]
    assert mixed.value.tolist() == pytest.approx([0.7, 0.4])
    held = mix(both, weights, ["text", "text"], {"ocr": ["text"]}, able)
    assert held.valid.tolist() == [True, False]


def test_a_missing_part_makes_the_sample_missing_unless_it_does_not_apply():
    failed = {"ocr": scores(0.2, float("nan"), 7.0, valid=[True, False, False]), "judge": JUDGE}
    weights = {"ocr": 1.0, "judge": 1.0}
    assert mix(failed, weights, TASKS).valid.tolist() == [True, False, False]
    routed = mix(failed, weights, TASKS, {"ocr": ["text"]})
    assert routed.valid.tolist() == [True, True, False]
    assert routed.value.tolist() == pytest.approx([0.55, 0.6, 0])
    assert mix(failed, {"ocr": 0.0, "judge": 1.0}, TASKS).valid.all()


def test_a_sample_that_nothing_scores_is_missing():
    mixed = mix({"ocr": OCR}, {"ocr": 1.0}, TASKS, {"ocr": {"text"}})
    assert mixed.valid.tolist() == [True, False, True]


def test_terms_carry_their_reward_s_name():
    mixed = mix({"ocr": scores(0.2, layout=torch.tensor([0.7]))}, {"ocr": 1.0}, ("text",))
    assert {k: v.tolist() for k, v in mixed.terms.items()} == {
        "ocr": pytest.approx([0.2]),
        "ocr/layout": pytest.approx([0.7]),
    }


@pytest.mark.parametrize("bad", [1.2, -0.1, float("nan"), float("inf")])
def test_a_value_outside_the_unit_interval_is_refused_by_name_and_place(bad):
    with pytest.raises(UserError, match=r"reward judge: .* at sample 1; rewards must lie in \[0, 1\]"):
        mix({"judge": scores(0.5, bad)}, {"judge": 1.0}, ("a", "b"))


@pytest.mark.parametrize(
    ("weights", "routes", "tasks", "message"),
    [
        ({"ocr": 1.0}, None, TASKS, "name each reward once"),
        ({"ocr": 1.0, "judge": 1.0, "vlm": 1.0}, None, TASKS, "name each reward once"),
        ({"ocr": -1.0, "judge": 1.0}, None, TASKS, "at least 0"),
        ({"ocr": float("nan"), "judge": 1.0}, None, TASKS, "finite"),
        ({"ocr": 1.0, "judge": 1.0}, {"orc": ["text"]}, TASKS, "no such reward"),
        ({"ocr": 1.0, "judge": 1.0}, {"ocr": "text"}, TASKS, "list of tasks"),
        ({"ocr": 1.0, "judge": 1.0}, None, TASKS[:2], "3 scores for 2 samples"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(weights, routes, tasks, message):
    with pytest.raises(UserError, match=message) as error:
        mix(BOTH, weights, tasks, routes)
    assert "\n" not in str(error.value)


def test_scores_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        Scores(torch.zeros(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="one shape"):
        Scores(torch.zeros(3, 1), torch.ones(3, 1, dtype=torch.bool))


def test_a_reward_is_found_by_what_it_can_do():
    class Judge:
        name = "judge"

        def submit(self, images, batch):
            done: Future[Scores] = Future()
            done.set_result(scores(*[0.5] * len(images)))
            return done

    assert isinstance(Judge(), Reward)
    assert not isinstance(object(), Reward)
    assert len(Judge().submit(torch.zeros(2, 3, 4, 4), None).result()) == 2
