"""Online alignment: the text encoder reads in the step what cached alignment reads from the chunks."""

import json
from collections import Counter
from functools import partial
from itertools import islice

import lightning as L
import pytest
import torch
from PIL import Image

from datamodules.edits import EditDataModule
from datamodules.prepare.write import prepare
from datamodules.sampling.buckets import Index
from firered_lit.batch import Text, Unencoded
from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.models.sizes import Sizes
from firered_lit.stages.sft import SFT

SIZES = Sizes(target_area=64 * 64, reference_area=80 * 80, condition_area=56 * 56)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Edits of two references of two shapes, one of them with captions in both languages, and of one."""
    folder, rows = tmp_path_factory.mktemp("world"), []
    for i, size in enumerate([(96, 64), (64, 96)]):
        Image.linear_gradient("L").resize(size).rotate(90 * i).convert("RGB").save(folder / f"s{i}.png")
    for i in range(12):
        Image.new("RGB", (64, 64), (20 * i, 90, 200)).save(folder / f"t{i}.png")
        row = {
            "source_image": ["s0.png", "s1.png"][: 1 + i % 3],
            "target_image": f"t{i}.png",
            "task": "a",
            "id": str(i),
        }
        row |= {"instruction": f"Edit image 1, {i}", "instruction_cn": f"把图2放进图1{i}"} if i % 3 else {}
        captions = {"reference_captions": [None, "a red hat"], "reference_captions_cn": [None, "红帽子"]}
        rows.append(row | (captions if i % 3 == 1 else {}) | ({} if i % 3 else {"instruction": f"brighter {i}"}))
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "edits.jsonl"


@pytest.fixture(scope="module")
def cached(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("data") / "out"
    prepare(str(source), str(out), "tiny", SIZES, held_out=0.0, device="cpu")
    return out


@pytest.fixture(scope="module")
def bare(source, tmp_path_factory):
    """The same, without the texts of other orders."""
    out = tmp_path_factory.mktemp("data") / "out"
    prepare(str(source), str(out), "tiny", SIZES, held_out=0.0, device="cpu", alignment="online")
    return out


def data(root, **options):
    options = {"capacity": 256, "workers": 0, "plan_ranks": 1, "reference_drop": 0.4, "text_drop": 0.2} | options
    return EditDataModule(str(root), **options)


def stage():
    return SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=1e-3))


def same_text(found, expected):
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-5, rtol=0)
    assert found.embeddings.dtype == expected.embeddings.dtype
    assert (found.mask is None) == (expected.mask is None)
    assert found.mask is None or found.mask.equal(expected.mask)


@pytest.mark.parametrize("where", ["cached", "bare"])
def test_an_online_batch_is_the_cached_batch(cached, bare, where):
    """The same orders are drawn, and after the step's encoder all of the batch is equal."""
    reader, known, orders = stage(), data(cached).train_dataloader(), Counter()
    online = data({"cached": cached, "bare": bare}[where], alignment="online" if where == "cached" else True)
    unread = online.train_dataloader()
    assert list(islice(unread.addresses(0), 36)) == list(islice(known.addresses(0), 36))
    for address, expected, raw in islice(zip(known.addresses(0), known, unread), 36):
        orders[address.order, any(one.instruction for one in raw.facts)] += 1
        assert isinstance(raw.condition.text, Unencoded) == bool(address.order)
        found = reader.on_after_batch_transfer(raw, 0)
        assert type(found.condition.text) is Text
        same_text(found.condition.text, expected.condition.text)
        assert all(map(torch.equal, raw.condition.references, expected.condition.references))
        assert raw.facts == expected.facts
    assert {order for order, _ in orders} >= {(), (2, 1), (1,)}


def test_a_chinese_prompt_gets_the_chinese_caption(cached):
    drawn = islice(data(cached).train_dataloader(), 60)
    texts = [one.instruction for batch in drawn for one in batch.facts]
    assert any(text.startswith("把红帽子放进图1") for text in texts)
    assert not any("a red hat" in text for text in texts), "the English prompt does not name that reference"


def test_buckets_do_not_depend_on_the_mode(cached, bare):
    first, second = (Index.open(root / "index" / "train").buckets for root in (cached, bare))
    assert first == second
    assert {bucket.droppable for bucket in first} == {(), (2,)} or {bucket.droppable for bucket in first} == {(), (1,)}
    size = lambda root: sum(path.stat().st_size for path in (root / "chunks").iterdir())  # noqa: E731
    assert size(bare) < 0.9 * size(cached)


def test_a_training_goes_the_same_way(cached, bare):
    def losses(root):
        seen = []

        class Notes(L.Callback):
            def on_train_batch_end(self, trainer, module, outputs, batch, number):
                seen.append(float(outputs["loss"]))

        options = {"accelerator": "cpu", "max_steps": 6, "logger": False, "enable_checkpointing": False}
        trainer = L.Trainer(**options, enable_progress_bar=False, callbacks=[Notes()], enable_model_summary=False)
        trainer.fit(stage(), datamodule=data(root))
        return seen

    assert losses(bare) == pytest.approx(losses(cached), rel=1e-4)


def test_without_the_encoder_an_unread_text_cannot_be_trained_on(bare):
    batch = next(b for b in data(bare).train_dataloader() if isinstance(b.condition.text, Unencoded))
    module = stage()
    module.configure_model()
    with pytest.raises(RuntimeError):
        module.losses(batch)


def test_pictures_are_needed(source, cached, tmp_path):
    with pytest.raises(UserError, match="keep_images=true"):
        prepare(str(source), str(tmp_path / "a"), "tiny", SIZES, alignment="online", keep_images=False, device="cpu")
    prepare(str(source), str(tmp_path / "b"), "tiny", SIZES, held_out=0.0, keep_images=False, device="cpu")
    with pytest.raises(UserError, match=r"data\.alignment=online.*keep_images=true"):
        data(tmp_path / "b", alignment="online")
    with pytest.raises(UserError, match="true, false or online"):
        data(cached, alignment="offline")
    with pytest.raises(UserError, match="made with another"):
        prepare(str(source), str(cached), "tiny", SIZES, held_out=0.0, device="cpu", alignment="online")
