"""Drawing an edit: the one sampler of validation, rollout and `edit`."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..batch import Condition
from ..flow.sampler import euler, guide
from .qwen_image import velocity

if TYPE_CHECKING:
    from .transformer import Transformer


@dataclass(frozen=True)
class Preview:
    """Solver steps (0 draws none) and `true_cfg_scale` of the edits that validation draws.

    Attributes:
        steps: Of the solver; 0 draws none.
        guidance: `true_cfg_scale`; 1 switches it off.
    """

    steps: int = 8
    guidance: float = 1.0


@torch.no_grad()
def sample(
    transformer: "Transformer",
    noise: Tensor,
    sigmas: Tensor,
    condition: Condition,
    unconditional: Condition | None = None,
    guidance: float = 1.0,
) -> Tensor:
    """Normalised latents of an edit, from noise (B, 16, h, w) along sigmas (S + 1,).

    guidance > 1 needs `unconditional`, the text " " with the same references: the stock pipelines' `true_cfg_scale`.
    """
    if guidance > 1 and unconditional is None:
        raise ValueError("sample: guidance needs the unconditional text")

    def field(x: Tensor, sigma: Tensor) -> Tensor:
        v = velocity(transformer, x, sigma, condition)
        if guidance <= 1 or unconditional is None:
            return v
        return guide(v, velocity(transformer, x, sigma, unconditional), guidance)

    return euler(field, noise, sigmas)
