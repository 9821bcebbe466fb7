"""Samples survive LitData bit for bit, and no broken byte passes for a sample."""

import json

import pytest
import torch
from litdata import StreamingDataset

from datamodules.chunks.samples import Chunks, Sample, pack, unpack
from datamodules.prepare.grouping import CHUNK_BYTES, ChunkWriter
from firered_lit.errors import UserError


def write_chunks(folder, samples, chunk_bytes=CHUNK_BYTES):
    with ChunkWriter(folder, chunk_bytes) as writer:
        for one in samples:
            writer.add(one)
        return writer.finish()


def sample(i, images=True):
    noise = torch.Generator().manual_seed(i)
    tensors = {
        "target": torch.randn(16, 4, 4 + i, generator=noise),
        "text.unconditional": torch.randn(5 + i, 8, generator=noise),
    }
    tensors = {k: v.to(torch.bfloat16) if i % 2 else v for k, v in tensors.items()}
    meta = {"task": "色", "instructions": {"original/cn": "变红" * i}, "target": [32, 32 + 8 * i], "references": []}
    return Sample(f"sample-{i}", meta, tensors, {"target": bytes([i] * 100)} if images else {})


@pytest.fixture
def chunks(tmp_path):
    """Seven samples of as many buckets, each with a chunk of its own."""
    described, order = write_chunks(tmp_path / "chunks", map(sample, range(7)), chunk_bytes=2000)
    assert len(described["chunks"]) == 7
    assert order == list(range(7))
    (tmp_path / "chunks" / "index.json").write_text(json.dumps(described))
    return Chunks(tmp_path / "chunks")


def same(a, b):
    assert (a.id, a.meta) == (b.id, b.meta)
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[k].float(), b.tensors[k].float()) for k in a.tensors)
    assert all(a.tensors[k].dtype == b.tensors[k].dtype for k in a.tensors)


def test_samples_are_read_back_as_they_were_in_any_order(chunks):
    for i in (5, 0, 6, 3, 3):
        read = chunks.read(i, images=True)
        assert read.images == sample(i).images
        same(read, sample(i))
    assert chunks.read(3).images == {}
    assert len(chunks) == 7


def test_a_packed_sample_is_the_sample():
    before = sample(4)
    after = unpack(pack(before), images=True)
    same(before, after)
    assert after.images == before.images
    assert unpack(pack(Sample("x", {}, {}, {})), images=True).images == {}


def test_plain_litdata_reads_the_folder(chunks):
    leaves = StreamingDataset(str(chunks.folder))[2]
    assert leaves["id"] == "sample-2"
    assert json.loads(leaves["meta"])["instructions"] == {"original/cn": "变红变红"}


def test_reading_one_sample_does_not_decode_its_neighbours(chunks):
    """Rows that LitData stores as Arrow tables are decoded by the hundred for each random read."""
    leaves = StreamingDataset(str(chunks.folder))[0]
    assert isinstance(leaves["images"], memoryview)
    assert b"ARROW" not in (chunks.folder / chunks.listing.name(0)).read_bytes()


def test_length_is_that_of_the_data_on_every_rank(chunks, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    fresh = Chunks(chunks.folder)
    assert len(fresh) == 7
    assert [fresh.read(i).id for i in range(7)] == [f"sample-{i}" for i in range(7)]


def test_no_flipped_bit_passes(tmp_path):
    """One bit of every 29th byte: the sample is refused, or (the chunk's count, which is not needed) it is the same."""
    described, _ = write_chunks(tmp_path / "whole", [sample(1)])
    name, refused = described["chunks"][0]["filename"], 0
    whole, offsets = (tmp_path / "whole" / name).read_bytes(), range(0, described["chunks"][0]["chunk_bytes"], 29)
    for offset in offsets:
        broken = bytearray(whole)
        broken[offset] ^= 1
        folder = tmp_path / str(offset)  # a file that is mapped must not change under the reader
        folder.mkdir()
        (folder / "index.json").write_text(json.dumps(described))
        (folder / name).write_bytes(broken)
        try:
            after = Chunks(folder).read(0, images=True)
        except UserError:
            refused += 1
        else:
            same(unpack(pack(sample(1))), after)
    assert refused >= len(offsets) - 1


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-10]), "bytes, not"),
        (lambda path: path.write_bytes(bytes(path.stat().st_size)), "cannot be read"),
    ],
    ids=["deleted", "cut short", "zeroed"],
)
def test_a_broken_chunk_is_one_error_that_names_chunk_and_sample(chunks, harm, reason):
    second = chunks.listing.name(1)
    first_of_it = chunks.listing.count(0)
    harm(chunks.folder / second)
    assert chunks.read(0).id == "sample-0"
    with pytest.raises(UserError) as error:
        chunks.read(first_of_it)
    assert f"{chunks.folder / second}: sample 0 (number {first_of_it} of all)" in str(error.value)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_an_index_is_one_error(tmp_path):
    with pytest.raises(UserError, match=r"index.json.*prepare"):
        Chunks(tmp_path)
