"""Object storage by parts, and a cache with an end: the same batches, no more bytes than they need."""

from itertools import islice

import pytest
import torch
from test_edits import loader, prints
from test_faults import root, store  # noqa: F401

from datamodules.chunks import remote
from datamodules.chunks.samples import Sample
from datamodules.edits import EditDataModule
from datamodules.prepare.parts import Parts
from datamodules.references.instruction import choices
from datamodules.references.prompt import GRAMMAR
from firered_lit.errors import UserError


def aligned(count):
    """Edits of three references, with the texts of all fifteen orders and pictures that training does not look at."""
    meta = {"task": "a", "cluster": "", "held_out": False, "target": [64, 64], "references": [[64, 64]] * 3}
    for i in range(count):
        tensors = {
            name: torch.full((16, 8, 8), float(i)) for name in ("target", "reference.0", "reference.1", "reference.2")
        }
        texts = {f"text.{key}": torch.full((150, 64), float(i)) for key in ("original/en", "unconditional")}
        own = meta | {"instructions": {"original/en": f"merge {i}"}, "droppable": [1, 2, 3]}
        orders = {",".join(map(str, order)): texts for order in choices(3, (1, 2, 3), 16)[1:]}
        yield Sample(f"id{i}", own, tensors | texts, {"target": b"p" * 50_000}, orders)


@pytest.fixture
def many(tmp_path):
    parts = Parts(tmp_path / "aligned")
    samples = list(aligned(20))
    for number in range(4):
        parts.write(number, 5, samples[5 * number : 5 * number + 5], [])
    header = {"fingerprints": {"vae": "v", "text_encoder": "t"}, "model": "tiny", "sizes": {}, "orders": 16}
    header["mentions"] = GRAMMAR
    parts.finish(header)
    return tmp_path / "aligned"


def test_an_epoch_of_aligned_edits_fetches_at_most_a_fifth_more_than_it_shows(many, store, tmp_path):  # noqa: F811
    for path in many.rglob("*"):
        if path.is_file():
            store.client.upload_file(str(path), "edits", f"many/{path.relative_to(many)}")
    options = {"capacity": 256, "workers": 0, "plan_ranks": 1}
    local = EditDataModule(str(many), **options).train_dataloader()
    expected = list(islice(local, len(local)))
    data = EditDataModule("s3://edits/many", cache=str(tmp_path / "cache"), fetch="samples", **options)
    edits = data.train_dataloader()
    found = list(islice(edits, len(edits)))
    used = 0
    for address, a, b in zip(edits.addresses(0), expected, found):
        assert a.facts == b.facts
        assert torch.equal(a.condition.text.embeddings, b.condition.text.embeddings)
        assert all(map(torch.equal, (a.target, *a.condition.references), (b.target, *b.condition.references)))
        used += len(a.ids) * (4 * 16 * 64 + (4 if address.order else 2) * 150 * 64) * 4
    assert used < edits.visits.chunks.ranges.fetched < 1.2 * used
    assert sum(path.stat().st_size for path in (many / "chunks").glob("*.bin")) > 4 * used
    assert not list((tmp_path / "cache").rglob("*.bin"))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_parts_give_the_same_batches_though_the_store_stops(root, store, tmp_path, workers):  # noqa: F811
    local = loader(root)
    expected = prints(local, 2 * len(local))
    options = {
        "capacity": 64,
        "plan_ranks": 1,
        "workers": workers,
        "cache": str(tmp_path / "cache"),
        "fetch": "samples",
    }
    edits = EditDataModule("s3://edits/v1", **options).train_dataloader()
    found = prints(edits, 3)
    store.stop_for(5.0)
    found += prints(edits, len(expected) - 3)
    edits.close()
    assert found == expected
    held_out = EditDataModule("s3://edits/v1", **options).val_dataloader()
    assert sorted(batch.ids[0] for batch in held_out) == [f"id{i}" for i in range(60, 65)]


@pytest.mark.slow
def test_a_part_that_is_spoilt_is_told(root, store, tmp_path):  # noqa: F811
    for path in (root / "chunks").glob("*.bin"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        store.client.upload_file(str(path), "edits", f"v1/chunks/{path.name}")
    edits = EditDataModule("s3://edits/v1", capacity=64, workers=0, cache=str(tmp_path / "cache"), fetch="samples")
    with pytest.raises(UserError, match=r"s3://edits/v1/chunks/part-\d+-0.bin: sample "):
        list(islice(edits.train_dataloader(), 60))
    with pytest.raises(UserError, match=r"data\.fetch=bytes"):
        EditDataModule("s3://edits/v1", capacity=64, cache=str(tmp_path / "cache"), fetch="bytes")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_cache_keeps_to_its_limit(root, store, tmp_path, monkeypatch, workers):  # noqa: F811
    monkeypatch.setattr(remote, "USED", 0.0)
    size = max(path.stat().st_size for path in (root / "chunks").glob("*.bin"))
    local = loader(root)
    expected = prints(local, 2 * len(local))
    limit = {"cache": str(tmp_path / "cache"), "cache_limit": 4 * size / 1e9}
    edits = EditDataModule("s3://edits/v1", capacity=64, plan_ranks=1, workers=workers, **limit).train_dataloader()
    for print_expected in expected:
        assert prints(edits, 1) == [print_expected]
        kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.bin"))
        assert kept <= (4 + max(0, workers - 1)) * size  # each worker makes room before it copies
    edits.close()
    assert sum(path.stat().st_size for path in (root / "chunks").glob("*.bin")) > 2 * 4 * size


@pytest.mark.slow
def test_what_was_used_just_now_stays_in_the_cache(root, store, tmp_path):  # noqa: F811
    edits = EditDataModule("s3://edits/v1", capacity=64, workers=0, cache=str(tmp_path / "cache"), cache_limit=1e-6)
    chunks = edits.chunks()
    for position in (0, 7, 12, 1, 8):
        chunks.read(position)
    assert len(list((tmp_path / "cache").rglob("*.bin"))) == 3
