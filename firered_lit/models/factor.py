"""The layer that holds one factor of an adapter."""

import torch.nn.functional as F
from torch import Tensor, nn


class Factor(nn.Linear):
    """A linear layer whose float32 weight is cast to its input's precision for each product.

    Without autocast the stream between the blocks so stays in the frozen base's bfloat16, as FSDP2's mixed precision
    keeps it, while the weight, its gradient and the optimizer's states are float32. Under autocast, and where input
    and weight have one precision, it is an `nn.Linear`.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return the product (..., out) of an input (..., in), in the input's precision."""
        return F.linear(input, self.weight.to(input.dtype), self.bias)

    @classmethod
    def of(cls, linear: nn.Linear) -> "Factor":
        """Return a factor that shares the weight of a linear layer without bias."""
        factor = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        factor.weight = linear.weight
        return factor
