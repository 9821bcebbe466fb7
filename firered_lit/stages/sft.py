"""Supervised fine-tuning by flow matching; with other recipes, pretraining and continued pretraining."""

from collections.abc import Callable, Mapping

from torch import Tensor

from ..batch import EditBatch
from ..draws import gaussian
from ..errors import UserError
from ..flow.path import clean, interpolate, velocity
from ..flow.timesteps import Law, logit_normal, stratified_uniform
from ..losses.flow_matching import edit_emphasis, flow_matching_loss
from ..models.backbone import Backbone
from ..models.sampling import Preview
from ..optim import OptimizerFactory, ScheduleFactory
from .base import Stage
from .consistency import Consistency
from .guard import Guard

Weight = Callable[..., Tensor]  # weight(sigma, law=the law that sigma was drawn by)
LossTerm = Callable[..., Tensor]  # term(batch, x_0_hat, sigma) -> (B,), x_0_hat the one-step estimate of the target


class SFT(Stage):
    """Flow matching on (references, instruction) -> target. FireRed-Image-Edit (2602.13344), section 3.5.

    timesteps: the law of sigma, an inverse CDF on [0, 1); it is shifted for the target's resolution when
    `resolution_shift`. weight: loss weight, `weight(sigma, law=law)`; None weighs all alike. rotate_every: steps after
    which the strata move to other slots. edit_share: of a sample's loss, what falls on the mask of its edit, the rest
    on what must stay, for data that has masks; 0 weighs every pixel alike. consistency: a second term of the loss, on
    the regions of a batch. terms: more terms by name, `term(batch, x_0_hat, sigma)`, each a value per sample that is
    added to the loss and logged as `train/NAME`; x_0_hat is the one-step estimate of the target's latents. The rest is
    `Stage`'s.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        timesteps: Law = logit_normal,
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
        super().__init__(backbone, optimizer, schedule, preview, seed, guard)
        self.timesteps, self.weight = timesteps, weight
        self.resolution_shift, self.rotate_every = resolution_shift, rotate_every
        self.edit_share, self.consistency = edit_share, consistency
        self.terms = dict(terms or {})
        if not 0 <= edit_share < 1:
            raise UserError(f"stage.edit_share={edit_share}: a share of the loss lies in [0, 1)")

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.consistency is not None:
            self.consistency.open()  # a wrong path is told before the first step
            data = self.trainer.datamodule
            if getattr(data, "summary", None) and not data.summary.get("regions"):
                where = f"data.root={data.root}" if hasattr(data, "root") else "these families"
                raise UserError(
                    f"stage.consistency: no sample of {where} has a region: prepare it with a column `regions` in its"
                    " rows or with faces=YUNET.onnx, or set stage.consistency=null"
                )

    def training_step(self, batch: EditBatch, batch_idx: int) -> Tensor:
        loss = self.losses(batch)
        self.log("train/loss", loss.mean().detach(), prog_bar=True, batch_size=len(batch))
        return loss.mean() * batch.scale

    def losses(self, batch: EditBatch) -> Tensor:
        """The loss of every sample (B,): draw, noise, predict, compare. Each row depends on its own sample alone."""
        x_0 = batch.target.float()
        sigma = self.draw_sigma(batch).to(x_0.device)
        eps = gaussian(x_0.shape[1:], batch.slots, self.seed, "noise", batch.step).to(x_0)
        x_t = interpolate(x_0, eps, sigma)
        v = self.velocity(x_t, sigma, batch.condition)
        weight = None if self.weight is None else self.weight(sigma, law=self.law(batch))
        loss = flow_matching_loss(v, velocity(x_0, eps), weight, self.emphasis(batch))
        if self.consistency is not None:
            loss = loss + self.identity_loss(batch, clean(x_t, sigma, v), sigma)
        for name, term in self.terms.items():
            loss = loss + self.named_loss(name, term(batch, clean(x_t, sigma, v), sigma), batch)
        return loss

    def emphasis(self, batch: EditBatch) -> Tensor | None:
        """Weights (B, 1, h, w) of the latents of each target; None when all weigh alike."""
        if not self.edit_share or batch.mask is None:
            return None
        return edit_emphasis(batch.mask, batch.target.shape[-2:], self.edit_share)

    def identity_loss(self, batch: EditBatch, x_0_hat: Tensor, sigma: Tensor) -> Tensor:
        """The consistency term of every sample (B,), logged."""
        found = self.consistency(self.codec, x_0_hat, batch.target.float(), sigma, batch.regions)
        if self._trainer is not None:
            shares = {"train/regions": found.regions.float().mean(), "train/compared": found.compared.float().mean()}
            self.log_dict(shares, batch_size=len(batch))
            if found.compared.any():
                self.log("train/identity", found.distance.detach()[found.compared].mean(), batch_size=len(batch))
        return found.loss

    def named_loss(self, name: str, value: Tensor, batch: EditBatch) -> Tensor:
        """Return a term of the loss (B,), logged.

        Raises:
            UserError: It is not a value per sample.
        """
        if value.shape != (len(batch),):
            raise UserError(f"stage.terms.{name}: returned {tuple(value.shape)}, not a value for each of {len(batch)}")
        if self._trainer is not None:
            self.log(f"train/{name}", value.detach().mean(), batch_size=len(batch))
        return value

    def draw_sigma(self, batch: EditBatch) -> Tensor:
        """sigma (B,) of the batch: stratified over the global batch, through the batch's law."""
        u = stratified_uniform(batch.step, batch.slots, batch.num_slots, seed=self.seed, rotate_every=self.rotate_every)
        return self.law(batch)(u)

    def law(self, batch: EditBatch) -> Law:
        """The law of the batch's sigma: `timesteps`, shifted for its resolution."""
        timesteps = self.timesteps_at(batch.step)
        return (lambda u: self.shift(timesteps(u), batch)) if self.resolution_shift else timesteps

    def timesteps_at(self, step: int) -> Law:
        """The law before the shift at a training step; here the same for all."""
        return self.timesteps
