"""What validation measures: fixed points that differ, the shift of the target's own tokens, samples by their weight."""

from dataclasses import replace
from functools import partial
from itertools import combinations

import pytest
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage import calculate_shift
from test_sft import batch as edits
from torchmetrics.functional.image import peak_signal_noise_ratio

from firered_lit.batch import Condition, Text
from firered_lit.draws import gaussian
from firered_lit.flow.sampler import schedule
from firered_lit.flow.timesteps import shift
from firered_lit.losses.flow_matching import flow_matching_loss
from firered_lit.models.backbone import Backbone
from firered_lit.models.qwen_image import pack
from firered_lit.models.sampling import Preview, sample
from firered_lit.stages.sft import SFT


@pytest.fixture(scope="module")
def stage() -> SFT:
    stage = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), seed=3)
    stage.configure_model()
    return stage


def shifted(sigma: torch.Tensor, stage: SFT, tokens: int) -> torch.Tensor:
    """sigma as the stock pipeline shifts it for a target of so many tokens."""
    config = stage.scheduler_config
    line = [config[k] for k in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")]
    return shift(sigma, calculate_shift(tokens, *line))


def test_sigma_is_shifted_for_the_tokens_that_the_transformer_is_given_of_the_target(stage):
    b, sigma = edits(), torch.linspace(0.05, 0.95, 7)
    tokens = pack(b.target).shape[1]
    torch.testing.assert_close(stage.shift(sigma, b), shifted(sigma, stage, tokens), atol=1e-7, rtol=0)
    assert not torch.allclose(stage.shift(sigma, b), shifted(sigma, stage, 4 * tokens), atol=1e-4)


def test_the_four_points_are_the_middles_of_four_strata_each_with_noise_of_its_own(stage):
    b = edits()
    points = list(stage.fixed_points(b))
    middles = shifted(torch.tensor([0.125, 0.375, 0.625, 0.875]), stage, pack(b.target).shape[1])
    torch.testing.assert_close(torch.stack([sigma[0] for _, sigma in points]), middles, atol=1e-6, rtol=0)
    for (eps, _), (other, _) in combinations(points, 2):
        correlation = torch.corrcoef(torch.stack([eps.flatten(), other.flatten()]))[0, 1]
        assert abs(correlation) < 0.1


def test_a_point_s_noise_is_the_sample_s_own_wherever_it_stands(stage):
    b = edits()
    turned = replace(b, facts=b.facts[::-1])
    for (eps, _), (other, _) in zip(stage.fixed_points(b), stage.fixed_points(turned)):
        assert torch.equal(eps, other.flip(0))
        assert not torch.allclose(eps[0], eps[1])


@pytest.fixture(scope="module")
def scored(stage):
    """A batch with pictures, a negative prompt and one sample that only fills up."""
    b = edits(references=((8, 12),))
    pixels = torch.rand((3, 3, 96, 128), generator=torch.Generator().manual_seed(7)) * 2 - 1
    negative = Text.pad([torch.randn(4, 64, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    return replace(b, pixels=pixels, unconditional=negative, weight=torch.tensor([1.0, 0.0, 1.0]))


def drawn(stage, b, guidance):
    """The edits of a batch, drawn with the sampler alone."""
    noise = torch.cat([gaussian(b.target.shape[1:], (0,), "sample", name) for name in b.ids])
    sigmas = schedule(3, pack(b.target).shape[1], stage.scheduler_config)
    negative = Condition(b.unconditional, b.condition.references)
    return stage.codec.decode(sample(stage.transformer, noise, sigmas, b.condition, negative, guidance)).float()


def test_a_preview_is_guided_away_from_the_unconditional_text_along_the_target_s_own_schedule(stage, scored):
    stage.preview = Preview(steps=3, guidance=4.0)
    output = stage.draw(scored)
    torch.testing.assert_close(output, drawn(stage, scored, 4.0), atol=1e-6, rtol=0)
    assert (output - drawn(stage, scored, 1.0)).abs().max() > 1e-3


def test_what_only_fills_up_a_rank_s_share_counts_in_no_score(stage, scored):
    stage.preview = Preview(steps=3, guidance=1.0)
    for metric in stage.scores.values():
        metric.reset()
    with torch.no_grad():
        output = stage.validation_step(scored, 0)["output"]
        losses = stage.fixed_loss(scored)
    psnr = torch.stack([peak_signal_noise_ratio(output[i], scored.pixels[i], data_range=(-1.0, 1.0)) for i in range(3)])
    for name, values in (("loss", losses), ("psnr", psnr)):
        torch.testing.assert_close(stage.scores[name].compute(), values[[0, 2]].mean(), atol=1e-5, rtol=1e-5)
        assert abs(values.mean() - values[[0, 2]].mean()) > 1e-4


def test_a_loss_weight_is_given_the_law_that_sigma_is_drawn_by_shift_included(stage):
    seen = {}

    def weight(sigma, law):
        seen["sigma"], seen["law"] = sigma, law
        return torch.ones_like(sigma)

    weighted = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), weight=weight, seed=3)
    weighted.transformer = stage.transformer
    with torch.no_grad():
        losses = weighted.losses(edits())
    u = torch.linspace(0.05, 0.95, 9)
    tokens = pack(edits().target).shape[1]
    torch.testing.assert_close(seen["law"](u), shifted(weighted.timesteps(u), stage, tokens), atol=1e-6, rtol=0)
    assert not torch.allclose(seen["law"](u), weighted.timesteps(u), atol=1e-3)
    assert torch.equal(seen["sigma"], weighted.draw_sigma(edits()))
    assert losses.shape == flow_matching_loss(edits().target, edits().target).shape
