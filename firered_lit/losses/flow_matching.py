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
    if emphasis is not None:
        error = error * emphasis.to(error)
    loss = error.flatten(1).mean(1)
    if weight is not None:
        loss = loss * weight.to(loss)
    return loss


def edit_emphasis(mask: Tensor, shape: tuple[int, int], share: float, *, floor: float = 0.02) -> Tensor:
    """Return weights (B, 1, h, w) that put `share` of each sample's loss on its edit, and the rest elsewhere.

    Their mean is 1, except where one side is smaller than `floor`: it weighs as if it were that large, so that no
    single latent rules a batch. A picture that changes nowhere, or everywhere, weighs 1.

    Args:
        mask: (B, 1, H, W), 1 where the edit may change the picture.
        shape: (h, w) of the latents; one is changed when a pixel of it is.
        share: in [0, 1].
        floor: share of the picture.

    Source: in the spirit of the region weights of UniWorld-V1 (2506.03147).
    """
    changed = (adaptive_max_pool2d(mask.float(), shape) > 0).float()
    area = changed.mean((1, 2, 3), keepdim=True)
    inside = changed / area.clamp(min=floor)
    outside = (1 - changed) / (1 - area).clamp(min=floor)
    mixed = share * inside + (1 - share) * outside
    return torch.where((area > 0) & (area < 1), mixed, torch.ones_like(changed))
