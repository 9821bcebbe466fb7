"""CUDA's autocast on the CPU, whose own autocast leaves LayerNorm as it is."""

import torch
from torch import Tensor, nn


def cast_as_cuda(transformer: nn.Module) -> None:
    """Let CPU autocast give a transformer the precisions that CUDA's would.

    CUDA's computes LayerNorm in float32 and the CPU's does not. In all other operations of the Qwen-Image transformer
    they agree, which a test shows on tensors without memory.
    """
    for module in transformer.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(_to_float32)


def _to_float32(layer: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    """Return the layer's input in float32 under CPU autocast; None, which changes nothing, without it."""
    if not torch.is_autocast_enabled("cpu"):
        return None
    return (inputs[0].float(),)
