"""CUDA's autocast on the CPU, whose own casts fewer operations."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

FLOAT32 = (F.layer_norm, torch.layer_norm)  # float32 under CUDA's autocast, under the CPU's what comes in


class CudaCasts(TorchFunctionMode):
    """Inside, CPU autocast gives the transformer the precisions that CUDA's would.

    Of the operations of the Qwen-Image transformer LayerNorm alone is in one list and not in the other; a test holds
    the two against each other on tensors without memory. To be entered around forward and backward: a checkpointed
    block computes its forward again in the backward.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))
