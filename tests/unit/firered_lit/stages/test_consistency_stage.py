"""The consistency term in the step: where its gradient goes, what it does not decode, what it says before it starts."""

from functools import partial

import pytest
import torch
from safetensors.torch import save_file
from tiny_edits import TinyEdits
from toy_run import trainer

from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.facts import Facts
from firered_lit.losses.consistency import FACE_TEMPLATE, region_transforms, seen_boxes, warp
from firered_lit.models.backbone import Backbone
from firered_lit.models.codec import Codec
from firered_lit.models.identity import IResNet
from firered_lit.stages.consistency import Consistency
from firered_lit.stages.sft import SFT

NAN = float("nan")
FACE = torch.tensor(FACE_TEMPLATE) * 0.4 + torch.tensor([8.0, 4.0])
OTHER = torch.tensor(FACE_TEMPLATE) * 0.3 + torch.tensor([50.0, 8.0])
NONE = torch.full((5, 2), NAN)
BOX = torch.cat([torch.tensor([[4.0, 4.0], [60.0, 40.0]]), NONE[:3]])
TWO, ONE, BOXED, NOBODY = (torch.stack(faces) for faces in ([FACE, OTHER], [FACE, NONE], [NONE, BOX], [NONE, NONE]))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random IResNet that looks at 32x32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = IResNet((1, 1, 1), (8, 8, 16, 24), 32, (32, 32))
    path = tmp_path_factory.mktemp("face") / "face.safetensors"
    save_file(net.state_dict(), path)
    return str(path)


def sft(encoder, seed=3, rate=1e-2, **options):
    options = {"eta": 1.0} | options
    term = None if encoder is None else Consistency(encoder, **options)
    return SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=rate), seed=seed, consistency=term)


@pytest.fixture(scope="module")
def stage(encoder):
    stage = sft(encoder)
    stage.configure_model()
    return stage


def batch(*regions, step=5):
    """Targets of 96 x 64 pixels, with regions (R, 5, 2) each; none has any when none is given."""
    count = len(regions) or 2
    slots = tuple(range(count))
    target, reference = (0.5 * gaussian((16, 8, 12), slots, name, step) for name in ("target", "reference"))
    text = Text.pad(list(gaussian((6, 64), slots, "text", step)))
    given = {"regions": torch.stack(regions)} if regions else {}
    facts = tuple(Facts(str(slot)) for slot in slots)
    return EditBatch(target, Condition(text, (reference,)), facts, step, slots, count, **given)


def term(stage, b, sigma, x_0_hat=None):
    estimate = b.target + 0.3 * gaussian(b.target.shape[1:], b.slots, "off") if x_0_hat is None else x_0_hat
    return stage.consistency(stage.codec, estimate, b.target, torch.tensor(sigma), b.regions)


@pytest.fixture
def decoded(monkeypatch):
    """(samples, boxes) of each decode."""
    calls, real = [], Codec.parts

    def count(codec, latents, owner, boxes, checkpointed):
        calls.append((sorted(set(owner.tolist())), len(boxes)))
        return real(codec, latents, owner, boxes, checkpointed)

    monkeypatch.setattr(Codec, "parts", count)
    return calls


def test_equal_regions_cost_nothing_and_others_the_weighted_mean_distance(stage):
    b = batch(TWO, ONE, BOXED, NOBODY)
    same = term(stage, b, [0.5, 0.5, 0.5, 0.5], b.target)
    assert same.loss.abs().max() < 1e-6
    assert same.compared.tolist() == same.regions.tolist() == [True, True, True, False]
    found = term(stage, b, [0.5, 0.2, 0.89, 0.5])
    assert (found.distance[:3] > 1e-3).all()
    torch.testing.assert_close(found.loss, found.distance * torch.tensor([0.25, 0.04, 0.89**2, 0]))
    assert found.loss[3] == 0


def test_the_encoder_sees_the_regions_of_the_whole_picture(stage):
    """Turned, scaled, at the edge: what is warped from parts is what is warped from the full decode."""
    turn = torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
    turned = (torch.tensor(FACE_TEMPLATE) - 56) @ turn * 0.5 + torch.tensor([70.0, 30.0])
    b = batch(torch.stack([turned, OTHER]), BOXED)
    codec, size = stage.codec, (32, 32)
    owner, maps = region_transforms(b.regions, 2, (64, 96), size)
    boxes = seen_boxes(maps, size, (64, 96))
    got = stage.consistency.canvases(codec, b.target, owner, maps, boxes, size)
    z = b.target * codec.std + codec.mean
    picture = codec.vae.decoder(codec.vae.post_quant_conv(z[:, :, None]))[:, :, 0]
    torch.testing.assert_close(got, warp(picture[owner], maps, size), atol=1e-4, rtol=0)
    assert got.std((1, 2, 3)).min() > 0.05
    assert boxes[2].tolist() == [4, 4, 60, 40]


def test_two_faces_average(stage):
    both, first = term(stage, batch(TWO), [0.5]), term(stage, batch(ONE), [0.5])
    second = term(stage, batch(torch.stack([OTHER, NONE])), [0.5])
    torch.testing.assert_close(both.distance, (first.distance + second.distance) / 2)
    assert abs(float(first.distance - second.distance)) > 1e-4


