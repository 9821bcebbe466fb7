"""Steps whose gradient is no number, or far above the usual: left out whole, counted, named, and not for ever."""

from functools import partial

import pytest
import torch
from tiny_edits import TinyEdits
from toy_run import trainer

from callbacks.ema import EMA
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.stages.guard import Guard
from firered_lit.stages.sft import SFT

NAN, INF = float("nan"), float("inf")


class Spoiled(TinyEdits):
    """Edits of which some micro-batches are multiplied by a number."""

    def __init__(self, factors, **options):
        super().__init__(100, **options)
        self.factors = factors

    def batch(self, step):
        batch = super().batch(step)
        batch.target.mul_(self.factors.get(step, 1.0))
        return batch


class Watched(SFT):
    """Remembers weights, optimizer state and the count after every step."""

    def on_train_batch_end(self, outputs, batch, batch_idx):
        state = self.optimizers().optimizer.state_dict()["state"]
        held = [p.detach().clone() for p in self.transformer.parameters()]
        held += [v.clone() for one in state.values() for v in one.values()]
        self.seen = [*getattr(self, "seen", []), held]
        self.skips = [*getattr(self, "skips", []), float(self.trainer.callback_metrics.get("train/skipped", 0))]


def run(folder, factors, steps, guard=None, callbacks=(), resume=None, **options):
    """Train; returns the stage. The learning rate rises with every step."""
    rising = partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda step: 1.0 + step)
    stage = Watched(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), rising, guard=guard, seed=3)
    given = {"max_steps": steps, "limit_val_batches": 0, "accumulate_grad_batches": 1, "gradient_clip_val": 1.0}
    engine = trainer(folder, list(callbacks), **given | options)
    engine.fit(stage, Spoiled(factors), ckpt_path=resume, weights_only=True)
    return stage


def equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_a_step_without_a_finite_gradient_changes_nothing_but_the_schedule(tmp_path):
    average = EMA(decay=0.5)
    stage = run(tmp_path, {2: NAN}, 5, callbacks=[average])
    changed = [not equal(a, b) for a, b in zip(stage.seen, stage.seen[1:])]
    assert changed == [True, False, True, True]
    assert stage.skips == [0, 0, 1, 1, 1]
    assert average.updates == 4
    assert stage.trainer.global_step == 5
    assert stage.optimizers().param_groups[0]["lr"] == pytest.approx(6e-3)
    assert all(t.isfinite().all() for t in stage.seen[-1])
    assert all(state["step"] == 4 for state in stage.optimizers().optimizer.state.values())


def test_the_first_step_may_be_left_out_too(tmp_path):
    stage = run(tmp_path, {0: NAN}, 2)
    assert len(stage.seen[0]) < len(stage.seen[1])  # no optimizer state yet
    assert stage.skips == [1, 1]


def test_one_bad_micro_batch_leaves_its_whole_window_out(tmp_path):
    stage = run(tmp_path, {2: NAN}, 3, accumulate_grad_batches=2)
    assert [equal(stage.seen[i], stage.seen[j]) for i, j in ((1, 3), (3, 5))] == [True, False]
    assert stage.guard.skipped == 1


def test_an_infinite_loss_counts_however_finite_its_gradient_is(tmp_path, monkeypatch):
    losses = SFT.losses
    monkeypatch.setattr(SFT, "losses", lambda s, b: losses(s, b) + (INF if b.step == 1 else 0.0))
    assert run(tmp_path, {}, 3).skips == [0, 1, 1]


def test_a_spike_is_left_out_when_it_is_asked_for(tmp_path):
    """The norm of a squared error's gradient grows with what it is the error of."""
    options = {"window": 10, "patience": 3}
    assert run(tmp_path / "a", {12: 100.0}, 14, Guard(spike=5.0, **options)).skips[11:] == [0, 1, 1]
    assert run(tmp_path / "b", {12: 100.0}, 14, Guard(**options)).guard.skipped == 0
    assert run(tmp_path / "c", {5: 100.0}, 7, Guard(spike=5.0, **options)).guard.skipped == 0  # nothing is usual yet


def test_too_many_in_a_row_stop_the_run_and_name_the_samples(tmp_path):
    with pytest.raises(UserError, match=r"step 4: .*nan.*4 in a row.*samples: 4\.0, 4\.1: ") as stopped:
        run(tmp_path, {1: NAN, 2: NAN, 3: NAN, 4: NAN}, 9, Guard(patience=4))
    assert "\n" not in str(stopped.value)
    assert run(tmp_path, {1: NAN, 2: NAN, 4: NAN, 5: NAN}, 7, Guard(patience=3)).guard.skipped == 4


def test_it_goes_on_where_a_checkpoint_left_it(tmp_path):
    from callbacks.checkpoint import Checkpoint

    def guard():
        return Guard(spike=5.0, window=10)

    whole = run(tmp_path / "whole", {3: NAN, 12: 100.0}, 14, guard())
    run(tmp_path / "cut", {3: NAN, 12: 100.0}, 11, guard(), callbacks=[Checkpoint(every=11)])
    resumed = run(tmp_path / "cut", {3: NAN, 12: 100.0}, 14, guard(), resume=newest(tmp_path / "cut"))
    assert resumed.guard.state_dict() == whole.guard.state_dict()
    assert whole.guard.skipped == 2
    assert equal(resumed.seen[-1], whole.seen[-1])


def test_only_the_samples_of_losses_that_are_no_numbers_are_blamed(caplog):
    guard = Guard()
    guard.saw(("a", "b"), torch.tensor(1.0))
    guard.saw(("c",), torch.tensor(NAN))
    assert not guard.admits(NAN, 7)
    assert "step 7 left out: the gradient's norm is nan; samples: c" in caplog.messages[-1]
    guard.saw(tuple(map(str, range(50))), torch.tensor(1.0))
    assert not guard.admits(INF, 8)
    assert caplog.messages[-1].endswith("30, 31, and 18 more")


def test_gradients_of_zero_are_no_usual_ones():
    guard = Guard(spike=2.0, window=10)
    assert all(guard.admits(0.0, step) for step in range(20))
    assert guard.admits(1.0, 20)
    assert not guard.norms.count(0.0)


def test_the_usual_norm_is_the_median_which_a_few_large_ones_do_not_move():
    guard = Guard(spike=5.0, window=20)
    for step in range(20):
        assert guard.admits(4.0 if step % 5 == 0 else 1.0, step)  # below the spike, and among the usual ones
    assert guard.admits(4.9, 20)
    assert not guard.admits(5.1, 21)


@pytest.mark.parametrize("given", [{"spike": 1.0}, {"window": 3}, {"patience": 0}])
def test_nonsense_is_refused(given):
    with pytest.raises(UserError, match=r"stage\.guard"):
        Guard(**given)


def test_reinforcement_leaves_its_steps_out_too(tmp_path):
    from test_nft_stage import fit, fresh, same, stage, weights

    module = stage()
    losses = module.losses
    module.losses = lambda points, *rest: losses(points, *rest) * NAN
    module, watch = fit(tmp_path, module, steps=2)
    assert [numbers["train/skipped"] for numbers in watch.numbers] == [1, 2]
    assert same(weights(module), weights(fresh()))
