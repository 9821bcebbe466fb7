"""Prompts for reinforcement learning: one sample a group, with its pictures; equal work on every process; resumable."""

import json
from itertools import islice

import pytest
import torch
from test_edits import SHAPES, encoded, print_of, write

from datamodules.loading.loader import EditLoader
from datamodules.prompts import PromptDataModule, PromptLoader
from firered_lit.batch import PromptBatch
from firered_lit.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    samples = [
        encoded(i, "add", SHAPES[i % 2], [SHAPES[(i + j) % 2] for j in range(i % 3)], held_out=True) for i in range(26)
    ]
    for sample in samples:
        sample.meta["held_out"] = sample.id == "id25"
    return write(tmp_path_factory.mktemp("prompts"), samples, keep_images=True)


def loader(root, groups=4, ranks=2, rank=0, world=1, workers=0):
    data = PromptDataModule(str(root), groups=groups, plan_ranks=ranks, workers=0)
    inner = data.train_dataloader().inner
    return PromptLoader(
        EditLoader(inner.visits, inner.plan, inner.identity, rank=rank, world=world, workers=workers), groups // ranks
    )


def prints(batches):
    return [(batch.step, [print_of(group) for group in batch.groups]) for batch in batches]


def test_a_group_is_one_sample_with_its_pictures(root):
    batch = next(iter(loader(root)))
    assert isinstance(batch, PromptBatch)
    assert (len(batch), batch.step) == (4, 0)
    assert [group.step for group in batch.groups] == [0, 0, 1, 1]
    assert [group.slots for group in batch.groups] == [(0,), (1,), (0,), (1,)]
    assert len(set(batch.slots)) == 4
    for group in batch.groups:
        assert group.pixels.shape[-2:] == tuple(8 * side for side in group.target.shape[-2:])
        assert [s.shape[-2:] for s in group.sources] == [
            (8 * r.shape[-2], 8 * r.shape[-1]) for r in group.condition.references
        ]
        assert group.pixels[0, :, 0, 0].tolist() == [1, -1, -1]
        assert group.facts[0].instruction  # never dropped: a group is drawn for what it says
    kinds = {next(iter(batch.groups)).target.shape for batch in islice(iter(loader(root)), 8)}
    assert len(kinds) == 2


def test_groups_at_one_place_have_one_shape_on_every_process(root):
    """Equal forwards: what one process runs, the others run."""
    first, second = (list(islice(iter(loader(root, 4, 2, rank, 2)), 12)) for rank in range(2))
    for a, b in zip(first, second):
        assert len(a) == len(b) == 2
        for x, y in zip(a.groups, b.groups):
            assert x.target.shape == y.target.shape
            assert [r.shape for r in x.condition.references] == [r.shape for r in y.condition.references]
            assert x.slots != y.slots
    together = [print_of(g) for batch in islice(iter(loader(root)), 12) for g in batch.groups]
    shared = [print_of(g) for pair in zip(first, second) for step in zip(*(b.groups for b in pair)) for g in step]
    assert together == shared


@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_where_it_stopped_over_the_ends_of_epochs(root, workers):
    straight = prints(islice(iter(loader(root)), 20))
    for stop in (1, 6, 13):
        first, second = loader(root, workers=workers), loader(root, workers=workers)
        seen = prints(islice(iter(first), stop))
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert seen + prints(islice(iter(second), 20 - stop)) == straight
        first.close()
        second.close()


def test_what_does_not_fit_is_refused(root, tmp_path):
    with pytest.raises(UserError, match="groups=3: must be a multiple of 2"):
        loader(root, groups=3)
    with pytest.raises(UserError, match="2 global batches an iteration, now 3"):
        loader(root, groups=6).load_state_dict(loader(root).state_dict())
    bare = write(tmp_path / "bare", [encoded(0, "add", SHAPES[0], [])], keep_images=False)
    with pytest.raises(UserError, match="keep_images=true"):
        PromptDataModule(str(bare), groups=1)


def test_a_sample_is_repeated_with_all_that_belongs_to_it(root):
    group = next(b.groups[0] for b in iter(loader(root)) if len(b.groups[0].sources) == 2)
    three = group.repeated(3)
    assert len(three) == 3
    assert (three.slots, three.facts) == (group.slots * 3, group.facts * 3)
    assert three.ids == group.ids * 3
    assert three.condition.text.embeddings.shape[0] == three.pixels.shape[0] == len(three.sources[1]) == 3
    assert len(three.condition.references) == 2
    assert torch.equal(three.target[2], group.target[0])
    twice = three.repeated(2)  # of several samples: each stays beside its own
    assert twice.ids == group.ids * 6
    with pytest.raises(ValueError, match="one sample"):
        PromptBatch((three,), 0)
