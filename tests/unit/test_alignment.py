"""References permuted and dropped: one order per global batch, and text, latents and prompt all follow it."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from PIL import Image

from datamodules import loader as loading
from datamodules.buckets import Index
from datamodules.chunks import Chunks
from datamodules.crops import Opening
from datamodules.edits import EditDataModule
from datamodules.encode import Encoder, from_png
from datamodules.instruction import Alignment, choices, draw, droppable_references, orders, reindex
from datamodules.loader import EditLoader
from datamodules.records import Record
from datamodules.write import prepare
from firered_lit.batch import Condition, Text
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.family import open_base
from firered_lit.models.qwen_image import velocity
from firered_lit.models.sizes import Sizes

SIZES = Sizes(target_area=64 * 64, reference_area=64 * 64, condition_area=56 * 56)
PROMPTS = {  # by kind of row: a reference that no prompt names may be dropped
    "both": ("Put the hat of image 1 on image 2, {}", "把图1的帽子戴到图2上{}"),
    "first": ("Brighten image 1 {}", "提亮图1{}"),
    "none": ("Merge them {}", ""),
    "three": ("image 3 beside image 1 {}", ""),
}
DROPPABLE = {"both": (), "first": (2,), "none": (1, 2), "three": (2,)}


def write_world(folder, count=40):
    """Rows of two or three references of different shapes, one kind after the other."""
    for i, size in enumerate([(96, 64), (64, 96), (80, 80)]):
        Image.linear_gradient("L").resize(size).rotate(90 * i).convert("RGB").save(folder / f"s{i}.png")
    rows = []
    for i in range(count):
        kind = [*PROMPTS][i % 4]
        Image.new("RGB", (64, 64), (5 * i, 90, 200 - 4 * i)).save(folder / f"t{i}.png")
        en, cn = (text.format(i) for text in PROMPTS[kind])
        row = {
            "source_image": [f"s{(i // 4 + j) % 3}.png" for j in range(3 if kind == "three" else 2)],
            "id": f"{kind}{i}",
        }
        rows.append(row | {"target_image": f"t{i}.png", "instruction": en, "instruction_cn": cn, "task": "a"})
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "edits.jsonl"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def root(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "out"
    prepare(str(source), str(out), "tiny", SIZES, held_out=0.0, device="cpu")
    return out


@pytest.fixture(scope="module")
def base():
    return open_base("tiny").resized(SIZES)


def loader(root, ranks=2, rank=0, world=1, **options):
    options = {"capacity": 256, "workers": 0, "plan_ranks": ranks, "reference_drop": 0.4, "text_drop": 0.2} | options
    whole = EditDataModule(str(root), **options).train_dataloader()
    return EditLoader(whole.visits, whole.plan, whole.identity, rank=rank, world=world, alignment=whole.alignment)


def stored(root):
    chunks = Chunks(root / "chunks")
    return {sample.id: sample for sample in (chunks.read(i, images=True) for i in range(len(chunks)))}


def kind_of(name):
    return name.rstrip("0123456789")


def test_droppability_is_in_the_buckets_key(root):
    index, chunks = Index.open(root / "index" / "train"), Chunks(root / "chunks")
    assert {bucket.droppable for bucket in index.buckets} == {(), (1,), (2,), (3,), (1, 2)}
    for bucket in index.buckets:
        for sample in (chunks.read(int(i)) for i in index.positions[bucket.start : bucket.start + bucket.count]):
            own = sample.meta.get("order", range(1, 1 + len(bucket.references)))  # as stored, in the order of shapes
            assert {own[place - 1] for place in bucket.droppable} == set(DROPPABLE[kind_of(sample.id)])


@pytest.mark.parametrize(
    ("prompts", "n", "captions", "expected"),
    [
        (["image 1 on image 2"], 2, (), ()),
        (["image 1 on image 2"], 2, ("", "a red hat"), (2,)),
        (["brighten image 1", "提亮图2"], 3, (), (3,)),
        (["merge them"], 2, (), (1, 2)),
        (["merge them"], 1, (), ()),
    ],
)
def test_a_reference_may_be_dropped_when_no_prompt_needs_it(prompts, n, captions, expected):
    assert droppable_references(prompts, n, captions) == expected


def check(batch, samples, base, conditioner):
    """That a batch is one that inference would make: references, their prompt and its embedding in one order."""
    for row, name in enumerate(batch.ids):
        sample, n = samples[name], len(samples[name].meta["references"])
        own = [sample.tensors[f"reference.{i}"] for i in range(n)]
        places = [next(i for i, latents in enumerate(own, 1) if latents.equal(x[row])) for x in
                  (images for images in batch.condition.references)]  # fmt: skip
        text = batch.instructions[row]
        expected = {reindex(prompt, places, n=n) for prompt in sample.meta["instructions"].values()}
        assert text in expected or not text, "the prompt does not follow the references"
        crops = [from_png(sample.images[f"reference.{i - 1}"]) for i in places]
        (embedding,) = conditioner.encode([text or UNCONDITIONAL], [crops], base.sizes.condition_area)
        found = batch.condition.text.embeddings[row][: len(embedding)]
        torch.testing.assert_close(found, embedding, atol=1e-5, rtol=0)


def test_text_latents_and_prompt_follow_one_order(root, base, monkeypatch):
    edits, samples, conditioner = loader(root), stored(root), base.conditioner()
    addresses = list(islice(edits.addresses(0), 8 * len(edits)))
    shown = {(address.order, len(batch.condition.references)) for address, batch in zip(addresses, edits)}
    assert {(), (2, 1), (1,), (2,)} < {order for order, _ in shown}
    assert all(len(order) == n for order, n in shown if order)
    seen = set()
    for address, batch in zip(addresses, loader(root)):
        if (address.order, batch.target.shape[1:], len(batch)) not in seen:
            seen.add((address.order, batch.target.shape[1:], len(batch)))
            check(batch, samples, base, conditioner)
    swapped = next(address for address in addresses if address.order == (2, 1))
    check(edits.visits[swapped][0], samples, base, conditioner)
    real = loading._named
    monkeypatch.setattr(loading, "_named", lambda sample, order: real(sample, ()))  # a planted swap
    with pytest.raises(AssertionError):
        check(edits.visits[swapped][0], samples, base, conditioner)


def test_permuted_batches_are_the_single_forwards(root, base):
    """References of different shapes; with the order of another sample the position embedding would be another."""
    transformer, compared = base.transformer().eval(), set()
    edits = loader(root, ranks=1, capacity=1024)
    for address, batch in zip(edits.addresses(0), islice(edits, 3 * len(edits))):
        if len(batch) < 3 or address.order in compared:
            continue
        compared.add(address.order)
        noise, sigma = gaussian(batch.target.shape[1:], batch.slots, 0), torch.full((len(batch),), 0.7)
        with torch.no_grad():
            whole = velocity(transformer, noise, sigma, batch.condition)
            for row in range(len(batch)):
                text, one = batch.condition.text, slice(row, row + 1)
                tokens = text.embeddings[row] if text.mask is None else text.embeddings[row][text.mask[row]]
                references = tuple(images[one] for images in batch.condition.references)
                single = velocity(transformer, noise[one], sigma[one], Condition(Text.pad([tokens]), references))
                torch.testing.assert_close(whole[one], single, atol=2e-5, rtol=1e-4)
                if len({image.shape for image in references}) > 1 and row == 0:
                    other = Condition(Text.pad([tokens]), references[::-1])
                    assert not torch.allclose(velocity(transformer, noise[one], sigma[one], other), single, atol=1e-4)
    assert {(), (2, 1)} < compared
    assert any(len(order) == 1 for order in compared)


def test_every_rank_draws_the_same_order_and_a_resumed_run_goes_on_with_it(root):
    ranks = [loader(root, 4, rank, 4) for rank in range(4)]
    steps = [list(islice(one.addresses(0), 3 * len(one))) for one in ranks]
    assert all(len({address.order for address in step}) == 1 for step in zip(*steps))
    assert len({address.order for address in steps[0]}) > 4
    for batches in zip(*(islice(one, len(one)) for one in ranks)):
        assert len({tuple(image.shape[1:] for image in batch.condition.references) for batch in batches}) == 1
    alone = list(islice(loader(root, 4).addresses(0), 12 * len(ranks[0])))
    assert [address.order for address in alone[::4]] == [address.order for address in steps[0]]
    stopped, resumed = loader(root, 4, 1, 2), loader(root, 4, 1, 2)
    expected = [batch.condition.references for batch in islice(stopped, 8)][4:]
    stopped = loader(root, 4, 1, 2)
    list(islice(stopped, 4))
    resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    for images, batch in zip(expected, islice(resumed, 4)):
        assert all(map(torch.equal, images, batch.condition.references))


def test_orders_come_as_often_as_they_should(root):
    """Over the epochs of a plan: each permutation as often, a droppable reference dropped as often as was asked."""
    edits = loader(root, 1, capacity=1 << 12)
    found = {bucket.droppable: Counter() for bucket in edits.plan.index.buckets if len(bucket.references) == 2}
    for address in islice(edits.addresses(0), 300 * len(edits)):
        bucket = edits.plan[divmod(address.step, len(edits))][0]
        if len(bucket.references) == 2:
            found[bucket.droppable][address.order or (1, 2)] += 1
    shares = {key: {order: count / counts.total() for order, count in counts.items()} for key, counts in found.items()}
    assert shares[()] == pytest.approx({(1, 2): 0.5, (2, 1): 0.5}, abs=0.05)
    assert shares[2,] == pytest.approx({(1, 2): 0.3, (2, 1): 0.3, (1,): 0.4}, abs=0.05)
    both = {(1, 2): 0.18, (2, 1): 0.18, (1,): 0.24 + 0.08, (2,): 0.24 + 0.08}  # both dropped: the first drawn stays
    assert shares[1, 2] == pytest.approx(both, abs=0.05)


def test_a_limit_gives_so_many_orders_of_every_kind():
    assert choices(3, (1, 2, 3), 16)[0] == (1, 2, 3)
    assert set(choices(3, (1, 2, 3), 16)) == set(orders(3, (1, 2, 3)))
    few = choices(8, (1, 2, 3), 16)
    assert (len(few), len(set(few)), few[0]) == (16, 16, tuple(range(1, 9)))
    drawn = Counter(draw(0, 0, step, 8, (1, 2, 3), limit=16) for step in range(3200))
    assert set(drawn) == set(few)
    assert min(drawn.values()) > 120
    assert {draw(0, 0, step, 3, limit=1) for step in range(20)} == {(1, 2, 3)}
    whole = [draw(0, 0, step, 2, (2,), drop=0.4, limit=3) for step in range(50)]
    assert whole == [draw(0, 0, step, 2, (2,), drop=0.4) for step in range(50)]  # a limit that does not bind


def test_a_caption_stands_for_a_dropped_reference(source, base):
    encoder, opening = Encoder(base, "float32", "cpu", orders=16), Opening(base.sizes, lambda row: False)
    paths = tuple(str(source.parent / f"s{i}.png") for i in range(2))
    record = Record("x", "a", str(source.parent / "t0.png"), paths, {"original/en": "image 2 on image 1"}, "f:1")
    record = replace(record, captions=({}, {"cn": "红帽子", "en": "a red hat"}))
    (cropped,) = opening([record])
    (sample,) = encoder.encode([cropped])
    assert sample.meta["droppable"] == (2,)
    assert sample.meta["reindexed"] == {
        "2,1": {"original/en": "image 1 on image 2"},
        "1": {"original/en": "a red hat on image 1"},
    }
    assert encoder.encode([replace(cropped, held_out=True)])[0].orders == {}
    said = encoder.estimate([record])
    encoder.orders = 1
    assert encoder.encode([cropped])[0].orders == {}
    assert said > encoder.estimate([record]) + 3 * 2 * 30 * 4 * 16  # three more orders of two texts of 30 tokens


def test_validation_and_data_without_orders_show_references_as_they_are(source, tmp_path):
    prepare(str(source), str(tmp_path / "aligned"), "tiny", SIZES, held_out=0.65, device="cpu")
    samples = stored(tmp_path / "aligned")
    held_out = EditDataModule(str(tmp_path / "aligned"), capacity=256, held_out_max=99).val_dataloader()
    assert len(held_out) > 3
    for batch in held_out:
        sample = samples[batch.ids[0]]
        assert sample.meta["instructions"]["original/en"] == batch.instructions[0]
        for i, image in enumerate(batch.condition.references):
            assert torch.equal(image[0], sample.tensors[f"reference.{i}"])
    prepare(str(source), str(tmp_path / "plain"), "tiny", SIZES, held_out=0.65, alignment=False, device="cpu")
    plain = loader(tmp_path / "plain")
    assert plain.alignment is None
    assert {address.order for address in islice(plain.addresses(0), 200)} == {()}
    assert len({bucket.droppable for bucket in plain.plan.index.buckets}) == 1
    off = loader(tmp_path / "aligned", alignment=False)
    with pytest.raises(UserError, match=r"data\.alignment"):
        off.load_state_dict(loader(tmp_path / "aligned").state_dict())


def test_a_certain_drop_is_refused():
    with pytest.raises(UserError, match=r"reference_drop=1\.0"):
        Alignment(16, 1.0)
