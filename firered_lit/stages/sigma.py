"""The draw of sigma, which supervised stages and preferences share."""

from torch import Tensor

from ..batch import EditBatch
from ..flow.timesteps import TimestepDistribution, stratified_uniform
from ..models.backbone import Backbone
from ..models.sampling import Preview
from ..optim import OptimizerFactory, ScheduleFactory
from .base import Stage
from .guard import Guard


class SigmaStage(Stage):
    """A stage that draws one sigma for each sample of a batch, stratified over the global batch.

    Args:
        backbone, optimizer, schedule, guard, preview, seed: see `Stage`.
        timesteps: the law of sigma, an inverse CDF on [0, 1).
        resolution_shift: shift sigma for the target's resolution.
        rotate_every: steps after which the strata of sigma move to other slots.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory,
        schedule: ScheduleFactory | None,
        timesteps: TimestepDistribution,
        resolution_shift: bool,
        rotate_every: int,
        guard: Guard | None,
        preview: Preview | None,
        seed: int,
    ) -> None:
        super().__init__(backbone, optimizer, schedule, preview, seed, guard)
        self.timesteps = timesteps
        self.resolution_shift = resolution_shift
        self.rotate_every = rotate_every

    def draw_sigma(self, batch: EditBatch) -> Tensor:
        """Draw sigma (B,): stratified over the global batch, through the batch's law."""
        u = stratified_uniform(batch.step, batch.slots, batch.num_slots, seed=self.seed, rotate_every=self.rotate_every)
        return self.law(batch)(u)

    def law(self, batch: EditBatch) -> TimestepDistribution:
        """Return the law of the batch's sigma: `timesteps`, shifted for its resolution."""
        timesteps = self.timesteps_at(batch.step)
        if not self.resolution_shift:
            return timesteps
        return lambda u: self.shift(timesteps(u), batch)

    def timesteps_at(self, step: int) -> TimestepDistribution:
        """Return the law of sigma before the shift, here the same at every training step."""
        return self.timesteps
