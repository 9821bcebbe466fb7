import math

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_shift

from firered_lit.flow.path import clean, interpolate, velocity
from firered_lit.flow.sampler import dpm_solver_2, euler, guide, resolution_shift, schedule
from firered_lit.models.family import open_base


@pytest.mark.parametrize("tokens", [96, 1024, 4096, 8192])
@pytest.mark.parametrize("steps", [2, 7, 40])
def test_the_schedule_is_the_stock_schedulers(tokens: int, steps: int) -> None:
    config = open_base("tiny").scheduler_config
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    shape = [config[k] for k in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")]
    scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).numpy(), mu=calculate_shift(tokens, *shape))
    assert torch.allclose(schedule(steps, tokens, config), scheduler.sigmas, atol=1e-6)


def test_one_step_goes_all_the_way() -> None:
    """The stock scheduler divides zero by zero here."""
    assert schedule(1, 1024, open_base("tiny").scheduler_config).tolist() == [1.0, 0.0]


def test_the_shift_moves_to_noise_and_more_for_larger_targets() -> None:
    config = open_base("tiny").scheduler_config
    sigma = torch.linspace(0.05, 0.95, 9)
    small, large = (resolution_shift(sigma, tokens, config) for tokens in (256, 4096))
    assert (sigma < small).all()
    assert (small < large).all()
    ends = torch.tensor([0.0, 1.0])
    assert torch.equal(resolution_shift(ends, 4096, config), ends)


@pytest.mark.parametrize("odds", [1.0, 3.0])
def test_a_shift_that_is_the_same_for_all_sizes_is_the_stock_schedulers(odds: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=odds, use_dynamic_shifting=False)
    sigma = torch.linspace(1, 0.1, 10)
    scheduler.set_timesteps(sigmas=sigma.numpy())
    shifted = resolution_shift(sigma, 4096, {"shift": odds, "use_dynamic_shifting": False})
    assert torch.allclose(shifted, scheduler.sigmas[:-1], atol=1e-6)


@pytest.mark.parametrize("bad", [{"use_karras_sigmas": True}, {"time_shift_type": "linear"}])
def test_another_familys_scheduler_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match="Qwen-Image family"):
        resolution_shift(torch.tensor([0.5]), 256, {"use_dynamic_shifting": True, **bad})


def test_the_path_goes_from_data_to_noise_and_back() -> None:
    x_0, eps = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(interpolate(x_0, eps, torch.zeros(2)), x_0)
    assert torch.equal(interpolate(x_0, eps, torch.ones(2)), eps)
    sigma = torch.tensor([0.2, 0.9])
    assert torch.allclose(clean(interpolate(x_0, eps, sigma), sigma, velocity(x_0, eps)), x_0, atol=1e-6)


def test_euler_recovers_the_data_from_the_true_velocity_in_any_number_of_steps() -> None:
    x_0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    for steps in (1, 5):
        sigmas = torch.linspace(1, 0, steps + 1)
        assert torch.allclose(euler(lambda x, s: velocity(x_0, eps), eps, sigmas), x_0, atol=1e-5)


MEAN, STD = 0.7, 0.3


