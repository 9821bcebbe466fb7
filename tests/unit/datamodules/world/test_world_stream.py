"""Batches of the learning world, drawn as training goes: the same wherever and whenever they are made."""

from collections import Counter
from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from toy_run import trainer

from callbacks.rewards.correctness import Correctness
from datamodules.sampling.captions import Captions
from datamodules.world.families import FAMILIES
from datamodules.world.sample import held_out
from datamodules.world.stream import Drawn, HeldOutWorld, WorldDataModule, WorldLoader
from datamodules.world.write import FREE
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.flow.path import clean, interpolate
from firered_lit.models.backbone import Backbone
from firered_lit.stages.consistency import Consistency
from firered_lit.stages.sft import SFT

CAPTIONS = Captions({"original": 1.0}, None, 0.05)


def drawn(families=tuple(FAMILIES), seed: int = 0) -> Drawn:
    return Drawn("world-untrained", families, CAPTIONS, seed)


def same(batch, other) -> bool:
    tensors = [(batch.target, other.target), (batch.condition.text.embeddings, other.condition.text.embeddings)]
    tensors += list(zip(batch.condition.references, other.condition.references))
    return batch.ids == other.ids and all(torch.equal(a, b) for a, b in tensors)


def test_every_family_comes_and_no_held_out_combination_does() -> None:
    world = drawn()
    loader = WorldLoader(world, 6)
    tasks, shapes = set(), set()
    for address in islice(loader.addresses(0), 120):
        samples = [world.sample(address, slot)[0] for slot in address.slots]
        assert len({len(found.sources) for found in samples}) == 1
        assert not any(map(held_out, samples))
        tasks |= {found.task for found in samples}
        shapes |= {len(found.sources) for found in samples}
    assert tasks == set(FAMILIES)
    assert shapes == {1, 2, 3}


def test_weights_say_how_often_a_family_comes() -> None:
    world = WorldDataModule(model="world-untrained", families={"color": 3, "remove": 1, "compose": 4}).drawn
    loader = WorldLoader(world, 4)
    tasks = Counter()
    for address in islice(loader.addresses(0), 300):
        tasks.update(world.sample(address, slot)[0].task for slot in address.slots)
    assert tasks["color"] == 3 * tasks["remove"]
    assert 0.4 < tasks["compose"] / tasks.total() < 0.6
    assert [b.tasks[0] for b in HeldOutWorld(world, 1)] == ["color", "remove", "compose"]


def test_a_resumed_loader_goes_on_where_it_stopped() -> None:
    whole = list(islice(iter(WorldLoader(drawn(), 2)), 6))
    first = WorldLoader(drawn(), 2)
    list(islice(iter(first), 3))
    second = WorldLoader(drawn(), 2)
    second.load_state_dict(first.state_dict())
    assert all(same(a, b) for a, b in zip(whole[3:], islice(iter(second), 3)))
    assert not same(whole[0], whole[1])
    with pytest.raises(UserError, match="seed"):
        WorldLoader(drawn(seed=1), 2).load_state_dict(first.state_dict())


def test_processes_share_what_one_draws() -> None:
    (one,) = islice(iter(WorldLoader(drawn(("color", "add")), 4)), 1)
    halves = [next(iter(WorldLoader(drawn(("color", "add")), 2, rank, 2))) for rank in range(2)]
    assert tuple(halves[0].ids + halves[1].ids) == one.ids
    assert torch.equal(torch.cat([half.target for half in halves]), one.target)
    assert one.num_slots == halves[0].num_slots == 4


def test_held_out_batches_carry_what_scores_and_grids_need() -> None:
    reward = Correctness()
    for batch in HeldOutWorld(drawn(), 2):
        (task,) = set(batch.tasks)
        perfect, copied = (reward.submit(x, batch).result() for x in (batch.pixels, batch.sources[0]))
        assert perfect.value.tolist() == [1, 1]
        assert copied.value.tolist() == [0, 0]
        assert perfect.terms[f"correct/{task}"].tolist() == [1, 1]
        assert ("landmarks" in perfect.terms) == (task in ("portrait", "beauty"))
        assert any(one.target_text for one in batch.facts) == (task == "text")


