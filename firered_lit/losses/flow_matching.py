"""The flow matching loss."""

import torch
from torch import Tensor


def flow_matching_loss(v: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample's velocity, times its weight. (B, ...), (B, ...), (B,) -> (B,).

    Half precision is raised to float32 before the difference. Qwen-Image (2508.02324), eq. 3.
    """
    dtype = torch.promote_types(torch.promote_types(v.dtype, target.dtype), torch.float32)
    error = (v.to(dtype) - target.to(dtype)).square().flatten(1).mean(1)
    return error if weight is None else error * weight.to(error)
