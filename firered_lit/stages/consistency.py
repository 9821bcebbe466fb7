"""The consistency term of a stage: the regions of the one-step estimate keep the identity of the target's."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import UserError
from ..losses.consistency import identity_loss, identity_weight, in_crop, region_transforms, seen_boxes, warp
from ..models.identity import IdentityEncoder, open_encoder
from ..models.part_decoder import Decoder


class Identity(NamedTuple):
    """The consistency term of a batch, a value per sample (B,)."""

    loss: Tensor  # lambda(sigma) * distance
    distance: Tensor  # mean over regions of 1 - cosine; 0 where none was compared
    compared: Tensor  # bool: it has a region and a weight, so it was decoded
    regions: Tensor  # bool: it has a region


class Consistency:
    """lambda(sigma) * mean over regions of (1 - cos(phi(T x_0_hat), phi(T x_0))). FireRed (2602.13344), eq. 6-8.

    Both sides are decoded by the frozen VAE, the target's too, so that a perfect estimate costs nothing; both are seen
    through the same map T, computed from the target's landmarks or box. Nothing is decoded for samples without a region
    or a weight.

    Args:
        encoder: phi; a folder of a Hugging Face vision model (DINOv2, SigLIP, CLIP), or a weights file of an
            ArcFace-style IResNet.
        eta: at least 0, of lambda(sigma) = eta sigma^2.
        cutoff: sigma in (0, 1] from which lambda is 0.
        checkpointed: decode with activation checkpoints.

    Raises:
        UserError: eta or cutoff lies outside of its range.
    """

    def __init__(self, encoder: str, eta: float = 0.1, cutoff: float = 0.9, checkpointed: bool = True) -> None:
        if eta < 0 or not 0 < cutoff <= 1:
            raise UserError(f"stage.consistency: eta={eta:g} cutoff={cutoff:g}: eta is at least 0, cutoff in (0, 1]")
        self.path = encoder
        self.eta = eta
        self.cutoff = cutoff
        self.checkpointed = checkpointed
        self.phi: IdentityEncoder | None = None

    def open(self) -> IdentityEncoder:
        """Return the frozen encoder, read once.

        Raises:
            UserError: there is none at the path.
        """
        if self.phi is None:
            self.phi = open_encoder(self.path)
        return self.phi

    def __call__(self, codec: Decoder, x_0_hat: Tensor, x_0: Tensor, sigma: Tensor, regions: Tensor | None) -> Identity:
        """Compute the term for a batch.

        Args:
            codec: the frozen VAE.
            x_0_hat: one-step estimates (B, 16, h, w), with their gradient.
            x_0: targets, like x_0_hat.
            sigma: (B,) in [0, 1].
            regions: (B, R, P, 2) in pixels of the targets, see `region_transforms`; None: there are none.
        """
        phi = self.open().to(x_0.device)

        # Every region's sample (N,), its map T onto phi's canvas, and the box of the picture that it shows.
        size = (x_0.shape[-2] * codec.factor, x_0.shape[-1] * codec.factor)
        owner, maps = region_transforms(regions, len(x_0), size, phi.size)
        boxes = seen_boxes(maps, phi.size, size)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(-1)

        # Decoded is what has a weight.
        weight = identity_weight(sigma, eta=self.eta, cutoff=self.cutoff)
        kept = inside & (weight.cpu()[owner] > 0)
        marked = torch.zeros(2, len(x_0), dtype=torch.bool)
        marked[0, owner[kept]] = True
        marked[1, owner[inside]] = True
        compared, has_region = marked.to(x_0.device)

        # 1 - cosine between the estimate and the target, both decoded.
        distance = torch.zeros_like(weight)
        if kept.any():
            owner, maps, boxes = owner[kept], maps[kept], boxes[kept]
            shown = phi(self.canvases(codec, x_0_hat, owner, maps, boxes, phi.size))
            with torch.no_grad():
                true = phi(self.canvases(codec, x_0, owner, maps, boxes, phi.size))
            distance = identity_loss(shown, true, owner, len(x_0))
        return Identity(weight * distance, distance, compared, has_region)

    def canvases(
        self, codec: Decoder, latents: Tensor, owner: Tensor, maps: Tensor, boxes: Tensor, size: tuple[int, int]
    ) -> Tensor:
        """Return every region of the decoded latents on its canvas, (N, 3, *size)."""
        parts = codec.parts(latents, owner, boxes, self.checkpointed)
        seen = [
            warp(part.pixels.float(), in_crop(own[None], part.left, part.top), size)
            for part, own in zip(parts, maps, strict=True)
        ]
        return torch.cat(seen)
