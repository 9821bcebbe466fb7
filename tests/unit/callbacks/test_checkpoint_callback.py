"""Saving at the right moments, keeping the right files, and going on exactly where the run was cut."""

import json
import resource
import time
from contextlib import suppress

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from toy_run import Toy, fit, weights

from callbacks.checkpoint import Checkpoint
from firered_lit.checkpoints.checkpoint import newest, resolve
from firered_lit.errors import UserError


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def step(number):
    return f"step_{number:08d}.ckpt"


def test_saves_after_optimizer_steps_and_at_the_end_and_keeps_the_newest(tmp_path):
    fit(tmp_path, [Checkpoint(every=2, keep=2)], max_steps=9)  # 7 batches an epoch, accumulated in twos: 4 steps
    assert names(tmp_path) == [step(8), step(9)]
    assert newest(tmp_path).name == step(9)


@pytest.mark.parametrize("every", [1, 100], ids=["on time", "at the end"])
@pytest.mark.parametrize("cut", range(1, 11))
def test_a_run_cut_at_any_step_ends_like_one_that_was_not(tmp_path, cut, every):
    """Across accumulation, epoch boundaries (4 steps an epoch) and validation (every 4 batches)."""
    whole, once = fit(tmp_path / "whole", [Checkpoint(every=100)], max_steps=11)
    fit(tmp_path / "cut", [Checkpoint(every=every)], max_steps=cut)
    path = resolve(tmp_path / "cut", "last")
    assert path.name == step(cut)
    resumed, run = fit(tmp_path / "cut", [Checkpoint(every=every)], resume=path, max_steps=11)
    assert (run.global_step, run.current_epoch) == (11, once.current_epoch)
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.losses == {k: v for k, v in whole.losses.items() if k in resumed.losses}
    assert len(resumed.losses) == len(whole.losses) - min(whole_batches(cut), len(whole.losses))


def whole_batches(steps):
    """Micro-batches in so many steps: an epoch is 7 in 4 steps, the last of one alone."""
    return steps // 4 * 7 + steps % 4 * 2


def test_a_run_that_dies_between_checkpoints_goes_back_to_the_last(tmp_path):
    whole, _ = fit(tmp_path / "whole", [Checkpoint(every=3)], max_steps=10)

    def die(module, phase, batch_idx):
        if phase == "train" and module.global_step == 8:
            raise ArithmeticError("planted")

    with pytest.raises(ArithmeticError):
        fit(tmp_path / "cut", [Checkpoint(every=3)], module=Toy(die), max_steps=10)
    assert newest(tmp_path / "cut").name == step(6)
    resumed, _ = fit(tmp_path / "cut", [Checkpoint(every=3)], resume=newest(tmp_path / "cut"), max_steps=10)
    assert torch.equal(weights(resumed), weights(whole))


def scores(at):
    """Validation runs after every 4th batch: of steps 2, 9 and 11, and inside the accumulations after steps 4 and 6."""
    return {2: 3.0, 4: 1.0, 6: 0.5, 9: 2.0, 11: 9.0}[at]


def test_the_best_is_kept_beside_the_newest_and_its_state_is_resumed(tmp_path):
    saver = Checkpoint(every=1, keep=1, monitor="val/loss")
    fit(tmp_path, [saver], module=Toy(val_loss=lambda at: torch.tensor(scores(at))), max_steps=5)
    assert (saver.best_score, saver.best_path.name) == (1.0, step(4))
    assert names(tmp_path) == ["best.json", step(4), step(5)]
    assert resolve(tmp_path, "best").name == step(4)
    again = Checkpoint(every=1, keep=1, monitor="val/loss")
    worse = Toy(val_loss=lambda at: torch.tensor(1.5))
    fit(tmp_path, [again], resume=resolve(tmp_path, "last"), module=worse, max_steps=10)
    assert (again.best_score, again.best_name) == (1.0, step(4))
    assert names(tmp_path) == ["best.json", step(4), step(10)]


