"""At equal steps and draws, the consistency term brings the regions' cosine further than flow matching alone."""

import sys
from pathlib import Path

import pytest

from firered_lit.models.family import open_base


@pytest.fixture(scope="module")
def toy():
    folder = str(Path(__file__).resolve().parents[3] / "benchmarks")
    sys.path.insert(0, folder)
    import consistency_toy

    yield consistency_toy
    sys.path.remove(folder)


def cosines(toy, seed, steps, rows=4):
    """Where both begin, and after so many steps without the term and with it."""
    batch = toy.edits(open_base("tiny"), seed, rows)
    without, with_it = (toy.curve(batch, seed, eta, steps, steps) for eta in (None, 2.0))
    assert without[0] == with_it[0]
    return without[0][0], without[-1][0], with_it[-1][0]


def test_the_cosine_rises_faster_with_the_term(toy):
    first, without, with_it = cosines(toy, 1, 6, rows=2)
    assert with_it > first
    assert with_it > without


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_does_with_every_seed(toy, seed):
    first, without, with_it = cosines(toy, seed, 40)
    assert with_it > first
    assert with_it > without