def gaussian_data(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The exact velocity when data is Normal(MEAN, STD): E[eps - x_0 | x]."""
    s = sigma.to(x).reshape(-1, *[1] * (x.ndim - 1))
    variance = ((1 - s) * STD) ** 2 + s**2
    off = (x - (1 - s) * MEAN) / variance
    return s * off - (MEAN + (1 - s) * STD**2 * off)


def gaussian_path(eps: torch.Tensor, sigma: float) -> torch.Tensor:
    """Where the ODE of `gaussian_data` is at sigma when it was at `eps` at sigma = 1."""
    return (1 - sigma) * MEAN + math.sqrt(((1 - sigma) * STD) ** 2 + sigma**2) * eps


def written_out(velocity, noise: torch.Tensor, sigmas: list[float]) -> torch.Tensor:
    """DPM-Solver++(2M) as its paper writes it, in alpha, lambda and h; step by step, at finite lambdas alone."""
    alpha = [1 - s for s in sigmas]
    logsnr = [math.log(a / s) for a, s in zip(alpha, sigmas)]
    x, outputs = noise, []
    for i in range(1, len(sigmas)):
        outputs.append(x - sigmas[i - 1] * velocity(x, torch.tensor([sigmas[i - 1]])))
        h = logsnr[i] - logsnr[i - 1]
        data = outputs[-1]
        if i > 1:
            r = (logsnr[i - 1] - logsnr[i - 2]) / h
            data = (1 + 1 / (2 * r)) * outputs[-1] - 1 / (2 * r) * outputs[-2]
        x = sigmas[i] / sigmas[i - 1] * x - alpha[i] * (math.exp(-h) - 1) * data
    return x


EPS = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)


@pytest.mark.parametrize(("field", "answer"), [(lambda y, s: y, math.exp(-0.8)), (gaussian_data, None)])
def test_halving_the_step_divides_the_error_of_the_second_order_solver_by_four(field, answer) -> None:
    start = EPS if answer else gaussian_path(EPS, 0.9)
    expected = answer * EPS if answer else gaussian_path(EPS, 0.1)
    errors = [
        (dpm_solver_2(field, start, torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)) - expected).abs().max().item()
        for n in (64, 128, 256)
    ]
    assert 3.6 < errors[0] / errors[1] < 4.6
    assert 3.6 < errors[1] / errors[2] < 4.6


def test_over_the_whole_path_the_second_order_solver_is_nearer_than_euler() -> None:
    for n in (8, 16, 32, 64):
        sigmas = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        errors = [(s(gaussian_data, EPS, sigmas) - gaussian_path(EPS, 0)).abs().max() for s in (euler, dpm_solver_2)]
        assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("steps", [1, 2, 6])
def test_the_second_order_solver_recovers_the_data_from_the_true_velocity(steps: int) -> None:
    """The path is straight and the estimate of x_0 the same everywhere."""
    x_0, eps = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    sigmas = schedule(steps, 1024, open_base("tiny").scheduler_config)
    assert torch.allclose(dpm_solver_2(lambda x, s: velocity(x_0, eps), eps, sigmas), x_0, atol=1e-5)


def test_one_and_two_steps_of_the_second_order_solver_are_euler_s() -> None:
    """From pure noise and to pure data there is nothing to carry on."""
    for sigmas in ([1.0, 0.0], [1.0, 0.4, 0.0], [0.8, 0.5]):
        path = torch.tensor(sigmas, dtype=torch.float64)
        torch.testing.assert_close(dpm_solver_2(gaussian_data, EPS, path), euler(gaussian_data, EPS, path))
    path = torch.tensor([1.0, 0.7, 0.4, 0.0], dtype=torch.float64)
    assert not torch.allclose(dpm_solver_2(gaussian_data, EPS, path[1:]), euler(gaussian_data, EPS, path))


def test_the_second_order_solver_is_the_paper_s_written_out() -> None:
    sigmas = [0.95, 0.9, 0.72, 0.5, 0.21, 0.05]
    path = torch.tensor(sigmas, dtype=torch.float64)
    torch.testing.assert_close(dpm_solver_2(gaussian_data, EPS, path), written_out(gaussian_data, EPS, sigmas))


@pytest.mark.parametrize("steps", [2, 6, 20])
def test_the_second_order_solver_is_that_of_diffusers(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", solver_order=2, flow_shift=3.0
    )
    scheduler.set_timesteps(steps)
    x = EPS
    for i, step in enumerate(scheduler.timesteps):
        x = scheduler.step(gaussian_data(x, scheduler.sigmas[i : i + 1]), step, x).prev_sample
    torch.testing.assert_close(dpm_solver_2(gaussian_data, EPS, scheduler.sigmas), x, atol=1e-6, rtol=0)


def test_the_second_order_solver_asks_for_one_velocity_a_step_at_its_sigma() -> None:
    asked = []

    def field(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        asked.append((x.shape, sigma.tolist()))
        return gaussian_data(x, sigma)

    dpm_solver_2(field, EPS.expand(2, 1, 3, 3), torch.tensor([1.0, 0.75, 0.5, 0.0]))
    assert asked == [((2, 1, 3, 3), [s, s]) for s in (1.0, 0.75, 0.5)]


def test_euler_converges_on_a_field_that_bends() -> None:
    """dx / dsigma = x from sigma = 1: x(0) = x(1) / e."""
    x = torch.ones(1, 1, 2, 2)
    errors = [
        abs(euler(lambda y, s: y, x, torch.linspace(1, 0, n + 1)).mean().item() - 1 / math.e) for n in (8, 16, 32)
    ]
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2]


def test_guidance_of_one_is_the_condition_and_norms_are_kept() -> None:
    positive, negative = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 4, 6)
    assert torch.allclose(guide(positive, negative, 1.0), positive, atol=1e-5)
    guided = guide(positive, negative, 5.0)

    def norms(v: torch.Tensor) -> torch.Tensor:
        return v.reshape(2, 16, 2, 2, 3, 2).square().sum((1, 3, 5)).sqrt()

    assert torch.allclose(norms(guided), norms(positive), rtol=1e-4)
    away = ((guided - positive) * (positive - negative)).sum()
    assert away > 0  # away from the unconditional


def test_guidance_scales_each_token_by_one_factor() -> None:
    """A token is the vector of its 2 x 2 latents, all channels: its direction stays the combined one's."""
    positive, negative = torch.randn(2, 1, 16, 4, 6, dtype=torch.float64)
    combined = negative + 4.0 * (positive - negative)
    ratio = guide(positive, negative, 4.0) / combined
    for top in (0, 2):
        for left in (0, 2, 4):
            one = ratio[0, :, top : top + 2, left : left + 2]
            assert torch.allclose(one, one[:1, :1, :1].expand_as(one), rtol=1e-9)
