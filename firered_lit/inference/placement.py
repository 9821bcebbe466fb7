"""Places of a model's parts while it draws, for a device of so much memory."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from ..errors import UserError
from ..models.cost.memory import GB, SIZES, STORED, VAE_PER_PIXEL, VAE_WEIGHTS, text_encoder_parameters
from ..models.family import transformer_config

if TYPE_CHECKING:
    from ..models.family import Base

CONTEXT = 2.0 * GB  # CUDA context, workspaces, what the allocator loses
FORWARD = 1.0 * GB  # of the transformer and of the text encoder, beside their weights

TransformerAt = Literal["whole", "8bit", "4bit", "layer by layer"]


@dataclass(frozen=True)
class Placement:
    """The parts on the device that draws.

    Attributes:
        encoder: Whether the text encoder stays on the device; else its layers come from the host one by one.
        transformer: The transformer as it is, in a few bits, or with its layers coming from the host one by one.
    """

    encoder: bool = True
    transformer: TransformerAt = "whole"

    @property
    def bits(self) -> Literal["8bit", "4bit"] | None:
        """The precision that the transformer is quantised to."""
        if self.transformer == "8bit" or self.transformer == "4bit":
            return self.transformer
        return None

    def __str__(self) -> str:
        shown = {"8bit": "in 8 bits", "4bit": "in 4 bits"}.get(self.transformer, self.transformer)
        encoder = "whole" if self.encoder else "layer by layer"
        return f"the transformer {shown}, the text encoder {encoder}"


def placement_for(base: "Base", memory: float, size: int, pixels: int | None = None) -> Placement:
    """Return the placement that fits and draws fastest, by weights, one forward and the decoder.

    Args:
        base: The model.
        memory: GB (2**30 bytes) of the device.
        size: Bytes of a number in the precision that is computed in.
        pixels: Of the largest picture; None takes the base's target area.

    Raises:
        UserError: Not even one layer at a time fits.
    """
    outside, blocks = _parameters(base)
    decoding = VAE_PER_PIXEL * (pixels or base.sizes.target_area)  # in float32
    decoder = (VAE_WEIGHTS + decoding) * size / SIZES["float32"]
    if base.has_no_weights("vae"):
        decoder = 0.0
    beside = CONTEXT + FORWARD + decoder
    sizes: dict[TransformerAt, float] = {
        "whole": (outside + blocks) * size,
        "8bit": outside * size + blocks * STORED["8bit"],
        "4bit": outside * size + blocks * STORED["4bit"],
        "layer by layer": 0.0,
    }
    encoder = text_encoder_parameters(base.name) * size
    if beside + sizes["whole"] + encoder <= memory * GB:
        return Placement()
    for at, taken in sizes.items():
        if beside + taken <= memory * GB:
            return Placement(encoder=False, transformer=at)
    raise UserError(f"--memory {memory:g}: decoding a picture and one layer at a time take {beside / GB:.1f} GB")


def offload(module: torch.nn.Module, device: torch.device | str) -> None:
    """Keep a module on the host and bring each layer to the device for its part of a forward.

    The hooks are accelerate's, those of diffusers' `enable_sequential_cpu_offload`.
    """
    from accelerate import cpu_offload

    cpu_offload(module, device, offload_buffers=len(module._parameters) > 0)


def _parameters(base: "Base") -> tuple[int, int]:
    """Return the numbers of the transformer's weights outside its blocks and in them, by its config alone."""
    from ..models.shard import skeleton

    # Of one block and of two, whose difference is a block.
    config = transformer_config(str(base.folder))
    counts = []
    for layers in (1, 2):
        transformer = skeleton({**config, "num_layers": layers}, torch.bfloat16)
        counts.append(sum(parameter.numel() for parameter in transformer.parameters()))
    one, two = counts
    block = two - one
    return one - block, block * config["num_layers"]
