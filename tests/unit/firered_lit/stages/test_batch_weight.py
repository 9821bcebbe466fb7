"""The gradient keeps the frequencies of the samples, whatever batches their buckets have; by recipe those of steps."""

import logging
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from test_buckets import PLANS, draws_of, epoch_of, make_index
from test_dpo_stage import pairs
from test_dpo_stage import stage as dpo_stage
from test_edits import encoded, write
from test_sft import batch as edits
from toy_run import trainer

from datamodules.edits import EditDataModule
from datamodules.loading.loader import EditLoader
from datamodules.preferences import PreferenceDataModule
from datamodules.sampling.buckets import BatchPlan
from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.stages.pretrain import Pretrain
from firered_lit.stages.sft import SFT

SHAPE = (32, 64)  # 8 tokens
RATE = 0.1


# --- the plan's mean ---


@settings(deadline=None, max_examples=20)
@given(**PLANS)
def test_the_mean_batch_is_that_of_the_plan_s_steps(tmp_path_factory, counts, capacity, ranks, seed, **options):
    index = make_index(tmp_path_factory.mktemp("index"), counts)
    plan = BatchPlan(index, capacity=capacity, plan_ranks=ranks, seed=seed, **options)
    sizes = [len(ids[0]) for _, ids in epoch_of(plan, 0)]
    if len(plan.passes.rare):  # which of those an epoch shows goes round
        assert min(sizes) <= plan.mean_batch <= max(sizes)
        return
    assert plan.mean_batch == pytest.approx(np.mean(sizes))
    assert plan.even == (len(set(sizes)) == 1)


@pytest.mark.parametrize("weights", [{"task": {"add": 1, "remove": 6, "text": 1}}, {"cluster": "uniform"}])
def test_with_weights_the_mean_batch_is_that_of_a_long_training(weights, tmp_path):
    index = make_index(tmp_path, [1500, 211, 97, 5, 1], ["a", "a", "b"])
    plan = BatchPlan(index, capacity=130, plan_ranks=4, seed=2, weights=weights)
    assert np.mean([len(ids[0]) for _, ids in draws_of(plan, 2000)]) == pytest.approx(plan.mean_batch, rel=0.03)


# --- the gradient ---


def sample_of(i, references, pair=False):
    """A sample that the tiny transformer takes."""
    g = torch.Generator().manual_seed(i)
    sample = encoded(i, "add", SHAPE, [SHAPE] * references, instructions=("original/en",))
    for name, tensor in list(sample.tensors.items()):
        shape = (3 + i % 2, 64) if name.startswith("text.") else tensor.shape
        sample.tensors[name] = torch.randn(shape, generator=g)
    if pair:
        sample.tensors["loser"] = torch.randn(sample.tensors["target"].shape, generator=g)
    return sample


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """8 samples without a reference, 4 in a batch; 4 with three, 1 in a batch: a third, in two thirds of the steps."""
    samples = [sample_of(i, 0) for i in range(8)] + [sample_of(i, 3) for i in range(8, 12)]
    return write(tmp_path_factory.mktemp("uneven"), samples, keep_images=False)


def data(root, **options):
    return EditDataModule(str(root), capacity=32, workers=0, text_drop=0.0, left_out=0.0, **options)


def sft():
    stage = SFT(Backbone("tiny"), partial(torch.optim.SGD, lr=RATE), seed=3)
    stage.configure_model()
    return stage


def gradient(stage, loss):
    """The flat gradient of a loss in the trained weights."""
    parameters = [p for p in stage.transformer.parameters() if p.requires_grad]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def alone(batch, i):
    """One sample of a batch as a batch, with its slot."""
    row = slice(i, i + 1)
    text = batch.condition.text
    kept = None if text.mask is None else text.mask[i]
    embeddings = text.embeddings[row] if kept is None else text.embeddings[row][:, kept]
    references = tuple(r[row] for r in batch.condition.references)
    condition = replace(batch.condition, text=replace(text, embeddings=embeddings, mask=None), references=references)
    return replace(batch, target=batch.target[row], condition=condition, facts=batch.facts[row], slots=batch.slots[row])


@pytest.mark.parametrize(("ranks", "world"), [(1, 1), (2, 2), (2, 1)], ids=["one", "two processes", "accumulated"])
def test_over_an_epoch_every_sample_weighs_the_same_in_the_gradient(root, ranks, world):
    """The sum of an epoch's gradients is that of each sample alone, over the mean number in a global batch."""
    stage = sft()
    whole = data(root, plan_ranks=ranks).train_dataloader()
    total = singles = 0
    shown = 0
    for rank in range(world):
        edits = EditLoader(whole.visits, whole.plan, whole.identity, rank=rank, world=world)
        for batch in islice(edits, len(edits)):
            total = total + gradient(stage, stage.training_step(batch, 0)) / ranks  # as processes and windows average
            for i in range(len(batch)):
                singles = singles + gradient(stage, stage.losses(alone(batch, i)).sum())
                shown += 1
    steps = whole.plan.steps()
    assert shown == 12
    assert {len(batch) for batch in islice(whole, 2 * steps)} != {1}
    torch.testing.assert_close(total, singles * steps / shown, atol=1e-4, rtol=1e-3)


