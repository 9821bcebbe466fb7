import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device

from firered_lit.batch import MOVED, Condition, EditBatch, Text
from firered_lit.draws import chooser, gaussian, seed_of
from firered_lit.errors import UserError
from firered_lit.facts import Facts


def make() -> EditBatch:
    text = Text.pad([torch.ones(2, 4), torch.ones(3, 4)])
    condition = Condition(text, (torch.ones(2, 16, 2, 2),))
    return EditBatch(torch.ones(2, 16, 4, 6), condition, (Facts("a"), Facts("b")), 0, (0, 1), 2)


def test_lightning_moves_every_tensor_of_a_batch() -> None:
    moved = move_data_to_device(make(), torch.device("meta"))
    tensors = [moved.target, moved.condition.text.embeddings, moved.condition.text.mask, *moved.condition.references]
    assert all(t.device.type == "meta" for t in tensors)
    assert moved.ids == ("a", "b")


@pytest.mark.parametrize(("before", "now"), MOVED.items())
def test_a_field_of_an_earlier_version_says_where_its_values_are(before: str, now: str) -> None:
    with pytest.raises(UserError, match=rf"batch\.{before}: .*\[one\.{now} for one in batch\.facts\]") as raised:
        getattr(make(), before)
    assert "\n" not in str(raised.value)
    assert hasattr(make().facts[0], now)
    assert not hasattr(make(), "pictures")


def test_text_is_masked_only_where_it_is_padded() -> None:
    assert Text.pad([torch.ones(3, 4), torch.ones(3, 4)]).mask is None
    assert Text.pad([torch.ones(2, 4), torch.ones(3, 4)]).mask.tolist() == [[True, True, False], [True] * 3]


def test_tokens_count_target_and_references() -> None:
    assert make().tokens == 2 * (2 * 3 + 1)


@given(st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=6))
def test_noise_belongs_to_the_slot(slots: list[int]) -> None:
    noise = gaussian((2,), tuple(slots), 7, "noise", 3)
    assert torch.equal(noise, torch.cat([gaussian((2,), (slot,), 7, "noise", 3) for slot in slots]))
    assert len({tuple(row.tolist()) for row in noise}) == len(slots)


def test_noise_is_standard_normal_over_steps_and_slots() -> None:
    noise = torch.stack([gaussian((4,), (0, 1), 0, "noise", step) for step in range(2000)])
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert abs((noise[1:, 0] * noise[:-1, 0]).mean()) < 0.05  # no correlation between neighbouring steps


def test_seeds_are_the_same_in_another_process() -> None:
    here = [seed_of(1, "caption", 2, 3), chooser(1, "x").random()]
    code = "from firered_lit.draws import *; print(repr([seed_of(1, 'caption', 2, 3), chooser(1, 'x').random()]))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert there.strip() == repr(here)


def test_the_source_is_the_records_first_reference_wherever_it_stands() -> None:
    sources = tuple(torch.full((1, 3, 4, 4 + i), float(i)) for i in range(3))
    condition = Condition(Text.pad([torch.ones(2, 4)]), ())
    batch = EditBatch(torch.ones(1, 16, 4, 6), condition, (Facts("a"),), 0, (0,), 1, sources=sources)

    def in_order(*order: int) -> EditBatch:
        return replace(batch, facts=(Facts("a", order=order),))

    assert batch.source is sources[0]
    assert in_order(2, 3, 1).source is sources[2]
    assert in_order(2, 1).repeated(3).source.shape == (3, 3, 4, 5)
    assert in_order(2, 3).source is None
    assert replace(in_order(2, 1), sources=()).source is None
    two = replace(batch.repeated(2), facts=(Facts("a", order=(1, 2)), Facts("b")))
    assert two.source.shape == (2, 3, 4, 4), "a sample without an order has its references at their own places"
    with pytest.raises(ValueError, match="different places"):
        replace(two, facts=(Facts("a", order=(2, 1)), Facts("b"))).source  # noqa: B018
