"""8-bit AdamW: whose it is, what a checkpoint holds of it, where it is refused."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from bitsandbytes.optim import AdamW8bit
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from torchao.optim.subclass_8bit import OptimState8bit

from firered_lit.checkpoints.background import on_host
from firered_lit.distributed.strategy import FSDP2
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.models.shard import local
from firered_lit.optim import adamw8bit, constant, refuse_eight_bit


@pytest.fixture
def mesh(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # of torchao's step, which takes long
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def weights(mesh):
    """Two sharded parameters; the moments of the second are too few for blocks."""
    values = gaussian((64, 128), (0,), "weight")[0], gaussian((128,), (0,), "bias")[0]
    return [nn.Parameter(distribute_tensor(value.clone(), mesh, [Shard(0)])) for value in values]


def step(parameters, optimizer, number):
    for i, parameter in enumerate(parameters):
        value = gaussian(tuple(parameter.shape), (0,), "gradient", number, i)[0]
        parameter.grad = distribute_tensor(value, parameter.device_mesh, parameter.placements)
    optimizer.step()


def test_whole_parameters_are_bitsandbytes_and_sharded_ones_torchaos(mesh):
    whole = nn.Parameter(torch.zeros(64, 128))
    assert type(adamw8bit([whole], lr=1e-3)) is AdamW8bit
    (weight, bias) = parameters = weights(mesh)
    optimizer = adamw8bit([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}], lr=1e-3, betas=(0.9, 0.99))
    step(parameters, optimizer, 0)
    assert isinstance(local(optimizer.state[weight]["exp_avg"]), OptimState8bit)
    assert not isinstance(local(optimizer.state[bias]["exp_avg"]), OptimState8bit)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.01, 0.0]
    with pytest.raises(UserError, match="some are sharded and some are not"):
        adamw8bit([whole, weight], lr=1e-3)


def test_it_goes_where_adamw_goes(mesh):
    ours, truth = weights(mesh), weights(mesh)
    optimizers = [adamw8bit(ours, lr=1e-2, weight_decay=0.1), torch.optim.AdamW(truth, lr=1e-2, weight_decay=0.1)]
    start = [local(parameter).detach().clone() for parameter in ours]
    for number in range(20):
        for parameters, optimizer in zip((ours, truth), optimizers):
            step(parameters, optimizer, number)
    for a, b, before in zip(ours, truth, start):
        moved = (local(b) - before).norm()
        assert (local(a) - local(b)).norm() < 0.05 * moved


def test_saved_and_loaded_it_goes_on_as_if_nothing_had_been(mesh):
    """A rate is a number in a checkpoint and a tensor in the optimizer, which a schedule still moves."""
    first = weights(mesh)
    optimizer = adamw8bit(first, lr=1e-2)
    schedule = constant(optimizer, warmup=10)
    step(first, optimizer, 0)
    schedule.step()
    saved = on_host(optimizer.portable(optimizer.state_dict()))
    assert saved["param_groups"][0]["lr"] == pytest.approx(2e-3)
    second = [nn.Parameter(parameter.detach().clone()) for parameter in first]
    again = adamw8bit(second, lr=1e-2)
    after = constant(again, warmup=10)
    again.load_state_dict(saved)
    after.load_state_dict(schedule.state_dict())
    for number in (1, 2):
        for parameters, own, rate in ((first, optimizer, schedule), (second, again, after)):
            step(parameters, own, number)
            rate.step()
    assert float(again.param_groups[0]["lr"]) == pytest.approx(4e-3)
    assert all(torch.equal(local(a), local(b)) for a, b in zip(first, second))


def test_moments_of_another_adamw_are_quantised(mesh):
    truth = weights(mesh)
    adam = torch.optim.AdamW(truth, lr=1e-2)
    step(truth, adam, 0)
    parameters = weights(mesh)
    optimizer = adamw8bit(parameters, lr=1e-2)
    optimizer.load_state_dict(adam.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        moment = local(optimizer.state[parameters[0]][name])
        value = local(adam.state[truth[0]][name])
        assert isinstance(moment, OptimState8bit)
        assert moment.signed == (name == "exp_avg")
        assert (moment.dequantize() - value).abs().max() < 0.02 * value.abs().max()


@pytest.mark.parametrize("target", [adamw8bit, AdamW8bit])
def test_only_where_its_states_are_right(target):
    factory = partial(target, lr=1e-4)
    for strategy in (SingleDeviceStrategy("cpu"), DDPStrategy(), FSDP2()):
        refuse_eight_bit(factory, strategy)
    for strategy in (FSDPStrategy(), ModelParallelStrategy()):
        with pytest.raises(UserError, match=f"no 8-bit optimizer works under {type(strategy).__name__}"):
            refuse_eight_bit(factory, strategy)
        refuse_eight_bit(partial(torch.optim.AdamW, lr=1e-4), strategy)


def test_what_is_missing_is_said_before_any_process_starts(monkeypatch):
    class Stage:
        optimizer_factory = partial(adamw8bit, lr=1e-4)

    FSDP2().check(Stage(), 2)
    monkeypatch.setattr("firered_lit.optim.find_spec", lambda name: None)
    with pytest.raises(UserError, match="need torchao; run: pip install torchao"):
        FSDP2().check(Stage(), 2)
    Stage.optimizer_factory = partial(AdamW8bit, lr=1e-4)
    with pytest.raises(UserError, match="cannot step sharded parameters; use firered_lit"):
        FSDP2().check(Stage(), 2)
