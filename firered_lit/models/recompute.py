"""Activation checkpointing: which tensors a block keeps for its backward, and which it computes again."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten
PRODUCTS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_attention_math.default,
}


def keep_products() -> Callable[..., Any]:
    """For `enable_gradient_checkpointing`: keep what matrix products and attention gave, make all else again.

    Those cost nearly all operations of a block and hold a third of what it would keep; norms, modulation, rotation and
    GELU are made again in the backward (selective activation checkpointing, Korthikanti et al., 2205.05198, section 5).
    """
    contexts = partial(create_selective_checkpoint_contexts, _policy)
    return partial(checkpoint, use_reentrant=False, context_fn=contexts, respect_saved_tensors_hooks=True)


def _policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in PRODUCTS else CheckpointPolicy.PREFER_RECOMPUTE
