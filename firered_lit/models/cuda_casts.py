"""CUDA's autocast on the CPU, whose own casts fewer operations."""

import torch
from torch import Tensor, nn


def cast_as_cuda(transformer: nn.Module) -> None:
    """Let CPU autocast give a transformer the precisions that CUDA's would.

    Of the operations of the Qwen-Image transformer LayerNorm alone is float32 under one and not under the other; a test
    holds the two against each other on tensors without memory.
    """
    for module in transformer.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(_to_float32)


def _to_float32(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the inputs in float32 under CPU autocast."""
    return (inputs[0].float(),) if torch.is_autocast_enabled("cpu") else None
