"""Lazy permutations and interleavings, against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.sampling.order import Interleaving, permuted, shuffled


@given(st.integers(1, 700), st.integers(0, 2**63 - 1))
def test_permuted_is_a_permutation(size, key):
    assert sorted(permuted(np.arange(size), size, key)) == list(range(size))


def test_permuted_takes_a_size_and_a_key_for_every_element():
    sizes, keys = np.array([7, 300, 2**33]), np.array([1, 2, 3])
    together = permuted(np.array([3, 200, 2**32]), sizes, keys)
    alone = [int(permuted(p, s, k)) for p, s, k in zip([3, 200, 2**32], sizes, keys)]
    assert together.tolist() == alone


def test_permuted_is_lazy_over_a_huge_range():
    out = permuted(np.arange(100_000), 10**12, 5)
    assert len(set(out.tolist())) == 100_000
    assert out.min() >= 0
    assert out.max() < 10**12
    assert abs(out.mean() / 10**12 - 0.5) < 0.01


@pytest.mark.parametrize("size", [2, 3, 5, 8, 24])
def test_over_keys_every_element_goes_everywhere_equally_often(size):
    """Within 4 % and the noise of the count: a network of so few elements is not ideal, nor need it be."""
    keys = np.arange(20_000)[:, None]
    places = permuted(np.arange(size)[None, :], size, keys)
    counts = np.stack([np.bincount(places[:, i], minlength=size) for i in range(size)])
    expected = len(keys) / size
    assert np.abs(counts - expected).max() < 0.04 * expected + 4 * np.sqrt(expected)


def test_neighbouring_keys_give_unrelated_permutations():
    a, b = (permuted(np.arange(1000), 1000, key) for key in (10, 11))
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1
    assert (a == b).sum() < 10
    assert not np.array_equal(a[1:], b[:-1])


def test_these_orders_never_change():
    """A saved training resumes in the same order only as long as these numbers stay, on every version of numpy."""
    assert permuted(np.arange(10), 10, 1).tolist() == GOLDEN_PERMUTED
    assert shuffled(10, "key", 1).tolist() == GOLDEN_SHUFFLED
    stream = Interleaving.once(np.array([2, 5, 3]), "key")
    assert [stream[t][0] for t in range(10)] == GOLDEN_CELLS


GOLDEN_PERMUTED = [9, 8, 5, 7, 2, 1, 0, 3, 4, 6]
GOLDEN_SHUFFLED = [5, 2, 4, 6, 0, 1, 7, 3, 9, 8]
GOLDEN_CELLS = [1, 2, 0, 2, 1, 0, 2, 1, 1, 1]


@given(st.lists(st.integers(0, 400), min_size=1, max_size=30).filter(sum), st.integers())
def test_once_gives_every_item_once_and_each_cell_in_its_order(counts, key):
    stream = Interleaving.once(np.array(counts), key)
    cells, ordinals = stream.span(0, sum(counts))
    for cell, count in enumerate(counts):
        assert ordinals[cells == cell].tolist() == list(range(count))


def test_an_item_does_not_depend_on_what_was_asked_before():
    counts = np.random.default_rng(0).integers(0, 900, 40)
    cells, ordinals = Interleaving.once(counts, "key").span(0, int(counts.sum()))
    stream = Interleaving.once(counts, "key")
    for t in np.random.default_rng(1).permutation(int(counts.sum()))[:200]:
        assert stream[int(t)] == (cells[t], ordinals[t])


def test_once_spreads_a_cell_over_the_whole_stream():
    counts = np.array([30_000, 300, 3])
    cells, _ = Interleaving.once(counts, 3).span(0, int(counts.sum()))
    thirds = [np.bincount(part, minlength=3) for part in np.array_split(cells, 3)]
    assert all(abs(third[0] - 10_000) < 20 for third in thirds)
    assert all(80 < third[1] < 120 for third in thirds)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50).filter(lambda x: sum(x) > 0.01), st.integers(0, 99))
def test_endless_keeps_to_its_shares(shares, key):
    shares = np.array(shares)
    cells, ordinals = Interleaving.endless(shares, key).span(0, 20_000)
    counts = np.bincount(cells, minlength=len(shares))
    wanted = 20_000 * shares / shares.sum()
    slack = 2 + 1024 * np.sqrt(shares / shares.sum())  # the last window is cut short
    assert (np.abs(counts - wanted) <= slack).all()
    assert not counts[shares == 0].any()
    for cell in range(len(shares)):
        assert ordinals[cells == cell].tolist() == list(range(counts[cell]))


def test_cells_of_one_rate_do_not_all_come_in_the_same_windows():
    """600 cells of 2.0 items a window: in step they would make windows of 1,200 items, then one of 1,800."""
    stream = Interleaving.endless(np.ones(600) + 0.03, "key")
    sizes = np.diff([stream.before(window).sum() for window in range(40)])
    assert sizes.max() - sizes.min() < 0.1 * sizes.mean()
    stream = Interleaving.once(np.full(600, 7), "key")
    sizes = np.diff([stream.before(window).sum() for window in range(4)])
    assert sizes.max() - sizes.min() < 0.25 * sizes.mean()
