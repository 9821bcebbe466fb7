"""The checkpoints of a run: the steps at which one is saved, and those that are kept."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from firered_lit.checkpoints.background import Background
from firered_lit.checkpoints.checkpoint import BEST, FOLDER, AtomicCheckpointIO, listed, name_of, remove, step_of
from firered_lit.errors import UserError
from firered_lit.files import write_text
from firered_lit.textfiles import read_object


class Checkpoint(LightningCheckpoint):
    """Save every `every` optimizer steps, at the end and on demand; keep the `keep` newest and the best.

    Never in the middle of an accumulation, and once per step: a resumed run continues exactly where the step ended.

    Args:
        every: Optimizer steps between two checkpoints.
        keep: Number of the newest to keep.
        monitor: A logged validation metric; the checkpoint with the best one is kept too.
        mode: "min" or "max", the value of the metric that is best.
        dir: Folder; `checkpoints` in the trainer's root when null.
        background: Copy to the host and write from there while training goes on, one checkpoint at a time; where the
            host lacks the memory, training waits instead. What fails is raised by the next step.
    """

    def __init__(
        self,
        every: int,
        keep: int = 3,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "min",
        dir: str | None = None,
        background: bool = True,
    ) -> None:
        super().__init__()
        for name, value in {"every": every, "keep": keep}.items():
            if value < 1:
                raise UserError(f"checkpoint.{name}={value}: at least 1")
        if mode not in ("min", "max"):
            raise UserError(f"checkpoint.mode={mode}: 'min' or 'max'")
        self.every, self.keep, self.monitor, self.mode = every, keep, monitor, mode
        self.dir = Path(dir) if dir else None
        self.writer = Background() if background else None
        self.saved_step: int | None = None  # the last step that has a checkpoint
        self.best_score: float | None = None
        self.best_name: str | None = None
        self._seen_step = 0
        self._accumulating = False
        self._due = False
        self._stop_after_step = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.dir is None:
            self.dir = Path(trainer.strategy.broadcast(str(trainer.default_root_dir))) / FOLDER
        strategy: Any = trainer.strategy
        place = strategy if hasattr(type(strategy), "background") else strategy.checkpoint_io
        if isinstance(place, AtomicCheckpointIO) or place is strategy:
            place.background = self.writer

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step
        self._due = False
        self._stop_after_step = False
        if trainer.is_global_zero:
            for part in self.folder.glob(".step_*.part"):  # of a run that was killed while it wrote
                remove(part)
        if trainer.global_step != self.saved_step:
            self.saved_step = None
        self._read_best(trainer)
        self._set_later_aside(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "loops" in checkpoint:
            _count_the_epoch_begun(checkpoint["loops"]["fit_loop"])

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        progress: Any = trainer.fit_loop.epoch_progress  # whose counts Lightning declares too narrowly
        for counts in (progress.total, progress.current):
            counts.started = counts.processed + 1
            counts.ready = counts.started

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.writer:
            self.writer.check()
        step = trainer.global_step
        self._accumulating = step == self._seen_step
        if self._accumulating:
            self._stop_later(trainer)
            return
        self._seen_step = step
        if self._stop_after_step:
            trainer.should_stop = True
        last_epoch = trainer.current_epoch + 1 == trainer.max_epochs
        last = step == trainer.max_steps or (last_epoch and trainer.is_last_batch)
        if self._due or last or _stops_now(trainer) or step % self.every == 0:
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        if self.monitor is not None:
            score = self._score(trainer)
            if self._better(score):
                self._keep_as_best(trainer, score)
        if self._accumulating:
            self._stop_later(trainer)
        elif _stops_now(trainer):  # early stopping: here the place in the epoch is still known
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save where something else has stopped the training."""
        if trainer.global_step > 0:
            self.save(trainer)
        self._wait()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        try:
            self._wait()
        except UserError as error:  # the other one is what ended the run
            rank_zero_warn(str(error))

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._wait()

    def save_when_stepped(self) -> None:
        """Ask for a checkpoint at the end of the current optimizer step, when every other callback has had its turn."""
        self._due = True

    def save(self, trainer: L.Trainer) -> None:
        """Save now, unless this step has its checkpoint already. All ranks call it."""
        self._due = False
        if self.saved_step == trainer.global_step:
            return
        self._wait()  # for the one before
        self.saved_step = trainer.global_step
        try:
            trainer.save_checkpoint(self.folder / name_of(trainer.global_step))
        except BaseException:
            self.saved_step = None
            raise
        self._then(lambda: self._prune(trainer))
        if trainer.state.finished:
            self._wait()

    def _stop_later(self, trainer: L.Trainer) -> None:
        """Let whatever stops the training inside an accumulation wait for the optimizer step."""
        if trainer.should_stop:
            trainer.should_stop = False
            self._stop_after_step = True

    def _then(self, action: Callable[[], None]) -> None:
        """Run an action when the checkpoint is on the disk."""
        if self.writer:
            self.writer.submit(action)
        else:
            action()

    def _wait(self) -> None:
        """Wait until the checkpoint that is being written is on the disk."""
        if self.writer:
            self.writer.wait()

    @property
    def folder(self) -> Path:
        """Folder of the checkpoints."""
        if self.dir is None:
            raise RuntimeError("Checkpoint: the folder is known once the trainer has been set up")
        return self.dir

    @property
    def best_path(self) -> Path | None:
        """The best checkpoint; None before the first validation."""
        if not self.best_name:
            return None
        return self.folder / self.best_name

    def state_dict(self) -> dict[str, Any]:
        names = ("saved_step", "best_score", "best_name", "monitor", "mode")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.saved_step = state_dict["saved_step"]
        if (state_dict["monitor"], state_dict["mode"]) == (self.monitor, self.mode):
            self.best_score = state_dict["best_score"]
            self.best_name = state_dict["best_name"]

    def _score(self, trainer: L.Trainer) -> float:
        """Return the monitored value of the validation. Raises UserError when it is not logged."""
        if self.monitor not in trainer.callback_metrics:
            logged = ", ".join(sorted(trainer.callback_metrics)) or "nothing"
            raise UserError(f"checkpoint.monitor={self.monitor}: validation does not log it; logged: {logged}")
        return trainer.strategy.broadcast(float(trainer.callback_metrics[self.monitor]))

    def _better(self, score: float) -> bool:
        """Return whether a value is better than the best so far."""
        if math.isnan(score):
            return False
        if self.best_score is None:
            return True
        if self.mode == "min":
            return score < self.best_score
        return score > self.best_score

    def _keep_as_best(self, trainer: L.Trainer, score: float) -> None:
        """Save this step as the best one."""
        if self._accumulating and self.saved_step != trainer.global_step:
            rank_zero_warn(
                f"{self.monitor}={score:g} is the best, but validation fell inside an accumulation, where nothing can"
                " be saved exactly: make trainer.val_check_interval a multiple of trainer.accumulate_grad_batches"
            )
            return
        self._wait()  # until the best so far is no more needed
        self.best_score = score
        self.best_name = name_of(trainer.global_step)
        self.save(trainer)
        if trainer.is_global_zero:
            record = {"name": self.best_name, "step": trainer.global_step, "monitor": self.monitor, "score": score}
            self._then(lambda: write_text(self.folder / BEST, json.dumps(record)))
        self._then(lambda: self._prune(trainer))

    def _read_best(self, trainer: L.Trainer) -> None:
        """Read the best so far: the validation after a checkpoint is not in it, but in the record beside it."""
        record = None
        if trainer.is_global_zero and (self.folder / BEST).exists():
            record = _read_record(self.folder / BEST)
        record = trainer.strategy.broadcast(record)
        if record and record["monitor"] == self.monitor and record["step"] <= trainer.global_step:
            self.best_score = record["score"]
            self.best_name = record["name"]

    def _set_later_aside(self, trainer: L.Trainer) -> None:
        """Set checkpoints of later steps aside: they are another history, and must not be taken for the last one."""
        if not trainer.is_global_zero:
            return
        for path in listed(self.folder):
            if (step_of(path) or 0) > trainer.global_step:
                path.rename(path.with_name(f"set_aside_{path.name}"))
                rank_zero_warn(f"{path}: later than step {trainer.global_step}, where this run goes on; set aside")

    def _prune(self, trainer: L.Trainer) -> None:
        """Remove the oldest checkpoints, but for the best one."""
        if not trainer.is_global_zero:
            return
        for path in listed(self.folder)[: -self.keep]:
            if path.name != self.best_name:
                trainer.strategy.remove_checkpoint(path)
                rank_zero_info(f"removed {path.name}: checkpoint.keep={self.keep}")


def _read_record(path: Path) -> dict[str, Any] | None:
    """Return the record best.json; None, with a warning, when it is damaged: the next best one is written again."""
    try:
        return read_object(path, "name", "step", "monitor", "score")
    except UserError as error:
        rank_zero_warn(f"{error}; what was the best so far is not known")
        return None


def _stops_now(trainer: L.Trainer) -> bool:
    """Return whether something has asked for the end and no minimum of steps or epochs holds it."""
    return trainer.should_stop and trainer.fit_loop._can_stop_early


def _count_the_epoch_begun(loop: dict[str, Any]) -> None:
    """Correct the count of epochs in a checkpoint that was written inside an epoch.

    Lightning 2.6 does not count an epoch as begun when a resumed run begins it at once. The next resume then takes the
    epoch that has ended for one that was never begun, and `max_epochs` comes an epoch late.
    """
    batches = loop["epoch_loop.batch_progress"]["total"]
    inside = batches["completed"] == batches["processed"] - 1
    if inside:
        for counts in (loop["epoch_progress"]["total"], loop["epoch_progress"]["current"]):
            counts["ready"] = counts["started"] = counts["processed"] + 1