def test_by_recipe_every_step_weighs_the_same(root):
    for batch in islice(data(root, batch_weight="steps").train_dataloader(), 8):
        assert batch.scale == 1
    scales = {(len(b), b.scale) for b in islice(data(root).train_dataloader(), 6)}
    assert scales == {(4, 2.0), (1, 0.5)}
    with pytest.raises(UserError, match=r"data.batch_weight=batches: samples or steps"):
        data(root, batch_weight="batches")


def test_a_trainer_s_accumulated_step_is_the_scaled_one(root, tmp_path):
    """One step of plain gradient descent over two micro-batches moves the weights by the mean of their gradients."""
    stage, module = sft(), data(root)
    before = torch.cat([p.detach().flatten().clone() for p in stage.transformer.parameters() if p.requires_grad])
    batches = list(islice(data(root, plan_ranks=2).train_dataloader(), 2))
    expected = sum(gradient(stage, stage.losses(b).mean()) * b.scale / 2 for b in batches)
    assert batches[0].scale != 1
    run = trainer(tmp_path, [], max_steps=1, accumulate_grad_batches=2, limit_val_batches=0)
    run.fit(stage, module)
    after = torch.cat([p.detach().flatten() for p in stage.transformer.parameters() if p.requires_grad])
    torch.testing.assert_close((before - after) / RATE, expected, atol=2e-3 * float(expected.abs().max()), rtol=1e-2)
    logged = torch.stack([stage.losses(b).mean() for b in batches]).mean()
    assert float(run.logged_metrics["train/loss"]) == pytest.approx(float(logged), rel=0.2)


def stages():
    pretrain = Pretrain(Backbone("tiny"), partial(torch.optim.SGD, lr=RATE), steps=10, seed=3)
    pretrain.configure_model()
    return {"sft": (sft(), edits()), "pretrain": (pretrain, edits()), "dpo": (dpo_stage(), pairs())}


def test_every_stage_that_uses_buckets_scales_its_loss_and_logs_the_mean_of_its_samples():
    for name, (stage, batch) in stages().items():
        logged = {}
        stage.log = lambda key, value, *_, logged=logged, **__: logged.setdefault(key, []).append(float(value))
        stage.log_dict = lambda *_, **__: None
        with torch.no_grad():
            plain, scaled = (stage.training_step(replace(batch, scale=s), 0) for s in (1.0, 0.25))
        assert float(scaled) == pytest.approx(0.25 * float(plain)), name
        assert logged["train/loss"] == pytest.approx([float(plain)] * 2), name


# --- what a resumed run says ---


def warnings_in(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_run_that_resumes_older_work_says_in_one_line_that_its_loss_s_weights_change(root, caplog):
    state = data(root).train_dataloader().state_dict()
    assert state["batch_weight"] == "samples"
    older = {key: value for key, value in state.items() if key not in ("batch_weight", "text_drop")}
    with caplog.at_level(logging.WARNING):
        data(root).train_dataloader().load_state_dict(state)
        data(root, batch_weight="steps").train_dataloader().load_state_dict(older)
        assert not warnings_in(caplog)
        data(root).train_dataloader().load_state_dict(older)
        (line,) = warnings_in(caplog)
        assert line == "the weights of the loss change: data.batch_weight=steps until here, samples from now on"
        caplog.clear()
        data(root, batch_weight="steps").train_dataloader().load_state_dict(state)
        assert "data.batch_weight=samples until here, steps from now on" in caplog.text


def test_a_run_whose_batches_are_all_of_one_size_says_nothing_as_nothing_changes(root, caplog):
    one = data(root, max_batch=1).train_dataloader()
    state = {key: value for key, value in one.state_dict().items() if key != "batch_weight"}
    with caplog.at_level(logging.WARNING):
        data(root, max_batch=1).train_dataloader().load_state_dict(state)
    assert not warnings_in(caplog)


def test_older_preference_training_is_told_that_no_instruction_is_left_out_any_more(tmp_path, caplog):
    folder = write(tmp_path, [sample_of(i, 1, pair=True) for i in range(4)], keep_images=False, pairs=4)
    state = PreferenceDataModule(str(folder), capacity=64, workers=0).train_dataloader().state_dict()
    older = {key: value for key, value in state.items() if key not in ("batch_weight", "text_drop")}
    with caplog.at_level(logging.WARNING):
        PreferenceDataModule(str(folder), capacity=64, workers=0).train_dataloader().load_state_dict(older)
    assert "the share of unconditional texts changes: data.text_drop=0.05 until here, 0.0 from now on" in caplog.text
