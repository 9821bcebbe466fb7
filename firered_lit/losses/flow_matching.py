"""The flow matching loss."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_max_pool2d


def at_least_float32(value: Tensor) -> Tensor:
    """Half precision raised to float32; float32 and float64 as they are."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def flow_matching_loss(
    v: Tensor, target: Tensor, weight: Tensor | None = None, emphasis: Tensor | None = None
) -> Tensor:
    """Mean squared error of each sample's velocity, times its weight. (B, ...), (B, ...), (B,) -> (B,).

    emphasis: weights of the numbers inside of a sample, broadcast to (B, ...), see `edit_emphasis`. Half precision is
    raised to float32 before the difference. Qwen-Image (2508.02324), eq. 3.
    """
    error = (at_least_float32(v) - at_least_float32(target)).square()
    error = (error if emphasis is None else error * emphasis.to(error)).flatten(1).mean(1)
    return error if weight is None else error * weight.to(error)


def edit_emphasis(mask: Tensor, shape: tuple[int, int], share: float, *, floor: float = 0.02) -> Tensor:
    """Weights (B, 1, h, w) by which `share` of a sample's loss falls on what its edit may change, and the rest on what
    must stay, small as either may be.

    mask: (B, 1, H, W), 1 where the edit may change the picture; shape: (h, w) of the latents, each of which is changed
    when a pixel of it is. A part under `floor` of the picture weighs as if it were as large, so that no single latent
    rules a batch; else the mean is 1. A picture that changes nowhere, or everywhere, weighs 1. In the spirit of the
    region weights of UniWorld-V1 (2506.03147).
    """
    changed = (adaptive_max_pool2d(mask.float(), shape) > 0).float()
    area = changed.mean((1, 2, 3), keepdim=True)
    there, elsewhere = changed / area.clamp(min=floor), (1 - changed) / (1 - area).clamp(min=floor)
    mixed = share * there + (1 - share) * elsewhere
    return torch.where((area > 0) & (area < 1), mixed, torch.ones_like(changed))
