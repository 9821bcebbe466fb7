"""The list of chunks: the same by its table as by LitData's index, and nothing of it in the process's own memory."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
from test_edits import loader, mixed, prints
from test_faults import root, store  # noqa: F401

from datamodules.chunks.listing import TABLE, Listing, write_listing
from datamodules.chunks.samples import Chunks
from datamodules.prepare.parts import Parts
from firered_lit.errors import UserError


@pytest.fixture
def folder(tmp_path):
    """The chunks of three parts of unequal numbers of samples."""
    parts, samples, first = Parts(tmp_path / "data"), list(mixed(30)), 0
    for number, count in enumerate((4, 9, 17)):
        parts.write(number, count, samples[first : first + count], [])
        first += count
    parts.finish({"fingerprints": {}, "model": "tiny", "sizes": {}})
    return tmp_path / "data" / "chunks"


def test_table_and_index_say_the_same(folder):
    listing, described = Listing(folder), json.loads((folder / "index.json").read_text())["chunks"]
    assert [listing.name(number) for number in range(len(listing))] == [chunk["filename"] for chunk in described]
    assert [listing.bytes(number) for number in range(3)] == [chunk["chunk_bytes"] for chunk in described]
    assert listing.sizes == [4, 9, 17]
    assert [listing.find(position) for position in (0, 3, 4, 12, 13, 29)] == [
        (0, 0), (0, 3), (1, 0), (1, 8), (2, 0), (2, 16)
    ]  # fmt: skip
    for position in (-1, 30):
        with pytest.raises(IndexError):
            listing.find(position)
    by_table = Chunks(folder)
    (folder / TABLE).unlink()
    by_index = Chunks(folder)
    assert len(by_table) == len(by_index) == 30
    assert [by_table.read(i).id for i in range(30)] == [by_index.read(i).id for i in range(30)]


def test_a_process_holds_nothing_of_it(tmp_path):
    """Of a hundred thousand chunks; it was 1.3 kB a chunk in every worker."""
    chunks = [{"filename": f"part-{i:05d}-0.bin", "chunk_size": 8, "chunk_bytes": 1000} for i in range(100_000)]
    write_listing(tmp_path, chunks)
    del chunks
    tracemalloc.start()
    listing = Listing(tmp_path)
    assert listing.find(799_999) == (99_999, 7)
    assert tracemalloc.get_traced_memory()[1] < 200_000
    tracemalloc.stop()
    assert len(pickle.dumps(listing)) < 1000
    assert pickle.loads(pickle.dumps(listing)).find(16) == (2, 0)


@pytest.mark.parametrize("harm", [lambda x: x[: len(x) // 2], lambda x: b"rubbish", lambda x: b""])
def test_a_broken_table_is_one_line(folder, harm):
    (folder / TABLE).write_bytes(harm((folder / TABLE).read_bytes()))
    with pytest.raises(UserError, match=r"table\.npy: cannot be read.*prepare again") as error:
        Chunks(folder)
    assert "\n" not in str(error.value)


def test_a_table_of_something_else_is_refused(folder):
    np.save(folder / TABLE, np.zeros((2, 3)))
    with pytest.raises(UserError, match="not a table of chunks"):
        Chunks(folder)


def test_data_of_before_has_no_table(root, store, tmp_path):  # noqa: F811
    store.client.delete_object(Bucket="edits", Key=f"v1/chunks/{TABLE}")
    local = loader(root)
    expected = prints(local, 12)
    (root / "chunks" / TABLE).unlink()
    assert prints(loader(root), 12) == expected
    assert prints(loader("s3://edits/v1", cache=str(tmp_path / "cache")), 12) == expected
