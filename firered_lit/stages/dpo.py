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
from ..flow.timesteps import TimestepDistribution, uniform
from ..losses.dpo import double_degradation, dpo_loss, dpo_terms
from ..losses.flow_matching import flow_matching_loss
from ..models.backbone import Backbone
from ..models.cost.flops import forward_flops
from ..models.sampling import Preview
from ..models.weight_swap import WeightSwap
from ..optim import OptimizerFactory, ScheduleFactory
from .guard import Guard
from .sigma import SigmaStage

Errors = tuple[Tensor, Tensor, Tensor, Tensor]  # winner, loser, reference's winner, reference's loser, each (B,)
SCORES = ("preference", "accuracy", "win_diff", "lose_diff", "winner", "loser")


class DPO(SigmaStage):
    """Asymmetric DPO against the weights that the stage starts from. FireRed-Image-Edit (2602.13344), eq. 2.

    One eps and one sigma per pair serve winner and loser, policy and reference. With omega = 1 and sft_weight = 0 it is
    Diffusion-DPO (2311.12908).

    Args:
        backbone, optimizer, schedule, guard, preview, seed: see `Stage`.
        beta: sharpness of the preference over mean squared errors, above 0; half of Diffusion-DPO's.
        omega: weight of the winner's error over the loser's, at least 1.
        sft_weight: weight of the winner's own flow matching loss, at least 0.
        timesteps, resolution_shift, rotate_every: see `SigmaStage`.
        window: micro-batches, at least 3, over which both sides are watched for getting worse together.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None = None,
        beta: float = 1000.0,
        omega: float = 2.0,
        sft_weight: float = 0.0,
        timesteps: TimestepDistribution = uniform,
        resolution_shift: bool = True,
        rotate_every: int = 1,
        window: int = 100,
        guard: Guard | None = None,
        preview: Preview | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            optimizer,
            schedule,
            timesteps=timesteps,
            resolution_shift=resolution_shift,
            rotate_every=rotate_every,
            guard=guard,
            preview=preview,
            seed=seed,
        )
        if beta <= 0 or omega < 1 or sft_weight < 0 or window < 3:
            given = f"beta={beta:g} omega={omega:g} sft_weight={sft_weight:g} window={window}"
            raise UserError(f"stage: {given}: they are above 0, at least 1, at least 0 and at least 3")
        self.beta = beta
        self.omega = omega
        self.sft_weight = sft_weight
        self.window = window
        self.watched: list[Tensor] = []  # (win_diff, lose_diff) of the last micro-batches
        # In a dict, so that no checkpoint holds it: a new start makes it again.
        self.reference: dict[str, WeightSwap] = {}
        self.scores.update({name: MeanMetric() for name in SCORES})

    def configure_model(self) -> None:
        super().configure_model()
        if self.backbone.lora is None and not self.reference:
            self.reference["start"] = WeightSwap(self.transformer)

    def on_fit_start(self) -> None:
        for weights in self.reference.values():
            weights.to(self.device)

    def training_step(self, batch: PreferenceBatch, batch_idx: int) -> Tensor:
        # One eps and one sigma per pair; errors of winner and loser under the policy and under the reference.
        eps, sigma = self.draws(batch)
        errors = self.errors(batch, eps, sigma)

        # -log sigmoid(beta [(L_l - L_l^ref) - omega (L_w - L_w^ref)]) + sft_weight L_w.
        numbers = self.numbers(errors)
        loss = numbers["loss"].mean()

        # Log the loss and its terms, and look for both sides getting worse together.
        means = {name: value.detach().mean() for name, value in numbers.items()}
        self.log("train/loss", means.pop("loss"), prog_bar=True, batch_size=len(batch))
        self.log_dict({f"train/{name}": value for name, value in means.items()}, batch_size=len(batch))
        self.watch(means["win_diff"], means["lose_diff"])
        return loss * batch.scale

    def flops(self, batch: PreferenceBatch) -> float:
        """Return the FLOPs of one DPO step: both sides, plus the reference's forward on each."""
        policy = super().flops(batch)
        reference = len(batch) * forward_flops(*self.sample(batch))
        return 2 * (policy + reference)

    def losses(self, batch: PreferenceBatch) -> Tensor:
        """Return the loss (B,) of every pair. Each row depends on its own pair alone."""
        return self.loss_of(self.errors(batch, *self.draws(batch)))

    def draws(self, batch: PreferenceBatch) -> tuple[Tensor, Tensor]:
        """Draw eps (B, 16, h, w) and sigma (B,), one each for a pair."""
        eps = gaussian(batch.target.shape[1:], batch.slots, self.seed, "noise", batch.step)
        return eps.to(batch.target.device), self.draw_sigma(batch).to(batch.target.device)

    def errors(self, batch: EditBatch, eps: Tensor, sigma: Tensor) -> Errors:
        """Return the flow matching errors (B,) of winner and loser under the policy, then under the reference."""
        if not isinstance(batch, PreferenceBatch):
            raise UserError("data: DPO trains on pairs; set data._target_=datamodules.preferences.PreferenceDataModule")
        # Winners, then losers, under the same noise.
        x_0, condition = batch.both()
        x_0 = x_0.float()
        eps = torch.cat([eps, eps])
        sigma = torch.cat([sigma, sigma])
        x_t = interpolate(x_0, eps, sigma)
        target = velocity(x_0, eps)

        # The reference first, while no activations of the policy are held.
        with torch.no_grad(), self.as_reference():
            reference = flow_matching_loss(self.velocity(x_t, sigma, condition), target)
        policy = flow_matching_loss(self.velocity(x_t, sigma, condition), target)

        winner, loser = policy.chunk(2)
        reference_winner, reference_loser = reference.chunk(2)
        return winner, loser, reference_winner, reference_loser

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Make the transformer the reference inside a `with` block: its adapter off, or its first weights in."""
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
        """Return the loss (B,) of errors."""
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
        """Return the loss and its terms (B,), averaged over the fixed (eps, sigma) of validation."""
        rows = [self.numbers(self.errors(batch, eps, sigma)) for eps, sigma in self.fixed_points(batch)]
        return {name: torch.stack([row[name] for row in rows]).mean(0) for name in ("loss", *SCORES)}

    def numbers(self, errors: Errors) -> dict[str, Tensor]:
        """Return the loss and all that is logged of pairs, by name, each (B,)."""
        winner, loser, _, _ = errors
        terms = dpo_terms(*errors, beta=self.beta, omega=self.omega)
        return vars(terms) | {"loss": self.loss_of(errors), "winner": winner, "loser": loser}
