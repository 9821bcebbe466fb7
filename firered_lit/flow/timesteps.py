"""The distribution of sigma in training: inverse CDFs, strata over the global batch, loss weights.

A law is an inverse CDF: it maps u in [0, 1) to sigma in [0, 1], increasing, elementwise, in float64 inside and in the
dtype of `u` outside. So stratified uniforms compose with any density. sigma = 1 is pure noise.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from firered_lit.draws import generator

TimestepDistribution = Callable[[Tensor], Tensor]


def uniform(u: Tensor) -> Tensor:
    """sigma ~ Uniform(0, 1)."""
    return u


def logit_normal(u: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """logit(sigma) ~ Normal(mean, std); mean > 0 leans to noise. Stable Diffusion 3 (2403.03206), eq. 19.

    Args:
        u: (...) in [0, 1).
        mean: Of logit(sigma); above 0 leans to noise.
        std: Of logit(sigma).
    """
    return torch.sigmoid(mean + std * torch.special.ndtri(u.double())).to(u.dtype)


def curriculum_weight(progress: float, *, start_weight: float, end: float) -> float:
    """Share of the logit-normal part: `start_weight` at progress 0, falling linearly to 0 at `end`."""
    return start_weight * max(0.0, 1.0 - progress / end)


def curriculum(
    u: Tensor, *, progress: float, mean: float = 1.0, std: float = 1.0, start_weight: float = 1.0, end: float = 0.5
) -> Tensor:
    """Noise first, everything later: the law whose density is `curriculum_density`. FireRed (2602.13344), section 3.3.

    Bisection over a fixed grid of [0, 1], so the result is increasing in u bit for bit; off by at most 2**-52.
    """
    weight = curriculum_weight(progress, start_weight=start_weight, end=end)
    target = u.double()
    low = torch.zeros_like(target)
    width = 1.0
    for _ in range(52):
        width /= 2
        middle = low + width
        cdf = (1 - weight) * middle + weight * torch.special.ndtr((torch.logit(middle) - mean) / std)
        low = torch.where(cdf <= target, middle, low)
    return low.to(u.dtype)


def logit_normal_density(sigma: Tensor, *, mean: float = 0.0, std: float = 1.0) -> Tensor:
    """Density of `logit_normal` at sigma; 0 at sigma = 0 and 1, its limits."""
    s = sigma.double()
    z = (torch.logit(s) - mean) / std
    density = torch.exp(-z * z / 2) / (std * math.sqrt(2 * math.pi) * s * (1 - s))
    return torch.where((s > 0) & (s < 1), density, torch.zeros_like(s)).to(sigma.dtype)


def curriculum_density(
    sigma: Tensor, *, progress: float, mean: float = 1.0, std: float = 1.0, start_weight: float = 1.0, end: float = 0.5
) -> Tensor:
    """(1 - w) Uniform + w LogitNormal(mean, std), w the `curriculum_weight` of `progress` in [0, 1]."""
    weight = curriculum_weight(progress, start_weight=start_weight, end=end)
    return (1 - weight) + weight * logit_normal_density(sigma, mean=mean, std=std)


def logit_normal_weight(
    sigma: Tensor, *, law: TimestepDistribution = uniform, mean: float = 0.0, std: float = 1.0, points: int = 4096
) -> Tensor:
    """Loss weight, like sigma: the logit-normal density over its mean under `law`, so that E[weight] = 1.

    `law` is the one sigma was drawn by (shift included). The mean is a midpoint rule over u with `points` nodes.

    Args:
        sigma: (B,) in [0, 1].
        law: What sigma was drawn by.
        mean: Of logit(sigma), where the weight is large.
        std: Of logit(sigma).
        points: Nodes of the midpoint rule by which the mean weight becomes 1.
    """
    u = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    expected = logit_normal_density(law(u), mean=mean, std=std).mean()
    return logit_normal_density(sigma, mean=mean, std=std) / expected.to(sigma)


def dynamic_mu(tokens: int, *, base_tokens: int, max_tokens: int, base_shift: float, max_shift: float) -> float:
    """The shift for a target of `tokens` visual tokens: a line through two points, as the stock pipelines compute it.

    The numbers are the scheduler's `base_image_seq_len`, `max_image_seq_len`, `base_shift` and `max_shift`.
    """
    return base_shift + (tokens - base_tokens) * (max_shift - base_shift) / (max_tokens - base_tokens)


def shift(sigma: Tensor, mu: float) -> Tensor:
    """Exponential time shift towards noise (mu > 0): odds of sigma times exp(mu). Stable Diffusion 3, eq. 23."""
    odds = math.exp(mu)
    return odds * sigma / (odds * sigma + (1 - sigma))


def stretch(sigmas: Tensor, terminal: float) -> Tensor:
    """A falling schedule (S,), stretched so that its last sigma is `terminal`. diffusers' `shift_terminal`."""
    return 1 - (1 - sigmas) * (1 - terminal) / (1 - sigmas[-1])


def stratified_uniform(step: int, slots: Sequence[int], num_slots: int, *, seed: int, rotate_every: int = 1) -> Tensor:
    """u (len(slots),) float32 in [0, 1): slot i's draw in global batch `step`, one draw per stratum [k, k + 1) / K.

    K = num_slots. A permutation of strata over slots is drawn every `rotate_every` steps, the place inside the stratum
    every step. All is keyed by (seed, step, slot), so any split of the slots over processes draws the same.
    """
    # The stratum of each slot.
    permutation = torch.randperm(num_slots, generator=generator(seed, "strata", step // rotate_every))
    strata = permutation[list(slots)]

    # The place inside of it.
    rows = [torch.rand((), generator=generator(seed, "place", step, slot), dtype=torch.float64) for slot in slots]
    edge = num_slots * 2.0**-24  # rounding to float32 must not cross into the next stratum
    place = torch.stack(rows).clamp(edge, 1 - edge)
    return ((strata + place) / num_slots).float()
