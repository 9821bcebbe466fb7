"""The consistency reward: the same identity on regions, and what lies outside of the edit left as it was."""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from callbacks.reward import RewardCallback
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.losses.consistency import region_transforms, warp
from firered_lit.models.identity import Encoder, open_encoder
from firered_lit.rewards.protocol import Scores


class ConsistencyReward(RewardCallback):
    """max(0, cosine of a frozen encoder's features) on regions, and preservation outside of the edit's mask.

    Identity is compared with the true target where the batch carries it, else with the first source; regions are
    `batch.regions`, in the compared image's pixels. Preservation, for batches with a `mask`, is compared with the first
    source. The value is the mean of the parts that a sample has, by weight; a sample with none has no score.
    Terms: `identity`, `preservation` and `source_distance`, which is 0 for a copy of the source.

    Args:
        encoder: folder of a Hugging Face vision model, or a weights file of an ArcFace-style IResNet.
        name: what it is called in the log and in `stage.weights`.
        identity_weight, preservation_weight: of the two parts.
        tolerance: mean difference outside of the mask, of pixels on [0, 1], from which preservation is 0.
        whole: a sample without regions is compared as a whole; else it has no identity part.
        batch: regions encoded together. patience: see `RewardCallback`.
    """

    def __init__(
        self,
        encoder: str,
        name: str = "consistency",
        identity_weight: float = 0.5,
        preservation_weight: float = 0.5,
        tolerance: float = 0.1,
        whole: bool = True,
        batch: int = 32,
        patience: float = 300.0,
    ) -> None:
        super().__init__(name, patience)
        if (
            min(identity_weight, preservation_weight) < 0
            or identity_weight + preservation_weight <= 0
            or tolerance <= 0
        ):
            raise UserError(f"{name}: weights must be at least 0 and not both 0, the tolerance above 0")
        self.encoder_path, self.whole, self.batch, self.tolerance = encoder, whole, batch, tolerance
        self.identity_weight, self.preservation_weight = identity_weight, preservation_weight
        self.encoder: Encoder | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._encoder()  # a wrong path is told before the first step

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Start scoring images (B, 3, H, W) in [-1, 1]. UserError when the batch has neither target nor source."""
        source = batch.source
        truth = source if batch.pixels is None else batch.pixels
        if truth is None:
            raise UserError(f"reward {self.name}: the batch has no pictures; prepare with keep_images=true")
        regions, mask = getattr(batch, "regions", None), getattr(batch, "mask", None)
        return self._pool.submit(self._score, images.detach(), truth, source, regions, mask)

    @torch.no_grad()
    def _score(
        self, images: Tensor, truth: Tensor, source: Tensor | None, regions: Tensor | None, mask: Tensor | None
    ) -> Scores:
        """In the pool's thread. A sample whose regions cannot be used has no score."""
        nothing = torch.full((len(images),), torch.nan)
        terms = {"identity": self.identity(images, truth, regions), "preservation": nothing, "source_distance": nothing}
        if source is not None:
            change = (images.float() - _like(source, images)).abs().mean(1, keepdim=True) / 2  # pixels on [0, 1]
            terms["source_distance"] = change.flatten(1).mean(1).cpu()
            if mask is not None:
                terms["preservation"] = preservation(change, mask, self.tolerance).cpu()
        parts = torch.stack([terms["identity"], terms["preservation"]])
        weights = torch.tensor([[self.identity_weight], [self.preservation_weight]]) * ~parts.isnan()
        total = weights.sum(0)
        value = (parts.nan_to_num() * weights).sum(0) / total.clamp(min=1e-12)
        valid = (total > 0) & value.isfinite()
        if missing := int((~valid).sum()):
            self.count("no region that can be compared, and no mask", missing)
        return Scores(torch.where(valid, value, 0.0).clamp(0, 1), valid, terms)

    def identity(self, images: Tensor, truth: Tensor, regions: Tensor | None) -> Tensor:
        """Mean over a sample's regions of max(0, cosine), (B,) on the host; NaN without a region."""
        encoder = self._encoder().to(images.device)
        owner, transforms = region_transforms(regions, len(images), tuple(truth.shape[-2:]), encoder.size, self.whole)
        images, total, count = _like(images, truth), torch.zeros(len(images)), torch.zeros(len(images))
        for rows, transform in zip(owner.split(self.batch), transforms.split(self.batch)):
            shown, true = (
                encoder(warp(side[rows.to(side.device)].float(), transform, encoder.size)) for side in (images, truth)
            )
            total.index_add_(0, rows, cosine_similarity(shown, true.to(shown.device), dim=-1).clamp(min=0).cpu())
            count.index_add_(0, rows, torch.ones(len(rows)))
        return torch.where(count > 0, total / count, torch.nan)

    def _encoder(self) -> Encoder:
        if self.encoder is None:
            self.encoder = open_encoder(self.encoder_path)
        return self.encoder


def preservation(change: Tensor, mask: Tensor, tolerance: float) -> Tensor:
    """max(0, 1 - mean change outside of the mask / tolerance). (B, 1, H, W) twice -> (B,); NaN where all is masked.

    mask: 1 where the edit may change the image. The measure is a choice of this project.
    """
    outside = 1 - _like(mask, change).clamp(0, 1)
    area = outside.flatten(1).sum(1)
    mean = (change * outside).flatten(1).sum(1) / area.clamp(min=1e-12)
    return torch.where(area > 0, (1 - mean / tolerance).clamp(min=0), torch.nan)


def _like(image: Tensor, other: Tensor) -> Tensor:
    """An image (B, C, H, W) at the other's size and device."""
    image = image.to(other.device, torch.float32)
    if image.shape[-2:] == other.shape[-2:]:
        return image
    given: dict[str, Any] = {"mode": "bilinear", "align_corners": False, "antialias": True}
    return interpolate(image, other.shape[-2:], **given)