def test_the_best_of_a_validation_after_the_last_checkpoint_survives_a_crash(tmp_path):
    """The checkpoint of step 4 is written before the validation of step 4: the score is in the record beside it."""

    def die(module, phase, batch_idx):
        if phase == "train" and module.global_step == 5:
            raise ArithmeticError("planted")

    toy = Toy(die, val_loss=lambda at: torch.tensor(scores(at)))
    with pytest.raises(ArithmeticError):
        fit(tmp_path, [Checkpoint(every=2, monitor="val/loss")], module=toy, max_steps=6)
    saver = Checkpoint(every=2, monitor="val/loss")
    toy = Toy(val_loss=lambda at: torch.tensor(2.0))
    fit(tmp_path, [saver], resume=newest(tmp_path), module=toy, max_steps=8)
    assert (saver.best_score, saver.best_name) == (1.0, step(4))


def test_the_best_between_two_checkpoints_is_saved_for_itself_and_goes_on_exactly(tmp_path):
    whole, _ = fit(tmp_path / "whole", [Checkpoint(every=100)], max_steps=11)
    saver = Checkpoint(every=100, monitor="val/loss", mode="max")
    toy = Toy(val_loss=lambda at: torch.tensor(-4.0 if at == 2 else -scores(at)))
    with pytest.warns(UserWarning, match="inside an accumulation"):  # after step 6, where the highest score is
        fit(tmp_path / "run", [saver], module=toy, max_steps=11)
    assert names(tmp_path / "run") == ["best.json", step(2), step(9), step(11)]
    for name in (step(2), step(9)):
        path = tmp_path / "run" / "checkpoints" / name
        resumed, _ = fit(tmp_path / f"from-{name}", [Checkpoint(every=100)], resume=path, max_steps=11)
        assert torch.equal(weights(resumed), weights(whole))


def test_going_on_from_an_earlier_step_sets_the_later_ones_aside(tmp_path):
    fit(tmp_path, [Checkpoint(every=2, keep=9)], max_steps=8)
    fit(tmp_path, [Checkpoint(every=2, keep=9)], resume=resolve(tmp_path, step(4)), max_steps=6)
    aside = [f"set_aside_{step(6)}", f"set_aside_{step(8)}"]
    assert names(tmp_path) == [*aside, step(2), step(4), step(6)]
    assert newest(tmp_path).name == step(6)


class Killed(Exception):  # noqa: N818
    pass


class Kill(L.Callback):
    """Ends the process, as far as the run can tell, when the checkpoint of a step is there."""

    def __init__(self, step):
        self.step = step

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step == self.step:
            raise Killed

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.on_train_epoch_end(trainer, pl_module)


KILLED = {
    "at every end of an epoch": ({"accumulate_grad_batches": 1, "limit_val_batches": 0}, (7, 14, 21)),
    "at ends of accumulated epochs": ({"val_check_interval": 4}, (4, 8, 12)),
    "anywhere": ({"accumulate_grad_batches": 1, "val_check_interval": 7, "min_steps": 9}, (2, 7, 8, 14)),
    "anywhere, validated by epoch": ({"val_check_interval": 1.0, "check_val_every_n_epoch": 1}, (3, 4, 8)),
}


@pytest.mark.parametrize("killed", KILLED)
def test_max_epochs_ends_at_the_same_step_however_often_the_run_was_killed(tmp_path, killed):
    options, steps = KILLED[killed]
    options = {"max_epochs": 3, "logger": False, **options}
    whole, once = fit(tmp_path / "whole", [Checkpoint(every=100)], **options)
    for at in steps:
        with suppress(Killed):  # at the last end none is left to be killed in
            fit(tmp_path, [Kill(at), Checkpoint(every=1)], resume=newest(tmp_path), **options)
        assert newest(tmp_path).name == step(at)
    for _ in range(2):  # a run that is over stays as it is
        resumed, run = fit(tmp_path, [Checkpoint(every=1)], resume=newest(tmp_path), **options)
        assert (run.global_step, run.current_epoch) == (once.global_step, 3)
    assert torch.equal(weights(resumed), weights(whole))


