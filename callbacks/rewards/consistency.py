"""The consistency reward: the same identity on regions, and what lies outside of the edit left as it was."""

from concurrent.futures import Future, ThreadPoolExecutor

import lightning as L
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, interpolate

from callbacks.rewards.base import RewardCallback
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.losses.consistency import region_transforms, warp
from firered_lit.models.identity import IdentityEncoder, open_encoder
from firered_lit.rewards.protocol import Scores


class ConsistencyReward(RewardCallback):
    """Reward for edits that keep identity on regions, and the picture outside of the edit's mask.

    Identity is max(0, cosine of a frozen encoder's features). It is compared with the true target where the batch
    carries it, else with the first source; regions are `batch.regions`, in the compared image's pixels. Preservation,
    for batches with a `mask`, is compared with the first source. The value is the mean of the parts that a sample has,
    by weight; a sample with none has no score. Terms: `identity`, `preservation` and `source_distance`, which is 0 for
    a copy of the source.

    Args:
        encoder: Folder of a Hugging Face vision model, or a weights file of an ArcFace-style IResNet.
        name: Name in the log and in `stage.weights`.
        identity_weight: Weight of the identity, from 0 up.
        preservation_weight: Weight of the preservation, from 0 up; not both may be 0.
        tolerance: Mean difference outside of the mask, of pixels on [0, 1], from which preservation is 0.
        whole: Compare a sample without regions as a whole; else it has no identity part.
        batch: Regions encoded together.
        patience: Seconds that validation waits for the scores, see `RewardCallback`.
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
        weights = (identity_weight, preservation_weight)
        if min(weights) < 0 or sum(weights) <= 0 or tolerance <= 0:
            raise UserError(f"{name}: weights must be at least 0 and not both 0, the tolerance above 0")
        self.encoder_path = encoder
        self.whole = whole
        self.batch = batch
        self.tolerance = tolerance
        self.identity_weight = identity_weight
        self.preservation_weight = preservation_weight
        self.encoder: IdentityEncoder | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._encoder()  # a wrong path is refused before the first step

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Start scoring images (B, 3, H, W) in [-1, 1], made for the samples of `batch`.

        Raises:
            UserError: The batch has neither target nor source.
        """
        source = batch.source
        truth = source if batch.pixels is None else batch.pixels
        if truth is None:
            raise UserError(f"reward {self.name}: the batch has no pictures; prepare with keep_images=true")
        return self._pool.submit(self._score, images.detach(), truth, source, batch.regions, batch.mask)

    @torch.no_grad()
    def _score(
        self, images: Tensor, truth: Tensor, source: Tensor | None, regions: Tensor | None, mask: Tensor | None
    ) -> Scores:
        """Return the scores of a batch; runs in the pool's thread. A sample without a part has no score.

        Args:
            images: (B, 3, H, W) in [-1, 1].
            truth: Pictures that the identity is compared with.
            source: Pictures that the edits start from.
            regions: (B, R, P, 2) in the pixels of `truth`.
            mask: (B, 1, H, W), 1 where the edit may change the picture.
        """
        # The parts, NaN for a sample that has none.
        nothing = torch.full((len(images),), torch.nan)
        terms = {"identity": self.identity(images, truth, regions), "preservation": nothing, "source_distance": nothing}
        if source is not None:
            change = (images.float() - _like(source, images)).abs().mean(1, keepdim=True) / 2  # pixels on [0, 1]
            terms["source_distance"] = change.flatten(1).mean(1).cpu()
            if mask is not None:
                terms["preservation"] = preservation(change, mask, self.tolerance).cpu()

        # Their mean, by weight.
        parts = torch.stack([terms["identity"], terms["preservation"]])
        weights = torch.tensor([[self.identity_weight], [self.preservation_weight]]) * ~parts.isnan()
        total = weights.sum(0)
        value = (parts.nan_to_num() * weights).sum(0) / total.clamp(min=1e-12)
        valid = (total > 0) & value.isfinite()
        missing = int((~valid).sum())
        if missing:
            self.count("no region that can be compared, and no mask", missing)
        return Scores(torch.where(valid, value, 0.0).clamp(0, 1), valid, terms)

    def identity(self, images: Tensor, truth: Tensor, regions: Tensor | None) -> Tensor:
        """Return the mean over a sample's regions of max(0, cosine), (B,) on the host; NaN without a region."""
        encoder = self._encoder().to(images.device)
        size = (truth.shape[-2], truth.shape[-1])
        owner, transforms = region_transforms(regions, len(images), size, encoder.size, self.whole)
        images = _like(images, truth)
        total = torch.zeros(len(images))
        count = torch.zeros(len(images))
        for rows, transform in zip(owner.split(self.batch), transforms.split(self.batch)):
            shown = encoder(warp(images[rows.to(images.device)].float(), transform, encoder.size))
            true = encoder(warp(truth[rows.to(truth.device)].float(), transform, encoder.size))
            similarity = cosine_similarity(shown, true.to(shown.device), dim=-1)
            total.index_add_(0, rows, similarity.clamp(min=0).cpu())
            count.index_add_(0, rows, torch.ones(len(rows)))
        return torch.where(count > 0, total / count, torch.nan)

    def _encoder(self) -> IdentityEncoder:
        """Return the frozen encoder, opened once."""
        if self.encoder is None:
            self.encoder = open_encoder(self.encoder_path)
        return self.encoder


def preservation(change: Tensor, mask: Tensor, tolerance: float) -> Tensor:
    """Return max(0, 1 - mean change outside of the mask / tolerance), a measure of this project.

    Args:
        change: (B, 1, H, W) change of each pixel, from 0 up.
        mask: (B, 1, H, W), 1 where the edit may change the image.
        tolerance: Mean change from which the measure is 0.

    Returns:
        (B,); NaN where all is masked.
    """
    outside = 1 - _like(mask, change).clamp(0, 1)
    area = outside.flatten(1).sum(1)
    mean = (change * outside).flatten(1).sum(1) / area.clamp(min=1e-12)
    return torch.where(area > 0, (1 - mean / tolerance).clamp(min=0), torch.nan)


def _like(image: Tensor, other: Tensor) -> Tensor:
    """Return an image (B, C, H, W) at the other's size and device."""
    image = image.to(other.device, torch.float32)
    height, width = other.shape[-2:]
    if image.shape[-2:] == (height, width):
        return image
    return interpolate(image, [height, width], mode="bilinear", align_corners=False, antialias=True)