def test_no_face_or_no_weight_no_decode(stage, decoded):
    term(stage, batch(TWO, NOBODY, ONE, ONE), [0.5, 0.5, 0.9, 0.3])
    assert decoded == [([0, 3], 3)] * 2  # the estimate and the target; the sample at the cutoff and the empty one not
    decoded.clear()
    for b, sigma in ((batch(), [0.5, 0.5]), (batch(NOBODY), [0.5]), (batch(TWO, ONE), [0.95, 1.0])):
        assert term(stage, b, sigma).loss.tolist() == [0] * len(b)
    outside = term(stage, batch(torch.stack([FACE + 500, NONE])), [0.5])
    assert (outside.regions.item(), outside.loss.item(), decoded) == (False, 0, [])


def test_the_gradient_reaches_the_transformer_and_nothing_frozen(stage):
    b = batch(TWO, NOBODY)
    x_0_hat = b.target.clone().requires_grad_()
    term(stage, b, [0.5, 0.5], x_0_hat + 0.3 * gaussian(b.target.shape[1:], b.slots, "off")).loss.sum().backward()
    assert x_0_hat.grad[0].abs().sum() > 0
    assert x_0_hat.grad[1].abs().sum() == 0
    frozen = [*stage.consistency.phi.parameters(), *stage.codec.vae.parameters()]
    stage.losses(b).mean().backward()
    with_term = [p.grad.clone() for p in stage.transformer.parameters() if p.requires_grad]
    stage.zero_grad(set_to_none=True)
    stage.losses(batch(NOBODY, NOBODY)).mean().backward()
    without = [p.grad for p in stage.transformer.parameters() if p.requires_grad]
    assert any(not torch.allclose(a, c, rtol=1e-3) for a, c in zip(with_term, without, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in frozen)
    stage.zero_grad(set_to_none=True)
    assert not any("phi" in name or "vae" in name for name in stage.state_dict())


def test_against_the_gradient_the_cosine_rises(stage):
    b = batch(TWO, BOXED)
    estimate = (b.target + 0.3 * gaussian(b.target.shape[1:], b.slots, "off")).requires_grad_()
    before = term(stage, b, [0.5, 0.5], estimate)
    (gradient,) = torch.autograd.grad(before.loss.sum(), estimate)
    after = term(stage, b, [0.5, 0.5], estimate - 0.05 * gradient / gradient.abs().amax())
    assert (after.distance < before.distance).all()


def test_the_step_s_loss_is_the_flow_loss_and_the_term(stage, encoder):
    b = batch(TWO, NOBODY, BOXED)
    plain, other = sft(None), sft(encoder, eta=2.0)
    for s in (plain, other):
        s.transformer = stage.transformer
    with torch.no_grad():
        flow, once, twice = (s.losses(b) for s in (plain, stage, other))
    torch.testing.assert_close(twice - flow, 2 * (once - flow), atol=1e-5, rtol=1e-4)
    assert ((once - flow).abs() > 1e-5).tolist() == [True, False, True]


def test_the_term_is_of_the_one_step_estimate_of_the_data(stage):
    """x_0 = x_t - sigma v: with the true velocity that is the target, and the term is nothing."""
    b = batch(TWO, ONE, BOXED)
    sigma = stage.draw_sigma(b)
    eps = gaussian(b.target.shape[1:], b.slots, stage.seed, "noise", b.step)
    x_t = (1 - sigma)[:, None, None, None] * b.target + sigma[:, None, None, None] * eps
    with torch.no_grad():
        v = stage.velocity(x_t, sigma, b.condition)
        flow = (v - (eps - b.target)).square().mean((1, 2, 3))
        expected = term(stage, b, sigma.tolist(), x_t - sigma[:, None, None, None] * v).loss
        found = stage.losses(b) - flow
    assert expected.max() > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)


class Faces(TinyEdits):
    """Every second micro-batch has faces."""

    def batch(self, step):
        return batch(TWO, NOBODY, step=step) if step % 2 else batch(NOBODY, NOBODY, step=step)


def test_it_trains_and_says_how_much_it_compared(encoder, tmp_path):
    stage, seen = sft(encoder), []
    stage.on_train_batch_end = lambda *_: seen.append({k: float(v) for k, v in stage.trainer.callback_metrics.items()})
    options = {"max_steps": 3, "limit_val_batches": 0, "accumulate_grad_batches": 1}
    trainer(tmp_path, [], **options).fit(stage, Faces(4))
    assert [s["train/regions"] for s in seen] == [0, 0.5, 0]
    assert ["train/identity" in s for s in seen] == [False, True, True]
    assert 0 < seen[1]["train/identity"] < 2


def test_a_wrong_encoder_is_told_before_the_first_step(tmp_path):
    stage = sft(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no encoder"):
        trainer(tmp_path, [], max_steps=1).fit(stage, Faces(4))
    assert not hasattr(stage, "transformer")
    for given in ({"eta": -1.0}, {"cutoff": 0.0}, {"cutoff": 1.5}):
        with pytest.raises(UserError, match=r"stage\.consistency"):
            Consistency("x", **given)
