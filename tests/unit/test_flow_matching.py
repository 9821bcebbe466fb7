"""The flow matching loss against an explicit sum, its gradient's direction, and what half precision would lose."""

import pytest
import torch

from firered_lit.flow.path import interpolate, velocity
from firered_lit.losses.flow_matching import flow_matching_loss


def pair(*shape: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=g), torch.randn(shape, generator=g)


def test_equals_an_explicit_sum_per_sample():
    v, target = pair(3, 4, 5, 2)
    expected = [
        sum((a - b) ** 2 for a, b in zip(v[i].ravel().tolist(), target[i].ravel().tolist())) / 40 for i in range(3)
    ]
    torch.testing.assert_close(flow_matching_loss(v, target), torch.tensor(expected))


def test_is_zero_only_at_the_target_and_its_gradient_points_there():
    v, target = pair(2, 3, 4)
    assert flow_matching_loss(target, target).tolist() == [0.0, 0.0]
    v.requires_grad_()
    before = flow_matching_loss(v, target)
    (gradient,) = torch.autograd.grad(before.sum(), v)
    torch.testing.assert_close(gradient, 2 * (v - target).detach() / 12)
    assert (flow_matching_loss(v - 0.1 * gradient, target) < before).all()


def test_a_weight_scales_its_own_sample_alone():
    v, target = pair(3, 8)
    plain = flow_matching_loss(v, target)
    weighted = flow_matching_loss(v, target, torch.tensor([0.0, 1.0, 2.5], dtype=torch.float64))
    torch.testing.assert_close(weighted, plain * torch.tensor([0.0, 1.0, 2.5]))


def test_a_batch_is_its_samples():
    v, target = pair(4, 6, 3)
    alone = torch.cat([flow_matching_loss(v[i : i + 1], target[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(flow_matching_loss(v, target), alone)


def test_bfloat16_is_compared_in_float32():
    v, target = (t.bfloat16() for t in pair(2, 4096))
    loss = flow_matching_loss(v, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, (v.double() - target.double()).square().mean(1).float())
    assert flow_matching_loss(v, target.double()).dtype == torch.float64


def test_the_loss_of_the_true_velocity_is_zero_anywhere_on_the_path():
    x_0, eps = pair(3, 2, 4, 4)
    sigma = torch.tensor([0.1, 0.5, 0.9])
    x_t = interpolate(x_0, eps, sigma)
    v = (eps - x_t) / (1 - sigma)[:, None, None, None]  # the direction to the noise, from x_t alone
    assert flow_matching_loss(v, velocity(x_0, eps)).max() < 1e-10
    assert flow_matching_loss(v, velocity(eps, x_0)).min() > 1


def test_shapes_that_differ_are_refused():
    with pytest.raises(RuntimeError):
        flow_matching_loss(torch.zeros(2, 3), torch.zeros(2, 4))
