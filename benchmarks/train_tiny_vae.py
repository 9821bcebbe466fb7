"""Train the VAE of the tiny pipeline, on images made here, and write its weights.

    python benchmarks/train_tiny_vae.py --steps 12000 --out firered_lit/models/tiny_vae.safetensors

Single frames only: a causal 3-D convolution then sees one slice of its kernel, so that slice is all that is trained and
stored (float16). Prints PSNR on held-out images every 500 steps.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from PIL import Image, ImageDraw, ImageFont
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from firered_lit.models.tiny import vae_config


def one_frame(self: QwenImageCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
    """Convolve as the module does when there is one frame and nothing before it: three times fewer operations."""
    padding = (self._padding[2], self._padding[0])
    return F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding)[:, :, None]


def clouds(rng: np.random.Generator, side: int) -> np.ndarray:
    """Return a colour field with the power spectrum of photographs, 1 / f^a."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None]) + 1 / side
    noise = rng.normal(size=(3, *f.shape)) + 1j * rng.normal(size=(3, *f.shape))
    field = np.fft.irfft2(noise / f ** rng.uniform(1.2, 2.2), s=(side, side))
    mix = np.eye(3) * rng.uniform(0.05, 0.3) + rng.normal(size=(3, 3)) * 0.1 + 0.5  # mostly grey, as photographs
    field = np.einsum("ij,jhw->hwi", mix, field / field.std())
    return np.clip(rng.uniform(60, 190, 3) + field * rng.uniform(15, 60), 0, 255)


def picture(rng: np.random.Generator, side: int = 64) -> np.ndarray:
    """Return clouds (side, side, 3) uint8, with shapes and words on most of them."""
    image = Image.fromarray(clouds(rng, side).astype("uint8"))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.integers(0, 6)):
        x, y = (int(place) for place in rng.integers(-8, side, 2))
        r = int(rng.integers(4, side // 2))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        box = (x, y, x + r, y + int(r * rng.uniform(0.5, 1.6)) + 1)
        kind = rng.integers(0, 4)
        if kind == 0:
            draw.ellipse(box, fill=colour)
        elif kind == 1:
            draw.rectangle(box, fill=colour)
        elif kind == 2:
            draw.line(box, fill=colour, width=int(rng.integers(1, 4)))
        else:
            text = "".join(rng.choice(list("abcdefghkmnrstuwxyzABCDEFG0123456789"), 4))
            draw.text((x, y), text, fill=colour, font=ImageFont.load_default(int(rng.integers(10, 28))))
    return np.asarray(image)


def batch(pool: Tensor, step: int, size: int, crop: int) -> Tensor:
    rng = np.random.default_rng([1, step])
    rows = rng.integers(0, len(pool), size)
    at = rng.integers(0, pool.shape[-1] - crop + 1, (size, 2))
    crops = [pool[r, :, y : y + crop, x : x + crop] for r, (y, x) in zip(rows, at, strict=True)]
    return torch.stack(crops).float() / 127.5 - 1


def psnr(vae: AutoencoderKLQwenImage, images: Tensor) -> float:
    with torch.no_grad():
        out = vae.decode(vae.encode(images[:, :, None]).latent_dist.mode()).sample[:, :, 0]
    return (10 * torch.log10(4 / (out - images).square().mean((1, 2, 3)))).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12000)
    parser.add_argument("--pool", type=int, default=20000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    QwenImageCausalConv3d.forward = one_frame
    torch.manual_seed(0)
    pool = torch.from_numpy(np.stack([picture(np.random.default_rng([0, i])) for i in range(args.pool)]))
    pool = pool.permute(0, 3, 1, 2).contiguous()
    held_out, pool = pool[:64].float() / 127.5 - 1, pool[64:]
    vae = AutoencoderKLQwenImage(**vae_config())
    optimizer = torch.optim.AdamW(vae.parameters(), args.rate, betas=(0.9, 0.99), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.rate, args.steps, pct_start=0.03)
    start = time.perf_counter()
    for step in range(args.steps):
        x = batch(pool, step, 16, 32)
        z = vae.encode(x[:, :, None]).latent_dist.mode()
        out = vae.decoder(vae.post_quant_conv(z), feat_cache=None)[:, :, 0]
        loss = F.l1_loss(out, x) + F.mse_loss(out, x)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 500 == 0 or step + 1 == args.steps:
            write(vae, held_out, args.out)
            seconds = time.perf_counter() - start
            print(f"step {step + 1}  {seconds:.0f} s  loss {loss:.4f}  PSNR {psnr(vae, held_out):.2f} dB", flush=True)


def write(vae: AutoencoderKLQwenImage, images: Tensor, out: Path) -> None:
    """Weights (the one slice of each 3-D kernel) and the latents' statistics per channel."""
    with torch.no_grad():
        z = vae.encode(images[:, :, None]).latent_dist.mode()
    statistics = {
        "latents_mean": json.dumps([round(v, 4) for v in z.mean((0, 2, 3, 4)).tolist()]),
        "latents_std": json.dumps([round(v, 4) for v in z.std((0, 2, 3, 4)).tolist()]),
    }
    weights = {k: v[:, :, -1] if v.ndim == 5 else v for k, v in vae.state_dict().items() if "time_conv" not in k}
    save_file({k: v.half().contiguous() for k, v in weights.items()}, out, metadata=statistics)


if __name__ == "__main__":
    main()
