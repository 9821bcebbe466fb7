"""A frozen layer in 8 bits that keeps nothing of its forward, so that checkpointed blocks really let go of it."""

from typing import Any

import bitsandbytes as bnb
import torch
from torch import Tensor


class Frozen8bit(bnb.nn.Linear8bitLt):
    """bitsandbytes' 8-bit layer, with a backward that needs its weight alone.

    bitsandbytes' own backward holds on to the layer's input past gradient checkpointing and never reads it: 21 GB for
    one sample with a reference in 60 blocks of full width. Outputs and gradients are the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return the product (..., out) of an input (..., in), in the input's precision."""
        return _Product.apply(x, self)

    def product(self, x: Tensor) -> Tensor:
        """Return bitsandbytes' product."""
        return super().forward(x)

    def whole_weight(self, dtype: torch.dtype) -> Tensor:
        """Return the weight (out, in) as bitsandbytes' backward rounds it."""
        state: Any = self.state
        scale = state.SCB.unsqueeze(1).mul(1.0 / 127.0)
        return state.CB.to(dtype, copy=True).mul_(scale)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Frozen8bit) -> Tensor:
        ctx.layer = layer
        ctx.dtype = x.dtype
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return torch.matmul(gradient.to(ctx.dtype), ctx.layer.whole_weight(ctx.dtype)), None
