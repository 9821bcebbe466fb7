"""Near duplicates are found exactly: every pair within the distance, and no other, in memory and from the disk."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firered_lit.curation.duplicates import connected, groups, neighbours


def brute(hashes, distance):
    """The group of every hash by comparing all with all."""
    near = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    labels = np.arange(len(hashes))
    for _ in range(len(hashes)):
        labels = np.where(near, labels[None], len(hashes)).min(1)
    return labels


def labels_of(count, members, found):
    labels = np.arange(count)
    labels[members] = found
    return labels


@pytest.mark.parametrize("chunk", [1 << 20, 64])
@pytest.mark.parametrize("distance", [0, 1, 2, 3, 4])
def test_groups_are_what_comparing_all_with_all_finds(distance, chunk):
    rng = np.random.default_rng(distance)
    hashes = rng.integers(0, 1 << 63, 300, dtype=np.uint64)
    for place in range(150, 300):  # neighbours at 0 to 5 bits of any of the others, chains among them
        flipped = rng.choice(64, rng.integers(0, 6), replace=False)
        mask = np.bitwise_or.reduce(np.uint64(1) << flipped.astype(np.uint64), initial=np.uint64(0))
        hashes[place] = hashes[rng.integers(0, place)] ^ mask
    members, found = groups(hashes, distance, chunk)
    assert np.array_equal(labels_of(300, members, found), brute(hashes, distance))
    counts = np.unique(found, return_counts=True)[1]
    assert (counts > 1).all(), "a group has at least two members"


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(1, 3))
@settings(max_examples=30, deadline=None)
def test_many_equal_and_close_hashes_stay_one_group(small, distance):
    hashes = np.array(small, np.uint64)  # differ in at most two bits
    members, found = groups(hashes, distance)
    assert np.array_equal(labels_of(len(small), members, found), brute(hashes, distance))


def test_recall_is_complete_at_every_distance_among_many():
    rng = np.random.default_rng(0)
    count, planted = 60_000, 4_000
    hashes = rng.integers(0, 1 << 63, count, dtype=np.uint64)
    first = np.arange(planted) * 10
    distances = np.arange(planted) % 4
    for place, distance in zip(first, distances):
        bits = rng.choice(64, distance, replace=False).astype(np.uint64)
        hashes[place + 5] = hashes[place] ^ np.bitwise_or.reduce(np.uint64(1) << bits, initial=np.uint64(0))
    members, found = groups(hashes, 3, chunk=1 << 14)
    labels = labels_of(count, members, found)
    assert (labels[first] == labels[first + 5]).all()
    assert len(members) == 2 * planted, "random hashes are nobody's neighbours"


def test_pairs_are_named_in_order_and_are_near():
    rng = np.random.default_rng(3)
    hashes = rng.integers(0, 16, 200, dtype=np.uint64)
    for low, high in neighbours(hashes, 2):
        assert (low < high).all()
        assert (np.bitwise_count(hashes[low] ^ hashes[high]) <= 2).all()


def test_a_long_chain_is_one_component():
    order = np.random.default_rng(1).permutation(5000)
    members, found = connected(order[:-1], order[1:])
    assert (len(members), set(found.tolist())) == (5000, {0})


def test_no_hashes_have_no_groups():
    members, found = groups(np.zeros(0, np.uint64), 3)
    assert (len(members), len(found)) == (0, 0)
