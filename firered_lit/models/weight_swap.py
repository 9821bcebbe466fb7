"""Other values for a module's trainable parameters, and a way to run the module with them: old policy, reference."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class WeightSwap(nn.Module):
    """A copy of a module's trainable parameters, in their precision and sharded as they are.

    With LoRA these are the adapter's factors, else all weights. As a submodule it is part of the state dict: a key is
    the parameter's name with / for each dot.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        copies = {}
        for name, parameter in _trained(module):
            copies[_key(name)] = nn.Parameter(parameter.detach().clone(), requires_grad=False)
        self.values = nn.ParameterDict(copies)

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """Exchange values with the module inside a `with` block. No graph may span its border."""
        self._exchange(module)
        try:
            yield
        finally:
            self._exchange(module)

    @torch.no_grad()
    def follow(self, module: nn.Module, decay: float) -> None:
        """Average: values <- decay values + (1 - decay) parameters."""
        for own, other in self._pairs(module):
            own.lerp_(other.to(own), 1 - decay)

    @torch.no_grad()
    def _exchange(self, module: nn.Module) -> None:
        """Exchange the values held here with the module's."""
        torch.clear_autocast_cache()  # it holds casts of the values that leave
        for own, other in self._pairs(module):
            held = other.clone()
            other.copy_(own)
            own.copy_(held)

    def _pairs(self, module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (value held here, parameter of the module), as this process holds them."""
        # The weights that a sharded module has gathered for a forward would hide what is written.
        for submodule in module.modules():
            reshard: Any = getattr(submodule, "reshard", None)
            if reshard is not None:
                reshard()
        for name, parameter in _trained(module):
            yield _local(self.values[_key(name)]), _local(parameter)


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the names and parameters that are trained."""
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter


def _key(name: str) -> str:
    """Return a parameter's name as a key of a ParameterDict, which takes no dots."""
    return name.replace(".", "/")


def _local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a sharded tensor, and any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
