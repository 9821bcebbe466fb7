"""The DPO stage: ln 2 at the start, the direction of its gradient, and a reference that stays what it was."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from test_sft import alone as edit_alone
from test_sft import batch as edits

from firered_lit.batch import PreferenceBatch
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.stages.dpo import DPO

LN2 = math.log(2)
FULL, ADAPTER = (
    Backbone("tiny"),
    Backbone("tiny", lora=LoRA(rank=4, alpha=8, targets=["to_q", "to_v", "img_mlp.net.2"])),
)
BACKBONES = pytest.mark.parametrize("backbone", [FULL, ADAPTER], ids=["full", "lora"])


def stage(backbone=FULL, lr=1e-2, **options) -> DPO:
    made = DPO(backbone, partial(torch.optim.SGD, lr=lr), **({"beta": 10.0, "omega": 2.0, "seed": 3} | options))
    made.configure_model()
    return made


def paired(edit, loser) -> PreferenceBatch:
    return PreferenceBatch(**vars(edit), loser=loser)


def pairs(**options) -> PreferenceBatch:
    edit = edits(**options)
    return paired(edit, gaussian(edit.target.shape[1:], edit.slots, "loser"))


def swapped(batch: PreferenceBatch) -> PreferenceBatch:
    return PreferenceBatch(**(vars(batch) | {"target": batch.loser, "loser": batch.winner}))


def step(trained: DPO, batch: PreferenceBatch, steps: int = 1) -> None:
    optimizer = trained.configure_optimizers()
    for _ in range(steps):
        optimizer.zero_grad()
        trained.losses(batch).mean().backward()
        optimizer.step()


def errors(trained: DPO, batch: PreferenceBatch):
    with torch.no_grad():
        return trained.errors(batch, *trained.draws(batch))


@BACKBONES
@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_preference_is_ln_2_to_the_last_bit_at_the_start(backbone, checkpointed):
    fresh = stage(replace(backbone, gradient_checkpointing=checkpointed), beta=5000.0)
    found = fresh.errors(pairs(), *fresh.draws(pairs()))
    terms = SimpleNamespace(**fresh.numbers(found))
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])
    assert terms.preference.tolist() == pytest.approx([LN2] * 3, abs=1e-7)
    assert terms.accuracy.tolist() == [0.5] * 3


@BACKBONES
def test_one_step_prefers_the_winner(backbone):
    """At the start, where the differences are 0, a step lowers the winner's error against the loser's."""
    trained = stage(backbone)
    step(trained, pairs())
    winner, loser, ref_winner, ref_loser = errors(trained, pairs())
    assert (loser - ref_loser - 2 * (winner - ref_winner)).mean() > 0
    assert trained.losses(pairs()).mean() < LN2


@BACKBONES
def test_the_reference_stays_what_the_stage_started_from(backbone):
    trained = stage(backbone, lr=0.1)
    before = errors(trained, pairs())
    step(trained, pairs(), 3)
    after = errors(trained, pairs())
    assert torch.equal(before[2], after[2])
    assert torch.equal(before[3], after[3])
    assert not torch.allclose(before[0], after[0])


@BACKBONES
def test_the_reference_leaves_the_policy_as_it_was(backbone):
    """Swapping in and out, or switching the adapter off and on, changes no value and freezes nothing."""
    trained = stage(backbone, lr=0.1)
    step(trained, pairs())
    state = {k: v.clone() for k, v in trained.transformer.state_dict().items()}
    trainable = {n for n, p in trained.transformer.named_parameters() if p.requires_grad}
    trained.losses(pairs())
    assert all(torch.equal(state[k], v) for k, v in trained.transformer.state_dict().items())
    assert trainable == {n for n, p in trained.transformer.named_parameters() if p.requires_grad}


def gradient(trained: DPO, batch: PreferenceBatch) -> torch.Tensor:
    trained.zero_grad(set_to_none=True)
    trained.losses(batch).mean().backward()
    return torch.cat([p.grad.flatten() for p in trained.transformer.parameters() if p.grad is not None])


@BACKBONES
def test_swapping_winner_and_loser_flips_the_gradient(backbone):
    trained = stage(backbone, omega=1.0)
    there, back = gradient(trained, pairs()), gradient(trained, swapped(pairs()))
    assert there.norm() > 1e-3
    assert torch.allclose(there, -back, atol=1e-5 * there.norm().item())


def test_the_gradient_is_omega_times_the_winner_s_minus_the_loser_s():
    """At the start: beta / 2 (omega dL_w - dL_l) + sft_weight dL_w, each from the errors alone."""
    trained = stage(beta=6.0, omega=3.0, sft_weight=0.5)
    winner, loser, _, _ = trained.errors(pairs(), *trained.draws(pairs()))
    parameters = [p for p in trained.transformer.parameters() if p.requires_grad]
    by = [torch.autograd.grad(e.mean(), parameters, retain_graph=True) for e in (winner, loser)]
    of_winner, of_loser = (torch.cat([g.flatten() for g in grads]) for grads in by)
    expected = 6.0 / 2 * (3 * of_winner - of_loser) + 0.5 * of_winner
    found = gradient(trained, pairs())
    assert torch.allclose(found, expected, atol=1e-5 * expected.norm().item())


@BACKBONES
@pytest.mark.parametrize("references", [(), ((8, 12),), ((8, 12), (12, 8))])
def test_a_batch_equals_its_samples(backbone, references):
    trained, whole = stage(backbone, sft_weight=1.0), pairs(references=references)
    step(trained, whole)
    singles = [paired(edit_alone(whole, i), whole.loser[i : i + 1]) for i in range(len(whole))]
    with torch.no_grad():
        together = trained.losses(whole)
        apart = torch.cat([trained.losses(single) for single in singles])
    assert together.std() > 1e-4
    assert torch.allclose(together, apart, atol=1e-4)


def test_both_sides_share_noise_sigma_and_condition():
    """A pair of twins has equal errors whatever the weights; another draw has others."""
    trained = stage()
    twins = paired(edits(), edits().target)
    winner, loser, ref_winner, ref_loser = errors(trained, twins)
    assert torch.allclose(winner, loser, atol=1e-6)
    assert torch.allclose(ref_winner, ref_loser, atol=1e-6)
    assert not torch.allclose(winner, errors(trained, paired(edits(step=6), edits().target))[0])


def test_the_winner_s_error_is_that_of_supervised_fine_tuning():
    from firered_lit.stages.sft import SFT

    trained = stage()
    sft = SFT(FULL, partial(torch.optim.SGD, lr=1e-2), timesteps=trained.timesteps, seed=3)
    sft.transformer = trained.transformer
    with torch.no_grad():
        assert torch.allclose(errors(trained, pairs())[0], sft.losses(pairs()), atol=1e-6)


def test_reading_the_reference_does_not_spoil_mixed_precision():
    """Autocast remembers casts of weights; the reference's must not serve the policy, nor hide its gradient."""
    trained = stage(lr=0.1)
    step(trained, pairs())
    with torch.autocast("cpu", torch.bfloat16):
        winner, _, ref_winner, _ = trained.errors(pairs(), *trained.draws(pairs()))
        grads = torch.autograd.grad(winner.mean(), trained.transformer.img_in.weight)
    exact = errors(trained, pairs())
    assert torch.allclose(winner, exact[0], rtol=0.02)
    assert torch.allclose(ref_winner, exact[2], rtol=0.02)
    assert (exact[0] - exact[2]).abs().max() > 0.1 * exact[0].max()
    assert grads[0].norm() > 0


