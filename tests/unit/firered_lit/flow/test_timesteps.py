"""Laws of sigma against scipy and the real scheduler, the strata's promises, the weight's mean."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from scipy import integrate, special, stats

from firered_lit.flow import timesteps as t

U = torch.linspace(0, 1, 1001, dtype=torch.float64)[:-1]
LAWS = {
    "uniform": t.uniform,
    "logit_normal": partial(t.logit_normal, mean=0.5, std=1.2),
    "narrow": partial(t.logit_normal, mean=-1.0, std=0.3),
    "curriculum": partial(t.curriculum, progress=0.1, mean=1.0, std=0.8, start_weight=0.7, end=0.4),
    "curriculum_over": partial(t.curriculum, progress=0.9, mean=1.0, std=0.8, start_weight=0.7, end=0.4),
}


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_law_is_increasing_and_stays_in_the_unit_interval(law, dtype):
    u = torch.cat([U.to(dtype), torch.tensor([np.nextafter(np.float32(1), np.float32(0))], dtype=dtype)])
    sigma = law(u)
    assert sigma.dtype == dtype
    assert (sigma.diff() > 0).all()
    assert 0 <= sigma.min() < 0.1
    assert 0.5 < sigma.max() <= 1


def test_logit_normal_is_the_inverse_of_its_cdf_and_mean_leans_to_noise():
    sigma = t.logit_normal(U, mean=0.4, std=1.3)
    np.testing.assert_allclose(stats.norm.cdf((special.logit(sigma) - 0.4) / 1.3), U, atol=1e-12)
    assert t.logit_normal(torch.tensor([0.5]), mean=2.0) > 0.85


@pytest.mark.parametrize("progress", [0.0, 0.15, 0.3, 0.6])
def test_the_curriculum_inverts_the_integral_of_its_density(progress):
    options = {"progress": progress, "mean": 1.2, "std": 0.7, "start_weight": 0.8, "end": 0.6}

    def density(x):
        return float(t.curriculum_density(torch.tensor(x, dtype=torch.float64), **options))

    for u in (0.05, 0.4, 0.77, 0.99):
        sigma = float(t.curriculum(torch.tensor([u], dtype=torch.float64), **options))
        assert integrate.quad(density, 0, sigma, epsabs=1e-11)[0] == pytest.approx(u, abs=1e-9)


def test_the_curriculum_falls_linearly_from_noise_to_uniform():
    options = {"mean": 1.0, "std": 1.0, "start_weight": 0.8, "end": 0.5}
    weights = [t.curriculum_weight(p, start_weight=0.8, end=0.5) for p in (0, 0.125, 0.25, 0.5, 1)]
    assert weights == pytest.approx([0.8, 0.6, 0.4, 0, 0])
    means = [float(t.curriculum(U, progress=p, **options).mean()) for p in (0.0, 0.2, 0.4, 0.5, 1.0)]
    assert means[0] > means[1] > means[2] > means[3] == means[4] == pytest.approx(0.4995)
    torch.testing.assert_close(t.curriculum(U, progress=0.7, **options), U, atol=1e-15, rtol=0)


def test_draws_of_the_curriculum_follow_its_density():
    options = {"progress": 0.1, "mean": 1.0, "std": 0.8, "start_weight": 0.9, "end": 0.5}
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts, _ = np.histogram(t.curriculum(u, **options).numpy(), bins=20, range=(0, 1))
    middles = torch.linspace(0, 1, 20 * 50 + 1, dtype=torch.float64)[:-1] + 0.5 / 1000
    expected = t.curriculum_density(middles, **options).reshape(20, 50).mean(1).numpy() * 1000
    assert stats.chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > 0.01


@pytest.mark.parametrize(("mean", "std"), [(0, 1), (1.5, 0.5), (-1, 2)])
def test_the_density_integrates_to_one_and_vanishes_at_the_ends(mean, std):
    def density(x):
        return float(t.logit_normal_density(torch.tensor(x, dtype=torch.float64), mean=mean, std=std))

    assert integrate.quad(density, 0, 1)[0] == pytest.approx(1)
    assert density(0.0) == density(1.0) == 0


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_the_weight_has_mean_one_under_its_law_and_the_shape_of_the_density(law):
    def shifted(u):
        return t.shift(law(u), 0.6)

    u = torch.rand(200_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weight = t.logit_normal_weight(shifted(u), law=shifted, mean=0.2, std=0.9)
    assert float(weight.mean()) == pytest.approx(1, abs=0.01)
    ratio = weight / t.logit_normal_density(shifted(u), mean=0.2, std=0.9)
    assert float(ratio.std() / ratio.mean()) < 1e-9


def test_the_weight_keeps_the_dtype_of_sigma():
    assert t.logit_normal_weight(torch.tensor([0.3, 1.0])).dtype == torch.float32


QWEN = {"base_shift": 0.5, "max_shift": 0.9, "base_image_seq_len": 256, "max_image_seq_len": 8192}


@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096, 8192, 9000])
@pytest.mark.parametrize("terminal", [None, 0.02])
def test_shift_and_stretch_are_the_scheduler_s(tokens, terminal):
    mu = t.dynamic_mu(tokens, base_tokens=256, max_tokens=8192, base_shift=0.5, max_shift=0.9)
    assert mu == pytest.approx(calculate_shift(tokens, 256, 8192, 0.5, 0.9))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift_terminal=terminal, **QWEN)
    steps = np.linspace(1, 1 / 10, 10)
    scheduler.set_timesteps(sigmas=list(steps), mu=mu)
    ours = t.shift(torch.from_numpy(steps), mu)
    ours = ours if terminal is None else t.stretch(ours, terminal)
    torch.testing.assert_close(ours.float(), scheduler.sigmas[:-1], atol=1e-6, rtol=0)


def test_shift_fixes_the_ends_and_moves_the_rest_to_noise():
    sigma = torch.linspace(0, 1, 11)
    assert t.shift(sigma, 1.0)[[0, -1]].tolist() == [0, 1]
    assert (t.shift(sigma, 1.0)[1:-1] > sigma[1:-1]).all()
    torch.testing.assert_close(t.shift(t.shift(sigma, 1.3), -1.3), sigma)


def strata(u: torch.Tensor, count: int) -> list[int]:
    return (u.double() * count).floor().long().tolist()


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_ranks_of_a_step_hit_every_stratum_once(batch):
    for ranks in range(1, 65):
        count = ranks * batch
        for step in (0, 17):
            parts = [
                t.stratified_uniform(step, range(r * batch, r * batch + batch), count, seed=3) for r in range(ranks)
            ]
            u = torch.cat(parts)
            assert sorted(strata(u, count)) == list(range(count))
            assert torch.equal(u, t.stratified_uniform(step, range(count), count, seed=3))


@pytest.mark.parametrize(("rank", "ranks", "batch"), [(0, 2, 1), (3, 8, 1), (5, 64, 1), (1, 4, 2)])
def test_a_rank_alone_is_uniform_over_steps(rank, ranks, batch):
    """10,000 steps, at the first rank's and at other ranks' slots; each of a rank's slots by itself."""
    slots = range(rank * batch, rank * batch + batch)
    u = torch.stack([t.stratified_uniform(step, slots, ranks * batch, seed=0) for step in range(10_000)])
    for place in range(batch):
        assert stats.kstest(u[:, place].numpy(), "uniform").pvalue > 0.01


