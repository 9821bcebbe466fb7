"""Consistency reward: identity on regions against the target, and what is outside of the mask against the source."""

from types import SimpleNamespace

import lightning as L
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from callbacks.rewards.consistency import ConsistencyReward, preservation, region_transforms
from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.draws import generator
from firered_lit.errors import UserError
from firered_lit.facts import Facts
from firered_lit.losses.consistency import FACE_TEMPLATE, warp
from firered_lit.models.identity import IResNet, open_encoder
from firered_lit.rewards.protocol import Reward

NAN = float("nan")


def picture(*shape, key=0):
    """Smooth, so that resizing keeps what it shows."""
    rough = torch.rand((shape[0], 3, 6, 6), generator=generator("consistency", key)) * 2 - 1
    return torch.nn.functional.interpolate(rough, shape[1:], mode="bilinear")


def batch(count=1, pixels=None, sources=(), **more):
    text = Text(torch.zeros(count, 1, 4), None)
    facts = tuple(Facts(str(i)) for i in range(count))
    given = {"facts": facts, "step": 0, "slots": tuple(range(count)), "num_slots": count}
    return EditBatch(torch.zeros(count, 16, 4, 4), Condition(text, ()), **given, pixels=pixels, sources=sources, **more)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A tiny random IResNet that looks at 64x64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = IResNet((1, 1, 1, 1), (8, 8, 16, 16, 24), 32, (64, 64))
    path = tmp_path_factory.mktemp("face") / "face.safetensors"
    save_file(net.state_dict(), path)
    return str(path)


@pytest.fixture
def reward(encoder):
    return ConsistencyReward(encoder)


def face(x, y, size):
    """Five landmarks of an upright face of `size` px with its corner at (x, y)."""
    return torch.tensor(FACE_TEMPLATE) * size / 112 + torch.tensor([x, y])


def test_the_target_itself_scores_one_and_another_image_less(reward):
    truth, other = picture(1, 96, 128), picture(1, 96, 128, key=1)
    assert isinstance(reward, Reward)
    scores = reward.submit(torch.cat([truth, other]), batch(2, truth.expand(2, -1, -1, -1))).result(60)
    assert scores.valid.all()
    assert scores.value[0] == pytest.approx(1.0, abs=1e-4)
    assert scores.value[1] < 0.98
    assert scores.terms["preservation"].isnan().all()


def test_it_is_the_clamped_cosine_on_the_warped_regions(reward, encoder):
    truth, image = picture(1, 96, 128), picture(1, 96, 128, key=2)
    boxes = torch.tensor([[[[8.0, 4.0], [72.0, 68.0]], [[40.0, 20.0], [104.0, 84.0]]]])
    scores = reward.submit(image, batch(pixels=truth, regions=boxes)).result(60)
    net = open_encoder(encoder)
    crops = [(slice(4, 68), slice(8, 72)), (slice(20, 84), slice(40, 104))]  # boxes of the canvas' own size
    cosines = [cosine_similarity(net(image[:, :, y, x]), net(truth[:, :, y, x])).clamp(min=0) for y, x in crops]
    assert scores.value.item() == pytest.approx(float(sum(cosines)) / 2, abs=1e-4)


def test_only_the_region_counts(reward):
    truth = picture(1, 96, 128)
    image = truth.clone()
    image[..., 100:] = -1
    for region in (torch.tensor([[8.0, 4.0], [72.0, 68.0]]), face(8, 8, 60)):
        scores = reward.submit(image, batch(pixels=truth, regions=region[None, None])).result(60)
        assert scores.value.item() == pytest.approx(1.0, abs=1e-4)
    assert reward.submit(image, batch(pixels=truth)).result(60).value.item() < 0.999


def test_a_face_is_brought_onto_the_template_of_any_canvas():
    points = face(30, 20, 56)
    owner, maps = region_transforms(points[None, None], 1, (96, 128), (56, 56), whole=True)
    assert owner.tolist() == [0]
    image = picture(1, 96, 128)
    torch.testing.assert_close(
        warp(image, maps, (56, 56))[..., 4:-4, 4:-4], image[..., 24:72, 34:82], atol=0.05, rtol=0
    )


