"""Sharded checkpoints as files: whole or not at all, and nothing in them runs. One process stands for all."""

import json
import os
import pickle
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from firered_lit.checkpoints import sharded
from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO, incomplete, newest, resolve
from firered_lit.checkpoints.integrity import crc_of, manifest
from firered_lit.distributed.strategy import FSDP2
from firered_lit.errors import UserError


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def state(mesh, value=1.0):
    weight = distribute_tensor(torch.full((4, 3), value), mesh, [Shard(0)])
    moments = {"net.weight": {"step": torch.tensor(7.0), "exp_avg": weight * 2}}
    groups = [{"params": ["net.weight"], "lr": 0.1, "betas": (0.9, 0.99)}]
    return {
        "state_dict": {"net.weight": weight},
        "optimizer_states": [{"state": moments, "param_groups": groups}],
        "ema": {"updates": 3, "weights": {"net.weight": weight * 3}},
        "global_step": 20,
        "loops": {"name": [1, 2]},
    }


@pytest.fixture
def saved(tmp_path, mesh):
    path = tmp_path / "run" / "checkpoints" / "step_00000020.ckpt"
    sharded.save(state(mesh), path)
    return path


def test_what_was_saved_is_read_whole_in_one_process(saved):
    found = AtomicCheckpointIO().load_checkpoint(saved)
    assert not isinstance(found["state_dict"]["net.weight"], DTensor)
    assert torch.equal(found["state_dict"]["net.weight"], torch.ones(4, 3))
    (optimizer,) = found["optimizer_states"]
    assert optimizer["param_groups"] == [{"params": [0], "lr": 0.1, "betas": (0.9, 0.99)}]
    assert torch.equal(optimizer["state"][0]["exp_avg"], torch.full((4, 3), 2.0))
    assert found["ema"]["updates"] == 3
    assert torch.equal(found["ema"]["weights"]["net.weight"], torch.full((4, 3), 3.0))
    assert (found["global_step"], found["loops"]) == (20, {"name": [1, 2]})
    assert "optimizer_states" not in sharded.read(saved, ["state_dict"])


def test_a_folder_is_the_last_one_only_when_whole(saved, mesh):
    run = saved.parents[1]
    later = saved.with_name("step_00000040.ckpt")
    sharded.save(state(mesh, 2.0), later)
    assert newest(run) == later == resolve(run, "last")
    for harm in (
        lambda: (later / "complete.json").unlink(),
        lambda: (later / "__0_0.distcp").write_bytes((later / "__0_0.distcp").read_bytes()[:-1]),
        lambda: (later / "meta.pt").unlink(),
        lambda: (later / "complete.json").write_text("{"),
    ):
        harm()
        assert incomplete(later)
        assert newest(run) == saved
        with pytest.raises(UserError, match="not a whole checkpoint"):
            sharded.read(later)
        shutil.rmtree(later)
        sharded.save(state(mesh, 2.0), later)
    assert not list(saved.parent.glob(".*"))


def test_a_failed_save_leaves_what_was_there(saved, mesh, monkeypatch):
    before = sharded.read(saved)["state_dict"]["net.weight"]

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.distributed.checkpoint.filesystem._write_item", full)
    for path in (saved, saved.with_name("step_00000040.ckpt")):
        with pytest.raises(UserError, match=r"could not be written \(No space left on device\)"):
            sharded.save(state(mesh, 2.0), path)
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]
    assert torch.equal(sharded.read(saved)["state_dict"]["net.weight"], before)


