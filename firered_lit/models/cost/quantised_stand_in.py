"""Stand-ins that hold what the quantised layers of bitsandbytes hold while they compute, on tensors without memory."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class QuantisedStandIn(nn.Linear):
    """A frozen layer that allocates what bitsandbytes' CUDA kernels do, read from version 0.50's sources.

    Its weight has the precision that the layer computes in: what it takes in 4 or 8 bits is counted by its number.

    Args:
        linear: The layer in whose place it stands; the weight is shared.
        bits: "4bit" or "8bit".
    """

    def __init__(self, linear: nn.Linear, bits: str) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.bits = bits

    def forward(self, input: Tensor) -> Tensor:
        """Return the product (..., out), in the precision of the input (..., in)."""
        if self.bits == "8bit":
            return _EightBit.apply(input, self.weight, self.bias)
        product = _FourBit.apply(input.to(self.weight.dtype), self.weight, self.bias)
        return product.to(input.dtype).clone()  # peft's, of every 4-bit layer with an adapter


class _FourBit(torch.autograd.Function):
    """For many rows the whole weight is dequantised, in the forward and in the backward."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(input, torch.empty_like(weight), bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient @ torch.empty_like(ctx.weight), None, None


class _EightBit(torch.autograd.Function):
    """Inputs become float16, then int8; the product is int32. The backward dequantises the whole weight."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        ctx.dtype = input.dtype
        shape = (*input.shape[:-1], weight.shape[0])
        rows = input.to(torch.float16).to(torch.int8)
        product = torch.empty(shape, dtype=torch.int32, device=rows.device)
        return product.to(torch.float16).to(input.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.to(ctx.dtype) @ torch.empty_like(ctx.weight, dtype=ctx.dtype), None, None
