"""Real signals to real trainings: saved at the end of the step, stopped, an exit code, and nothing lost."""

import os
import signal
import time

import pytest
import slow_training
import torch
from toy_run import Toy, fit, weights
from warm import Started

from callbacks.checkpoint import Checkpoint
from callbacks.signals import Signals, Stopped
from firered_lit.checkpoints.checkpoint import newest


def sends(*numbers, phase="train", at_step=3, batch_idx=None):
    """A toy that signals its own process in the middle of a step (of the first micro-batch of step `at_step`)."""
    left = list(numbers)

    def act(module, now, index):
        if now == phase and module.global_step == at_step and batch_idx in (None, index) and left:
            os.kill(os.getpid(), left.pop(0))

    return Toy(act)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)], ids=["TERM", "USR1", "INT"]
)
def test_a_signal_saves_at_the_end_of_the_step_and_stops(tmp_path, number, code):
    whole, _ = fit(tmp_path / "whole", [Checkpoint(every=100)], max_steps=11)
    before = signal.getsignal(number)
    signals = Signals()
    _, run = fit(tmp_path / "cut", [signals, Checkpoint(every=100)], module=sends(number), max_steps=11)
    assert (signals.exit_code, run.global_step) == (code, 4)
    assert newest(tmp_path / "cut").name == "step_00000004.ckpt"
    assert signal.getsignal(number) is before
    again = Signals()
    resumed, _ = fit(tmp_path / "cut", [again, Checkpoint(every=100)], resume=newest(tmp_path / "cut"), max_steps=11)
    assert again.exit_code is None
    assert torch.equal(weights(resumed), weights(whole))


def test_the_minimum_of_steps_does_not_hold_it_and_no_validation_comes_in_between(tmp_path):
    seen = []

    def act(module, phase, index):
        seen.append(phase)
        if phase == "train" and module.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    options = {"max_steps": 11, "min_steps": 9, "val_check_interval": 7}
    _, run = fit(tmp_path, [Signals(), Checkpoint(every=100)], module=Toy(act), **options)
    assert run.global_step == 4
    assert set(seen) == {"train"}
    assert run.limit_val_batches == 1.0  # as it was


def test_every_other_callback_has_had_its_turn_before_the_save(tmp_path):
    from lightning.pytorch.callbacks import LambdaCallback

    late = LambdaCallback(on_train_batch_end=lambda run, module, *_: module.net.bias.data.add_(run.global_step))
    fit(tmp_path, [Signals(), late, Checkpoint(every=100)], module=sends(signal.SIGTERM, at_step=0), max_steps=5)
    saved = torch.load(newest(tmp_path), weights_only=True)
    assert saved["state_dict"]["net.bias"].mean() > 0.9


@pytest.mark.parametrize("every", [100, 1])
def test_a_signal_in_validation_is_honoured_after_its_batch(tmp_path, every):
    """Whether or not the step has its checkpoint already. Validation is of step 2; the second batch never comes."""
    whole, _ = fit(tmp_path / "whole", [Checkpoint(every=100)], max_steps=11)
    seen = []

    def act(module, phase, index):
        if phase == "val":
            seen.append(index)
            os.kill(os.getpid(), signal.SIGTERM)

    signals = Signals()
    with pytest.raises(Stopped) as stopped:
        fit(tmp_path / "cut", [signals, Checkpoint(every=every)], module=Toy(act), max_steps=11)
    assert (signals.exit_code, stopped.value.code, seen) == (75, 75, [0])
    assert newest(tmp_path / "cut").name == "step_00000002.ckpt"
    assert "val/loss" not in (tmp_path / "cut" / "csv" / "version_0" / "metrics.csv").read_text()
    resumed, _ = fit(tmp_path / "cut", [Checkpoint(every=100)], resume=newest(tmp_path / "cut"), max_steps=11)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_signal_before_training_stops_with_nothing_to_save(tmp_path):
    signals = Signals()
    toy = sends(signal.SIGTERM, phase="val", at_step=0)
    with pytest.raises(Stopped):
        fit(tmp_path, [signals, Checkpoint(every=1)], module=toy, max_steps=5, num_sanity_val_steps=2)
    assert signals.exit_code == 75
    assert newest(tmp_path) is None


def test_nothing_came(tmp_path):
    signals = Signals()
    fit(tmp_path, [signals, Checkpoint(every=5)], max_steps=2)
    assert signals.exit_code is None


def test_an_error_passes_through_and_the_handlers_are_undone(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def act(*_):
        raise ArithmeticError("planted")

    with pytest.raises(ArithmeticError):
        fit(tmp_path, [Signals(), Checkpoint(every=1)], module=Toy(act), max_steps=3)
    assert signal.getsignal(signal.SIGTERM) is before


def until(process, log, words):
    """Wait until a process has said some words."""
    end = time.monotonic() + 120
    while words not in log.read_text():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.02)


@pytest.fixture
def start(tmp_path):
    """Starts a training in a process of its own, and returns it and its log when its first step has begun."""
    started = []

    def begin(how):
        log = tmp_path / "said"
        log.touch()
        started.append(Started(slow_training.train, tmp_path, how, log=log))
        until(started[0], log, "step")
        return started[0], log

    yield begin
    for process in started:
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_from_outside_the_process_ends_with_the_code_and_a_checkpoint(start, tmp_path, number, code):
    process, log = start("steps")
    process.send_signal(number)
    assert process.wait(60) == code, log.read_text()
    assert f"{number.name}: saving at the end of this step" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert newest(tmp_path) is not None


def test_a_second_interrupt_aborts_at_once(start, tmp_path):
    process, log = start("stuck")
    process.send_signal(signal.SIGINT)
    until(process, log, "SIGINT: saving")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    assert newest(tmp_path) is None
