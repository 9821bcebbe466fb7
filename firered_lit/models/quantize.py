"""A frozen base in 8 or 4 bits, for LoRA on consumer cards: bitsandbytes layers in place of the blocks' linear ones."""

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .transformer import Transformer

Bits = Literal["8bit", "4bit"]


def quantize(transformer: "Transformer", bits: Bits, device: "torch.device | str" = "cpu") -> None:
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
    """Return the same layer, to be quantised when it is moved to its device."""
    layer = _eight_bit(linear) if bits == "8bit" else _four_bit(linear)
    layer.bias = linear.bias
    return layer


def _eight_bit(linear: "nn.Linear") -> Any:
    """Return a layer of LLM.int8 with the weights of a plain one, without its bias."""
    import bitsandbytes as bnb

    from .frozen_8bit import Frozen8bit

    layer = Frozen8bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        has_fp16_weights=False,
        threshold=6.0,
        device="meta",
    )
    layer.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
    return layer


def _four_bit(linear: "nn.Linear") -> Any:
    """Return a layer of NF4 with the weights of a plain one, without its bias."""
    import bitsandbytes as bnb

    layer: Any = bnb.nn.Linear4bit(
        linear.in_features,
        linear.out_features,
        bias=linear.bias is not None,
        compute_dtype=linear.weight.dtype,
        quant_type="nf4",
        compress_statistics=True,
        device="meta",
    )
    layer.weight = bnb.nn.Params4bit(
        linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=layer
    )
    layer.support_avx512bf16_for_cpu = False  # else a validation on such CPUs repacks weights past further training
    return layer
