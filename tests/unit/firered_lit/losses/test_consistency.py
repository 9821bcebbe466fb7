"""The consistency loss: its weight, the warp onto the template, the cosine's direction."""

import numpy as np
import pytest
import torch

from firered_lit.losses.consistency import (
    FACE_SIZE,
    FACE_TEMPLATE,
    box_transform,
    identity_loss,
    identity_weight,
    similarity_transform,
    warp,
)

TEMPLATE = torch.tensor(FACE_TEMPLATE)


def umeyama(source: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """By singular values, as printed in the paper (1991), eq. 40-42."""
    a, b = source - source.mean(0), goal - goal.mean(0)
    u, d, vt = np.linalg.svd(b.T @ a)
    s = np.diag([1, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation, scale = u @ s @ vt, np.trace(np.diag(d) @ s) / (a**2).sum()
    return np.concatenate([scale * rotation, (goal.mean(0) - scale * rotation @ source.mean(0))[:, None]], 1)


def moved(angle: float, scale: float, offset: tuple[float, float]) -> torch.Tensor:
    """The template's points as found in a picture where the face is turned, scaled and displaced."""
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], dtype=torch.float32)
    return scale * TEMPLATE @ turn.T + torch.tensor(offset)


def test_weight_is_eta_sigma_squared_and_zero_from_the_cutoff_on():
    sigma = torch.tensor([0.0, 0.3, 0.899, 0.9, 0.95, 1.0])
    expected = torch.tensor([0.0, 0.18, 2 * 0.899**2, 0, 0, 0])
    torch.testing.assert_close(identity_weight(sigma, eta=2.0), expected)
    assert identity_weight(torch.tensor([0.5]), eta=1.0, cutoff=0.4) == 0


def test_similarity_equals_umeyama_on_noisy_and_on_mirrored_landmarks():
    rng = np.random.default_rng(0)
    landmarks = rng.uniform(0, 400, (6, 5, 2))
    landmarks[5] = TEMPLATE.numpy() * [-1, 1] + [120, 0]
    got = similarity_transform(torch.from_numpy(landmarks), TEMPLATE)
    for points, transform in zip(landmarks, got.numpy()):
        np.testing.assert_allclose(transform, umeyama(points, TEMPLATE.double().numpy()), atol=1e-9)
        assert np.linalg.det(transform[:, :2]) > 0


@pytest.mark.parametrize("angle", [0.0, 0.4, -1.2, 3.0])
@pytest.mark.parametrize("scale", [0.5, 3.7])
def test_a_turned_and_scaled_face_lands_on_the_template(angle, scale):
    points = moved(angle, scale, (310.0, 150.0))
    transform = similarity_transform(points[None], TEMPLATE)[0]
    torch.testing.assert_close(points @ transform[:, :2].T + transform[:, 2], TEMPLATE, atol=1e-3, rtol=0)


def test_coinciding_landmarks_are_refused():
    with pytest.raises(ValueError, match="coincide"):
        similarity_transform(torch.ones(1, 5, 2), TEMPLATE)


def spots(points: torch.Tensor, height: int, width: int, radius: float) -> torch.Tensor:
    """(1, P, height, width): one soft spot per channel, centred on its point."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.exp(-((x - px) ** 2 + (y - py) ** 2) / (2 * radius**2)) for px, py in points])[None]


def centres(images: torch.Tensor) -> torch.Tensor:
    """(P, 2): the centre of mass of each channel."""
    mass = images[0] / images[0].sum((1, 2), keepdim=True)
    y, x = torch.meshgrid(torch.arange(images.shape[2]), torch.arange(images.shape[3]), indexing="ij")
    return torch.stack([(mass * x).sum((1, 2)), (mass * y).sum((1, 2))], -1)


@pytest.mark.parametrize("angle", [0.0, 0.5, -0.9])
def test_what_the_picture_shows_at_the_landmarks_is_seen_at_the_template(angle):
    points = moved(angle, 1.8, (140.0, 60.0 if angle <= 0 else 90.0)) + torch.tensor([0.0, 120.0 * (angle < 0)])
    picture = spots(points, 400, 420, radius=5)
    face = warp(picture, similarity_transform(points[None], TEMPLATE), FACE_SIZE)
    assert face.shape == (1, 5, 112, 112)
    assert (centres(face) - TEMPLATE).abs().max() < 0.1


def test_the_identity_transform_shows_the_picture():
    picture = torch.rand(2, 3, 7, 9, generator=torch.Generator().manual_seed(0))
    identity = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3)
    torch.testing.assert_close(warp(picture, identity, (7, 9)), picture)
    torch.testing.assert_close(warp(picture, identity, (5, 4)), picture[:, :, :5, :4])
    shifted = torch.tensor([[1.0, 0, -2], [0, 1, -1]]).expand(2, 2, 3)
    torch.testing.assert_close(warp(picture, shifted, (6, 7)), picture[:, :, 1:, 2:])


def test_a_box_fills_the_canvas():
    picture = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    crop = warp(picture, box_transform(torch.tensor([[4, 6, 14, 12]]), (6, 10)), (6, 10))
    torch.testing.assert_close(crop, picture[:, :, 6:12, 4:14])
    half = warp(picture, box_transform(torch.tensor([[4, 6, 14, 12]]), (3, 5)), (3, 5))
    torch.testing.assert_close(half, torch.nn.functional.avg_pool2d(picture[:, :, 6:12, 4:14], 2))


def test_the_gradient_reaches_the_picture_only_where_the_region_is():
    picture = torch.rand(1, 3, 20, 30).requires_grad_()
    warp(picture, box_transform(torch.tensor([[4, 6, 14, 12]]), (6, 10)), (6, 10)).sum().backward()
    inside = torch.zeros(20, 30)
    inside[6:12, 4:14] = 1
    torch.testing.assert_close(picture.grad, inside.expand(1, 3, 20, 30))


def test_equal_regions_cost_nothing_and_opposite_ones_two():
    a = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    owner = torch.tensor([0, 1, 2])
    torch.testing.assert_close(identity_loss(a, 2.5 * a, owner, 3), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(identity_loss(a, -a, owner, 3), torch.full((3,), 2.0))


def test_regions_average_within_their_sample_and_none_is_zero():
    a, b = torch.eye(4)[[0, 1, 2]], torch.eye(4)[[0, 2, 3]]
    assert identity_loss(a, b, torch.tensor([2, 2, 0]), 4).tolist() == [1.0, 0.0, 0.5, 0.0]
    assert float(identity_loss(a, b)) == pytest.approx(2 / 3)
    assert identity_loss(a[:0], b[:0], torch.zeros(0, dtype=torch.long), 2).tolist() == [0, 0]


def test_the_gradient_raises_the_cosine():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 5, 16, generator=g)
    a.requires_grad_()
    before = torch.cosine_similarity(a, b)
    (gradient,) = torch.autograd.grad(identity_loss(a, b).sum(), a)
    assert (torch.cosine_similarity(a - 0.5 * gradient, b) > before).all()


def test_through_the_warp_a_gradient_step_brings_the_picture_nearer():
    g = torch.Generator().manual_seed(0)
    truth, picture = torch.randn(2, 1, 3, 64, 64, generator=g)
    transform = similarity_transform(TEMPLATE[None] * 0.5, TEMPLATE)

    def loss(image):
        return identity_loss(warp(image, transform, (28, 28)).flatten(1), warp(truth, transform, (28, 28)).flatten(1))

    picture.requires_grad_()
    before = loss(picture)
    (gradient,) = torch.autograd.grad(before.sum(), picture)
    assert loss(picture - 10 * gradient) < before
    assert torch.equal(loss(truth) < 1e-6, torch.tensor([True]))