def test_a_soft_score_grows_towards_the_target() -> None:
    batch = next(iter(HeldOutWorld(drawn(("background",)), 2)))
    half = torch.where(torch.arange(64) < 32, batch.pixels, batch.sources[0])
    values = [Correctness(soft=True).submit(x, batch).result().value for x in (batch.sources[0], half, batch.pixels)]
    assert np.all(values[0].numpy() < values[1].numpy())
    assert np.all(values[1].numpy() < values[2].numpy())


def test_unknown_families_and_other_encoders_are_refused() -> None:
    from firered_lit.models.family import open_base

    with pytest.raises(UserError, match="no family hats"):
        WorldDataModule(model="world-untrained", families=["hats"])
    with pytest.raises(UserError, match="how often a family comes is a whole number"):
        WorldDataModule(model="world-untrained", families={"color": 0})
    with pytest.raises(UserError, match="another codec"):
        WorldDataModule(model="world-untrained").check(open_base("tiny"))


@pytest.mark.slow
def test_the_real_engine_reads_the_words_of_the_world() -> None:
    """On 64 pixels, as they are: the target's word where it stands, and another one on the source."""
    from callbacks.rewards.ocr import OCRReward

    batch = next(iter(HeldOutWorld(drawn(("text",)), 16)))
    reward = OCRReward(tasks=["text"], threads=1)
    right, wrong = (reward.submit(x, batch).result() for x in (batch.pixels, batch.sources[0]))
    assert right.valid.all()
    assert right.value.mean() > 0.95
    assert wrong.value.mean() < 0.2
    reward.teardown(None, None, "fit")


def test_the_consistency_loss_looks_at_the_faces_of_the_world(tmp_path) -> None:
    """It reaches the transformer's weights; families that draw no face are refused before the first step."""
    sft = partial(SFT, Backbone("world-untrained"), partial(torch.optim.AdamW, lr=1e-3))
    stage = sft(consistency=Consistency("tiny", eta=1.0))
    stage.configure_model()
    data = WorldDataModule(model="world-untrained", batch=4, families=["color", "portrait"], workers=0)
    batch = next(iter(data.train_dataloader()))
    noise, half = gaussian(batch.target.shape[1:], batch.slots, "off"), torch.full((4,), 0.5)
    x_t = interpolate(batch.target, noise, half)
    estimate = clean(x_t, half, stage.velocity(x_t, half, batch.condition))
    found = stage.consistency(stage.codec, estimate, batch.target, half, batch.regions)
    drawn = [task == "portrait" for task in batch.tasks]
    assert found.regions.tolist() == drawn
    assert (found.loss > 0).tolist() == drawn
    found.loss.sum().backward()
    assert stage.transformer.proj_out.weight.grad.abs().max() > 0
    data = WorldDataModule(model="world-untrained", families=["color"], workers=0)
    with pytest.raises(UserError, match="no sample of these families has a region"):
        trainer(tmp_path, [], max_steps=1).fit(sft(consistency=Consistency("tiny", eta=1.0)), datamodule=data)


def test_the_mask_is_where_the_target_differs_from_what_it_is_made_of() -> None:
    world = drawn(("remove", "motion"))
    batch, _ = world[next(WorldLoader(world, 6).addresses(0))]
    assert batch.mask.shape == (6, 1, 64, 64)
    change = (batch.target - batch.condition.references[0]).abs().amax(1, keepdim=True)
    outside = torch.nn.functional.max_pool2d(batch.mask, 4) == 0
    assert 0.5 < outside.float().mean() < 1
    assert change[outside].max() <= FREE / 127.5 / 0.5  # pixels on [-1, 1], over the codec's std
    assert change[~outside].max() > 0.5
