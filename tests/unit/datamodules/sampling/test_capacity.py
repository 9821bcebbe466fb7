"""Capacities follow from the shape table: each full-size recipe takes what the comment over its capacity promises."""

import json
import re
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_edits import encoded, write
from toy_prompts import trainer

from callbacks.rewards.pixel import PixelReward
from datamodules.edits import EditDataModule
from datamodules.preferences import PreferenceDataModule
from datamodules.prepared import Prepared
from datamodules.prompts import PromptDataModule
from datamodules.sampling.buckets import BatchPlan, Index, IndexRow, write_index
from datamodules.sources import images
from firered_lit.config.recipe import fold, load
from firered_lit.errors import UserError
from firered_lit.mine.semi_hard import SemiHard
from firered_lit.models.backbone import Backbone
from firered_lit.models.sizes import Sizes, assign, largest_tokens, shape_table, tokens
from firered_lit.stages.nft import NFT

ROOT = Path(__file__).resolve().parents[4]
PLACES = ("data", "stage", "task")  # where a recipe may keep its capacity
PROMISE = re.compile(r"(\d+) (?:samples |pairs |edits )?(?:without references|with (\d+))")


def capacity_of(name):
    """A full-size recipe's capacity, and the sides that it counts of a sample."""
    tree = load(f"{ROOT}/recipes/{name}.yaml").root
    sections = [tree[place] for place in PLACES if "capacity" in tree.get(place, {})]
    assert len(sections) <= 1, f"{name} has two capacities"
    pairs = str(tree.get("data", {}).get("_target_")).endswith("PreferenceDataModule")
    return (sections[0]["capacity"] if sections else None), 1 + pairs


RECIPES = sorted(p.stem for p in (ROOT / "recipes").glob("*.yaml") if capacity_of(p.stem)[0] is not None)


def promises(name):
    """The pixels of a side, and how many samples fit by number of references, from the comment over the capacity."""
    lines = fold(f"{ROOT}/recipes/{name}.yaml").splitlines()  # the comment may stand in a base
    comment = lines[next(i for i, line in enumerate(lines) if line.strip().startswith("capacity:")) - 1]
    assert "of any shape" in comment
    side = int(re.search(r"At (\d+) px", comment).group(1))
    return side, {int(references or 0): int(samples) for samples, references in PROMISE.findall(comment)}


def planned(folder, rows, capacity):
    """Samples that a full micro-batch of each bucket holds, by bucket."""
    write_index(folder, (row._replace(position=i) for i, row in enumerate(rows)))
    plan = BatchPlan(Index.open(folder), capacity=capacity, plan_ranks=1, seed=0)
    return {line.bucket: line.batch for line in plan.table()}


def test_every_recipe_that_makes_batches_by_tokens_is_held_here():
    assert set(RECIPES) == {
        *("pretrain", "continued_pretrain", "sft", "sft_fsdp", "sft_141gb", "sft_consistency"),
        *("sft_lora", "sft_lora_24gb", "sft_lora_48gb", "sft_lora_80gb", "sft_lora_small", "sft_lora_small_24gb"),
        *("dpo", "dpo_lora", "nft", "mine_semi_hard"),
    }


