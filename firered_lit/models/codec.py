"""Pixels to latents and back, through the frozen VAE."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError
from .component import CONFIG, loading
from .part_decoder import DecodedCrop, decode_parts

if TYPE_CHECKING:
    from .family import Base


def to_pixels(image: Image.Image) -> Tensor:
    """Return an image as RGB pixels (3, H, W), float32 in [-1, 1]."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255 * 2 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """Return pixels (3, H, W) in [-1, 1] (clamped) as an RGB image, rounded as the stock pipeline rounds."""
    array = (pixels.detach().float().cpu() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).numpy()
    return Image.fromarray((array * 255).round().astype("uint8"))


class Codec:
    """`AutoencoderKLQwenImage` on single frames, with the normalisation that the transformer expects."""

    def __init__(self, base: "Base", device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        from diffusers import AutoencoderKLQwenImage

        folder = base.vae_folder()
        with loading(folder):
            self.vae = AutoencoderKLQwenImage.from_pretrained(
                folder, dtype=dtype, use_safetensors=True, local_files_only=True
            )
        config = self.vae.config
        for name in ("latents_mean", "latents_std"):
            if len(config[name]) != config.z_dim:
                raise UserError(f"{folder / CONFIG}: {name}: expected z_dim={config.z_dim} numbers")
        self.vae.eval().requires_grad_(False).to(device)
        self.factor = 2 ** len(config.temperal_downsample)
        self.mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1).to(device, dtype)
        self.std = torch.tensor(config.latents_std).view(1, -1, 1, 1).to(device, dtype)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (B, 3, H, W) in [-1, 1] to normalised latents (B, 16, H/8, W/8): the posterior's mode."""
        latents = self.vae.encode(pixels.to(self.mean)[:, :, None]).latent_dist.mode()
        return (latents[:, :, 0] - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents (B, 16, h, w) to pixels (B, 3, 8h, 8w) in [-1, 1]."""
        latents = latents.to(self.mean) * self.std + self.mean
        return self.vae.decode(latents[:, :, None], return_dict=False)[0][:, :, 0]

    def parts(self, latents: Tensor, owner: Tensor, boxes: Tensor, checkpointed: bool = True) -> list[DecodedCrop]:
        """Decode the boxes of the pictures with a gradient, see `decode_parts`."""
        return decode_parts(self, latents, owner, boxes, checkpointed)
