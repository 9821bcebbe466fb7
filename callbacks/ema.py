"""An exponential moving average of the trained weights, sharded as they are."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn

from firered_lit.checkpoints.checkpoint import check_architecture
from firered_lit.errors import UserError
from firered_lit.models.shard import local, placed_like

KEY = "ema"  # in a checkpoint: {"updates": int, "weights": {name: float32 tensor}}


class EMA(L.Callback):
    """Keep `shadow = decay * shadow + (1 - decay) * weight` of every trainable parameter, in float32.

    Updated after optimizer steps, never between the micro-batches of one; saved in the run's checkpoints and resumed
    from them; `export --ema` writes it. Every rank keeps the average of the part of the weights that it holds.

    Args:
        decay: Share of the average that an update keeps, in [0, 1).
        every: Optimizer steps between updates, from 1 up.
        start: Optimizer steps after which averaging begins; until then the average is the weights themselves.
        validate: Validate with the average in place of the weights.

    Raises:
        UserError: A number is out of its range.
    """

    def __init__(self, decay: float = 0.999, every: int = 1, start: int = 0, validate: bool = False) -> None:
        super().__init__()
        if not 0 <= decay < 1 or every < 1 or start < 0:
            given = f"decay={decay} every={every} start={start}"
            raise UserError(f"ema: {given}: decay lies in [0, 1), every is at least 1, start at least 0")
        self.decay = decay
        self.every = every
        self.start = start
        self.validate = validate
        self.shadow: dict[str, Tensor] = {}
        self.updates = 0
        self._loaded: dict[str, Tensor] | None = None
        self._aside: dict[str, Tensor] | None = None  # the weights, while the average is in their place
        self._seen_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._seen_step = trainer.global_step
        named = dict(_trained(pl_module))
        self.shadow = {name: p.detach().float().clone() for name, p in named.items()}
        if self._loaded is not None:
            check_architecture(self.shadow, self._loaded)
            for name, tensor in self.shadow.items():
                local(tensor).copy_(local(placed_like(self._loaded[name], tensor)))
            self._loaded = None
        elif trainer.global_step > 0:
            rank_zero_warn("ema: the checkpoint has no average; it begins with the weights as they are now")

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._seen_step:  # in the middle of an accumulation
            return
        self._seen_step = step
        left_out = getattr(getattr(pl_module, "guard", None), "left_out", False)
        averaging = step > self.start
        due = step % self.every == 0
        if left_out or (averaging and not due):
            return

        # The weights themselves before the start, then their average.
        weights = dict(_trained(pl_module))
        shadows = [local(tensor) for tensor in self.shadow.values()]
        current = [local(weights[name]).detach().float() for name in self.shadow]
        if averaging:
            torch._foreach_lerp_(shadows, current, 1 - self.decay)
            self.updates += 1
        else:
            torch._foreach_copy_(shadows, current)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.validate and self.shadow:
            self._swap_in(pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap_out(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._swap_out(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the average as it lies: of a sharded one, every rank gives its part to the sharded checkpoint."""
        if self.shadow:
            checkpoint[KEY] = {"updates": self.updates, "weights": dict(self.shadow)}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if KEY in checkpoint:
            self.updates = checkpoint[KEY]["updates"]
            self._loaded = checkpoint[KEY]["weights"]

    @torch.no_grad()
    def _swap_in(self, pl_module: L.LightningModule) -> None:
        """Put the average in the place of the weights, which are set aside."""
        weights = dict(_trained(pl_module))
        self._aside = {name: local(weights[name]).clone() for name in self.shadow}
        for name, tensor in self.shadow.items():
            local(weights[name]).copy_(local(tensor))

    @torch.no_grad()
    def _swap_out(self, pl_module: L.LightningModule) -> None:
        """Put the weights back, if they are set aside."""
        aside = self._aside or {}
        self._aside = None
        weights = dict(_trained(pl_module))
        for name, tensor in aside.items():
            local(weights[name]).copy_(tensor)


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Return the trained parameters with their names."""
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)
