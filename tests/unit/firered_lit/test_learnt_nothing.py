"""A run that has learnt nothing says so: by exit code 2 where nothing could be learnt, else in its last lines."""

from functools import partial

import lightning as L
import pytest
import torch
from test_nft_stage import Given, ladder, stage
from toy_prompts import PromptData

from callbacks.checkpoint import Checkpoint
from firered_lit.errors import UserError
from firered_lit.losses.nft import adaptive
from firered_lit.training import Run, _missing, fit


def train(folder, answer, **options):
    """Two iterations of reinforcement, of two groups of three edits each; returns the last lines of the run."""
    trainer = partial(L.Trainer, max_steps=2, accelerator="cpu", devices=1, enable_model_summary=False)
    reward = Given(answer)
    try:
        code = fit(Run(str(folder)), stage(**options), PromptData(), trainer, Checkpoint(every=9), {"reward": reward})
        assert code == 0
    finally:
        said = (folder / "summary.txt").read_text() if (folder / "summary.txt").exists() else ""
    return said


def no_reward(images, batch):
    return torch.zeros(len(images)), torch.zeros(len(images), dtype=torch.bool)


def test_a_run_without_any_reward_has_learnt_nothing(tmp_path):
    with pytest.raises(UserError, match=r"nothing was learnt: none of 12 edits got a reward") as error:
        train(tmp_path, no_reward)
    assert error.value.exit_code == 2
    assert "rewards of 'given' are missing: 12 in training" in (tmp_path / "summary.txt").read_text()


def test_a_run_whose_reward_always_fails_says_why(tmp_path):
    with pytest.raises(UserError, match=r"none of 12 edits got a reward .given: OSError: the judge is down"):
        train(tmp_path, lambda *_: OSError("the judge is down"))


def test_a_run_without_a_finite_step_has_learnt_nothing(tmp_path):
    with pytest.raises(UserError, match=r"nothing was learnt: none of 2 steps had a finite loss and gradient"):
        train(tmp_path, ladder, loss=lambda *things, **options: adaptive(*things, beta=1.0, **options) * torch.nan)


def test_rewards_that_never_differ_are_noted(tmp_path):
    assert "note        nothing was learnt from 12 edits" in train(tmp_path, lambda i, _: torch.full((len(i),), 0.5))


def test_weights_of_zero_are_refused_and_some_missing_rewards_are_counted(tmp_path):
    with pytest.raises(UserError, match="all are 0"):
        train(tmp_path / "zero", ladder, weights={"given": 0.0})
    said = train(tmp_path / "some", lambda i, _: (ladder(i, _), torch.arange(len(i)) > 0))
    assert "rewards of 'given' are missing: 4 in training" in said
    assert "nothing was learnt" not in said


def test_missing_rewards_of_training_and_validation_are_counted_by_name():
    reward, other = Given(ladder, "words"), Given(ladder, "other")
    reward.missing_in_validation = 3
    taught = stage()
    taught.missing.update({"words": 4, "other": 0})
    assert _missing(taught, [reward, other]) == ["rewards of 'words' are missing: 4 in training, 3 in validation"]
