"""One bar from the first step to the last: loss, speed, time left. Lines instead of a bar where nobody watches."""

import sys
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from firered_lit.batch import EditBatch

_REFRESH = 0.25  # seconds; reading the loss waits for the device


class Progress(ProgressBar):
    """The progress of the whole training, which a resumed run takes up where it was.

    Args:
        every: Optimizer steps between two lines when the output is no terminal.
    """

    def __init__(self, every: int = 10) -> None:
        super().__init__()
        self.every = every
        self._enabled = True
        self._bar: tqdm | None = None
        self._total: int | None = None
        self._seen_step = self._first_step = 0
        self._samples = self._tokens = 0
        self._paused = self._pause_begun = 0.0
        self._begun = self._shown = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line that does not break the bar."""
        if self._enabled:
            tqdm.write(kwargs.get("sep", " ").join(map(str, args)), file=sys.stdout)
            sys.stdout.flush()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_step = self._seen_step = trainer.global_step
        self._samples = self._tokens = 0
        self._paused, self._begun, self._total = 0.0, time.monotonic(), total_steps(trainer)
        if self._enabled and sys.stdout.isatty():
            self._bar = tqdm(
                total=self._total,
                initial=self._first_step,
                desc="training",
                unit="step",
                file=sys.stdout,
                dynamic_ncols=True,
                smoothing=0.05,
            )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        self._samples += len(batch) * trainer.world_size  # all ranks take batches of one bucket
        self._tokens += batch.tokens * trainer.world_size
        step = trainer.global_step
        if not self._enabled or step == self._seen_step:
            return
        self._seen_step = step
        last = step == self._total or trainer.should_stop
        if self._bar is None:
            if last or step % self.every == 0:
                self.print(self._line(trainer, step))
        elif last or time.monotonic() - self._shown > _REFRESH:
            self._shown = time.monotonic()
            self._bar.set_postfix_str(", ".join(self._measures(trainer)), refresh=False)
            self._bar.update(step - self._bar.n)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._pause_begun = time.monotonic()
        if self._bar is not None:
            self._bar.set_description("validating")

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused += time.monotonic() - self._pause_begun
        if self._bar is not None:
            self._bar.set_description("training")
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if values:
            said = ", ".join(f"{name.removeprefix('val/')} {value:.4f}" for name, value in sorted(values.items()))
            self.print(f"validation at step {trainer.global_step}: {said}")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.update(self._seen_step - self._bar.n)
            self._bar.close()
            self._bar = None

    def _measures(self, trainer: L.Trainer) -> list[str]:
        seconds = max(time.monotonic() - self._begun - self._paused, 1e-9)
        logged = {k: float(v) for k, v in trainer.progress_bar_metrics.items() if not k.startswith("val/")}
        losses = [f"{name.split('/')[-1]} {value:.4f}" for name, value in logged.items()]
        return [*losses, f"{short(self._samples / seconds)} samples/s", f"{short(self._tokens / seconds)} tokens/s"]

    def _line(self, trainer: L.Trainer, step: int) -> str:
        parts = [f"step {step}/{self._total}" if self._total else f"step {step}", *self._measures(trainer)]
        if self._total:
            pace = (time.monotonic() - self._begun) / max(step - self._first_step, 1)
            parts.append(f"{timedelta(seconds=round(pace * (self._total - step)))} left")
        return ", ".join(parts)


def total_steps(trainer: L.Trainer) -> int | None:
    """Return the optimizer steps until the end, counted from the very start; None when nothing limits them."""
    limits = [trainer.max_steps] if trainer.max_steps > 0 else []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs > 0 and batches != float("inf"):
        limits.append(trainer.max_epochs * -(-int(batches) // trainer.accumulate_grad_batches))
    return min(limits, default=None)


def short(number: float) -> str:
    """Return a number in three digits or so: 0.53, 12.3, 456, 7.89k, 1.20M."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
