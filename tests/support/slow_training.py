"""Trainings in a process of their own, for the tests that send signals to it or kill it."""

import sys
import time

from toy_run import Toy, fit

from callbacks.checkpoint import Checkpoint
from callbacks.signals import Signals
from firered_lit.run.tracking import MLflow


def train(folder, how):
    """Train for minutes, and say every step; when `how` is "stuck", stay in the first one for ever."""

    def act(module, phase, index):
        print("step", module.global_step, flush=True)
        time.sleep(0.2)
        while how == "stuck":
            time.sleep(1)

    signals = Signals()
    fit(folder, [signals, Checkpoint(every=100)], module=Toy(act), max_steps=1000)
    sys.exit(signals.exit_code or 0)


def record(folder):
    """Begin a run, record a step, say the run's id and wait."""
    logger = MLflow(dir=folder)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.save()
    logger._later(lambda: None).result()
    print(logger.run_id, flush=True)
    time.sleep(600)


def open_store(folder):
    """Open the store of a run that is about to begin."""
    MLflow(folder)
