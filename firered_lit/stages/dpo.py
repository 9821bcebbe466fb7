"""Preference optimisation on pairs of a winner and a loser: DPO with asymmetric gradients, or plain Diffusion-DPO."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torchmetrics import MeanMetric

from ..batch import EditBatch, PreferenceBatch
from ..draws import gaussian
from ..errors import UserError
from ..flow.path import interpolate, velocity
from ..flow.timesteps import Law, uniform
from ..losses.dpo import double_degradation, dpo_loss, dpo_terms
from ..losses.flow_matching import flow_matching_loss
from ..models.backbone import Backbone
from ..models.flops import forward_flops
from ..models.sampling import Preview
from ..models.shadow import Shadow
from ..optim import OptimizerFactory, ScheduleFactory
from .guard import Guard
from .sft import SFT

Errors = tuple[Tensor, Tensor, Tensor, Tensor]
SCORES = ("preference", "accuracy", "win_diff", "lose_diff", "winner", "loser")


class DPO(SFT):
    """Asymmetric DPO against the weights that the stage starts from. FireRed-Image-Edit (2602.13344), eq. 2.

    beta: sharpness of the preference over mean squared errors (half of Diffusion-DPO's). omega: weight of the winner's
    error over the loser's, at least 1. sft_weight: of the winner's own flow matching loss. With omega = 1 and
    sft_weight = 0 it is Diffusion-DPO (2311.12908). window: micro-batches over which both sides are watched for getting
    worse together.
    timesteps, resolution_shift, rotate_every: how sigma is drawn, see `SFT`; one eps and one sigma per pair, the same
    for winner, loser, policy and reference. The rest is `Stage`'s.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        beta: float = 1000.0,
        omega: float = 2.0,
        sft_weight: float = 0.0,
        timesteps: Law = uniform,
        resolution_shift: bool = True,
        rotate_every: int = 1,
        window: int = 100,
        guard: Guard | None = None,
        preview: Preview | None = None,
        seed: int = 0,
    ) -> None:
        drawn = {"timesteps": timesteps, "resolution_shift": resolution_shift, "rotate_every": rotate_every}
        super().__init__(backbone, optimizer, schedule, guard=guard, preview=preview, seed=seed, **drawn)
        if beta <= 0 or omega < 1 or sft_weight < 0 or window < 3:
            given = f"beta={beta:g} omega={omega:g} sft_weight={sft_weight:g} window={window}"
            raise UserError(f"stage: {given}: they are above 0, at least 1, at least 0 and at least 3")
        self.beta, self.omega, self.sft_weight, self.window = beta, omega, sft_weight, window
        self.reference: dict[str, Shadow] = {}  # in a dict: a new start has it again, so no checkpoint holds it
        self.watched: list[Tensor] = []
        self.scores.update({name: MeanMetric() for name in SCORES})

    def configure_model(self) -> None:
        super().configure_model()
        if self.backbone.lora is None and not self.reference:
            self.reference["start"] = Shadow(self.transformer)

    def on_fit_start(self) -> None:
        for shadow in self.reference.values():
            shadow.to(self.device)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        numbers = self.numbers(self.errors(batch, *self.draws(batch)))
        means = {name: value.detach().mean() for name, value in numbers.items()}
        self.log("train/loss", means.pop("loss"), prog_bar=True, batch_size=len(batch))
        self.log_dict({f"train/{name}": value for name, value in means.items()}, batch_size=len(batch))
        self.watch(means["win_diff"], means["lose_diff"])
        return numbers["loss"].mean() * batch.scale

    def flops(self, batch: PreferenceBatch) -> float:
        """Return the FLOPs of one DPO step: both sides, plus the reference's forward on each."""
        return 2 * (super().flops(batch) + len(batch) * forward_flops(*self.sample(batch)))

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """The loss of every pair (B,). Each row depends on its own pair alone."""
        return self.loss_of(self.errors(batch, *self.draws(batch)))

    def draws(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """eps (B, 16, h, w) and sigma (B,) of the batch's pairs."""
        eps = gaussian(batch.target.shape[1:], batch.slots, self.seed, "noise", batch.step)
        return eps.to(batch.target.device), self.draw_sigma(batch).to(batch.target.device)

    def errors(self, batch: PreferenceBatch, eps: Tensor, sigma: Tensor) -> Errors:
        """Flow matching errors (B,) of winner and loser under the policy, and of both under the reference."""
        if not isinstance(batch, PreferenceBatch):
            raise UserError("data: DPO trains on pairs; set data._target_=datamodules.preferences.PreferenceDataModule")
        x_0, condition = batch.both()
        eps, sigma = torch.cat([eps, eps]), torch.cat([sigma, sigma])
        x_t, target = interpolate(x_0.float(), eps, sigma), velocity(x_0.float(), eps)
        with torch.no_grad(), self.as_reference():  # first, while no activations of the policy are held
            reference = flow_matching_loss(self.velocity(x_t, sigma, condition), target)
        policy = flow_matching_loss(self.velocity(x_t, sigma, condition), target)
        return *policy.chunk(2), *reference.chunk(2)

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Inside, the transformer is what the stage started from: the adapter is off, or the first weights are in."""
        if self.backbone.lora is None:
            with self.reference["start"].swapped_into(self.transformer):
                yield
            return
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    def loss_of(self, errors: Errors) -> Tensor:
        return dpo_loss(*errors, beta=self.beta, omega=self.omega, sft_weight=self.sft_weight)

    def watch(self, win_diff: Tensor, lose_diff: Tensor) -> None:
        """Warn when both sides got worse together over the last `window` micro-batches."""
        self.watched.append(torch.stack([win_diff, lose_diff]))
        if len(self.watched) < self.window:
            return
        win, lose = torch.stack(self.watched, 1)
        self.watched.clear()
        if double_degradation(win, lose):
            rank_zero_warn(
                f"DPO at step {self.global_step}: over {self.window} batches the winner's error rose with the loser's "
                f"(win_diff {win.mean():.2e}, lose_diff {lose.mean():.2e}); raise stage.omega or stage.sft_weight"
            )

    def fixed_scores(self, batch: EditBatch) -> dict[str, Tensor]:
        """The loss and its terms (B,) at fixed (eps, sigma), averaged."""
        rows = [self.numbers(self.errors(batch, eps, sigma)) for eps, sigma in self.fixed_points(batch)]
        return {name: torch.stack([row[name] for row in rows]).mean(0) for name in ("loss", *SCORES)}

    def numbers(self, errors: Errors) -> dict[str, Tensor]:
        """All that is logged of pairs, by name, each (B,)."""
        terms = vars(dpo_terms(*errors, beta=self.beta, omega=self.omega))
        return terms | {"loss": self.loss_of(errors), "winner": errors[0], "loser": errors[1]}
