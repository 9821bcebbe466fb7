"""Chunks by bucket: every sample once, few chunks to a bucket, and an epoch of whole chunks fetches hardly more."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_edits import encoded, loader, prints
from test_faults import root, store  # noqa: F401

from datamodules.chunks import remote
from datamodules.chunks.samples import Chunks
from datamodules.prepare import grouping, parts
from datamodules.prepare.parts import Parts
from datamodules.sampling import buckets
from datamodules.sampling.buckets import Index

BYTES = 1000


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(1, 400)), min_size=1, max_size=200))
def test_chunks_hold_one_bucket_or_several_small_ones(samples):
    keys, sizes = map(list, zip(*samples))
    groups = grouping.grouped(keys, sizes, BYTES)
    assert sorted(number for group in groups for number in group) == list(range(len(samples)))
    whole = {key: sum(size for other, size in samples if other == key) for key in keys}
    filled = [sum(sizes[number] for number in group) for group in groups]
    assert max(filled) <= 1.5 * BYTES + max(sizes)
    assert sum(4 * size < BYTES for size in filled) <= 1 + sum(any(4 * sizes[n] > BYTES for n in g) for g in groups)
    for group in groups:
        held = {keys[number] for number in group}
        assert len(held) == 1 or all(4 * whole[key] < BYTES for key in held)
    for key in set(keys):
        own = [number for group in groups for number in group if keys[number] == key]
        assert own == sorted(own)


def scattered(count, of=3):
    """Edits of several buckets, as rows have them: in no order."""
    turn = np.random.default_rng(0).integers(of, size=count).tolist()
    return [encoded(i, f"task {bucket}", (32, 64), [(32, 64)]) for i, bucket in enumerate(turn)]


def prepared(folder, samples, part_rows):
    made = Parts(folder)
    for number in range(len(samples) // part_rows):
        made.write(number, part_rows, samples[number * part_rows : (number + 1) * part_rows], [])
    made.finish({"fingerprints": {"vae": "v", "text_encoder": "t"}, "model": "tiny", "sizes": {}})
    return folder


def test_samples_and_what_is_noted_of_them_stay_together(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ChunkWriter", partial(grouping.ChunkWriter, chunk_bytes=60_000))
    folder = prepared(tmp_path / "data", scattered(120), 60)
    chunks, noted = Chunks(folder / "chunks"), list(Parts(folder).samples())
    assert not list((folder / "chunks").glob(".*"))
    found = [chunks.read(position) for position in range(len(chunks))]
    assert [sample.id for sample in found] == [line["id"] for line in noted] != [f"id{i}" for i in range(120)]
    assert [sample.meta["task"] for sample in found] == [line["task"] for line in noted]
    assert {sample.id for sample in found} == {f"id{i}" for i in range(120)}
    assert all(sample.tensors["target"].unique().tolist() == [float(sample.id[2:])] for sample in found)


@pytest.mark.parametrize(
    ("by_bucket", "least", "most"), [(True, 1.0, 1.2), pytest.param(False, 3.0, 99.0, marks=pytest.mark.slow)]
)
def test_an_epoch_of_whole_chunks_through_a_small_cache(tmp_path, store, monkeypatch, by_bucket, least, most):  # noqa: F811
    """What is fetched of an object store, over what is there; and the same of samples that lie as their rows came."""
    monkeypatch.setattr(parts, "ChunkWriter", partial(grouping.ChunkWriter, chunk_bytes=120_000))
    monkeypatch.setattr(buckets, "WHOLE", 64)
    monkeypatch.setattr(buckets, "WINDOW", 40)
    monkeypatch.setattr(remote, "USED", 0.0)
    if not by_bucket:
        real = grouping.grouped
        monkeypatch.setattr(grouping, "grouped", lambda keys, sizes, most: real([0] * len(keys), sizes, most))
    folder = prepared(tmp_path / "many", scattered(2400), 800)
    for path in folder.rglob("*"):
        if path.is_file():
            store.client.upload_file(str(path), "edits", f"many/{path.relative_to(folder)}")
    sizes = [path.stat().st_size for path in (folder / "chunks").glob("*.bin")]
    assert len(sizes) > 40
    fetched, copy = [], remote.Remote._copy
    monkeypatch.setattr(remote.Remote, "_copy", lambda *args: fetched.append(args[-1] or 0) or copy(*args))
    limit = {"cache": str(tmp_path / "cache"), "cache_limit": 12 * max(sizes) / 1e9, "workers": 0}
    edits = loader("s3://edits/many", capacity=128, **limit)
    assert len(prints(edits, len(edits))) == len(edits)
    assert least <= sum(fetched) / sum(sizes) < most
    assert len(Index.open(folder / "index" / "train").buckets) == 3
