"""The flow matching loss against an explicit sum, its gradient's direction, and what half precision would lose."""

import pytest
import torch

from firered_lit.flow.path import interpolate, velocity
from firered_lit.losses.flow_matching import edit_emphasis, flow_matching_loss


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


def masks() -> torch.Tensor:
    """(3, 1, 32, 32): an edit of a quarter of the picture, of one pixel, and none."""
    found = torch.zeros(3, 1, 32, 32)
    found[0, :, :16, :16] = 1
    found[1, :, 31, 0] = 1
    return found


def test_an_emphasised_edit_takes_its_share_of_the_loss_whatever_its_size():
    """With errors of 1 in the edit, or elsewhere, or in all, the loss is the share, the rest of it, or 1."""
    weights = edit_emphasis(masks(), (8, 8), 0.7, floor=0.0)
    assert weights.shape == (3, 1, 8, 8)
    torch.testing.assert_close(weights.mean((1, 2, 3)), torch.ones(3))
    target = torch.zeros(3, 5, 8, 8)
    edited = torch.nn.functional.max_pool2d(masks(), 4).expand_as(target)
    inside = flow_matching_loss(edited, target, None, weights)
    torch.testing.assert_close(inside, torch.tensor([0.7, 0.7, 0.0]))
    outside = flow_matching_loss(1 - edited, target, None, weights)
    torch.testing.assert_close(outside, torch.tensor([0.3, 0.3, 1.0]))
    whole = flow_matching_loss(torch.ones_like(target), target, None, weights)
    torch.testing.assert_close(whole, torch.ones(3))


def test_a_small_part_is_held_back_by_the_floor_whether_it_changes_or_stays():
    weights = edit_emphasis(masks(), (8, 8), 0.8, floor=0.3)
    assert weights[0].max() == weights[1].max() == pytest.approx(0.8 / 0.3)
    all_but_a_latent = torch.ones(1, 1, 32, 32)
    all_but_a_latent[:, :, :4, :4] = 0
    weights = edit_emphasis(all_but_a_latent, (8, 8), 0.8, floor=0.3)
    assert weights.max() == pytest.approx(0.8 * 64 / 63)
    assert weights[0, 0, 0, 0] == weights.min() == pytest.approx(0.2 / 0.3)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_picture_that_stays_or_changes_as_a_whole_is_weighed_alike(value: float):
    weights = edit_emphasis(torch.full((2, 1, 32, 32), value), (8, 8), 0.9)
    torch.testing.assert_close(weights, torch.ones(2, 1, 8, 8))


def test_emphasis_moves_the_gradient_to_the_edit():
    v, target = pair(3, 5, 8, 8)
    v.requires_grad_()
    (plain,) = torch.autograd.grad(flow_matching_loss(v, target).sum(), v)
    (moved,) = torch.autograd.grad(flow_matching_loss(v, target, None, edit_emphasis(masks(), (8, 8), 0.5)).sum(), v)
    ratio = moved / plain
    assert ratio[0, :, :4, :4].min() > 1 > ratio[0, :, 4:, 4:].max()
    torch.testing.assert_close(moved[2], plain[2])
