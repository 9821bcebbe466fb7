"""The transformer as a stage trains it: which base, in which precision, what is frozen."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from .family import Base, open_base
from .qwen_image import freeze_unused

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel


@dataclass(frozen=True)
class Backbone:
    """One diffusion transformer, shared by every stage of the chain.

    name: "tiny", a diffusers folder or a hub id. dtype: of the weights in memory; master weights want "float32", LoRA
    and 8-bit optimizers live with "bfloat16". gradient_checkpointing: trade one more forward for activations' memory.
    compile_blocks: regional `torch.compile`, one graph for all blocks.
    """

    name: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile_blocks: bool = False

    @cached_property
    def base(self) -> Base:
        return open_base(self.name)

    def load(self) -> "QwenImageTransformer2DModel":
        """The transformer, ready to train; parameters that no loss reaches are frozen."""
        import torch

        transformer = self.base.transformer(getattr(torch, self.dtype))
        transformer.requires_grad_(True).train()
        freeze_unused(transformer)
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        if self.compile_blocks:
            transformer.compile_repeated_blocks()
        return transformer
