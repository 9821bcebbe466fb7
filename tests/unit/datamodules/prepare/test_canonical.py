"""References are stored in a canonical order of shapes: fewer buckets, the same edit, the source found again."""

import json
from dataclasses import replace
from itertools import islice, permutations

import pytest
from PIL import Image

from datamodules.chunks.samples import Chunks
from datamodules.edits import EditDataModule
from datamodules.loading.loader import collate, pictured
from datamodules.prepare.canonical import canonical
from datamodules.prepare.crops import Cropped
from datamodules.prepare.write import prepare
from datamodules.references.instruction import as_in_the_row
from datamodules.sampling.buckets import Index
from datamodules.sources.records import Record
from firered_lit.models.sizes import Sizes

SIZES = Sizes(target_area=64 * 64, reference_area=80 * 80, condition_area=56 * 56)
SHAPES = [(96, 64), (64, 96), (80, 80)]  # width, height


def write_rows(folder):
    """One edit in every order of three references of three shapes; the prompt names them by what they show."""
    for i, size in enumerate(SHAPES):
        Image.linear_gradient("L").resize(size).rotate(90 * i).convert("RGB").save(folder / f"s{i}.png")
    rows = []
    for number, order in enumerate(permutations(range(3))):
        Image.new("RGB", (64, 64), (30 * number, 90, 200)).save(folder / f"t{number}.png")
        said = {i: order.index(i) + 1 for i in order}
        text = f"Put image {said[0]} and image {said[1]} into the room of image {said[2]}"
        rows.append({"source_image": [f"s{i}.png" for i in order], "target_image": f"t{number}.png", "id": str(order)})
        rows[-1] |= {"instruction": text, "reference_captions": [f"picture {i}" for i in order], "task": "a"}
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "edits.jsonl"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("world"))


def prepared(source, out, **options):
    prepare(str(source), str(out), "tiny", SIZES, held_out=0.0, device="cpu", max_orders=2, **options)
    chunks = Chunks(out / "chunks")
    return [chunks.read(i, images=True) for i in range(len(chunks))], len(Index.open(out / "index" / "train").buckets)


@pytest.fixture(scope="module")
def stored(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "out"
    return out, *prepared(source, out)


def test_orders_of_the_same_references_share_a_bucket_and_are_the_same_edit(source, stored, tmp_path):
    _, samples, buckets = stored
    assert buckets == 1
    assert len({json.dumps([s.meta["references"], s.meta["instructions"], s.meta["captions"]]) for s in samples}) == 1
    assert samples[0].meta["references"] == sorted(samples[0].meta["references"])
    for name in ("reference.0", "reference.1", "reference.2", "text.original/en"):
        assert len({sample.tensors[name].numpy().tobytes() for sample in samples}) == 1
    as_they_are, many = prepared(source, tmp_path / "plain", alignment=False)
    assert many == 6
    assert len({sample.meta["instructions"]["original/en"] for sample in as_they_are}) == 6
    assert not any("order" in sample.meta for sample in as_they_are)


def test_the_records_first_reference_is_found_in_every_order(source, stored):
    """Also after an order was drawn, and when it was dropped."""
    root, samples, _ = stored
    first = {name: Image.open(source.parent / name).size for name in ("s0.png", "s1.png", "s2.png")}
    for sample in samples:
        own = [first[f"s{i}.png"] for i in json.loads(sample.id.replace("(", "[").replace(")", "]"))]
        for order in [(), (2, 3, 1), (3, 1), (2,)]:
            batch = collate([sample], ["original/en"], 0, (0,), 1, order, **pictured([sample], order))
            numbers = [sample.meta["order"][i - 1] for i in order or (1, 2, 3)] if "order" in sample.meta else order
            assert batch.facts[0].order == tuple(numbers or (1, 2, 3))
            shown = {image.shape[-2:] for image in batch.sources}
            assert batch.source is None or (batch.source.shape[-1] > batch.source.shape[-2]) == (own[0][0] > own[0][1])
            assert (batch.source is None) == (1 not in batch.facts[0].order)
            assert len(shown) == len(batch.sources)
    drawn = EditDataModule(str(root), capacity=256, workers=0).train_dataloader()
    orders = {one.order for batch in islice(drawn, 24) for one in batch.facts}
    assert len(orders) > 5
    assert all(set(order) <= {1, 2, 3} for order in orders)


def test_the_rows_own_order_comes_back(source, stored):
    rows = {row["id"]: row for row in map(json.loads, source.read_text().splitlines())}
    first = {Image.open(source.parent / f"s{i}.png").size: f"s{i}.png" for i in range(3)}
    for sample in stored[1]:
        places, texts = as_in_the_row(sample.meta)
        assert texts == {"original/en": rows[sample.id]["instruction"]}
        shapes = [sample.meta["references"][place] for place in places]
        kind = lambda h, w: (w > h) - (w < h)  # noqa: E731
        names = {kind(height, width): name for (width, height), name in first.items()}
        assert [names[kind(*shape)] for shape in shapes] == rows[sample.id]["source_image"]


def test_references_of_one_shape_and_single_ones_stay(source):
    images = [Image.new("RGB", size, colour) for size, colour in [((64, 32), "red"), ((64, 32), "blue")]]
    record = Record("x", "a", "t.png", ("1.png", "2.png"), {"original/en": "image 2 on image 1"}, "f:1")
    crops = {f"reference.{i}": image for i, image in enumerate(images)} | {"target": images[0]}
    cropped = Cropped(record, False, crops, (32, 64), [], None, {})
    assert canonical(cropped) is cropped
    crops["reference.1"] = images[1].resize((32, 32))
    moved = canonical(cropped)
    assert moved.order == (2, 1)
    assert moved.record.instructions == {"original/en": "image 1 on image 2"}
    assert moved.record.references == ("2.png", "1.png")


@pytest.mark.parametrize(
    "unclear",
    [{"original/en": "Put the left image on image 2"}, {"original/en": "image 1", "structured/cn": "1穿2的衣服"}],
)
def test_what_is_not_understood_keeps_the_order_of_its_row(source, unclear):
    """In one of its prompts is enough; no byte of any changes."""
    images = [Image.new("RGB", size, "red") for size in [(64, 32), (32, 32)]]
    record = Record("x", "a", "t.png", ("1.png", "2.png"), unclear, "f:1")
    crops = {f"reference.{i}": image for i, image in enumerate(images)} | {"target": images[0]}
    cropped = Cropped(record, False, crops, (32, 64), [], None, {})
    assert canonical(cropped) is cropped
    assert canonical(replace(cropped, record=replace(record, instructions={"original/en": "image 1"}))).order == (2, 1)