def test_the_permutation_rotates_and_the_place_is_always_new():
    u = [t.stratified_uniform(step, range(16), 16, seed=5, rotate_every=4) for step in range(8)]
    held = [strata(x, 16) for x in u]
    assert held[0] == held[1] == held[2] == held[3] != held[4] == held[7]
    assert not any((a == b).any() for a, b in pairwise(u))
    assert strata(t.stratified_uniform(0, range(16), 16, seed=6), 16) != held[0]


def test_strata_lower_the_spread_of_a_batch_mean():
    def spread(draw):
        return float(torch.stack([draw(s).square().mean() for s in range(300)]).std())

    generator = torch.Generator().manual_seed(0)
    plain = spread(lambda _: torch.rand(16, generator=generator))
    assert spread(lambda s: t.stratified_uniform(s, range(16), 16, seed=0)) < plain / 5


def test_a_float32_draw_never_leaves_its_stratum(monkeypatch):
    for extreme in (0.0, math.nextafter(1.0, 0.0)):
        monkeypatch.setattr(torch, "rand", lambda *_, extreme=extreme, **__: torch.tensor(extreme, dtype=torch.float64))
        for count in (1, 3, 1000, 4096):
            u = t.stratified_uniform(0, range(count), count, seed=0)
            assert u.dtype == torch.float32
            assert sorted(strata(u, count)) == list(range(count))
            assert u.max() < 1
