"""DPO: ln 2 at the start, the direction of every gradient, Diffusion-DPO as published, what the asymmetry is for."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from firered_lit.losses.dpo import double_degradation, dpo_loss, dpo_terms

ERRORS = torch.rand(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PLAIN = {"beta": 2.0, "omega": 1.0, "sft_weight": 0.0}


def diffusion_dpo(winner, loser, ref_winner, ref_loser, beta_dpo):
    """As published with 2311.12908: differences first, and half of beta."""
    inside = -0.5 * beta_dpo * ((winner - loser) - (ref_winner - ref_loser))
    return -logsigmoid(inside)


def test_omega_one_without_sft_is_diffusion_dpo_with_twice_our_beta():
    for beta in (0.1, 3.0, 1000.0):
        ours = dpo_loss(*ERRORS, beta=beta, omega=1, sft_weight=0)
        torch.testing.assert_close(ours, diffusion_dpo(*ERRORS, beta_dpo=2 * beta))


def test_equals_equation_2_written_out():
    for w, lo, rw, rl in ERRORS.T.tolist():
        z = 3.0 * ((lo - rl) - 1.7 * (w - rw))
        expected = math.log1p(math.exp(-z)) + 0.4 * w
        got = dpo_loss(*torch.tensor([[w], [lo], [rw], [rl]]).double(), beta=3.0, omega=1.7, sft_weight=0.4)
        assert got.item() == pytest.approx(expected)


@pytest.mark.parametrize("omega", [1.0, 2.5])
def test_the_preference_is_ln_2_at_the_start(omega):
    winner, loser = ERRORS[:2]
    terms = dpo_terms(winner, loser, winner, loser, beta=500, omega=omega)
    torch.testing.assert_close(terms.preference, torch.full_like(winner, math.log(2)))
    assert terms.accuracy.tolist() == [0.5] * 6
    loss = dpo_loss(winner, loser, winner, loser, beta=500, omega=omega, sft_weight=0.3)
    torch.testing.assert_close(loss - terms.preference, 0.3 * winner)


@pytest.mark.parametrize("omega", [1.0, 2.5])
def test_the_gradient_lowers_the_winner_s_error_and_raises_the_loser_s(omega):
    winner, loser = (e.clone().requires_grad_() for e in ERRORS[:2])
    loss = dpo_loss(winner, loser, *ERRORS[2:], beta=2, omega=omega, sft_weight=0)
    by_winner, by_loser = torch.autograd.grad(loss.sum(), (winner, loser))
    assert (by_winner > 0).all()
    assert (by_loser < 0).all()
    torch.testing.assert_close(by_winner, -omega * by_loser)
    after = dpo_terms(winner - by_winner, loser - by_loser, *ERRORS[2:], beta=2, omega=omega)
    before = dpo_terms(winner, loser, *ERRORS[2:], beta=2, omega=omega)
    assert (after.margin > before.margin).all()


def test_the_sft_term_pulls_the_winner_alone():
    winner, loser = (e.clone().requires_grad_() for e in ERRORS[:2])
    with_sft = dpo_loss(winner, loser, *ERRORS[2:], **{**PLAIN, "sft_weight": 0.7})
    without = dpo_loss(winner, loser, *ERRORS[2:], **PLAIN)
    by_winner, by_loser = torch.autograd.grad((with_sft - without).sum(), (winner, loser))
    torch.testing.assert_close(by_winner, torch.full_like(winner, 0.7))
    assert by_loser.abs().max() < 1e-12


def test_both_getting_worse_together_pleases_plain_dpo_and_not_the_asymmetric_form():
    start = torch.tensor([0.5])
    worse = start + 0.10, start + 0.15
    plain = [dpo_loss(*pair, start, start, **PLAIN) for pair in ((start, start), worse)]
    guarded = [dpo_loss(*pair, start, start, beta=2, omega=2, sft_weight=0) for pair in ((start, start), worse)]
    assert plain[1] < plain[0]
    assert guarded[1] > guarded[0]


def test_terms_say_which_side_moved():
    terms = dpo_terms(*torch.tensor([[0.4, 0.6], [0.6, 0.5], [0.5, 0.5], [0.5, 0.5]]), beta=10, omega=2)
    torch.testing.assert_close(terms.win_diff, torch.tensor([-0.1, 0.1]))
    torch.testing.assert_close(terms.lose_diff, torch.tensor([0.1, 0.0]))
    torch.testing.assert_close(terms.margin, torch.tensor([3.0, -2.0]))
    assert terms.accuracy.tolist() == [1, 0]


def test_large_margins_stay_finite():
    loss = dpo_loss(*torch.tensor([[0.0, 9.0], [9.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), beta=5000, omega=1, sft_weight=0)
    assert loss.tolist() == pytest.approx([0, 45000])


@pytest.mark.parametrize(("win", "lose", "expected"), [(1, 1, True), (1, -1, False), (-1, 1, False), (-1, -1, False)])
def test_double_degradation_is_both_rising(win, lose, expected):
    noise = torch.randn(2, 50, generator=torch.Generator().manual_seed(0)) * 0.05
    time = torch.linspace(0, 1, 50)
    assert double_degradation(win * time + noise[0], lose * time + noise[1] + 3) is expected


def test_noise_alone_is_hardly_ever_a_double_degradation():
    noise = torch.randn(300, 2, 50, generator=torch.Generator().manual_seed(1))
    alarms = sum(double_degradation(win, lose) for win, lose in noise)
    assert alarms <= 3  # slopes above 0 alone would give some 75
