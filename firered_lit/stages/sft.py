"""Supervised fine-tuning by flow matching; with other recipes, pretraining and continued pretraining."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ..batch import EditBatch
from ..draws import gaussian
from ..errors import UserError
from ..flow.path import clean, interpolate, velocity
from ..flow.timesteps import TimestepDistribution, logit_normal
from ..losses.flow_matching import edit_emphasis, flow_matching_loss
from ..models.backbone import Backbone
from ..models.sampling import Preview
from ..optim import OptimizerFactory, ScheduleFactory
from .consistency import Consistency, Identity
from .guard import Guard
from .sigma import SigmaStage

Weight = Callable[..., Tensor]  # weight(sigma, law=the law that sigma was drawn by)
LossTerm = Callable[..., Tensor]  # term(batch, x_0_hat, sigma) -> (B,), x_0_hat the one-step estimate of the target


class SFT(SigmaStage):
    """Flow matching on (references, instruction) -> target. FireRed-Image-Edit (2602.13344), section 3.5.

    Args:
        backbone, optimizer, schedule, guard, preview, seed: see `Stage`.
        timesteps, resolution_shift, rotate_every: see `SigmaStage`.
        weight: loss weight, `weight(sigma, law=law)`; None weighs every sigma the same.
        edit_share: share in [0, 1) of a sample's loss that falls on the mask of its edit, for data that has masks; the
            rest falls on what must stay. 0 weighs every pixel the same.
        consistency: a second term of the loss, on the regions of a batch.
        terms: more terms of the loss by name, `term(batch, x_0_hat, sigma)`, x_0_hat the one-step estimate of the
            target's latents. Each is a value per sample (B,), added to the loss and logged as `train/NAME`.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        timesteps: TimestepDistribution = logit_normal,
        weight: Weight | None = None,
        resolution_shift: bool = True,
        rotate_every: int = 1,
        edit_share: float = 0.0,
        consistency: Consistency | None = None,
        terms: Mapping[str, LossTerm] | None = None,
        guard: Guard | None = None,
        preview: Preview | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, optimizer, schedule, timesteps, resolution_shift, rotate_every, guard, preview, seed)
        self.weight = weight
        self.edit_share = edit_share
        self.consistency = consistency
        self.terms = dict(terms or {})
        if not 0 <= edit_share < 1:
            raise UserError(f"stage.edit_share={edit_share}: a share of the loss lies in [0, 1)")

    def setup(self, stage: str) -> None:
        if stage != "fit" or self.consistency is None:
            return
        self.consistency.open()  # a wrong path is an error before the first step
        data: Any = getattr(self.trainer, "datamodule", None)
        summary = getattr(data, "summary", None)
        if summary and not summary.get("regions"):
            where = f"data.root={data.root}" if hasattr(data, "root") else "these families"
            raise UserError(
                f"stage.consistency: no sample of {where} has a region: prepare it with a column `regions` in its"
                " rows or with faces=YUNET.onnx, or set stage.consistency=null"
            )

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        loss = self.losses(batch).mean()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss * batch.scale

    def losses(self, batch: EditBatch) -> Tensor:
        """Return the loss (B,) of every sample. Each row depends on its own sample alone."""
        # Draw sigma and eps.
        x_0 = batch.target.float()
        sigma = self.draw_sigma(batch).to(x_0.device)
        eps = gaussian(x_0.shape[1:], batch.slots, self.seed, "noise", batch.step).to(x_0)

        # Noise the target: x_t = (1 - sigma) x_0 + sigma eps. Predict its velocity.
        x_t = interpolate(x_0, eps, sigma)
        v = self.velocity(x_t, sigma, batch.condition)

        # Compare with v = eps - x_0.
        weight = None if self.weight is None else self.weight(sigma, law=self.law(batch))
        loss = flow_matching_loss(v, velocity(x_0, eps), weight, self.emphasis(batch))

        # Terms on the one-step estimate x_0_hat = x_t - sigma v: identity, and a user's own.
        x_0_hat = clean(x_t, sigma, v)
        if self.consistency is not None:
            identity = self.consistency(self.codec, x_0_hat, x_0, sigma, batch.regions)
            self.log_identity(identity)
            loss = loss + identity.loss
        for name, term in self.terms.items():
            loss = loss + self.named_loss(name, term(batch, x_0_hat, sigma), batch)
        return loss

    def emphasis(self, batch: EditBatch) -> Tensor | None:
        """Return the weights (B, 1, h, w) of the latents of each target; None when all weigh the same."""
        if not self.edit_share or batch.mask is None:
            return None
        height, width = batch.target.shape[-2:]
        return edit_emphasis(batch.mask, (height, width), self.edit_share)

    def log_identity(self, identity: Identity) -> None:
        """Log the consistency term of a batch: how many samples have a region, and their distance."""
        if self._trainer is None:
            return
        count = len(identity.loss)
        compared = identity.compared
        shares = {"train/regions": identity.regions.float().mean(), "train/compared": compared.float().mean()}
        self.log_dict(shares, batch_size=count)
        if compared.any():
            self.log("train/identity", identity.distance.detach()[compared].mean(), batch_size=count)

    def named_loss(self, name: str, value: Tensor, batch: EditBatch) -> Tensor:
        """Return a term of the loss (B,), and log it.

        Raises:
            UserError: it is not a value per sample.
        """
        if value.shape != (len(batch),):
            raise UserError(f"stage.terms.{name}: returned {tuple(value.shape)}, not a value for each of {len(batch)}")
        if self._trainer is not None:
            self.log(f"train/{name}", value.detach().mean(), batch_size=len(batch))
        return value
