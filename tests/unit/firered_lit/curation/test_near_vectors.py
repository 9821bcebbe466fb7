"""Near duplicates and clusters by vectors: found as comparing all with all finds them, in cells from the disk too."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from raw_pictures import loose, picture, save, table

from datamodules.sources.raw import RawRows
from firered_lit.cards.data_card import CARD
from firered_lit.curation import vectors
from firered_lit.curation.annotator import Annotator
from firered_lit.curation.corpus import Corpus
from firered_lit.curation.fit import Clusters, Duplicates
from firered_lit.curation.hashes import Hashes
from firered_lit.curation.run import curate
from firered_lit.curation.scores import path_of, write
from firered_lit.curation.select import Quota
from firered_lit.curation.words import Words
from firered_lit.errors import UserError


class Look(Annotator):
    """The vectors that score files hold."""

    columns = {"vector": "vector"}  # noqa: RUF012


def corpus_of(folder, found, shard_rows=64):
    """A corpus whose targets have these vectors; None stands for none."""
    for shard, start in enumerate(range(0, len(found), shard_rows)):
        some = found[start : start + shard_rows]
        numbers = list(range(start, start + len(some)))
        values = {"row": numbers, "picture": [0] * len(some), "failure": [None] * len(some), "vector": some}
        write(path_of(folder, "look", shard), Look.columns, values, {})
    return Corpus(folder, len(found), shard_rows, {"look": Look()})


def planted(count, width, seed):
    """Unit vectors, of which the last third lies near others, chains among them."""
    rng = np.random.default_rng(seed)
    found = rng.normal(size=(count, width))
    for place in range(2 * count // 3, count):
        found[place] = found[rng.integers(0, place)] + rng.normal(size=width) * rng.uniform(0, 0.3)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def brute(found, cosine, apart):
    near = (found @ found.T >= cosine) & (apart[:, None] == apart)
    labels = np.arange(len(found))
    for _ in range(len(found)):
        labels = np.where(near, labels[None], len(found)).min(1)
    return labels


def labels_of(corpus, cosine, apart, only=None):
    labels = np.arange(corpus.count)
    members, found = vectors.near_groups(corpus, "look.vector", 0, cosine, apart, only)
    labels[members] = found
    return labels


@pytest.mark.parametrize("block", [1024, 7])
def test_groups_are_what_comparing_all_with_all_finds(block, tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "_BLOCK", block)
    found = planted(200, 12, 1).astype("f4")
    apart = (np.arange(200) % 3 == 0).astype(np.uint64)
    corpus = corpus_of(tmp_path, list(found * np.random.default_rng(0).uniform(0.1, 9, (200, 1))))
    assert np.array_equal(labels_of(corpus, 0.96, apart), brute(found, 0.96, apart))
    only = np.arange(200) % 5 != 0
    members = np.flatnonzero(only)
    expected = np.arange(200)
    expected[members] = members[brute(found[members], 0.96, apart[members])]
    assert np.array_equal(labels_of(corpus, 0.96, apart, only), expected)


def test_cells_lose_few_pairs_and_find_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr(vectors, "CELL", 100)
    count, width, pairs = 1500, 24, 300
    rng = np.random.default_rng(4)
    centres = rng.normal(size=(10, width))
    found = centres[rng.integers(0, 10, count)] + rng.normal(size=(count, width)) * 0.7
    found[-pairs:] = found[:pairs] + rng.normal(size=(pairs, width)) * 0.1
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    corpus = corpus_of(tmp_path, list(found.astype("f4")))
    apart = np.zeros(count, np.uint64)
    labels = labels_of(corpus, 0.97, apart)
    near = np.argwhere(np.triu(found @ found.T >= 0.97, 1))
    together = np.mean([labels[low] == labels[high] for low, high in near])
    assert len(near) > 200
    assert together >= 0.97
    whole = brute(found, 0.97, apart)
    assert (whole[labels] == whole).all(), "no group is wider than comparing all with all finds"
    assert not list((tmp_path / "state").glob(".near*"))


def test_the_two_nearest_centres_are_those_of_least_distance():
    rng = np.random.default_rng(2)
    found = rng.normal(size=(200, 3)).astype("f4")
    centres = (rng.normal(size=(9, 3)) * rng.uniform(0.1, 4, (9, 1))).astype("f4")
    distances = np.linalg.norm(found[:, None] - centres[None], axis=2)
    expected = np.argsort(distances, axis=1)[:, :2]
    assert np.array_equal(np.sort(vectors._two_nearest(found, centres), axis=1), np.sort(expected, axis=1))


def test_many_equal_vectors_are_one_group(tmp_path):
    found = [np.ones(4, "f4")] * 3000
    labels = labels_of(corpus_of(tmp_path, found, 1000), 0.99, np.zeros(3000, np.uint64))
    assert set(labels.tolist()) == {0}


def test_vectors_that_are_missing_or_of_no_length_are_near_to_nothing(tmp_path):
    found = [np.ones(4, "f4"), None, np.zeros(4, "f4"), np.zeros(4, "f4"), np.ones(4, "f4"), None]
    labels = labels_of(corpus_of(tmp_path, found, 4), 0.9, np.zeros(6, np.uint64))
    assert labels.tolist() == [0, 1, 2, 3, 0, 5]
    with pytest.raises(UserError, match="vectors of 4 and of 5 numbers"):
        labels_of(corpus_of(tmp_path, [np.ones(4), np.ones(5)], 1), 0.9, np.zeros(2, np.uint64))


def test_a_sample_is_the_same_however_rows_are_cut_into_shards(tmp_path):
    found = list(planted(150, 5, 7).astype("f4"))
    samples = []
    for rows in (7, 50, 150):
        corpus = corpus_of(tmp_path / str(rows), found, rows)
        samples.append(vectors.sample_of(vectors.pieces(corpus, "look.vector"), 40, 3))
    assert all(count == 150 for _, count in samples)
    assert all(np.array_equal(sample, samples[0][0]) for sample, _ in samples)
    places = [int(np.flatnonzero((np.array(found) == vector).all(1))[0]) for vector in samples[0][0]]
    assert places == sorted(set(places)), "in the order of rows"
    assert max(places) > 100, "spread over all"
    whole, _ = vectors.sample_of(vectors.pieces(corpus, "look.vector"), 500, 3)
    assert np.array_equal(whole, np.array(found))


class Tone(Annotator):
    """The mean colour, from its middle: turned pictures have the same one, and another hash."""

    columns = {"vector": "vector"}  # noqa: RUF012

    def annotate(self, batch):
        return {"vector": [item.pixels.mean((0, 1)) - 127.5 for item in batch]}


def run(source, out, duplicates, **options):
    annotators = {"hashes": Hashes(), "words": Words(), "tone": Tone()}
    given = {"annotators": annotators, "duplicates": duplicates, "workers": 0, "shard_rows": 4}
    curate(source=str(source), out=str(out), rows=RawRows(str(source)), **{**given, **options})
    return pq.read_table(out / "decisions.parquet").column("group").to_pylist()


def quota(column, **options):
    return {"duplicates": None, "quotas": [Quota(column, most=1, **options)]}


def test_rows_are_near_by_hash_or_by_vector_as_the_recipe_says(tmp_path):
    source = loose(tmp_path / "raw", 4)
    save(source / "0004.png", picture(1)[::-1])  # another hash, the same colour
    save(source / "0005.jpg", picture(2), quality=70)
    out = tmp_path / "out"
    tone = {"vectors": "tone.vector", "cosine": 0.9999}
    assert run(source, out, Duplicates()) == [None, None, 2, None, None, 2]
    assert run(source, out, Duplicates(**tone)) == [None, 1, 2, None, 1, 2]
    rule = "hashes.perceptual within 3 bits or tone.vector with a cosine of at least 0.9999; kept: the first"
    assert json.loads((out / CARD).read_text())["rules"]["duplicate"] == rule
    assert run(source, out, Duplicates(column=None, **tone))[4] == 1
    rule = "tone.vector with a cosine of at least 0.9999; kept: the first"
    assert json.loads((out / CARD).read_text())["rules"]["duplicate"] == rule


def test_edits_are_near_where_source_and_target_are(tmp_path):
    for number in range(3):
        save(tmp_path / "raw" / f"{number}.png", picture(number))
        save(tmp_path / "raw" / f"{number}t.png", picture(number)[::-1])
    words = {"instruction": "Turn it"}
    names = [("0", "1"), ("0t", "1t"), ("2", "1"), ("0", "1t")]
    rows = [{"source_image": f"{a}.png", "target_image": f"{b}.png", **words} for a, b in names]
    rows.append(rows[0] | {"id": "other", "instruction": "Turn it round"})
    source = table(tmp_path / "raw" / "rows.jsonl", rows)
    assert run(source, tmp_path / "out", Duplicates()) == [None] * 5
    found = run(source, tmp_path / "out", Duplicates(vectors="tone.vector", cosine=0.9999))
    assert found == [0, 0, None, 0, None]


def test_a_vector_that_is_not_finite_is_none(tmp_path):
    class Dark(Annotator):
        columns = {"vector": "vector"}  # noqa: RUF012

        def annotate(self, batch):
            worst = {"0001.jpg": np.nan, "0002.jpg": np.inf}
            names = [item.path.rpartition("/")[2] for item in batch]
            return {"vector": [np.array([1, worst.get(name, 2)]) for name in names]}

    source, out = loose(tmp_path / "raw", 4), tmp_path / "out"
    run(source, out, None, annotators={"dark": Dark()}, clusters=Clusters("dark.vector", count=2))
    found = pq.read_table(out / "scores" / "dark" / "00000.parquet").column("vector").to_pylist()
    assert found == [[1, 2], None, None, [1, 2]]


def test_columns_that_do_not_suit_are_refused_before_a_picture_is_opened(tmp_path):
    source = loose(tmp_path / "raw", 1)
    tone = {"duplicates": None, "clusters": Clusters("tone.vectr")}
    cases = {
        "clusters.column: no annotator makes the column 'tone.vectr'; did you mean 'tone.vector'": tone,
        "duplicates.best: row.kind holds text": {"duplicates": Duplicates(best={"row.kind": "highest"})},
        "quotas: file.width is a column of pictures": quota("file.width"),
        "quotas: no annotator makes the column 'row.knd'; did you mean 'row.kind'": quota("row.knd"),
        "quotas.best: words.folded holds text": quota("row.kind", best={"words.folded": "lowest"}),
        "hashes.perceptual holds bits, not vectors": {"duplicates": Duplicates(vectors="hashes.perceptual")},
        "did you mean 'tone.vector'": {"duplicates": Duplicates(vectors="tone.vectr")},
        "clusters.column: words.words holds count": {"duplicates": None, "clusters": Clusters("words.words")},
    }
    for said, options in cases.items():
        with pytest.raises(UserError, match=said):
            run(source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="name a column"):
        Duplicates(column=None)
    with pytest.raises(UserError, match=r"cosine=1\.5"):
        Duplicates(vectors="tone.vector", cosine=1.5)
