"""Floating point operations of the transformer, counted by formula, and how many a device does at best."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..lora import LoRA

TFLOPS = {  # dense bf16 by the makers' data sheets, by what torch.cuda.get_device_name holds
    "B300": 2250, "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "GH200": 989, "H800": 989,
    "H20": 148, "A100": 312, "A800": 312, "A40": 150, "A30": 165, "A10": 125, "L40S": 362, "L40": 181, "L4": 121,
    "RTX PRO 6000": 504, "RTX 6000 Ada": 364, "RTX A6000": 155, "RTX 5090": 210, "RTX 5080": 113, "RTX 4090": 165,
    "RTX 4080": 97, "RTX 3090 Ti": 80, "RTX 3090": 71, "MI355X": 2500, "MI325X": 1307, "MI300X": 1307, "MI250X": 191,
}  # fmt: skip
INSIDE = {  # of a block, (inputs, outputs) in widths of every linear layer that an image or text token meets
    **dict.fromkeys(("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"), (1, 1)),
    "to_add_out": (1, 1),
    "img_mlp.net.0.proj": (1, 4),
    "img_mlp.net.2": (4, 1),
    "txt_mlp.net.0.proj": (1, 4),
    "txt_mlp.net.2": (4, 1),
    "img_mod.1": (1, 6),
    "txt_mod.1": (1, 6),
}


def peak(device: str) -> float | None:
    """Return the operations per second that a device of this name does at best in bf16; None for an unknown one."""
    names = [name for name in TFLOPS if name in device.replace("-", " ")]
    if not names:
        return None
    return TFLOPS[max(names, key=len)] * 1e12


def forward_flops(config: Mapping[str, Any], visual: int, text: int) -> float:
    """Return the FLOPs of one sample's forward.

    Args:
        config: of the transformer.
        visual: tokens of target and references.
        text: tokens of the prompt.
    """
    width = _width(config)

    # A block.
    linear = 0
    for name, (inputs, outputs) in INSIDE.items():
        linear += _tokens(name, visual, text) * 2 * inputs * outputs * width**2
    attention = 4 * (visual + text) ** 2 * width

    # Before and after the blocks.
    patch = config["in_channels"] + config["patch_size"] ** 2 * config["out_channels"]
    ends = 2 * width * (visual * patch + text * config["joint_attention_dim"] + 256 + 3 * width)
    return config["num_layers"] * (linear + attention) + ends


def training_flops(config: Mapping[str, Any], visual: int, text: int, lora: "LoRA | None" = None) -> float:
    """Return the FLOPs of one sample's forward and backward, without recomputation, as MFU counts.

    A backward takes the gradients of activations and of weights, each as much as the forward; with LoRA the frozen
    weights have none.
    """
    forward = forward_flops(config, visual, text)
    if lora is None:
        return 3 * forward
    attention = 4 * (visual + text) ** 2 * _width(config) * config["num_layers"]
    return 2 * forward + attention + 3 * _adapter(config, visual, text, lora)


def _adapter(config: Mapping[str, Any], visual: int, text: int, lora: "LoRA") -> float:
    """Return the FLOPs of the adapter's two factors in one forward."""
    sides = 0
    for name, (inputs, outputs) in INSIDE.items():
        is_target = any(f".{name}".endswith(f".{target}") for target in lora.targets)
        if is_target:
            sides += _tokens(name, visual, text) * (inputs + outputs)
    return config["num_layers"] * 2 * lora.rank * _width(config) * sides


def _tokens(layer: str, visual: int, text: int) -> int:
    """Return how many rows of a sample a layer of a block is applied to."""
    if "_mod." in layer:
        return 1
    if layer.startswith(("add_", "txt_", "to_add")):
        return text
    return visual


def _width(config: Mapping[str, Any]) -> int:
    """Return how many numbers a token has inside of the transformer."""
    return config["num_attention_heads"] * config["attention_head_dim"]
