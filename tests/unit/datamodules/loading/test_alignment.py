"""References permuted and dropped: one order per global batch, and text, latents and prompt all follow it."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch
from PIL import Image

from datamodules.chunks.samples import Chunks, Sample
from datamodules.edits import EditDataModule
from datamodules.loading import loader as loading
from datamodules.loading.loader import EditLoader
from datamodules.prepare.crops import Opening
from datamodules.prepare.encode import Encoder
from datamodules.prepare.parts import Parts
from datamodules.prepare.write import prepare
from datamodules.references.instruction import Alignment, choices, draw, droppable_references, orders, reindex
from datamodules.sampling.buckets import Index
from datamodules.sources.images import from_png
from datamodules.sources.records import Record
from firered_lit.batch import Condition, Text
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.models.conditioning import UNCONDITIONAL
from firered_lit.models.family import open_base
from firered_lit.models.qwen_image import velocity
from firered_lit.models.sizes import Sizes

SIZES = Sizes(target_area=64 * 64, reference_area=80 * 80, condition_area=56 * 56)
PROMPTS = {  # by kind of row
    "both": ("Put the hat of image 1 on image 2, v{}", "把图1的帽子戴到图2上，v{}"),
    "first": ("Brighten image 1, v{}", "提亮图1，v{}"),
    "captioned": ("Put the hat of image 1 on image 2, v{}", "把图1的帽子戴到图2上，v{}"),
    "three": ("image 3 beside image 1, v{}", ""),
    "none": ("Merge them, v{}", ""),
    "unclear": ("Put the former on image 2, v{}", "把图1放到图2上，v{}"),
}
CAPTIONS = {"captioned": ["a cat", "a dog"]}
DROPPABLE = {"both": (), "first": (2,), "captioned": (1, 2), "three": (2,), "none": (), "unclear": ()}


def write_world(folder, count=60):
    """Rows of two or three references of different shapes, one kind after the other."""
    for i, size in enumerate([(96, 64), (64, 96), (80, 80)]):
        Image.linear_gradient("L").resize(size).rotate(90 * i).convert("RGB").save(folder / f"s{i}.png")
    rows = []
    for i in range(count):
        kind = [*PROMPTS][i % len(PROMPTS)]
        Image.new("RGB", (64, 64), (4 * i, 90, 200 - 3 * i)).save(folder / f"t{i}.png")
        en, cn = (text.format(i) for text in PROMPTS[kind])
        row = {
            "source_image": [f"s{(i // len(PROMPTS) + j) % 3}.png" for j in range(3 if kind == "three" else 2)],
            "id": f"{kind}{i}",
        }
        row |= {"reference_captions": CAPTIONS[kind]} if kind in CAPTIONS else {}
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


def test_droppability_and_fixed_order_are_in_the_buckets_key(root):
    index, chunks = Index.open(root / "index" / "train"), Chunks(root / "chunks")
    assert {bucket.droppable for bucket in index.buckets} == {(), (1,), (2,), (3,), (1, 2)}
    for bucket in index.buckets:
        for sample in (chunks.read(int(i)) for i in index.positions[bucket.start : bucket.start + bucket.count]):
            own = sample.meta.get("order", range(1, 1 + len(bucket.references)))  # as stored, in the order of shapes
            assert {own[place - 1] for place in bucket.droppable} == set(DROPPABLE[kind_of(sample.id)])
            assert bucket.fixed == (kind_of(sample.id) == "unclear")
    assert json.loads((root / "data.json").read_text())["fixed"] == 10


def test_a_sample_that_is_not_understood_keeps_its_order_everywhere(source, root):
    """As it is stored, in the index, in every batch; one unclear prompt is enough, the other language is clear."""
    rows = {row["id"]: row for row in map(json.loads, source.read_text().splitlines())}
    kept = {name: sample for name, sample in stored(root).items() if kind_of(name) == "unclear"}
    assert len(kept) == 10
    for name, sample in kept.items():
        assert "order" not in sample.meta
        assert sample.meta["instructions"]["original/en"] == rows[name]["instruction"]
        assert sample.meta["instructions"]["original/cn"] == rows[name]["instruction_cn"]
        sizes = [Image.open(source.parent / picture).size for picture in rows[name]["source_image"]]
        stored_wide = [width > height for height, width in sample.meta["references"]]
        assert stored_wide == [width > height for width, height in sizes]
    edits = loader(root)
    shown = 0
    for address, batch in zip(edits.addresses(0), islice(edits, 4 * len(edits))):
        for facts in batch.facts:
            if facts.id in kept:
                shown += 1
                assert address.order == ()
                assert facts.instruction in ("", *kept[facts.id].meta["instructions"].values())
    assert shown > 10


def test_the_picture_that_is_edited_is_never_dropped_without_its_caption(root):
    """Wherever it stands; where it goes, every prompt says its caption."""
    gone = Counter()
    for batch in islice(loader(root), 40 * len(loader(root))):
        for facts in batch.facts:
            if 1 not in facts.order:
                gone[kind_of(facts.id)] += 1
                assert not facts.instruction or "a cat" in facts.instruction
    assert set(gone) == {"captioned"}


@pytest.mark.parametrize(
    ("prompts", "n", "captions", "expected"),
    [
        (["image 1 on image 2"], 2, (), ()),
        (["image 1 on image 2"], 2, ("", "a red hat"), (2,)),
        (["image 1 on image 2"], 2, ("a head", "a red hat"), (1, 2)),
        (["brighten image 1", "提亮图2"], 3, (), (3,)),
        (["brighten image 1"], 3, (), (2, 3)),
        # the picture that is edited is needed, though no prompt names it
        (["Dress the person in the jacket from image 2"], 2, (), ()),
        (["Dress the person in the jacket from image 2"], 2, ("a man", ""), ()),
        (["Dress the person in the jacket from image 2"], 2, ("a man", "a red jacket"), (2,)),
        (["Dress the person in the jacket from image 2"], 3, (), (3,)),
        (["Dress the person of image 1", "给人穿上图2的衣服"], 2, ("a man", ""), ()),
        # all are, where none is named
        (["Put the woman on the beach"], 2, (), ()),
        (["Put the woman on the beach"], 2, ("a woman", "a beach"), ()),
        (["Put the woman of image 1 on the beach", "把女人放到海滩上"], 3, (), ()),
        (["merge them"], 3, (), ()),
        (["merge them"], 1, (), ()),
        # or several at once, one by its part, one after another, one in words that are not understood
        (["Combine both images, with the light of image 1"], 2, ("", "a dog"), ()),
        (["用图1的光线合成两张图"], 2, ("", "一只狗"), ()),
        (["Match image 1 to the reference image"], 2, ("", "a dog"), ()),
        (["Image 1: person; 2: dress"], 2, ("a man", "a dress"), ()),
        (["Put image 1 into the left image"], 2, ("a man", "a room"), ()),
        ([], 2, (), ()),
    ],
)
def test_a_reference_may_be_dropped_when_no_prompt_needs_it(prompts, n, captions, expected):
    assert droppable_references(prompts, n, captions) == expected


def test_the_picture_that_is_edited_is_known_wherever_it_is_stored():
    prompt = ["Brighten image 2"]  # stored second, because of its shape
    assert droppable_references(prompt, 3, (), edited=2) == (1, 3)
    assert droppable_references(["Brighten image 3"], 3, (), edited=2) == (1,)


def check(batch, samples, base, conditioner):
    """That a batch is one that inference would make: references, their prompt and its embedding in one order."""
    for row, name in enumerate(batch.ids):
        sample, n = samples[name], len(samples[name].meta["references"])
        own = [sample.tensors[f"reference.{i}"] for i in range(n)]
        places = [next(i for i, latents in enumerate(own, 1) if latents.equal(x[row])) for x in
                  (images for images in batch.condition.references)]  # fmt: skip
        text = batch.facts[row].instruction
        captions = [caption.get("en") for caption in sample.meta.get("captions", [])]
        expected = {reindex(prompt, places, captions, n=n) for prompt in sample.meta["instructions"].values()}
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
        if bucket.fixed:
            assert not address.order
        elif len(bucket.references) == 2:
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
        assert sample.meta["instructions"]["original/en"] == batch.facts[0].instruction
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


EARLIER = {  # by kind: a prompt, what an earlier version made of it for the order 2, 1, and what it let go
    "clear": ("Put image 1 on image 2", "Put image 2 on image 1", ()),
    "half": ("Image 1: person; 2: dress", "Image 2: person; 2: dress", (2,)),
    "none": ("Put the woman on the beach", "Put the woman on the beach", (1, 2)),
    "unclear": ("Put the former into the latter", "Put the former into the latter", (1, 2)),
}


def of_an_earlier_version(folder, each=6):
    """Write a folder as versions did that understood fewer mentions; they did not note how they read them."""
    samples = []
    for kind, (prompt, moved, droppable) in EARLIER.items():
        for i in range(each):
            meta = {"task": "a", "cluster": "", "held_out": False, "target": [64, 64], "references": [[64, 64]] * 2}
            meta |= {"instructions": {"original/en": prompt}, "droppable": list(droppable)}
            meta |= {"reindexed": {"2,1": {"original/en": moved}}} if moved != prompt else {}
            tensors = {name: torch.full((16, 8, 8), float(i)) for name in ("target", "reference.0", "reference.1")}
            texts = {f"text.{key}": torch.ones(5, 64) for key in ("original/en", "unconditional")}
            orders = {",".join(map(str, order)): texts for order in choices(2, droppable, 16)[1:]}
            samples.append(Sample(f"{kind}{i}", meta, tensors | texts, {}, orders))
    parts = Parts(folder)
    parts.write(0, len(samples), samples, [])
    header = {"fingerprints": {"vae": "v", "text_encoder": "t"}, "model": "tiny", "orders": 16, "keep_images": False}
    parts.finish(header | {"sizes": SIZES.as_dict()})


def test_data_of_an_earlier_version_drops_nothing_and_shows_no_prompt_that_it_misread(tmp_path, caplog):
    """One misread sample keeps the order of its whole micro-batch, on whichever process that is shown."""
    of_an_earlier_version(tmp_path)
    with caplog.at_level("INFO"):
        edits = loader(tmp_path, capacity=96, text_drop=0.0)
    assert sum("prepared by an earlier version" in record.message for record in caplog.records) == 1
    seen = Counter()
    for batch in islice(edits, 30 * len(edits)):
        assert len(batch.condition.references) == 2
        kept = any(kind_of(name) in ("half", "unclear") for name in batch.ids)
        for facts in batch.facts:
            prompt, moved, _ = EARLIER[kind_of(facts.id)]
            seen[kind_of(facts.id), facts.order] += 1
            assert facts.order == (1, 2) or not kept
            assert facts.instruction == (prompt if facts.order == (1, 2) else moved)
    assert {("clear", (2, 1)), ("none", (2, 1))} < set(seen)
    again = [batch.facts for batch in islice(loader(tmp_path, capacity=96), 20)]
    alone = [loader(tmp_path, capacity=96, rank=rank, world=2) for rank in range(2)]
    shared = [batch.facts for pair in zip(*(islice(one, 10) for one in alone)) for batch in pair]
    assert again == shared


def test_an_unfinished_folder_of_an_earlier_version_goes_on_as_one(source, tmp_path):
    """What it is made from does not say how mentions are read, and says so no more when it is finished."""
    prepare(str(source), str(tmp_path / "out"), "tiny", SIZES, held_out=0.0, device="cpu", max_orders=2, part_rows=30)
    made = json.loads((tmp_path / "out" / "prepare.json").read_text())
    del made["mentions"]
    (tmp_path / "out" / "prepare.json").write_text(json.dumps(made))
    for path in (tmp_path / "out" / "data.json", tmp_path / "out" / "parts" / "00001.json"):
        path.unlink()
    prepare(str(source), str(tmp_path / "out"), "tiny", SIZES, held_out=0.0, device="cpu", max_orders=2, part_rows=30)
    assert "mentions" not in json.loads((tmp_path / "out" / "data.json").read_text())
    assert EditDataModule(str(tmp_path / "out"), capacity=256).earlier


def test_a_certain_drop_is_refused():
    with pytest.raises(UserError, match=r"reference_drop=1\.0"):
        Alignment(16, 1.0)
