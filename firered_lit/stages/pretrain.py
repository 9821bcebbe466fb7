"""Pretraining: flow matching whose noise follows a curriculum."""

from functools import partial

from ..flow.timesteps import Law, curriculum
from ..models.backbone import Backbone
from ..models.sampling import Preview
from ..optim import OptimizerFactory, ScheduleFactory
from .guard import Guard
from .sft import SFT, Weight


class Pretrain(SFT):
    """SFT with a law of sigma that leans to noise at first and ends uniform. FireRed-Image-Edit, section 3.3.

    steps: length of the curriculum's progress, the planned training steps. mean, std: of the logit-normal part, whose
    share falls linearly from `start_weight` to 0 at progress `end`. The rest is `SFT`'s.
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
        settings = {"weight": weight, "resolution_shift": resolution_shift, "rotate_every": rotate_every}
        settings |= {"edit_share": edit_share}
        super().__init__(backbone, optimizer, schedule, guard=guard, preview=preview, seed=seed, **settings)
        self.steps = max(steps, 1)
        self.curriculum = partial(curriculum, mean=mean, std=std, start_weight=start_weight, end=end)

    def timesteps_at(self, step: int) -> Law:
        return partial(self.curriculum, progress=min(1.0, step / self.steps))
