"""Checkpoints written beside the training: what they hold, when they are there, and what happens when one fails."""

import threading
from collections import Counter, OrderedDict

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torchao.optim.subclass_8bit import OptimState8bit
from toy_run import Toy, fit, weights

from callbacks.checkpoint import Checkpoint
from firered_lit.checkpoints import background, sharded
from firered_lit.checkpoints.background import Background, fits_on_host, on_host
from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO, newest
from firered_lit.errors import UserError


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture
def gate(monkeypatch):
    """Writers wait until it is set."""
    gate, write = threading.Event(), AtomicCheckpointIO._write
    monkeypatch.setattr(AtomicCheckpointIO, "_write", lambda *given: (gate.wait(60), write(*given)))
    yield gate
    gate.set()


def test_a_copy_shares_nothing(mesh):
    moment = OptimState8bit.zeros((64, 64))
    moment.codes.fill_(7)
    held = {
        "plain": torch.ones(3),
        "sharded": distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)]),
        "quantised": DTensor.from_local(moment, mesh, [Shard(0)]),
        "nested": OrderedDict(rows=[torch.ones(2), (torch.ones(1), "name", None)], counts=Counter(a=2)),
    }
    copy = on_host(held)
    for tensor in (
        held["plain"],
        held["sharded"]._local_tensor,
        held["nested"]["rows"][0],
        held["nested"]["rows"][1][0],
    ):
        tensor.zero_()
    held["quantised"]._local_tensor.codes.zero_()
    held["nested"]["counts"]["a"] = 3
    assert copy["plain"].tolist() == [1, 1, 1]
    assert torch.equal(copy["sharded"].full_tensor(), torch.ones(4, 2))
    assert copy["sharded"].placements == held["sharded"].placements
    assert copy["quantised"]._local_tensor.codes.unique().tolist() == [7]
    assert isinstance(copy["quantised"]._local_tensor, OptimState8bit)
    assert type(copy["nested"]) is OrderedDict
    assert copy["nested"]["rows"][1] == (torch.ones(1), "name", None)
    assert copy["nested"]["counts"] == Counter(a=2)


def test_training_goes_on_while_one_is_written_and_the_next_waits(tmp_path, gate):
    """The file is that of its step, though it was written steps later; a second one is not begun before."""
    seen = []

    def act(module, phase, index):
        if phase == "train":
            seen.append(newest(tmp_path))
            if module.global_step == 3:
                gate.set()

    straight, _ = fit(tmp_path / "straight", [], max_steps=2, enable_checkpointing=False)
    fit(tmp_path, [Checkpoint(every=2, keep=9)], module=Toy(act), max_steps=4)
    assert not any(seen[:6])  # two batches a step: at the begin of the fourth step nothing is on the disk
    names = [path.name for path in sorted((tmp_path / "checkpoints").iterdir())]
    assert names == ["step_00000002.ckpt", "step_00000004.ckpt"]
    saved = torch.load(tmp_path / "checkpoints" / names[0], weights_only=True)
    assert torch.equal(torch.cat([t.flatten() for t in saved["state_dict"].values()]), weights(straight))


def test_nothing_of_it_is_other_than_what_was_written_at_once(tmp_path):
    for name, beside in (("beside", True), ("at_once", False)):
        fit(tmp_path / name, [Checkpoint(every=3, background=beside)], max_steps=7)
    first, second = (torch.load(newest(tmp_path / name), weights_only=True) for name in ("beside", "at_once"))
    assert leaves(first) == leaves(second)
    assert len(leaves(first)) > 60


def leaves(value, at=""):
    """Every value of a checkpoint by its place, tensors as lists."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, item in pairs for k, v in leaves(item, f"{at}/{key}").items()}
    return {at: (value.dtype, value.tolist()) if isinstance(value, torch.Tensor) else value}


def test_what_fails_is_raised_by_the_next_step(tmp_path, monkeypatch):
    def full(*_):
        raise UserError("no space")

    monkeypatch.setattr(AtomicCheckpointIO, "_write", full)
    steps = []
    slow = Toy(lambda module, phase, _: (steps.append(module.global_step), threading.Event().wait(0.02)))
    with pytest.raises(UserError, match="no space"):
        fit(tmp_path, [Checkpoint(every=2)], module=slow, max_steps=9, limit_val_batches=0)
    assert steps[-1] == 2
    with pytest.raises(UserError, match="no space"):
        fit(tmp_path, [Checkpoint(every=2)], max_steps=2)  # at the end, too


@pytest.mark.parametrize("fails", [False, True])
def test_an_error_elsewhere_waits_for_it_and_is_what_is_raised(tmp_path, gate, monkeypatch, fails):
    def act(module, phase, index):
        if module.global_step == 3:
            threading.Timer(0.1, gate.set).start()
            raise ArithmeticError("planted")

    if fails:
        monkeypatch.setattr(AtomicCheckpointIO, "_write", lambda *_: gate.wait(60) and [][0])
    with pytest.raises(ArithmeticError, match="planted") if not fails else pytest.raises((ArithmeticError, IndexError)):
        fit(tmp_path, [Checkpoint(every=2)], module=Toy(act), max_steps=9)
    assert fails or newest(tmp_path).name == "step_00000002.ckpt"


def test_what_comes_after_a_failed_write_is_not_done():
    done, writer = [], Background()
    for action in (lambda: done.append(1), lambda: [][0], lambda: done.append(2)):
        writer.submit(action)
    with pytest.raises(IndexError):
        writer.wait()
    writer.submit(lambda: done.append(3))
    writer.wait()
    assert done == [1, 3]


def test_without_memory_for_a_copy_training_waits(tmp_path, monkeypatch):
    tensors = {"a": [torch.zeros(1000), {"b": torch.zeros(1000, dtype=torch.uint8)}]}
    monkeypatch.setattr(background, "_free", lambda: 6300)
    assert fits_on_host(tensors)
    assert not fits_on_host(tensors, processes=2)
    monkeypatch.setattr(background, "_free", lambda: 0)
    written = []
    monkeypatch.setattr(AtomicCheckpointIO, "_write", lambda *_: written.append(threading.current_thread().name))
    fit(tmp_path, [Checkpoint(every=1)], max_steps=2)
    assert written == ["MainThread"] * 2


def test_a_folder_of_many_processes_too(tmp_path, mesh, monkeypatch):
    weight = distribute_tensor(torch.ones(4, 2), mesh, [Shard(0)])
    state = {"state_dict": {"net.weight": weight}, "global_step": 3, "loops": {"name": [1]}}
    path, writer, gate = tmp_path / "step_00000003.ckpt", Background(), threading.Event()
    writer.submit(gate.wait)
    sharded.save(state, path, writer, dist.new_group(backend="gloo"))
    weight.to_local().zero_()
    assert not path.exists()
    gate.set()
    writer.wait()
    found = sharded.read(path)
    assert torch.equal(found["state_dict"]["net.weight"], torch.ones(4, 2))
    assert (found["global_step"], found["loops"]) == (3, {"name": [1]})
