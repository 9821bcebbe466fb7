"""NFT: both forms against their definitions and at their fixed point, groups, the filter, the old policy's schedule."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firered_lit.flow.path import interpolate, velocity
from firered_lit.losses.flow_matching import flow_matching_loss
from firered_lit.losses.nft import adaptive as adaptive_form
from firered_lit.losses.nft import (
    group_optimality,
    group_statistics,
    negative,
    nft_loss,
    nft_loss_adaptive,
    old_policy_decay,
    policy_mask,
    positive,
)

G = torch.Generator().manual_seed(0)
X_0, EPS, V, V_OLD = torch.randn(4, 5, 3, 4, generator=G, dtype=torch.float64)
SIGMA, R = torch.rand(2, 5, generator=G, dtype=torch.float64)
X_T, TARGET = interpolate(X_0, EPS, SIGMA), velocity(X_0, EPS)
BETA = 0.3


def adaptive(v=V, v_old=V_OLD, r=R, beta=BETA, scale=2.0):
    return nft_loss_adaptive(X_T, SIGMA, X_0, v, v_old, r, beta=beta, scale=scale)


def plain(v=V, v_old=V_OLD, r=R, beta=BETA):
    return nft_loss(v, v_old, TARGET, r, beta=beta)


def gradient(loss, r, v=V_OLD):
    v = v.clone().requires_grad_()
    return torch.autograd.grad(loss(v=v, r=r).sum(), v)[0]


def test_equation_3_written_out():
    for i, got in enumerate(plain()):
        v, old, target, r = (x[i].numpy() for x in (V, V_OLD, TARGET, R))
        good = (((1 - BETA) * old + BETA * v - target) ** 2).mean()
        bad = (((1 + BETA) * old - BETA * v - target) ** 2).mean()
        assert float(got) == pytest.approx(r * good + (1 - r) * bad)


def test_the_adaptive_form_written_out():
    for i, got in enumerate(adaptive()):
        x_t, x_0, s, v, old, r = (x[i].numpy() for x in (X_T, X_0, SIGMA, V, V_OLD, R))
        terms = []
        for mixed in ((1 - BETA) * old + BETA * v, (1 + BETA) * old - BETA * v):
            error = x_t - s * mixed - x_0
            terms.append((error**2).mean() / np.abs(error).mean())
        assert float(got) == pytest.approx(2.0 * (r * terms[0] + (1 - r) * terms[1]))


@pytest.mark.parametrize(("clip", "beta"), [(5.0, 0.3), (2.0, 1.0)])
def test_the_stage_s_adaptive_form_is_scaled_by_the_clip_over_beta(clip, beta):
    found = adaptive_form(X_0, EPS, SIGMA, V, V_OLD, R, clip=clip, beta=beta)
    torch.testing.assert_close(found, adaptive(beta=beta, scale=1.0) * clip / beta)


def test_the_two_policies_mirror_each_other_at_the_old_one():
    torch.testing.assert_close((positive(V, V_OLD, beta=BETA) + negative(V, V_OLD, beta=BETA)) / 2, V_OLD)
    torch.testing.assert_close(positive(V, V_OLD, beta=1.0), V)


def test_at_the_old_policy_eq_3_is_its_flow_loss_whatever_the_reward():
    torch.testing.assert_close(plain(v=V_OLD), flow_matching_loss(V_OLD, TARGET))
    torch.testing.assert_close(adaptive(v=V_OLD, r=R), adaptive(v=V_OLD, r=1 - R))


@pytest.mark.parametrize("loss", [plain, adaptive])
def test_swapping_optimality_flips_the_gradient_at_the_old_policy(loss):
    torch.testing.assert_close(gradient(loss, R), -gradient(loss, 1 - R))
    assert gradient(loss, R).abs().max() > 1e-3
    assert gradient(loss, torch.full_like(R, 0.5)).abs().max() < 1e-12


def test_the_gradient_at_the_old_policy_is_a_reward_weighted_flow_matching_one():
    expected = BETA * (2 * R - 1)[:, None, None] * 2 * (V_OLD - TARGET) / 12
    torch.testing.assert_close(gradient(plain, R), expected)


@pytest.mark.parametrize("loss", [plain, adaptive])
def test_a_good_sample_is_approached_and_a_bad_one_left(loss):
    for r, sign in ((0.9, -1), (0.1, 1)):
        stepped = V_OLD - 0.01 * gradient(loss, torch.full_like(R, r))
        moved = flow_matching_loss(stepped, TARGET) - flow_matching_loss(V_OLD, TARGET)
        assert (moved.sign() == sign).all()


def test_the_size_of_the_adaptive_form_carries_no_gradient():
    v = V.clone().requires_grad_()
    (got,) = torch.autograd.grad(adaptive(v=v, r=torch.ones_like(R), scale=1.0).sum(), v)
    error = X_T - SIGMA[:, None, None] * positive(V, V_OLD, beta=BETA) - X_0
    expected = -2 * SIGMA[:, None, None] * BETA * error / 12 / error.abs().mean((1, 2), keepdim=True)
    torch.testing.assert_close(got, expected)


def test_the_adaptive_form_is_finite_at_the_clean_end():
    got = nft_loss_adaptive(X_0, torch.zeros(5), X_0, V, V_OLD, R, beta=BETA, scale=1.0)
    assert got.tolist() == [0.0] * 5


def test_bfloat16_is_mixed_in_float32():
    v, v_old = V.bfloat16(), (V + 1e-3 * V_OLD).bfloat16()
    got = nft_loss(v, v_old, TARGET.bfloat16(), R.float(), beta=BETA)
    exact = nft_loss(v.double(), v_old.double(), TARGET.bfloat16().double(), R, beta=BETA)
    torch.testing.assert_close(got, exact.float())


GROUPS = torch.tensor([7, 3, 7, 3, 7, 9, 9, 9])
REWARDS = torch.tensor([0.1, 0.9, 0.4, 0.5, 0.7, 0.3, 0.3, 0.3])


@pytest.mark.parametrize("std", ["group", "batch"])
def test_optimality_written_out(std):
    rewards, groups = REWARDS.double().numpy(), GROUPS.numpy()
    got = group_optimality(REWARDS, GROUPS, clip=1.1, std=std)
    assert got.dtype == torch.float32
    for reward, group, r in zip(rewards, groups, got.tolist()):
        own = rewards[groups == group]
        spread = own.std() if std == "group" else rewards.std()
        advantage = (reward - own.mean()) / (spread + 1e-4)
        assert r == pytest.approx(np.clip(advantage / 1.1, -1, 1) / 2 + 0.5, abs=1e-6)


rewards_and_groups = st.lists(st.tuples(st.floats(0, 1, width=32), st.integers(0, 3)), min_size=1, max_size=24)


@settings(deadline=None, max_examples=100)
@given(rewards_and_groups, st.sampled_from(["group", "batch"]))
def test_optimality_stays_in_bounds_and_keeps_the_order_in_a_group(pairs, std):
    rewards, groups = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
    r = group_optimality(rewards, groups, clip=5.0, std=std)
    assert ((r >= 0) & (r <= 1)).all()
    for group in groups.unique():
        own = groups == group
        order = rewards[own].argsort()
        assert (r[own][order].diff() >= 0).all()
        if len(rewards[own].unique()) == 1:
            assert (r[own] == 0.5).all()


@pytest.mark.parametrize("std", ["group", "batch"])
def test_the_mean_of_a_group_does_not_matter(std):
    rewards = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.5, 0.25])
    groups = torch.tensor([0, 0, 0, 1, 1, 1])
    moved = rewards + torch.tensor([0.5, 0.5, 0.5, 0, 0, 0])
    r, after = (group_optimality(x, groups, clip=2.0, std=std) for x in (rewards, moved))
    assert (r - r.mean()).abs().max() > 0.1
    assert torch.equal((r - 0.5).sign(), (after - 0.5).sign())
    for own in (groups == 0, groups == 1):
        ratio = (after[own] - 0.5) / (r[own] - 0.5)  # 1 by the group's std; one factor for all by the batch's
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1.0 if std == "group" else float(ratio[0])))


def test_samples_with_equal_prompts_are_apart_when_their_ids_are():
    together = group_optimality(torch.tensor([0.2, 0.2, 0.8, 0.8]), torch.tensor([0, 0, 0, 0]), clip=5.0)
    apart = group_optimality(torch.tensor([0.2, 0.2, 0.8, 0.8]), torch.tensor([0, 0, 1, 1]), clip=5.0)
    assert together[0] < 0.5 < together[2]
    assert apart.tolist() == [0.5] * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", ["group", "batch"])
@pytest.mark.parametrize("count", [3, 7])
def test_equal_rewards_give_exactly_one_half(dtype, std, count):
    assert (0.1 + 0.1 + 0.1) / 3 != 0.1  # rounding alone must not look like variance
    rewards = torch.tensor([0.1] * count + [0.0, 1.0], dtype=dtype)
    groups = torch.tensor([0] * count + [1, 1])
    r = group_optimality(rewards, groups, clip=0.01, std=std)
    assert r.tolist() == [0.5] * count + [0, 1]
    assert group_statistics(rewards, groups).std[0] == 0
    assert policy_mask(rewards, groups).tolist() == [False] * count + [True] * 2


@pytest.mark.parametrize("std", ["group", "batch"])
def test_a_missing_reward_is_nowhere(std):
    rewards = torch.tensor([0.1, float("nan"), 0.5, 0.9, 0.2, 0.6])
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    valid = ~rewards.isnan()
    r = group_optimality(rewards, groups, clip=2.0, std=std, valid=valid)
    assert r[1] == 0.5
    torch.testing.assert_close(r[valid], group_optimality(rewards[valid], groups[valid], clip=2.0, std=std))
    assert policy_mask(rewards, groups, valid=valid).tolist() == valid.tolist()
    assert group_statistics(rewards, groups, valid).mean[0] == pytest.approx(0.5)


def test_a_group_left_with_one_reward_or_none_teaches_nothing():
    rewards, groups = torch.tensor([0.3, 0.9, 0.4, 0.4]), torch.tensor([0, 0, 1, 1])
    valid = torch.tensor([True, False, False, False])
    assert group_optimality(rewards, groups, clip=1.0, valid=valid).tolist() == [0.5] * 4
    assert not policy_mask(rewards, groups, valid=valid).any()


@pytest.mark.parametrize(
    ("rewards", "kept"),
    [([0.95, 0.97], False), ([0.80, 1.00], True), ([0.50, 0.52], True), ([0.5, 0.5], False), ([0.95, 1.0], False)],
)
def test_what_is_already_good_and_barely_varies_is_skipped(rewards, kept):
    assert policy_mask(torch.tensor(rewards), torch.tensor([4, 4])).tolist() == [kept, kept]


def test_the_old_policy_follows_faster_at_first():
    assert [old_policy_decay(n) for n in (0, 100, 500, 900)] == pytest.approx([0, 0.1, 0.5, 0.5])
