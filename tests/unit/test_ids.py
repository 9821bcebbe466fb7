"""A set of ids finds every id again, however often it has grown."""

from datamodules.ids import FIRST, Ids


def test_every_id_is_new_once():
    ids, names = Ids(), [f"id {i}" for i in range(5 * FIRST)]
    assert all(map(ids.add, names))
    assert not any(map(ids.add, names))
    assert len(ids) == len(names)
    assert 8 * len(names) <= ids.places.itemsize * len(ids.places) <= 24 * len(names)
    assert ids.add("another")