@pytest.mark.parametrize("name", RECIPES)
def test_a_full_size_recipe_takes_all_nine_shapes_with_the_references_and_batch_that_it_promises(name, tmp_path):
    """Target and references of any shapes: two references of different shapes beside every target are among them."""
    capacity, sides = capacity_of(name)
    side, promised = promises(name)
    table = shape_table(side * side)
    assert len(table) == 9
    largest = max(table, key=tokens)
    for references, samples in promised.items():
        assert Sizes(side * side, side * side).capacity(samples, references, sides) <= capacity
        shown = [(target, (other,) * references) for target, other in product(table, table)]
        shown += [(target, (largest, other)) for target, other in product(table, table) if references == 2]
        rows = [IndexRow("edit", target, others, 0) for target, others in dict.fromkeys(shown) for _ in range(samples)]
        batches = planned(tmp_path / str(references), rows, capacity // sides)
        assert all(batch >= samples for batch in batches.values())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_s_capacity_is_no_larger_than_a_promise_needs(name):
    """So that memory is not kept for samples that never come: it is the need of one of its promises exactly."""
    capacity, sides = capacity_of(name)
    side, promised = promises(name)
    sizes = Sizes(side * side, side * side)
    assert capacity in {sizes.capacity(samples, references, sides) for references, samples in promised.items()}


@pytest.mark.parametrize("name", RECIPES)
def test_the_real_edits_go_through_every_full_size_recipe_s_plan(name, shared_data, tmp_path):
    """23 edits of many shapes, and 13 preferences; of rows with several sources, every one counts."""
    folder = shared_data / "real_edits"
    capacity, sides = capacity_of(name)
    side, _ = promises(name)
    table = shape_table(side * side)

    def shape(path):
        return assign(*images.size(folder / path), table)

    file, winner = ("preferences.jsonl", "chosen_image") if sides == 2 else ("edits.jsonl", "target_image")
    rows = []
    for line in (folder / file).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        sources = row["source_image"] if isinstance(row["source_image"], list) else [row["source_image"]]
        rows.append(IndexRow(row["task"], shape(row[winner]), tuple(map(shape, sources)), 0))
    assert len(rows) == (13 if sides == 2 else 23)
    assert sum(bucket.count for bucket in planned(tmp_path, rows, capacity // sides)) == len(rows)


def test_a_bucket_of_4_by_3_fills_the_capacity_as_a_square_does(tmp_path):
    """1184x896 is 48 tokens more than 1024x1024; a capacity of squares took one sample less and stood half empty."""
    capacity, _ = capacity_of("sft")
    shapes = [(896, 1184), (1024, 1024)]
    rows = [IndexRow("edit", shape, (shape,), 0) for shape in shapes for _ in range(2)]
    used = {b.target: n * b.tokens / capacity for b, n in planned(tmp_path, rows, capacity).items()}
    assert used[896, 1184] == 1
    assert used[1024, 1024] > 0.98


@settings(max_examples=60)
@given(
    area=st.integers(96 * 96, 2048 * 2048),
    references=st.integers(0, 3),
    samples=st.integers(1, 5),
    sides=st.sampled_from([1, 2]),
)
def test_a_derived_capacity_is_the_least_that_takes_every_shape(area, references, samples, sides):
    capacity = Sizes(area, area).capacity(samples, references, sides)
    each = [sides * tokens(shape) * (1 + references) for shape in shape_table(area)]
    assert all(capacity // sample >= samples for sample in each)
    assert any((capacity - 1) // sample < samples for sample in each)


def test_the_largest_shape_at_1024_px_is_no_square():
    assert largest_tokens(1024 * 1024) == 4144 > tokens((1024, 1024))


# --- what is larger is refused before the first step, with the capacity that takes it ---

SMALL, LARGE = (32, 64), (64, 96)  # 8 and 24 tokens


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Edits of which one, id3, is larger than the others: 48 tokens with its reference."""
    samples = [encoded(i, "add", SMALL, [SMALL], held_out=True) for i in range(3)]
    samples += [encoded(3, "add", LARGE, [LARGE], held_out=True)]
    for sample in samples:
        sample.meta["held_out"] = False
    return write(tmp_path_factory.mktemp("prepared"), samples, keep_images=True)


def test_a_larger_sample_is_refused_with_the_capacity_that_takes_it(prepared):
    with pytest.raises(UserError, match=r"data.capacity=47: sample 'id3', .* has 48 tokens; data.capacity=48 takes"):
        EditDataModule(str(prepared), capacity=47).train_dataloader()
    EditDataModule(str(prepared), capacity=48).train_dataloader()


def test_a_larger_pair_is_refused_with_both_sides_counted(prepared):
    says = r"data.capacity=95: sample 'id3', .* has 96 tokens, both sides counted; data.capacity=96 takes"
    with pytest.raises(UserError, match=says):
        PreferenceDataModule(str(prepared), capacity=95).train_dataloader()
    PreferenceDataModule(str(prepared), capacity=96).train_dataloader()


@pytest.mark.parametrize(("capacity", "taken"), [(47, False), (48, True), (None, True)])
def test_an_edit_larger_than_a_forward_of_reinforcement_is_refused_before_the_first_rollout(
    prepared, tmp_path, capacity, taken
):
    stage = NFT(Backbone("tiny"), partial(torch.optim.SGD, lr=0.0), capacity=capacity)
    data = PromptDataModule(str(prepared), groups=1, workers=0)
    run = trainer(tmp_path, [PixelReward()], max_steps=0 if taken else 1, limit_val_batches=0)
    if taken:
        run.fit(stage, data)
        return
    with pytest.raises(UserError, match=r"stage.capacity=47: sample 'id3', .* has 48 tokens; stage.capacity=48 takes"):
        run.fit(stage, data)


def test_an_edit_larger_than_a_forward_of_mining_is_refused_before_the_first_draw(prepared):
    with pytest.raises(UserError, match=r"task.capacity=47: a sample has 48 tokens; task.capacity=48 takes every"):
        SemiHard("tiny", Prepared(str(prepared)), {"reward": PixelReward()}, capacity=47)
