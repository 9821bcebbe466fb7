"""The transformer as a stage trains it: its base, its precision, and its frozen weights."""

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal

from ..errors import UserError
from .family import Base, open_base, transformer_config
from .lora import LoRA, add_adapter, first_values
from .qwen_image import checkpoint_blocks, freeze_unused

if TYPE_CHECKING:
    import torch

    from .shard import Sharding
    from .transformer import Transformer


@dataclass(frozen=True)
class Backbone:
    """One diffusion transformer, shared by every stage of the chain.

    Args:
        name: "tiny", a diffusers folder or a hub id, owner/name or owner/name@revision.
        dtype: of the weights in memory: "float32" where they are trained, "bfloat16" where they lie frozen under a
            LoRA, or with `optim.stochastic_adamw8bit`.
        gradient_checkpointing: trade one more forward for activations' memory; "products" keeps the results of matrix
            products and attention, and computes only the rest again.
        compile_blocks: regional `torch.compile`, one graph for all blocks.
        lora: train an adapter over frozen weights.
        quantize: hold the frozen weights in 8 or 4 bits; only with lora.
    """

    name: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool | Literal["products"] = False
    compile_blocks: bool = False
    lora: LoRA | None = None
    quantize: Literal["8bit", "4bit"] | None = None

    def __post_init__(self) -> None:
        if self.quantize and self.lora is None:
            raise UserError(f"backbone.quantize={self.quantize}: quantised weights cannot be trained; add a lora")
        if self.gradient_checkpointing == "products" and self.compile_blocks:
            raise UserError(
                "backbone.gradient_checkpointing=products: compiled blocks choose by themselves what they keep;"
                " set it to false, or to true to keep nothing"
            )

    @cached_property
    def base(self) -> Base:
        """The opened base."""
        return open_base(self.name)

    def at(self, place: str) -> "Backbone":
        """Return the same choice with its base in another folder, or of a commit, whatever the name means from here."""
        moved = replace(self)
        moved.__dict__["base"] = replace(open_base(place), name=self.name)  # where cached_property keeps it
        return moved

    def load(
        self, seed: int = 0, device: "torch.device | str" = "cpu", sharding: "Sharding | None" = None
    ) -> "Transformer":
        """Load the transformer, ready to train; parameters that no loss reaches are frozen.

        Args:
            seed: of the adapter's first weights.
            device: of a quantised base.
            sharding: over processes, none of which then ever holds more than its own shards of the weights.
        """
        import torch

        # Weights, or with sharding their shapes alone.
        dtype = getattr(torch, self.dtype)
        if sharding is not None:
            from . import shard

            folder = self.base.transformer_folder()
            transformer = shard.skeleton(transformer_config(str(self.base.folder)), dtype).train()
        else:
            transformer = self.base.transformer(dtype).train()
        if self.quantize:
            from .quantize import quantize

            quantize(transformer, self.quantize, device)

        # The trained parameters.
        if self.lora:
            add_adapter(transformer, self.lora, seed)
        else:
            transformer.requires_grad_(True)
            freeze_unused(transformer)

        # Memory and speed.
        if self.gradient_checkpointing:
            checkpoint_blocks(transformer, self.gradient_checkpointing)
        if self.compile_blocks:
            transformer.compile_repeated_blocks()
        if sharding is not None:
            shard.shard(transformer, sharding)
            adapter_values = partial(first_values, seed=seed) if self.lora else None
            shard.fill(transformer, folder, sharding.device, adapter_values)
        return transformer
