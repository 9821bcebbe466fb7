"""Pretraining: flow matching whose noise follows a curriculum."""

from functools import partial

from ..flow.timesteps import TimestepDistribution, curriculum
from ..models.backbone import Backbone
from ..models.sampling import Preview
from ..optim import OptimizerFactory, ScheduleFactory
from .guard import Guard
from .sft import SFT, Weight


class Pretrain(SFT):
    """SFT with a law of sigma that leans to noise at first and ends uniform. FireRed-Image-Edit, section 3.3.

    The logit-normal part's share falls linearly from `start_weight` to 0 at progress `end`. The arguments that are not
    listed here are those of `SFT`.

    Args:
        steps: the planned training steps, over which progress goes from 0 to 1.
        mean, std: of the logit-normal part; mean above 0 leans to noise.
        start_weight: share in [0, 1] of the logit-normal part at progress 0.
        end: progress in (0, 1] at which only the uniform part is left.
    """

    def __init__(
        self,
        backbone: Backbone,
        optimizer: OptimizerFactory,
        steps: int,
        schedule: ScheduleFactory | None = None,
        mean: float = 1.0,
        std: float = 1.0,
        start_weight: float = 1.0,
        end: float = 0.5,
        weight: Weight | None = None,
        resolution_shift: bool = True,
        rotate_every: int = 1,
        edit_share: float = 0.0,
        guard: Guard | None = None,
        preview: Preview | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            backbone,
            optimizer,
            schedule,
            weight=weight,
            resolution_shift=resolution_shift,
            rotate_every=rotate_every,
            edit_share=edit_share,
            guard=guard,
            preview=preview,
            seed=seed,
        )
        self.steps = max(steps, 1)
        self.curriculum = partial(curriculum, mean=mean, std=std, start_weight=start_weight, end=end)

    def timesteps_at(self, step: int) -> TimestepDistribution:
        """Return the curriculum's law of sigma at a training step."""
        progress = min(1.0, step / self.steps)
        return partial(self.curriculum, progress=progress)