def test_samples_keep_their_own_regions_and_those_without_are_shown_whole_or_missing(encoder):
    truth, image = picture(3, 64, 64), picture(3, 64, 64, key=3)
    box = torch.tensor([[0.0, 0.0], [32.0, 64.0]])
    nothing, point = torch.full((2, 2), NAN), torch.full((2, 2), 5.0)
    regions = torch.stack([torch.stack([box, nothing]), torch.stack([nothing, nothing]), torch.stack([point, box])])
    whole = ConsistencyReward(encoder).submit(image, batch(3, truth, regions=regions)).result(60)
    strict_reward = ConsistencyReward(encoder, whole=False)
    strict = strict_reward.submit(image, batch(3, truth, regions=regions)).result(60)
    assert whole.valid.all()
    assert strict.valid.tolist() == [True, False, True]
    assert strict.value[1] == 0
    assert sum(strict_reward.reasons.values()) == 1
    for i, alone in enumerate([regions[:1], None, regions[2:]]):
        one = ConsistencyReward(encoder).submit(image[i : i + 1], batch(1, truth[i : i + 1], regions=alone))
        assert whole.value[i] == pytest.approx(one.result(60).value.item(), abs=1e-5)


def test_preservation_sees_only_what_is_outside_of_the_mask():
    change = torch.zeros(3, 1, 8, 8)
    change[..., :4] = 0.05
    mask = torch.zeros(3, 1, 8, 8)
    mask[0, ..., :4] = 1
    mask[2] = 1
    found = preservation(change, mask, 0.1)
    assert found[:2].tolist() == pytest.approx([1.0, 0.75])
    assert found[2].isnan()
    assert preservation(change * 10, torch.zeros(3, 1, 8, 8), 0.1).tolist() == [0.0] * 3


def test_both_parts_are_mixed_by_weight_and_a_copy_shows_its_distance(encoder):
    truth, source = picture(1, 64, 64), picture(1, 96, 96, key=4)
    mask = torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    copy = torch.nn.functional.interpolate(source, (64, 64), mode="bilinear", antialias=True)
    reward = ConsistencyReward(encoder, identity_weight=1.0, preservation_weight=3.0)
    scores = reward.submit(copy, batch(pixels=truth, sources=(source,), mask=mask)).result(60)
    terms = {name: term.item() for name, term in scores.terms.items()}
    assert terms["preservation"] == pytest.approx(1.0, abs=1e-6)
    assert terms["source_distance"] == pytest.approx(0.0, abs=1e-6)
    assert scores.value.item() == pytest.approx((terms["identity"] + 3) / 4, abs=1e-5)
    moved = reward.submit((copy + 0.1).clamp(-1, 1), batch(pixels=truth, sources=(source,), mask=mask)).result(60)
    assert moved.terms["preservation"].item() < 0.6
    assert 0.03 < moved.terms["source_distance"].item() <= 0.05


def test_without_a_target_identity_is_the_sources(reward):
    source = picture(1, 64, 64)
    assert reward.submit(source, batch(sources=(source,))).result(60).value.item() == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(UserError, match="no pictures"):
        reward.submit(source, batch())


def test_a_group_repeats_regions_and_masks(reward):
    truth = picture(1, 64, 64)
    one = batch(pixels=truth, regions=face(0, 0, 64)[None, None], mask=torch.zeros(1, 1, 64, 64), sources=(truth,))
    scores = reward.submit(torch.cat([truth, -truth]), one.repeated(2)).result(60)
    assert scores.value[0] == pytest.approx(1.0, abs=1e-4)
    assert scores.value[1] < scores.value[0]


def test_bad_arguments_are_refused(encoder, tmp_path):
    for wrong in ({"identity_weight": -1}, {"identity_weight": 0, "preservation_weight": 0}, {"tolerance": 0}):
        with pytest.raises(UserError):
            ConsistencyReward(encoder, **wrong)
    with pytest.raises(UserError, match="3 points"):
        region_transforms(torch.zeros(1, 1, 3, 2), 1, (8, 8), (8, 8), whole=True)
    with pytest.raises(UserError, match="no encoder"):
        ConsistencyReward(str(tmp_path / "none")).setup(None, None, "fit")


class Shows(L.LightningModule):
    def validation_step(self, batch, batch_idx):
        return {"output": batch.pixels}


def test_any_stage_logs_it(reward):
    truth = picture(1, 64, 64)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False, callbacks=[reward]
    )
    loader = torch.utils.data.DataLoader([batch(pixels=truth, sources=(truth,))] * 2, batch_size=None)
    trainer.validate(Shows(), loader, verbose=False)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["reward/consistency"] == pytest.approx(1.0, abs=1e-4)
    assert logged["reward/consistency/missing"] == 0
    assert "reward/consistency/preservation" not in logged


def test_batches_without_drawn_images_are_left_alone(reward):
    reward.on_validation_start(None, None)
    reward.on_validation_batch_end(SimpleNamespace(sanity_checking=False), None, {}, batch(), 0)
    assert reward._asked == []
