"""A codec without weights: pixels rearranged into channels, exactly invertible. It stands in for the VAE where one
would be too coarse, in the small world that a CPU can learn."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from .part_decoder import DecodedCrop

if TYPE_CHECKING:
    from .family import Base

NAME = "PatchCodec"  # in place of a VAE's class name in vae/config.json


def patch_config(side: int = 4, std: float = 0.5) -> dict[str, Any]:
    """side: of a patch in pixels; a latent has 3 * side**2 channels. std: what pixels on [-1, 1] are divided by."""
    return {"_class_name": NAME, "side": side, "std": std}


class PatchCodec:
    """`Codec` by rearrangement: (B, 3, H, W) <-> (B, 3 p^2, H/p, W/p). Same interface, no loss but rounding."""

    def __init__(self, base: "Base", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        config = json.loads((Path(base.folder) / "vae" / "config.json").read_text(encoding="utf-8"))
        self.factor: int = config["side"]
        channels = 3 * self.factor**2
        self.mean = torch.zeros(1, channels, 1, 1, device=device, dtype=dtype)
        self.std = torch.full_like(self.mean, config["std"])

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> latents (B, 3 p^2, H/p, W/p)."""
        return (pixel_unshuffle(pixels.to(self.mean), self.factor) - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents -> pixels (B, 3, H, W) in [-1, 1]."""
        return pixel_shuffle(latents.to(self.mean) * self.std + self.mean, self.factor).clamp(-1, 1)

    def parts(self, latents: Tensor, owner: Tensor, boxes: Tensor, checkpointed: bool = True) -> list[DecodedCrop]:
        """Whole pictures, with a gradient and not clamped, one per box: rearranging them costs nothing."""
        pixels = pixel_shuffle(latents.to(self.mean) * self.std + self.mean, self.factor)
        return [DecodedCrop(pixels[row : row + 1], 0, 0) for row in owner.tolist()]
