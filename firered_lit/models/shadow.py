"""Other values for a module's trainable parameters, and a way to run the module with them: old policy, reference."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


class Shadow(nn.Module):
    """A copy of a module's trainable parameters, in their precision and sharded as they are.

    With LoRA these are the adapter's factors, else all weights. As a submodule it is part of the state dict: a key is
    the parameter's name with / for each dot.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        copies = {_key(n): nn.Parameter(p.detach().clone(), requires_grad=False) for n, p in _trained(module)}
        self.values = nn.ParameterDict(copies)

    @contextmanager
    def swapped_into(self, module: nn.Module) -> Iterator[None]:
        """Inside, the module computes with these values, and this holds the module's. No graph may span the border."""
        self._exchange(module)
        try:
            yield
        finally:
            self._exchange(module)

    @torch.no_grad()
    def follow(self, module: nn.Module, decay: float) -> None:
        """values <- decay values + (1 - decay) parameters."""
        for own, other in self._pairs(module):
            own.lerp_(other.to(own), 1 - decay)

    @torch.no_grad()
    def _exchange(self, module: nn.Module) -> None:
        torch.clear_autocast_cache()  # it holds casts of the values that leave
        for own, other in self._pairs(module):
            held = other.clone()
            other.copy_(own)
            own.copy_(held)

    def _pairs(self, module: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
        for part in module.modules():  # what a sharded module has gathered for a forward would hide what is written
            if hasattr(part, "reshard"):
                part.reshard()
        for name, parameter in _trained(module):
            yield _local(self.values[_key(name)]), _local(parameter)


def _trained(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def _key(name: str) -> str:
    return name.replace(".", "/")


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
