"""The columnar index: sorted, compact, atomic, and honest about a broken file."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from datamodules.sampling import index as index_module
from datamodules.sampling.index import FILE, Bucket, Index, IndexRow
from datamodules.sampling.indexing import write_index
from firered_lit.errors import UserError

SHAPES = st.sampled_from([(64, 64), (64, 96), (96, 64)])
ROWS = st.lists(
    st.builds(
        lambda task, target, references, *rest: (task, target, tuple(references), *rest),
        st.sampled_from(["add", "remove", "水"]),
        SHAPES,
        st.lists(SHAPES, max_size=2),
        st.sampled_from(["", "a", "b"]),
        st.sampled_from([(), (1,)]),
        st.booleans(),
    ),
    min_size=1,
    max_size=60,
)


def rows_of(specs, seed):
    positions = np.random.default_rng(seed).permutation(len(specs)) * 3
    return [IndexRow(t, s, r, int(p), c, d, f) for (t, s, r, c, d, f), p in zip(specs, positions)]


@settings(deadline=None, max_examples=50)
@given(ROWS, st.integers(0, 9), st.sampled_from([8, 64, 1 << 18]))
def test_rows_are_sorted_by_bucket_then_position_and_none_is_lost(tmp_path_factory, specs, seed, piece):
    folder, rows = tmp_path_factory.mktemp("index"), rows_of(specs, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "PIECE", piece)  # columns are written in pieces: their borders must not show
        write_index(folder, iter(rows))
    index = Index.open(folder)
    assert sorted(index.positions.tolist()) == sorted(row.position for row in rows)
    by_position = {row.position: row for row in rows}
    end = 0
    for bucket in index.buckets:
        assert bucket.start == end
        end += bucket.count
        own = [by_position[p] for p in index.positions[bucket.start : end].tolist()]
        key = (bucket.task, bucket.target, bucket.references, bucket.droppable, bucket.fixed)
        assert {(r.task, r.target, r.references, r.droppable, r.fixed) for r in own} == {key}
        assert [r.position for r in own] == sorted(r.position for r in own)
        assert index.blocks(bucket)[0] == 0
    assert end == len(rows) == len(index)
    assert len({(b.task, b.target, b.references, b.droppable, b.fixed) for b in index.buckets}) == len(index.buckets)
    if len(index.clusters) > 1:
        starts = [*index.columns["segment_start"].tolist(), len(rows)]
        for a, b, cluster in zip(starts, starts[1:], index.columns["segment_cluster"].tolist()):
            segment = index.columns["by_cluster"][a:b]
            assert {by_position[p].cluster for p in index.positions[segment].tolist()} == {index.clusters[cluster]}


def test_the_file_is_safetensors_and_4_bytes_a_row(tmp_path):
    write_index(tmp_path, (IndexRow("add", (64, 64), (), i) for i in range(100_000)))
    assert (load_file(tmp_path / FILE)["positions"] == np.arange(100_000)).all()
    assert (tmp_path / FILE).stat().st_size < 100_000 * 4.1 + 4096


def test_positions_beyond_32_bits(tmp_path):
    write_index(tmp_path, [IndexRow("add", (64, 64), (), 2**32 + 5), IndexRow("add", (64, 64), (), 7)])
    assert Index.open(tmp_path).positions.tolist() == [7, 2**32 + 5]


@pytest.mark.parametrize("piece", [24, 1 << 16])
def test_blocks_are_the_chunks_of_a_bucket(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(index_module, "PIECE", piece)
    rows = [IndexRow("add", (64, 64), (), i) for i in range(100)] + [
        IndexRow("cut", (64, 64), (), i) for i in range(100, 1000)
    ]
    write_index(tmp_path, rows, chunks=[40, 80, 80, 800])
    index = Index.open(tmp_path)
    assert index.blocks(index.buckets[0]).tolist() == [0, 40]
    assert index.blocks(index.buckets[1]).tolist() == [0, 20, 100, 612]  # the last chunk is cut at 512 rows


def test_chunks_that_scatter_a_bucket_are_no_blocks(tmp_path):
    write_index(tmp_path, [IndexRow("ab"[i % 2], (64, 64), (), i) for i in range(400)], chunks=[4] * 100)
    index = Index.open(tmp_path)
    assert index.blocks(index.buckets[0]).tolist() == [0, 64, 128, 192]


def test_a_writer_that_dies_leaves_the_old_index(tmp_path):
    write_index(tmp_path, [IndexRow("old", (64, 64), (), 0)])

    def rows():
        yield IndexRow("new", (64, 64), (), 0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_index(tmp_path, rows())
    assert Index.open(tmp_path).buckets[0].task == "old"
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    write_index(tmp_path, [IndexRow("new", (64, 64), (), 0)])
    assert Index.open(tmp_path).buckets[0].task == "new"


def test_no_rows_make_an_empty_index(tmp_path):
    write_index(tmp_path, [])
    assert len(Index.open(tmp_path)) == 0


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_file_cut_short_is_refused_in_one_line(tmp_path, keep):
    write_index(tmp_path, [IndexRow("add", (64, 64), (), i) for i in range(10)])
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:keep])
    with pytest.raises(UserError, match="run prepare again") as error:
        Index.open(tmp_path)
    assert "\n" not in str(error.value)


def test_a_missing_index_and_another_format_are_refused(tmp_path):
    with pytest.raises(UserError, match="no index at"):
        Index.open(tmp_path)
    write_index(tmp_path, [IndexRow("add", (64, 64), (), 0)])
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data.replace(b'"version": "2"', b'"version": "9"'))
    with pytest.raises(UserError, match="format 9"):
        Index.open(tmp_path)


def test_an_index_of_the_first_format_opens(tmp_path):
    """Its buckets do not say whether their references keep their order."""
    write_index(tmp_path, [IndexRow("add", (64, 64), ((32, 32),) * 2, i, droppable=(2,)) for i in range(10)])
    data = (tmp_path / FILE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    buckets = [[*spec[:4], spec[-1]] for spec in json.loads(header["__metadata__"]["buckets"])]
    header["__metadata__"] |= {"version": "1", "buckets": json.dumps(buckets)}
    text = json.dumps(header).encode()
    (tmp_path / FILE).write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    index = Index.open(tmp_path)
    assert index.buckets == (Bucket("add", (64, 64), ((32, 32),) * 2, 0, 10, (2,), fixed=False),)
    assert index.positions.tolist() == list(range(10))


def test_a_pickled_index_maps_the_file_again(tmp_path):
    write_index(tmp_path, [IndexRow("add", (64, 64), (), i) for i in range(100_000)])
    data = pickle.dumps(Index.open(tmp_path))
    assert len(data) < 1000
    assert len(pickle.loads(data)) == 100_000


def test_a_bucket_counts_the_tokens_of_all_its_images(tmp_path):
    write_index(tmp_path, [IndexRow("add", (64, 96), ((32, 32), (64, 64)), 0, droppable=(2,))])
    bucket = Index.open(tmp_path).buckets[0]
    assert bucket.tokens == 4 * 6 + 2 * 2 + 4 * 4
    assert str(bucket) == "add 96x64 <- 32x32 + 64x64 (droppable 2)"


def test_whether_references_keep_their_order_is_in_the_buckets_key(tmp_path):
    rows = [IndexRow("add", (64, 64), ((64, 64),) * 2, i, fixed=i % 3 == 0) for i in range(9)]
    write_index(tmp_path, rows)
    index = Index.open(tmp_path)
    assert [(bucket.fixed, bucket.count) for bucket in index.buckets] == [(False, 6), (True, 3)]
    assert index.positions.tolist() == [1, 2, 4, 5, 7, 8, 0, 3, 6]
    assert str(index.buckets[1]).endswith("(fixed order)")
