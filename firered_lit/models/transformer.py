"""The type of the diffusion transformer for type checkers, which see no `torch.nn.Module` in diffusers' own class."""

from typing import Any

import torch
from torch import nn


class Transformer(nn.Module):
    """`diffusers.QwenImageTransformer2DModel` as this project uses it. Never made: for annotations alone."""

    config: Any
    dtype: torch.dtype
    img_in: nn.Linear
    pos_embed: Any
    transformer_blocks: nn.ModuleList
    add_adapter: Any
    enable_adapters: Any
    disable_adapters: Any
    enable_gradient_checkpointing: Any
    compile_repeated_blocks: Any
    save_pretrained: Any
