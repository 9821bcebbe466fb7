"""A frozen base in 8 or 4 bits, for LoRA on consumer cards: bitsandbytes layers in place of the blocks' linear ones."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from diffusers import QwenImageTransformer2DModel
    from torch import nn

Bits = Literal["8bit", "4bit"]


def quantize(transformer: "QwenImageTransformer2DModel", bits: Bits, device: "torch.device | str" = "cpu") -> None:
    """Replace every linear layer of the blocks, one by one, quantised on `device`; what is outside the blocks stays.

    8bit: LLM.int8 (2208.07339), rows as int8 with their scales, inputs above 6 in full precision. 4bit: NF4 with
    quantised scales (QLoRA, 2305.14314), multiplied in the weights' own precision. diffusers' own quantiser does the
    same but asks for a GPU. Neither keeps an input for the backward, see `Frozen8bit`.
    """
    from torch import nn

    for name, module in list(transformer.named_modules()):
        if name.startswith("transformer_blocks.") and isinstance(module, nn.Linear):
            transformer.set_submodule(name, _layer(module, bits).to(device))
    setattr(transformer, f"is_loaded_in_{bits}", True)  # what peft looks for
    transformer.to(device)


def _layer(linear: "nn.Linear", bits: Bits) -> "nn.Module":
    """The same layer, to be quantised when it is moved to its device."""
    import bitsandbytes as bnb

    shape: tuple[Any, ...] = (linear.in_features, linear.out_features, linear.bias is not None)
    if bits == "8bit":
        from .frozen_8bit import Frozen8bit

        layer = Frozen8bit(*shape, has_fp16_weights=False, threshold=6.0, device="meta")
        layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    else:
        layer = bnb.nn.Linear4bit(
            *shape, compute_dtype=linear.weight.dtype, quant_type="nf4", compress_statistics=True, device="meta"
        )
        layer.weight = bnb.nn.Params4bit(
            linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
        )
        layer.support_avx512bf16_for_cpu = False  # else a validation on such CPUs repacks weights past further training
    layer.bias = linear.bias
    return layer
