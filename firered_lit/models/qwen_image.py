"""The transformer's one forward, shared by training, validation, rollout and `edit`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ..batch import Condition
from .recompute import keep_products

if TYPE_CHECKING:
    from .transformer import Transformer


def pack(latents: Tensor) -> Tensor:
    """Cut latents (B, C, h, w) into tokens (B, h/2 * w/2, 4C): a token is a 2x2 patch."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Invert `pack`, for latents of (height, width)."""
    b, _, c = tokens.shape
    patches = tokens.reshape(b, height // 2, width // 2, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c // 4, height, width)


def image_shapes(images: Sequence[Tensor]) -> list[tuple[int, int, int]]:
    """Return (frames, rows, columns) in tokens of the target and then of each reference, for the 3-D RoPE."""
    return [(1, image.shape[-2] // 2, image.shape[-1] // 2) for image in images]


def velocity(transformer: "Transformer", x_t: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Predict the velocity (B, 16, h, w) at x_t, given text and clean references.

    Target tokens stand first, then the tokens of each reference; only the target's are read. The transformer takes one
    list of shapes for the whole batch, so reference i must have one shape in all samples (the buckets see to that).

    Args:
        transformer: any precision; half weights take half inputs.
        x_t: (B, 16, h, w).
        sigma: (B,) in [0, 1].
        condition: of B samples.
    """
    images = (x_t, *condition.references)
    lengths = {len(condition.text.embeddings), *(len(image) for image in images)}
    if lengths != {len(x_t)}:
        raise ValueError("velocity: x_t, text and references differ in batch size")
    stored = transformer.img_in.weight.dtype
    dtype = stored if stored.is_floating_point else x_t.dtype  # half weights take half inputs; quantised ones any
    tokens = [pack(image.to(x_t.device, dtype)) for image in images]
    prediction = transformer(
        hidden_states=torch.cat(tokens, dim=1),
        encoder_hidden_states=condition.text.embeddings.to(x_t.device, dtype),
        encoder_hidden_states_mask=condition.text.mask,
        timestep=sigma.to(x_t.device, dtype),
        img_shapes=[image_shapes(images)] * len(x_t),
        return_dict=False,
    )[0]
    return unpack(prediction[:, : tokens[0].shape[1]], *x_t.shape[-2:])


def unused_parameters(transformer: "Transformer") -> list[str]:
    """Return the names of the last block's text branch, which the loss never reaches.

    Left trainable, these stop DDP ("parameters that were not used") and sharded checkpoints from resuming.
    """
    last = f"transformer_blocks.{len(transformer.transformer_blocks) - 1}."
    dead = (f"{last}attn.to_add_out.", f"{last}txt_mlp.")
    return [name for name, _ in transformer.named_parameters() if name.startswith(dead)]


def freeze_unused(transformer: "Transformer") -> None:
    """Freeze the parameters that the loss never reaches, by name."""
    dead = set(unused_parameters(transformer))
    for name, parameter in transformer.named_parameters():
        if name in dead:
            parameter.requires_grad_(False)


def checkpoint_blocks(transformer: "Transformer", kept: Literal[True, "products"]) -> None:
    """Compute activations again in the backward: all of a block, or with "products" only what is cheap."""
    if kept == "products":
        transformer.enable_gradient_checkpointing(keep_products())
    else:
        transformer.enable_gradient_checkpointing()
