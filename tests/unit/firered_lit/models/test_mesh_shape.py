"""How many processes copy the weights, and how many share one copy."""

import pytest

from firered_lit.errors import UserError
from firered_lit.models.shard import mesh_shape


@pytest.mark.parametrize(
    ("processes", "replicate", "shard", "shape"),
    [(1, 1, None, (1, 1)), (8, 1, None, (1, 8)), (8, 2, None, (2, 4)), (6, 3, 2, (3, 2)), (4, 4, None, (4, 1))],
)
def test_copies_times_shards_are_all_processes(processes, replicate, shard, shape):
    assert mesh_shape(processes, replicate, shard) == shape


@pytest.mark.parametrize(
    ("processes", "replicate", "shard", "said"),
    [
        (8, 3, None, "replicate=3: 8 processes cannot be divided by it"),
        (2, 4, None, "replicate=4: 2 processes cannot be divided by it"),
        (8, 2, 3, "replicate=2 times shard=3 needs 6 processes, there are 8"),
    ],
)
def test_processes_that_cannot_be_arranged_so_are_one_line(processes, replicate, shard, said):
    with pytest.raises(UserError, match=said):
        mesh_shape(processes, replicate, shard)
