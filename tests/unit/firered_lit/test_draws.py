"""Every draw is a function of its key."""

import torch

from firered_lit.draws import gaussian, seed_of


def test_a_row_of_noise_depends_on_its_key_and_its_slot_alone():
    noise = gaussian((4, 3), (5, 0, 7), 1, "noise")
    assert torch.equal(noise[0], gaussian((4, 3), (5,), 1, "noise")[0])
    assert torch.equal(noise[2], gaussian((4, 3), (7, 5), 1, "noise")[0])
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 3
    assert not torch.equal(noise[0], gaussian((4, 3), (5,), 2, "noise")[0])


def test_a_seed_is_the_same_in_every_process():
    assert seed_of(1, "noise", (2, 3)) == seed_of(1, "noise", (2, 3))
    assert len({seed_of(1, "noise"), seed_of("1", "noise"), seed_of(1, "noise", 0)}) == 3
    assert all(0 <= seed_of(number) < 2**63 for number in range(100))