def test_no_checkpoint_holds_the_reference():
    names = stage().state_dict().keys()
    assert all(name.startswith("transformer.") for name in names)
    adapter = stage(ADAPTER)
    assert not adapter.reference
    assert all(".lora_" in name for name in adapter.kept(adapter.state_dict()))


@pytest.mark.parametrize(
    "options", [{"beta": 0.0}, {"omega": 0.5}, {"sft_weight": -1.0}, {"window": 2}], ids=lambda o: next(iter(o))
)
def test_settings_that_cannot_be_are_refused(options):
    with pytest.raises(UserError, match=f"{next(iter(options))}="):
        stage(**options)


def test_edits_are_no_pairs():
    with pytest.raises(UserError, match="PreferenceDataModule"):
        stage().losses(edits())


@pytest.mark.parametrize(("win", "lose", "warned"), [(1, 1, True), (-1, 1, False), (1, -1, False), (0, 0, False)])
def test_double_degradation_is_said(win, lose, warned, recwarn):
    trained = stage(window=30)
    noise = gaussian((30, 2), (0,), "watched")[0] * 0.05
    for i in range(30):
        trained.watch(win * i / 30 + noise[i, 0], lose * i / 30 + noise[i, 1])
    said = [str(w.message) for w in recwarn if "winner's error rose with the loser's" in str(w.message)]
    assert bool(said) == warned
    assert not trained.watched


def test_validation_measures_every_term_at_fixed_noise():
    trained = stage()
    first = trained.fixed_scores(pairs())
    assert first["preference"].tolist() == pytest.approx([LN2] * 3, abs=1e-6)
    step(trained, pairs(), 3)
    second = trained.fixed_scores(pairs(step=9))
    assert second["loss"].mean() < LN2
    assert (second["lose_diff"] - second["win_diff"]).mean() > 0
    assert second["accuracy"].mean() > 0.5
    for i, name in enumerate(("winner", "loser")):
        rows = [trained.errors(pairs(), *point)[i] for point in trained.fixed_points(pairs())]
        assert torch.allclose(second[name], torch.stack(rows).mean(0), atol=1e-6)
