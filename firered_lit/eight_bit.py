"""torchao's 8-bit AdamW on sharded parameters, made to be saved and gone on from by any number of processes."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit

from .models.shard import local

MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # is it signed?


class ShardedAdamW8bit(AdamW8bit):
    """AdamW with both moments in 8 bits, blockwise (2110.02861), where a process's part of them fills whole blocks.

    torchao keeps rates as tensors, which no other optimizer takes: checkpoints hold them as numbers (`portable`). What
    is loaded may be float32 moments, of another optimizer or of parts that were cut elsewhere: they are quantised.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            if not isinstance(group["lr"], Tensor):
                group["lr"] = torch.tensor(group["lr"], dtype=torch.float32)
        for parameter, held in self.state.items():
            for name in held.keys() & MOMENTS.keys():
                held[name] = self._quantised(parameter, held[name], MOMENTS[name])

    def _quantised(self, parameter: nn.Parameter, moment: Tensor, signed: bool) -> Tensor:
        room = self._new_buffer(parameter, signed)
        if isinstance(local(moment), OptimState8bit) or not isinstance(local(room), OptimState8bit):
            return moment
        local(room).copy_(local(moment).float())
        return room

    @staticmethod
    def portable(state: Mapping[str, Any]) -> dict[str, Any]:
        """Its state dict with rates as numbers."""
        groups = [{name: _number(value) for name, value in group.items()} for group in state["param_groups"]]
        return {**state, "param_groups": groups}


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
