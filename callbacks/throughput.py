"""The speed of a run, and the share of its time that it waits for data."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.profilers import Profiler

from firered_lit.batch import EditBatch
from firered_lit.models.cost.flops import peak


class Throughput(L.Callback):
    """Log `perf/samples_per_s`, `perf/tokens_per_s` (over all ranks), `perf/data_wait_share`, every `every` steps.

    Time is fetching plus stepping: validation and saving are left out. A token is a 2x2 patch of latents, of targets
    and references. `perf/data_wait_share` is the share of the time that waits for the loader, the mean over ranks.
    Also `perf/tflops`: 10^12 operations a second on each device, of what the stage counts as `flops`, and where the
    device's best is known (`models.cost.flops`), `perf/mfu`: their share of it.

    Args:
        every: Optimizer steps between two lines of the log.
    """

    def __init__(self, every: int = 10) -> None:
        self.every = every
        self._clock: _FetchClock | None = None
        self._seen_step = 0
        self._begun = 0.0
        self._reset()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        engine: Any = trainer  # whose profiler Lightning does not declare
        self._seen_step = trainer.global_step
        self._clock = engine.profiler = _FetchClock(engine.profiler)
        self._reset()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock of a step, which includes moving its batch to the device and encoding its prompts."""
        self._begun = self._clock.ended if self._clock else time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        self._busy += time.perf_counter() - self._begun
        self._samples += len(batch)
        self._tokens += batch.tokens
        self._flops += getattr(pl_module, "flops", _none)(batch)
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        if self._seen_step % self.every == 0:
            self._log(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        engine: Any = trainer
        if self._clock is not None:
            engine.profiler = self._clock.inner
            self._clock = None

    def _reset(self) -> None:
        """Begin to count anew."""
        self._busy = 0.0
        self._samples = 0
        self._tokens = 0
        self._flops = 0.0

    def _log(self, trainer: L.Trainer) -> None:
        """Log the rates since the last call, over all ranks."""
        # Rates of this rank.
        waited = self._clock.take() if self._clock else 0.0
        seconds = max(self._busy + waited, 1e-9)
        device = trainer.strategy.root_device
        world = trainer.world_size
        counts = [self._samples, self._tokens, waited / world, self._flops / 1e12 / world]
        own = torch.tensor([count / seconds for count in counts], device=device)

        # Summed over the ranks.
        samples, tokens, wait, tflops = trainer.strategy.reduce(own, reduce_op="sum").tolist()
        metrics = {"perf/samples_per_s": samples, "perf/tokens_per_s": tokens, "perf/data_wait_share": wait}
        if tflops:
            metrics["perf/tflops"] = tflops
            best = peak(_name(device))
            if best:
                metrics["perf/mfu"] = tflops * 1e12 / best
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)
        self._reset()


def _name(device: torch.device) -> str:
    """Return a device's name, by which its best speed is known."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _none(batch: Any) -> float:
    """Return 0: the operations of a module that does not count them."""
    return 0.0


class _FetchClock(Profiler):
    """Stands before the trainer's profiler and adds up the time inside the loader's `next`."""

    def __init__(self, inner: Profiler) -> None:
        super().__init__()
        self.inner = inner
        self._begun = self._waited = self.ended = 0.0

    def start(self, action_name: str) -> None:
        self.inner.start(action_name)
        if action_name.endswith("train_dataloader_next"):
            self._begun = time.perf_counter()

    def stop(self, action_name: str) -> None:
        if action_name.endswith("train_dataloader_next"):
            self.ended = time.perf_counter()
            self._waited += self.ended - self._begun
        self.inner.stop(action_name)

    def take(self) -> float:
        """Return the seconds waited since the last call."""
        waited, self._waited = self._waited, 0.0
        return waited

    def setup(self, *arguments: Any, **options: Any) -> None:
        self.inner.setup(*arguments, **options)

    def teardown(self, *arguments: Any, **options: Any) -> None:
        self.inner.teardown(*arguments, **options)

    def summary(self) -> str:
        return self.inner.summary()

    def describe(self) -> None:
        self.inner.describe()
