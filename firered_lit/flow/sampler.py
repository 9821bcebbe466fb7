"""From noise to an image: the schedule of sigmas, guidance, and the ODE solver. What the stock pipelines compute."""

import math
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .path import clean
from .timesteps import dynamic_mu, shift, stretch

Velocity = Callable[[Tensor, Tensor], Tensor]  # velocity(x, sigma (B,)), like x
Solver = Callable[[Velocity, Tensor, Tensor], Tensor]  # solver(velocity, noise, sigmas (S + 1,)), like noise

UNSUPPORTED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "invert_sigmas", "stochastic_sampling")


def resolution_shift(sigma: Tensor, tokens: int, config: Mapping[str, Any]) -> Tensor:
    """sigma, shifted as the scheduler of `config` shifts it for a target of `tokens` visual tokens.

    Raises ValueError for a scheduler whose shift is not the exponential one of the Qwen-Image family.
    """
    used = [name for name in UNSUPPORTED if config.get(name)]
    if used or config.get("time_shift_type", "exponential") != "exponential":
        raise ValueError(f"scheduler: {used or config['time_shift_type']} is not of the Qwen-Image family")
    if not config.get("use_dynamic_shifting"):
        odds = config.get("shift", 1.0)
        return odds * sigma / (1 + (odds - 1) * sigma)
    mu = dynamic_mu(
        tokens,
        base_tokens=config.get("base_image_seq_len", 256),
        max_tokens=config.get("max_image_seq_len", 4096),
        base_shift=config.get("base_shift", 0.5),
        max_shift=config.get("max_shift", 1.15),
    )
    return shift(sigma, mu)


def schedule(steps: int, tokens: int, config: Mapping[str, Any]) -> Tensor:
    """Sigmas (steps + 1,) falling from 1 to 0, as the stock pipeline sets them for a target of `tokens` tokens."""
    sigmas = resolution_shift(torch.linspace(1, 1 / steps, steps, dtype=torch.float64), tokens, config)
    if config.get("shift_terminal") and steps > 1:
        sigmas = stretch(sigmas, config["shift_terminal"])
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def guide(positive: Tensor, negative: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance of velocities (B, C, h, w), each 2x2 token scaled back to its conditional norm."""
    combined = negative + scale * (positive - negative)
    return combined * (_token_norm(positive) / _token_norm(combined))


def _token_norm(v: Tensor) -> Tensor:
    b, _, h, w = v.shape
    norm = v.square().sum(1).reshape(b, h // 2, 2, w // 2, 2).sum((2, 4), keepdim=True).sqrt()
    return norm.expand(b, h // 2, 2, w // 2, 2).reshape(b, 1, h, w)


def euler(velocity: Velocity, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate dx = v dsigma from `noise` along falling `sigmas` (S + 1,); `velocity(x, sigma (B,))`. -> like noise"""
    x = noise
    for sigma, following in pairwise(sigmas.to(noise.device)):
        x = x + (following - sigma) * velocity(x, sigma.expand(len(x)))
    return x


def dpm_solver_2(velocity: Velocity, noise: Tensor, sigmas: Tensor) -> Tensor:
    """Integrate as `euler` does, at second order, with as many forwards: DPM-Solver++(2M), in flow form.

    A step goes towards an estimate of x_0, x' = (sigma' / sigma) x + (1 - sigma' / sigma) estimate. Euler takes the one
    of this step; here the last step's change is carried on by half of this one, measured in
    lambda = log((1 - sigma) / sigma). The first step has none before it, and where a side of a step is pure noise or
    pure data lambda is infinite: those steps are Euler's.

    Args:
        velocity: the field, `velocity(x, sigma (B,))`.
        noise: (B, ...), where to begin.
        sigmas: (S + 1,), falling from at most 1 to at least 0.

    Returns:
        x at the last sigma, like `noise`.

    Source: DPM-Solver++ (2211.01095), algorithm 2, midpoint; alpha = 1 - sigma.
    """
    sigmas = sigmas.to(noise.device)
    lambdas = torch.log((1 - sigmas.double()) / sigmas.double()).tolist()
    x = noise
    x_0_before = noise
    step_before = math.inf
    for k, (sigma, following) in enumerate(pairwise(sigmas)):
        # This step's estimate of the data, and the one that the step goes towards.
        at = sigma.expand(len(x))
        x_0 = clean(x, at, velocity(x, at))
        step = lambdas[k + 1] - lambdas[k]
        estimate = x_0
        if math.isfinite(step) and math.isfinite(step_before):
            estimate = x_0 + step / (2 * step_before) * (x_0 - x_0_before)

        # The step.
        kept = following / sigma
        x = kept * x + (1 - kept) * estimate
        x_0_before = x_0
        step_before = step
    return x
