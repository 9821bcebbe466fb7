"""Schedules of the learning rate: where they rise, hold, fall and end."""

from functools import partial

import pytest
import torch

from firered_lit.errors import UserError
from firered_lit.optim import constant, cosine, parameter_groups, wsd


def rates(schedule, steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler, found = schedule(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", [constant, partial(cosine, steps=40), partial(wsd, steps=40, fall=10)])
def test_all_rise_linearly_to_the_full_rate(schedule):
    assert rates(partial(schedule, warmup=4), 5) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


@pytest.mark.parametrize("schedule", [partial(cosine, steps=40), partial(wsd, steps=40, fall=10)])
def test_the_fall_ends_at_the_floor_and_stays_there(schedule):
    found = rates(partial(schedule, floor=0.1), 50)
    assert found == sorted(found, reverse=True)
    assert found[39] > found[40] == pytest.approx(0.2)
    assert found[40:] == pytest.approx([0.2] * 10)


def test_cosine_is_half_way_at_half_time():
    assert rates(partial(cosine, steps=40), 21)[20] == pytest.approx(1.0)


def test_before_its_fall_wsd_does_not_know_how_long_the_run_is():
    short, long = (rates(partial(wsd, steps=steps, fall=10, warmup=4), 100) for steps in (40, 90))
    assert short[:31] == long[:31]
    assert short[30] == 2.0 > short[31]
    assert long[80] == 2.0 > long[81]
    assert short[32] == pytest.approx(2 * (1 - (2 / 10) ** 0.5))


def test_a_rise_and_fall_longer_than_the_run_are_refused():
    with pytest.raises(UserError, match=r"warmup=31 and fall=10 do not fit into steps=40"):
        wsd(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0), steps=40, fall=10, warmup=31)


def test_matrices_decay_and_biases_and_norms_do_not():
    """Without a gradient AdamW moves a weight by its decay alone."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    net[2].weight.requires_grad_(False)
    before = {name: p.detach().clone() + 1.0 for name, p in net.named_parameters()}
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(before[name])
            p.grad = torch.zeros_like(p)
    torch.optim.AdamW(parameter_groups(net.named_parameters()), lr=0.1, weight_decay=0.5).step()
    for name, p in net.named_parameters():
        kept = 1 - 0.1 * 0.5 if name == "0.weight" else 1.0
        torch.testing.assert_close(p.detach(), kept * before[name])
