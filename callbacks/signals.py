"""Stopping a run from outside: save first, stop everywhere, and leave an exit code that a scheduler understands."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import traceback
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import torch
import torch.distributed as dist

from callbacks.checkpoint import Checkpoint
from firered_lit.errors import UserError
from firered_lit.process import stopping
from firered_lit.process.stopping import INTERRUPTED, REQUEUE

_CODES: dict[int, int] = {signal.SIGTERM: REQUEUE, signal.SIGUSR1: REQUEUE, signal.SIGINT: INTERRUPTED}
_PATIENCE = 15.0  # seconds that a failed process may take to end by itself


class Stopped(SystemExit):
    """Leaves a validation that a signal has cut short. Its partial scores are never logged."""


class Signals(L.Callback):
    """SIGTERM, SIGUSR1, Ctrl-C: save at the end of the optimizer step on all ranks, then stop.

    During validation the checkpoint is written after the current batch. A second Ctrl-C aborts at once. The handlers
    replace Lightning's while the trainer fits, and are undone afterwards. Also sees to it that an error on one
    rank ends the others instead of leaving them to wait.

    After `trainer.fit`, `exit_code` is 75 (a scheduler may requeue), 130 (Ctrl-C), or None: nothing came, or this is
    not the first process (the launcher of a process that ends with an error kills the others while they finish).
    """

    def __init__(self) -> None:
        self.received: int | None = None  # the signal's number
        self.stopping: int | None = None  # the exit code that all ranks have agreed on
        self.exit_code: int | None = None
        self._interrupted = False
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._seen_step = 0
        self._limit_val_batches: int | float | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.received = self.stopping = self.exit_code = None
        self._interrupted = False
        if trainer.world_size > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")  # on the host, so that asking never waits for the device
        # Lightning's own handlers turn SIGTERM into exit code 0, and broadcast from inside a handler.
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        if not stopping.is_watching():  # else a signal ends the run at once, for there is nothing to save yet
            self._install()

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_over()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._take_over()
        self._seen_step = trainer.global_step
        if self._agreed(trainer):
            self._stop(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._seen_step:  # accumulating
            return
        self._seen_step = trainer.global_step
        if self._agreed(trainer):
            for saver in self._savers(trainer):
                saver.save_when_stepped()
            self._stop(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.state.fn != "fit" or not self._agreed(trainer):
            return
        for saver in self._savers(trainer):
            if not trainer.sanity_checking and trainer.global_step > 0:
                saver.save(trainer)
        self._stop(trainer)
        raise Stopped(self.exit_code or 0)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._undo(trainer)
        if isinstance(exception, KeyboardInterrupt):
            self._abort(trainer)
        if trainer.world_size > 1 and not isinstance(exception, Stopped):
            stopping.end_with_the_stopped(_launched(trainer))
            end_the_others(trainer, exception)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._undo(trainer)

    def _take_over(self) -> None:
        """Handle signals from now on, and one that came while the handlers changed."""
        if stopping.is_watching():
            self._install()
            self.received = self.received or stopping.hand_over()

    def _install(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._before = {number: signal.signal(number, self._handle) for number in _CODES}

    def _undo(self, trainer: L.Trainer) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._before = {}
        stopping.take_back()
        if self._limit_val_batches is not None:
            trainer.limit_val_batches, self._limit_val_batches = self._limit_val_batches, None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = number == signal.SIGINT
        self.received = self.received or number
        os.write(2, f"\n{signal.Signals(number).name}: saving at the end of this step, then stopping\n".encode())

    def _agreed(self, trainer: L.Trainer) -> bool:
        """Return whether any rank has received a signal. All ranks call it at one place and get one answer."""
        if self.stopping is not None:
            return True
        code = _CODES.get(self.received, 0) if self.received is not None else 0
        if trainer.world_size > 1:
            flag = torch.tensor([code], dtype=torch.int32)
            dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
            code = int(flag)
        self.stopping = code or None
        return bool(code)

    def _stop(self, trainer: L.Trainer) -> None:
        """End after this step: no minimum of steps or epochs holds it, and no validation comes in between."""
        self.exit_code = self.stopping if trainer.is_global_zero else None
        trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None
        if self._limit_val_batches is None:
            self._limit_val_batches, trainer.limit_val_batches = trainer.limit_val_batches, 0
        trainer.should_stop = True
        for logger in trainer.loggers:
            if hasattr(logger, "stopped_from_outside"):
                logger.stopped_from_outside = True

    def _savers(self, trainer: L.Trainer) -> list[Checkpoint]:
        """Return the callbacks that write checkpoints."""
        engine: Any = trainer  # whose callbacks Lightning does not declare
        return [callback for callback in engine.callbacks if isinstance(callback, Checkpoint)]

    def _abort(self, trainer: L.Trainer) -> NoReturn:
        """Abort at a second Ctrl-C: nothing is saved, the run is marked, the other processes end."""
        for logger in trainer.loggers:
            if hasattr(logger, "stopped_from_outside"):
                logger.stopped_from_outside = True
            logger.finalize("failed")
        _kill_children(trainer)
        raise SystemExit(INTERRUPTED) from None


def end_the_others(trainer: L.Trainer, exception: BaseException) -> None:
    """Log, after an error in one of several processes, whose it was and make sure that no other waits for this one.

    The first process kills those that it launched and fails by the ordinary way. Any other says what went wrong and
    leaves at once: the first then sees a broken connection, or is ended by Lightning's observer or by torchrun.
    """
    rank = trainer.global_rank
    if rank > 0:
        meant_to_be_read = isinstance(exception, UserError)
        sys.stderr.write("" if meant_to_be_read else "".join(traceback.format_exception(exception)))
        sys.stderr.write(f"rank {rank} failed: {type(exception).__name__}: {exception}\n")
        sys.stderr.flush()
        os._exit(getattr(exception, "exit_code", 1))
    if any(process.poll() for process in _launched(trainer)):
        sys.stderr.write("rank 0: another process failed first; its error is above\n")
    _kill_children(trainer)
    watch = threading.Timer(_PATIENCE, os._exit, (1,))  # a communicator may wait for the dead
    watch.daemon = True
    watch.start()


def _kill_children(trainer: L.Trainer) -> None:
    """End the processes that Lightning launched from here."""
    launched = _launched(trainer)
    processes = list(launched)
    launched.clear()  # or Lightning's observer takes their end for a reason to kill this one
    for process in processes:
        process.kill()
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=5)


def stopped_by_signal(trainer: L.Trainer) -> bool:
    """Return whether a signal ends this run. All processes have agreed on it."""
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return any(isinstance(callback, Signals) and callback.stopping is not None for callback in callbacks)


def _launched(trainer: L.Trainer) -> list[Any]:
    """Return the processes that Lightning launched from here."""
    return getattr(trainer.strategy.launcher, "procs", [])
