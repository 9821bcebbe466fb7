import math

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_shift

from firered_lit.flow.path import clean, interpolate, velocity
from firered_lit.flow.sampler import euler, guide, resolution_shift, schedule
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
