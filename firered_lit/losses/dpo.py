"""Diffusion-DPO with asymmetric gradients: a guard against both sides of a pair getting worse together.

Everything is a function of errors (B,): the flow matching loss of winner and loser under the policy and under the
reference, with the same noise and the same sigma for all four.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from firered_lit.losses.flow_matching import at_least_float32


@dataclass(frozen=True)
class DPOTerms:
    """The numbers that a DPO run logs, each (B,)."""

    win_diff: Tensor  # winner's error, policy minus reference; below 0 = the policy is better
    lose_diff: Tensor  # loser's error, policy minus reference
    margin: Tensor  # the argument of the sigmoid
    preference: Tensor  # -log sigmoid(margin); ln 2 at the start
    accuracy: Tensor  # 1 where lose_diff > win_diff, 0 where less, 1/2 where equal (as at the start)


def dpo_terms(
    winner: Tensor, loser: Tensor, ref_winner: Tensor, ref_loser: Tensor, *, beta: float, omega: float
) -> DPOTerms:
    """Compute the terms of `dpo_loss`, from the same errors (B,)."""
    win_diff = at_least_float32(winner) - ref_winner
    lose_diff = at_least_float32(loser) - ref_loser
    margin = beta * (lose_diff - omega * win_diff)
    accuracy = (1 + torch.sign(lose_diff - win_diff).detach()) / 2
    return DPOTerms(win_diff, lose_diff, margin, -logsigmoid(margin), accuracy)


def dpo_loss(
    winner: Tensor,
    loser: Tensor,
    ref_winner: Tensor,
    ref_loser: Tensor,
    *,
    beta: float,
    omega: float,
    sft_weight: float,
) -> Tensor:
    """-log sigmoid(beta [(L_l - L_l^ref) - omega (L_w - L_w^ref)]) + sft_weight L_w. Errors (B,) -> (B,).

    FireRed-Image-Edit (2602.13344), eq. 2. omega = 1 and sft_weight = 0 is Diffusion-DPO (2311.12908), whose published
    code halves its beta: theirs is twice ours.
    """
    terms = dpo_terms(winner, loser, ref_winner, ref_loser, beta=beta, omega=omega)
    return terms.preference + sft_weight * at_least_float32(winner)


def double_degradation(win_diffs: Tensor, lose_diffs: Tensor, significance: float = 2.0) -> bool:
    """Return whether both differences rise over a window of step means (W,), W >= 3.

    A rise is a least-squares slope above 0 by `significance` standard errors: both slopes of mere noise are above 0 one
    time in four.
    """
    time = torch.arange(len(win_diffs), dtype=torch.float64)
    time = (time - time.mean()) / (time - time.mean()).norm()

    def rises(diffs: Tensor) -> bool:
        diffs = diffs.detach().double().cpu()
        diffs = diffs - diffs.mean()
        slope = time @ diffs
        error = ((diffs - slope * time).square().sum() / (len(diffs) - 2)).sqrt()
        return bool(slope > significance * error)

    return rises(win_diffs) and rises(lose_diffs)
