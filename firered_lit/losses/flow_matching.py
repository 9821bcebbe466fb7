"""The flow matching loss."""

import torch
from torch import Tensor


def at_least_float32(value: Tensor) -> Tensor:
    """Half precision raised to float32; float32 and float64 as they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def flow_matching_loss(v: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample's velocity, times its weight. (B, ...), (B, ...), (B,) -> (B,).

    Half precision is raised to float32 before the difference. Qwen-Image (2508.02324), eq. 3.
    """
    error = (at_least_float32(v) - at_least_float32(target)).square().flatten(1).mean(1)
    return error if weight is None else error * weight.to(error)
