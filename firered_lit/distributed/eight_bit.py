"""torchao's 8-bit AdamW: saved and gone on from by any number of processes, and with stochastic rounding."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torchao.optim import AdamW8bit
from torchao.optim.subclass_8bit import OptimState8bit

from ..draws import seed_of
from ..models.shard import local

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
        """Return a moment in 8 bits, where this parameter has them in 8 bits; else as it is."""
        quantised = self._new_buffer(parameter, signed)
        if isinstance(local(moment), OptimState8bit) or not isinstance(local(quantised), OptimState8bit):
            return moment
        local(quantised).copy_(local(moment).float())
        return quantised

    @staticmethod
    def portable(state: Mapping[str, Any]) -> dict[str, Any]:
        """Return its state dict with rates as numbers."""
        groups = []
        for group in state["param_groups"]:
            groups.append({name: _number(value) for name, value in group.items()})
        return {**state, "param_groups": groups}


class StochasticAdamW8bit(ShardedAdamW8bit):
    """AdamW with 8-bit moments that rounds bfloat16 weights up or down at random, right in the mean (2010.06192).

    Moments that are too few for 8 bits stay float32, whatever the weights are.
    """

    rounds_stochastically = True
    seed = 0  # of the rounding's draws; a stage sets its own

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options, bf16_stochastic_round=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step; the global random state is afterwards what it was before the weights were rounded."""
        loss = None
        if closure is not None:  # the training's forward and backward, whose draws are their own
            with torch.enable_grad():
                loss = closure()
        seed = seed_of(self.seed, "rounding", self._steps(), self._shard())
        with _keyed(seed, self._devices()):
            super().step()
        return loss

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state. torch casts moments to their weights' precision: they are put in again as they were saved."""
        super().load_state_dict(dict(state_dict))
        saved_names = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        parameters = chain.from_iterable(group["params"] for group in self.param_groups)
        for name, parameter in zip(saved_names, parameters, strict=True):
            saved = state_dict["state"].get(name, {})
            for moment in saved.keys() & MOMENTS.keys():
                buffer = self._new_buffer(parameter, MOMENTS[moment])
                local(buffer).copy_(local(saved[moment]))
                self.state[parameter][moment] = buffer

    def _new_buffer(self, parameter: Tensor, signed: bool) -> Tensor:
        return super()._new_buffer(torch.empty_like(parameter, dtype=torch.float32), signed)

    def _steps(self) -> int:
        """Return how many steps have been taken."""
        steps = [int(held["step"]) for held in self.state.values() if "step" in held]
        return max(steps, default=0)

    def _shard(self) -> tuple[int, ...]:
        """Return which shard of the weights this process holds; replicas of one shard round in the same way."""
        for parameter in self._parameters():
            if isinstance(parameter, DTensor):
                coordinate: Sequence[int] = parameter.device_mesh.get_coordinate() or []
                placed = zip(coordinate, parameter.placements, strict=True)
                return tuple(number for number, placement in placed if placement.is_shard())
        return ()

    def _devices(self) -> list[torch.device]:
        """Return the accelerators that the weights lie on."""
        devices = {local(parameter).device for parameter in self._parameters()}
        return [device for device in devices if device.type != "cpu"]

    def _parameters(self) -> Iterator[Tensor]:
        """Yield the parameters of all groups."""
        for group in self.param_groups:
            yield from group["params"]


@contextmanager
def _keyed(seed: int, devices: list[torch.device]) -> Iterator[None]:
    """Seed the global random state of the host and of `devices` inside a `with` block; it is as before after it."""
    with torch.random.fork_rng(devices, device_type=devices[0].type if devices else "cuda"):
        torch.manual_seed(seed)
        yield


def _number(value: Any) -> Any:
    """Return a tensor's number, and anything else as it is."""
    if isinstance(value, Tensor):
        return value.item()
    return value