def test_killed_before_the_rename_there_is_no_checkpoint(saved, mesh, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("firered_lit.checkpoints.sharded.put_in_place", killed)
    with pytest.raises(KeyboardInterrupt):
        sharded.save(state(mesh), saved.with_name("step_00000040.ckpt"))
    assert newest(saved.parents[1]) == saved


class Bomb:
    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def rewrite(path, content):
    """Another content under the same record, as one who means harm would write it."""
    path.write_bytes(content)
    names = json.loads((path.parent / "complete.json").read_text())["files"]
    sums = {name: crc_of(path.parent / name) for name in names}
    (path.parent / "complete.json").write_text(manifest(path.parent, 1, sums))


def test_code_in_the_index_is_refused_and_does_not_run(saved, tmp_path):
    mark = tmp_path / "ran"
    rewrite(saved / ".metadata", pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError, match=r"\.metadata: the checkpoint's index is damaged, or holds code"):
        sharded.read(saved)
    assert not mark.exists()
    for content in (b"", b"\x80", pickle.dumps({"a": 1}), pickle.dumps([1])[:-1]):
        rewrite(saved / ".metadata", content)
        with pytest.raises(UserError, match="index"):
            sharded.read(saved)


def test_an_index_that_points_elsewhere_is_refused(saved):
    index = pickle.loads((saved / ".metadata").read_bytes())
    for stored in index.storage_data.values():
        stored.relative_path = "../../outside"
    rewrite(saved / ".metadata", pickle.dumps(index))
    with pytest.raises(UserError, match="outside its folder"):
        sharded.read(saved)


def test_code_among_the_values_is_refused_and_does_not_run(saved, tmp_path):
    mark = tmp_path / "ran"
    torch.save({"global_step": Bomb(mark)}, saved / "meta.pt")
    rewrite(saved / "meta.pt", (saved / "meta.pt").read_bytes())
    with pytest.raises(UserError, match="Python objects"):
        sharded.read(saved)
    assert not mark.exists()


def test_code_among_the_optimizers_values_is_refused_and_does_not_run(tmp_path, mesh):
    """DCP pickles what is no tensor; its own planner would unpickle anything."""
    mark, path = tmp_path / "ran", tmp_path / "step_00000001.ckpt"
    harmful = state(mesh)
    harmful["optimizer_states"][0]["param_groups"][0]["betas"] = Bomb(mark)
    sharded.save(harmful, path)
    assert not mark.exists()
    with pytest.raises(UserError):
        sharded.read(path)
    assert not mark.exists()


def stage(target, **more):
    return SimpleNamespace(optimizer_factory=SimpleNamespace(func=target), backbone=SimpleNamespace(**more))


@pytest.mark.parametrize(
    ("strategy", "processes", "words"),
    [
        ({"replicate": 3}, 8, "replicate=3: 8 processes cannot be divided by it"),
        ({"replicate": 16}, 8, "replicate=16: 8 processes cannot be divided"),
        ({"shard": 8}, 2, "replicate=1 times shard=8 needs 8 processes, there are 2"),
        ({"replicate": 2, "shard": 2}, 8, "needs 4 processes, there are 8"),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused(strategy, processes, words):
    with pytest.raises(UserError, match=words):
        FSDP2(**strategy).check(stage(torch.optim.AdamW), processes)
    with pytest.raises(UserError, match="at least 1"):
        FSDP2(replicate=0)
    FSDP2(replicate=2, shard=4).check(stage(torch.optim.AdamW), 8)


def test_what_cannot_be_sharded_is_refused_with_what_can():
    from bitsandbytes.optim import AdamW8bit

    with pytest.raises(UserError, match=r"bitsandbytes cannot step sharded parameters; use firered_lit"):
        FSDP2().check(stage(AdamW8bit), 8)
    with pytest.raises(UserError, match="quantize=4bit: quantised weights cannot be sharded"):
        FSDP2().check(stage(torch.optim.AdamW, quantize="4bit"), 8)
    with pytest.raises(UserError, match="precision=bf16-mixed: with FSDP2"):
        FSDP2().check(stage(torch.optim.AdamW), 8, "bf16-mixed")
    FSDP2(compute=None).check(stage(torch.optim.AdamW), 8, "bf16-mixed")