class Bell(L.Callback):
    """Asks for the end after some micro-batches, as `trainer.max_time` does."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, *_):
        self.after -= 1
        trainer.should_stop = trainer.should_stop or self.after <= 0


@pytest.mark.parametrize("after", [5, 7])
def test_a_run_that_is_stopped_inside_an_accumulation_ends_its_step_and_goes_on_exactly(tmp_path, after):
    options = {"max_epochs": 3, "logger": False}
    whole, once = fit(tmp_path / "whole", [Checkpoint(every=100)], **options)
    _, cut = fit(tmp_path, [Bell(after), Checkpoint(every=100)], **options)
    assert cut.global_step == {5: 3, 7: 4}[after]
    assert names(tmp_path)[0] == step(cut.global_step)
    resumed, run = fit(tmp_path, [Checkpoint(every=100)], resume=newest(tmp_path), **options)
    assert (run.global_step, run.current_epoch) == (once.global_step, 3)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_minimum_of_steps_holds_a_stop_back(tmp_path):
    _, run = fit(tmp_path, [Bell(1), Checkpoint(every=100)], max_epochs=3, min_steps=6, logger=False)
    assert run.global_step == 6
    assert names(tmp_path) == [step(6)]


def test_early_stopping_saves_and_the_run_can_go_on(tmp_path):
    whole, once = fit(tmp_path / "whole", [Checkpoint(every=100)], max_steps=11)
    stop = EarlyStopping("val/loss", patience=1)
    toy = Toy(val_loss=lambda at: torch.tensor(1.0))
    _, run = fit(tmp_path / "cut", [Checkpoint(every=100), stop], module=toy, max_steps=11, val_check_interval=2)
    assert run.global_step < 11
    assert names(tmp_path / "cut") == [step(run.global_step)]
    resumed, run = fit(tmp_path / "cut", [Checkpoint(every=100)], resume=newest(tmp_path / "cut"), max_steps=11)
    assert run.current_epoch == once.current_epoch
    assert torch.equal(weights(resumed), weights(whole))


def test_a_run_of_no_steps_can_be_saved_on_demand(tmp_path):
    saver = Checkpoint(every=1)
    _, run = fit(tmp_path, [saver], max_steps=0)
    assert not (tmp_path / "checkpoints").exists()
    saver.save(run)
    assert names(tmp_path) == [step(0)]
    resumed, _ = fit(tmp_path / "more", [Checkpoint(every=9)], resume=newest(tmp_path), max_steps=5)
    fresh, _ = fit(tmp_path / "fresh", [Checkpoint(every=9)], max_steps=5)
    assert torch.equal(weights(resumed), weights(fresh))


def test_a_full_disk_ends_the_run_in_one_line_and_the_last_checkpoint_goes_on(tmp_path):
    """From step 3 on no file may grow beyond 1000 bytes: the checkpoint of step 4 fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(module, phase, batch_idx):
        if module.global_step == 3:
            while newest(tmp_path) is None:  # that of step 2 is written beside the training
                time.sleep(0.01)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))

    try:
        with pytest.raises(UserError, match=f"{step(4)}: the checkpoint could not be written"):
            fit(tmp_path, [Checkpoint(every=2)], module=Toy(fill), max_steps=6, logger=False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == [step(2)]
    resumed, _ = fit(tmp_path, [Checkpoint(every=2)], resume=resolve(tmp_path, "last"), max_steps=6)
    whole, _ = fit(tmp_path / "whole", [Checkpoint(every=2)], max_steps=6)
    assert torch.equal(weights(resumed), weights(whole))


def test_leftovers_of_a_killed_write_are_removed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / ".step_00000003.ckpt.part").write_bytes(b"half")
    fit(tmp_path, [Checkpoint(every=2)], max_steps=2)
    assert names(tmp_path) == [step(2)]


def test_a_metric_that_nobody_logs_is_named_with_those_that_are(tmp_path):
    with pytest.raises(UserError, match=r"val/lpips: validation does not log it; logged: .*val/loss"):
        fit(tmp_path, [Checkpoint(every=5, monitor="val/lpips")], max_steps=4)


@pytest.mark.parametrize("wrong", [{"every": 0}, {"every": 1, "keep": 0}, {"every": 1, "mode": "best"}])
def test_senseless_settings_are_refused(wrong):
    with pytest.raises(UserError, match="checkpoint"):
        Checkpoint(**wrong)


def test_the_record_of_the_best_holds_no_absolute_path(tmp_path):
    saver = Checkpoint(every=4, monitor="val/loss")
    fit(tmp_path / "a", [saver], module=Toy(val_loss=lambda at: torch.tensor(scores(at))), max_steps=5)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert resolve(tmp_path / "moved", "best").name == step(4)
    record = json.loads((tmp_path / "moved" / "checkpoints" / "best.json").read_text())
    assert record == {"name": step(4), "step": 4, "monitor": "val/loss", "score": 1.0}
