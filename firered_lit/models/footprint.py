"""What one training forward would hold, found on tensors without memory: nothing is allocated, no weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from ..batch import Condition, Text
from .lora import LoRA, add_adapter
from .qwen_image import freeze_unused, velocity

if TYPE_CHECKING:
    from diffusers import QwenImageTransformer2DModel


@dataclass(frozen=True)
class Footprint:
    """Of a transformer and one micro-batch; counts of parameters, sizes in bytes.

    block: parameters of one block. trained: those that get a gradient. saved: what the forward keeps for the backward,
    weights aside. block_saved: what one block keeps, or makes again when the forward was checkpointed.
    """

    parameters: int
    trained: int
    block: int
    saved: int
    block_saved: int


@dataclass(frozen=True)
class Forward:
    """A micro-batch and how it is computed.

    side: height and width of the target's latents. text: tokens of a prompt's embedding, padding included. dtype: of the
    weights as the forward sees them. autocast: to bfloat16. checkpointing: blocks keep their inputs alone.
    """

    batch: int
    side: int
    text: int
    references: int = 0
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    checkpointing: bool = False
    lora: LoRA | None = None


def footprint(config: Mapping[str, Any], forward: Forward) -> Footprint:
    """Of the transformer that `config` (diffusers' config.json) describes.

    Blocks are alike but for the last, so that one and two of them tell what any number needs.
    """
    layers = config["num_layers"]
    one, two = (_traced({**config, "num_layers": n}, forward) for n in (1, 2))
    bare = replace(forward, checkpointing=False)
    first, second = (
        (_traced({**config, "num_layers": n}, bare) for n in (1, 2)) if forward.checkpointing else (one, two)
    )
    parameters, trained, saved = (a + (layers - 1) * (b - a) for a, b in zip(one, two, strict=True))
    return Footprint(parameters, trained, two[0] - one[0], saved, second[2] - first[2])


def _traced(config: Mapping[str, Any], forward: Forward) -> tuple[int, int, int]:
    """(parameters, trained parameters, bytes saved for the backward) of a transformer of few blocks."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with FakeTensorMode():
        transformer = _built(config, forward)
        own = {parameter.untyped_storage()._cdata for parameter in transformer.parameters()}
        x_t, condition = _inputs(config, forward)
        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with hooks, torch.autocast("cpu", torch.bfloat16, enabled=forward.autocast):
            v = velocity(transformer, x_t, torch.zeros(forward.batch), condition).float()
            ((v - x_t) ** 2).mean()
        saved = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
        trained = sum(p.numel() for p in transformer.parameters() if p.requires_grad)
        return sum(p.numel() for p in transformer.parameters()), trained, saved


def _built(config: Mapping[str, Any], forward: Forward) -> "QwenImageTransformer2DModel":
    from diffusers import QwenImageTransformer2DModel

    default = torch.get_default_dtype()
    torch.set_default_dtype(forward.dtype)  # parameters without memory cannot be converted later
    try:
        transformer = QwenImageTransformer2DModel.from_config(dict(config)).train()
    finally:
        torch.set_default_dtype(default)
    if forward.lora:
        add_adapter(transformer, forward.lora, 0)
    else:
        freeze_unused(transformer)
    if forward.checkpointing:
        transformer.enable_gradient_checkpointing()
    return transformer


def _inputs(config: Mapping[str, Any], forward: Forward) -> tuple[Tensor, Condition]:
    def latents() -> Tensor:
        return torch.zeros(forward.batch, config["in_channels"] // 4, forward.side, forward.side)

    embeddings = torch.zeros(forward.batch, forward.text, config["joint_attention_dim"])
    mask = torch.ones(forward.batch, forward.text, dtype=torch.bool)
    return latents(), Condition(Text(embeddings, mask), tuple(latents() for _ in range(forward.references)))
