"""Plain statistics of images that show a hacked reward before the eye does: darker, emptier, greyer, bigger letters."""

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green, blue; ITU-R BT.601


def image_statistics(images: Tensor) -> dict[str, Tensor]:
    """Return `dark`, `edges` and `entropy` of images (B, 3, H, W) in [-1, 1]; each (B,), in [0, 1], on the host."""
    unit = ((images.detach().float() + 1) / 2).clamp(0, 1)
    luma = torch.einsum("bchw,c->bhw", unit, unit.new_tensor(LUMA))
    numbers = {"dark": dark_share(luma), "edges": edge_density(luma), "entropy": colour_entropy(unit)}
    return {name: number.cpu() for name, number in numbers.items()}


def dark_share(luma: Tensor, below: float = 0.25) -> Tensor:
    """Return (B,) the share of pixels of luma (B, H, W) in [0, 1] that are darker than `below`."""
    return (luma < below).float().mean((-2, -1))


def edge_density(luma: Tensor, step: float = 0.1) -> Tensor:
    """Return (B,) the share of pixels that differ by more than `step` from the one to the right or below."""
    right = (luma[:, :-1, 1:] - luma[:, :-1, :-1]).abs()
    below = (luma[:, 1:, :-1] - luma[:, :-1, :-1]).abs()
    return (torch.maximum(right, below) > step).float().mean((-2, -1))


def colour_entropy(unit: Tensor, levels: int = 8) -> Tensor:
    """Return (B,) the entropy of the histogram of colours, `levels` per channel, over its greatest value."""
    level = (unit * levels).long().clamp(max=levels - 1)
    colour = (level[:, 0] * levels + level[:, 1]) * levels + level[:, 2]
    counts = torch.stack([torch.bincount(c.flatten(), minlength=levels**3) for c in colour]).double()
    share = counts / counts.sum(-1, keepdim=True)
    return (-torch.special.xlogy(share, share).sum(-1) / torch.tensor(levels**3).double().log()).float()
