"""The SFT step: what it draws, and that a batch is the mean of its samples."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.facts import Facts
from firered_lit.flow.timesteps import logit_normal, logit_normal_weight, uniform
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.models.qwen_image import velocity
from firered_lit.models.sampling import Preview
from firered_lit.stages.pretrain import Pretrain
from firered_lit.stages.sft import SFT


@pytest.fixture(scope="module")
def stage() -> SFT:
    stage = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), timesteps=logit_normal, seed=3)
    stage.configure_model()
    return stage


def batch(lengths=(9, 4, 6), references=((8, 12), (12, 8)), step: int = 5, slots=None, num_slots: int = 8) -> EditBatch:
    g = torch.Generator().manual_seed(0)
    n = len(lengths)
    text = Text.pad([torch.randn(length, 64, generator=g) for length in lengths])
    clean = tuple(torch.randn(n, 16, *shape, generator=g) for shape in references)
    target = torch.randn(n, 16, 12, 16, generator=g)
    slots = tuple(range(n)) if slots is None else slots
    facts = tuple(Facts(f"id{i}") for i in range(n))
    return EditBatch(target, Condition(text, clean), facts, step, slots, num_slots)


def alone(b: EditBatch, i: int) -> EditBatch:
    keep = slice(i, i + 1)
    length = (
        len(b.condition.text.embeddings[i]) if b.condition.text.mask is None else int(b.condition.text.mask[i].sum())
    )
    text = Text(b.condition.text.embeddings[keep, :length], None)
    references = tuple(r[keep] for r in b.condition.references)
    return EditBatch(b.target[keep], Condition(text, references), b.facts[keep], b.step, b.slots[keep], b.num_slots)


@pytest.mark.parametrize("references", [(), ((8, 12),), ((8, 12), (12, 8)), ((8, 12), (12, 8), (6, 6))])
def test_a_batchs_loss_is_the_mean_of_its_samples_alone(stage: SFT, references: tuple) -> None:
    b = batch(references=references)
    with torch.no_grad():
        together = stage.losses(b)
        singles = torch.cat([stage.losses(alone(b, i)) for i in range(len(b))])
    assert torch.allclose(together, singles, atol=1e-5)
    assert together.mean().item() == pytest.approx(singles.mean().item(), abs=1e-5)


def test_fault_1_noise_and_sigma_change_with_the_step(stage: SFT) -> None:
    """The authors re-seed the generator inside the step: the same noise at every step, one sigma per rank for ever."""
    a, b = batch(step=1), batch(step=2)
    assert not torch.equal(stage.draw_sigma(a), stage.draw_sigma(b))
    with torch.no_grad():
        assert not torch.allclose(stage.losses(a), stage.losses(b))
        assert torch.equal(stage.losses(a), stage.losses(batch(step=1)))
    draws = torch.stack([stage.draw_sigma(batch(step=s)) for s in range(64)])
    assert (draws.std(0) > 0.1).all()  # every slot sees the whole range over time


def test_draws_depend_on_the_slot_and_not_on_who_holds_it(stage: SFT) -> None:
    whole = batch()
    half = alone(whole, 2)
    assert torch.equal(stage.draw_sigma(whole)[2:], stage.draw_sigma(half))
    assert torch.equal(gaussian((2, 3), (0, 1, 2), 3, "noise", 5)[2:], gaussian((2, 3), (2,), 3, "noise", 5))


def test_fault_7_every_reference_has_its_own_shape_in_a_batch(stage: SFT) -> None:
    """One list of shapes rules a batch; a batch that could not satisfy it cannot be built."""
    b = batch()
    ragged = Condition(b.condition.text, (b.condition.references[0][:1],))
    with pytest.raises(ValueError, match="differ in length"):
        EditBatch(b.target, ragged, b.facts, 0, b.slots, 3)
    with torch.no_grad():
        right = stage.losses(batch(references=((8, 12), (12, 8))))
        swapped = stage.losses(batch(references=((12, 8), (8, 12))))
    assert not torch.allclose(right, swapped)


def test_the_loss_reaches_every_trainable_parameter(stage: SFT) -> None:
    stage.losses(batch()).mean().backward()
    trainable = {n for n, p in stage.transformer.named_parameters() if p.requires_grad}
    reached = {n for n, p in stage.transformer.named_parameters() if p.grad is not None}
    assert trainable == reached
    stage.zero_grad(set_to_none=True)


def test_one_step_against_the_gradient_lowers_the_loss(stage: SFT) -> None:
    torch.manual_seed(0)
    fresh = SFT(Backbone("tiny"), partial(torch.optim.SGD, lr=1e-2), timesteps=uniform)
    fresh.configure_model()
    optimizer = fresh.configure_optimizers()
    before = fresh.losses(batch()).mean()
    before.backward()
    optimizer.step()
    assert fresh.losses(batch()).mean() < before


def test_the_weight_is_applied_to_the_sigma_that_was_drawn(stage: SFT) -> None:
    weighted = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), weight=lambda sigma, law: 2 * sigma, seed=3)
    weighted.transformer = stage.transformer
    with torch.no_grad():
        assert torch.allclose(
            weighted.losses(batch()), stage.losses(batch()) * 2 * stage.draw_sigma(batch()), atol=1e-6
        )


@pytest.mark.parametrize("kept", [True, "products"])
def test_checkpointed_activations_give_the_same_gradients(stage: SFT, kept: bool | str) -> None:
    other = SFT(Backbone("tiny", gradient_checkpointing=kept), partial(torch.optim.AdamW, lr=1e-3), seed=3)
    other.configure_model()
    other.transformer.load_state_dict(stage.transformer.state_dict())
    for s in (stage, other):
        s.zero_grad(set_to_none=True)
        s.losses(batch()).mean().backward()
    grads = [[p.grad for p in s.transformer.parameters() if p.grad is not None] for s in (stage, other)]
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*grads, strict=True))
    stage.zero_grad(set_to_none=True)


def test_compiled_blocks_choose_by_themselves_what_they_keep() -> None:
    with pytest.raises(UserError, match="products: compiled blocks choose"):
        Backbone("tiny", gradient_checkpointing="products", compile_blocks=True)


@pytest.mark.parametrize("lora", [None, LoRA(rank=2, alpha=2)])
def test_kept_products_are_not_computed_again(lora: LoRA | None) -> None:
    """Operations of forward and backward: one more forward when blocks keep their input alone, none with products."""
    counts = {}
    for kept in (False, True, "products"):
        net = Backbone("tiny", gradient_checkpointing=kept, lora=lora).load()
        b = batch()
        with FlopCounterMode(display=False) as counter:
            velocity(net, b.target, torch.zeros(len(b)), b.condition).sum().backward()
        counts[kept] = counter.get_total_flops()
    assert counts["products"] == counts[False]
    assert counts[True] > 1.25 * counts[False]


def test_the_frozen_vae_is_in_no_checkpoint(stage: SFT) -> None:
    stage.preview = Preview(steps=1)
    assert stage.draw(batch(references=())).shape == (3, 3, 96, 128)
    assert all(name.startswith(("transformer.", "scores.")) for name in stage.state_dict())
    stage.preview = None


def test_half_weights_take_half_inputs_and_the_loss_is_float32() -> None:
    half = SFT(Backbone("tiny", dtype="bfloat16"), partial(torch.optim.AdamW, lr=1e-3), seed=3)
    full = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), seed=3)
    for s in (half, full):
        s.configure_model()
    with torch.no_grad():
        a, b = half.losses(batch()), full.losses(batch())
    assert a.dtype == torch.float32
    assert torch.allclose(a, b, rtol=0.05)


def test_the_loss_weight_has_mean_one_under_the_law_that_sigma_is_drawn_by() -> None:
    """Shift included: with another target size the weights move, their mean does not."""
    weighted = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), timesteps=uniform, weight=logit_normal_weight)
    u = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    for side in (12, 64):
        b = replace(alone(batch(references=()), 0), target=torch.zeros(1, 16, side, side))
        sigma = weighted.law(b)(u)
        assert weighted.weight(sigma, law=weighted.law(b)).mean().item() == pytest.approx(1, abs=1e-3)


def test_pretraining_leans_to_noise_first_and_ends_where_the_plain_law_is() -> None:
    stage = Pretrain(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), steps=100, end=0.5)
    means = []
    for at in (0, 25, 50, 100):
        u = (torch.arange(4000) + 0.5) / 4000
        means.append(stage.law(replace(batch(), step=at))(u).mean().item())
    assert means[0] > means[1] > means[2]
    assert means[2] == means[3]
    plain = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), timesteps=uniform)
    u = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(stage.law(replace(batch(), step=100))(u), plain.law(batch())(u), atol=1e-6)


def test_an_edit_share_weighs_what_the_mask_marks() -> None:
    """With a share of half, the loss is the mean of the edit's error and of the rest's; without a mask, as it was."""
    stage = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), timesteps=logit_normal, edit_share=0.5, seed=3)
    stage.configure_model()
    b, mask = batch(references=()), torch.zeros(3, 1, 96, 128)
    mask[:, :, :16, :32] = 1  # 2 of 12 rows, 4 of 16 columns of the latents
    with torch.no_grad():
        plain, masked = stage.losses(b), stage.losses(replace(b, mask=mask))
        sigma, eps = stage.draw_sigma(b), gaussian(b.target.shape[1:], b.slots, 3, "noise", b.step)
        x_t = (1 - sigma)[:, None, None, None] * b.target + sigma[:, None, None, None] * eps
        error = (stage.velocity(x_t, sigma, b.condition) - (eps - b.target)).square()
    assert torch.allclose(plain, error.mean((1, 2, 3)), atol=1e-5)
    edited = error[:, :, :2, :4].mean((1, 2, 3))
    kept = (error.mean(1).sum((1, 2)) - 8 * edited) / (error[0, 0].numel() - 8)
    assert torch.allclose(masked, (edited + kept) / 2, atol=1e-5)


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=r"stage.edit_share=.*in \[0, 1\)"):
        SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3), edit_share=share)


def test_terms_are_added_to_the_loss_of_each_sample(stage: SFT, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(batch: EditBatch, x_0_hat: torch.Tensor, sigma: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
        assert x_0_hat.shape == batch.target.shape
        return weight * sigma

    sample = batch()
    with torch.no_grad():
        expected = stage.losses(sample) + 2.0 * stage.draw_sigma(sample)
        monkeypatch.setattr(stage, "terms", {"first": partial(first, weight=2.0)})
        torch.testing.assert_close(stage.losses(sample), expected)
        monkeypatch.setattr(stage, "terms", {"mean": lambda batch, x_0_hat, sigma: sigma.mean()})
        with pytest.raises(UserError, match=r"stage.terms.mean: returned \(\), not a value for each of 3"):
            stage.losses(sample)
