"""DiffusionNFT (2509.16117): policy optimisation on the forward process, from rewards within groups."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from firered_lit.flow.path import clean, interpolate, velocity
from firered_lit.losses.flow_matching import at_least_float32, flow_matching_loss


def positive(v: Tensor, v_old: Tensor, *, beta: float) -> Tensor:
    """The policy mixed into the old one: v+ = (1 - beta) v_old + beta v."""
    return (1 - beta) * at_least_float32(v_old) + beta * at_least_float32(v)


def negative(v: Tensor, v_old: Tensor, *, beta: float) -> Tensor:
    """The implicit negative policy, mirrored at the old one: v- = (1 + beta) v_old - beta v."""
    return positive(v, v_old, beta=-beta)


def nft_loss(v: Tensor, v_old: Tensor, target: Tensor, optimality: Tensor, *, beta: float) -> Tensor:
    """Pull towards what scored well, push from what did not. (B, ...) three times, (B,) in [0, 1] -> (B,). Eq. 3."""
    good = flow_matching_loss(positive(v, v_old, beta=beta), target)
    bad = flow_matching_loss(negative(v, v_old, beta=beta), target)
    return optimality * good + (1 - optimality) * bad


def nft_loss_adaptive(
    x_t: Tensor,
    sigma: Tensor,
    x_0: Tensor,
    v: Tensor,
    v_old: Tensor,
    optimality: Tensor,
    *,
    beta: float,
    scale: float,
) -> Tensor:
    """`nft_loss` as its authors run it: in x_0 space, each term over its own size. sigma and optimality (B,) -> (B,).

    Each term is divided by the detached mean absolute error of that sample's x_0 estimate, and the sum is multiplied by
    `scale`; the authors' scale is A_max / beta, A_max being the `clip` of `group_optimality`.
    """
    x_t = at_least_float32(x_t)
    x_0 = at_least_float32(x_0)
    good = _normalised_error(clean(x_t, sigma, positive(v, v_old, beta=beta)), x_0)
    bad = _normalised_error(clean(x_t, sigma, negative(v, v_old, beta=beta)), x_0)
    return scale * (optimality * good + (1 - optimality) * bad)


class PolicyLoss(Protocol):
    """A form of the loss as the stage calls it, on edits x_0 with noise eps at sigma; clip is A_max. -> (B,)."""

    def __call__(
        self,
        x_0: Tensor,
        eps: Tensor,
        sigma: Tensor,
        v: Tensor,
        v_old: Tensor,
        optimality: Tensor,
        *,
        clip: float,
    ) -> Tensor: ...


def adaptive(
    x_0: Tensor,
    eps: Tensor,
    sigma: Tensor,
    v: Tensor,
    v_old: Tensor,
    optimality: Tensor,
    *,
    clip: float,
    beta: float = 1.0,
) -> Tensor:
    """`nft_loss_adaptive` at the authors' scale, clip / beta.

    Args:
        beta: How far the implicit policies lie from the old one, 1 for the policy itself.
    """
    x_t = interpolate(x_0, eps, sigma)
    return nft_loss_adaptive(x_t, sigma, x_0, v, v_old, optimality, beta=beta, scale=clip / beta)


def as_written(
    x_0: Tensor,
    eps: Tensor,
    sigma: Tensor,
    v: Tensor,
    v_old: Tensor,
    optimality: Tensor,
    *,
    clip: float,
    beta: float = 1.0,
) -> Tensor:
    """`nft_loss`, eq. 3 with no scale: it has no use for `clip`.

    Args:
        beta: How far the implicit policies lie from the old one, 1 for the policy itself.
    """
    return nft_loss(v, v_old, velocity(x_0, eps), optimality, beta=beta)


def _normalised_error(estimate: Tensor, x_0: Tensor) -> Tensor:
    """(B, ...), (B, ...) -> (B,): the mean square over the detached mean absolute value of estimate - x_0."""
    size = (estimate - x_0).detach().abs().flatten(1).mean(1).clamp(min=1e-5)
    return flow_matching_loss(estimate, x_0, 1 / size)


@dataclass(frozen=True)
class GroupStatistics:
    """Statistics of each sample's own group over its valid rewards; float64, (N,)."""

    mean: Tensor
    std: Tensor  # population; exactly 0 when the rewards are equal, or fewer than two are valid


def group_statistics(rewards: Tensor, groups: Tensor, valid: Tensor | None = None) -> GroupStatistics:
    """Mean and std of each sample's group. rewards (N,); groups (N,) int: the sample edited, never its prompt's text.

    valid (N,) bool: a missing reward counts for nothing, whatever value stands there. A group with none has mean 0.
    """
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    index = groups.unique(return_inverse=True)[1]
    zeros = torch.zeros(len(groups), dtype=torch.float64, device=rewards.device)

    def total(values: Tensor) -> Tensor:
        return zeros.index_add(0, index, torch.where(valid, values.double(), 0.0))[index]

    def extreme(values: Tensor) -> Tensor:
        filled = torch.where(valid, values.double(), -torch.inf)
        return zeros.scatter_reduce(0, index, filled, "amax", include_self=False)[index]

    count = total(torch.ones_like(rewards)).clamp(min=1)
    mean = total(rewards) / count
    std = (total((rewards - mean).square()) / count).sqrt()
    varied = extreme(rewards) > -extreme(-rewards)  # rounding alone would give equal rewards a tiny std
    return GroupStatistics(mean, torch.where(varied, std, 0.0))


def group_optimality(
    rewards: Tensor,
    groups: Tensor,
    *,
    clip: float,
    std: Literal["group", "batch"] = "group",
    valid: Tensor | None = None,
) -> Tensor:
    """r (N,) float32 in [0, 1] from rewards (N,): the advantage within the group, cut at +-`clip` and laid on [0, 1].

    A = (R - group mean) / (std + 1e-4), r = clip(A / clip, -1, 1) / 2 + 1/2; `std` over the group or over the whole
    batch passed in. Exactly 1/2 for a missing reward and for every sample of a group without variance. Section 3.3.
    """
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    group = group_statistics(rewards, groups, valid)
    spread = group.std
    if std == "batch":
        one_group = torch.zeros_like(groups)
        spread = group_statistics(rewards, one_group, valid).std
    advantage = torch.where(valid & (group.std > 0), (rewards - group.mean) / (spread + 1e-4), 0.0)
    return ((advantage / clip).clamp(-1, 1) / 2 + 0.5).float()


def policy_mask(
    rewards: Tensor,
    groups: Tensor,
    *,
    min_std: float = 0.05,
    max_mean: float = 0.9,
    valid: Tensor | None = None,
) -> Tensor:
    """(N,) bool: which samples the policy term learns from (the others weigh zero in it; a KL term stays).

    Out: missing rewards, groups without variance, and groups already good (mean > max_mean) that barely vary
    (std < min_std).
    """
    valid = torch.ones_like(rewards, dtype=torch.bool) if valid is None else valid
    group = group_statistics(rewards, groups, valid)
    settled = (group.std < min_std) & (group.mean > max_mean)
    return valid & (group.std > 0) & ~settled


def old_policy_decay(steps: int, *, rate: float = 0.001, cap: float = 0.5) -> float:
    """eta of theta_old <- eta theta_old + (1 - eta) theta, after `steps` optimizer steps: min(rate steps, cap).

    Args:
        steps: Optimizer steps so far.
        rate: Growth of the share of the old policy that stays, a step.
        cap: The largest share of it that stays.
    """
    return min(rate * steps, cap)
