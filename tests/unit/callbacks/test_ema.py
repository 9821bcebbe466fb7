"""The running average of the weights: its formula, one update per optimizer step, its place in a checkpoint."""

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from toy_run import Toy, fit, trainer, weights

from callbacks.checkpoint import Checkpoint
from callbacks.ema import EMA
from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO, newest
from firered_lit.errors import UserError
from firered_lit.models.shard import whole


class History(Callback):
    """The weights before the first step and after each optimizer step, and those that validation saw."""

    def __init__(self):
        self.steps, self.validated, self.after = [], [], []

    def on_train_start(self, trainer, module):
        self.steps.append((trainer.global_step, weights(module).clone()))

    def on_train_batch_end(self, trainer, module, *_):
        if trainer.global_step != self.steps[-1][0]:
            self.steps.append((trainer.global_step, weights(module).clone()))

    def on_validation_batch_start(self, trainer, module, *_):
        self.validated.append((trainer.global_step, weights(module).clone()))

    def on_train_batch_start(self, trainer, module, *_):
        self.after.append((trainer.global_step, weights(module).clone()))


def flat(shadow):
    return torch.cat([tensor.flatten() for tensor in shadow.values()])


def slow(history, decay, every=1, start=0):
    """The definition, step by step."""
    average = history.steps[0][1].double()
    for step, weight in history.steps[1:]:
        if step <= start:
            average = weight.double()
        elif step % every == 0:
            average = decay * average + (1 - decay) * weight.double()
    return average.float()


@pytest.mark.parametrize(
    ("settings", "updates"),
    [({"decay": 0.9}, 6), ({"decay": 0.5, "every": 2}, 3), ({"decay": 0.8, "start": 3}, 3), ({"decay": 0.0}, 6)],
)
def test_the_average_is_its_definition_once_per_optimizer_step(tmp_path, settings, updates) -> None:
    """Two micro-batches a step, over an epoch's end: six updates in six steps, not twelve."""
    ema, history = EMA(**settings), History()
    module, _ = fit(tmp_path, [ema, history], max_steps=6)
    assert len(history.steps) == 7
    assert ema.updates == updates
    assert torch.allclose(flat(ema.shadow), slow(history, **settings), atol=1e-7)
    assert torch.equal(flat(ema.shadow), weights(module)) == (settings["decay"] == 0.0)


def test_a_resumed_average_is_bit_exact(tmp_path) -> None:
    whole = EMA(decay=0.9)
    fit(tmp_path / "whole", [whole, Checkpoint(every=100)], max_steps=8)
    fit(tmp_path / "half", [EMA(decay=0.9), Checkpoint(every=4)], max_steps=4)
    again = EMA(decay=0.9)
    fit(tmp_path / "half", [again, Checkpoint(every=4)], max_steps=8, resume=newest(tmp_path / "half"))
    assert again.updates == whole.updates == 8
    assert again.shadow.keys() == whole.shadow.keys()
    assert all(torch.equal(again.shadow[k], whole.shadow[k]) for k in whole.shadow)
    saved = AtomicCheckpointIO().load_checkpoint(newest(tmp_path / "half"))  # weights_only
    assert all(torch.equal(saved["ema"]["weights"][k], whole.shadow[k]) for k in whole.shadow)
    assert not torch.equal(flat(whole.shadow), torch.cat([saved["state_dict"][k].flatten() for k in whole.shadow]))


def test_it_can_be_validated_with_and_leaves_the_weights_alone(tmp_path) -> None:
    ema, history = EMA(decay=0.9, validate=True), History()
    fit(tmp_path / "with", [ema, history, Checkpoint(every=2, monitor="val/loss")], max_steps=6)
    without, plain = EMA(decay=0.9), History()
    fit(tmp_path / "without", [without, plain, Checkpoint(every=2)], max_steps=6)
    assert [s for s, _ in history.steps] == [s for s, _ in plain.steps]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(history.steps, plain.steps))  # training never notices
    assert history.validated
    for (step, seen), (_, raw) in zip(history.validated, plain.validated, strict=True):
        until = History()
        until.steps = [row for row in history.steps if row[0] <= step]
        assert torch.allclose(seen, slow(until, 0.9), atol=1e-7)
        assert not torch.equal(seen, raw)
    saved = [torch.load(newest(tmp_path / name), weights_only=True)["state_dict"] for name in ("with", "without")]
    assert all(torch.equal(saved[0][k], saved[1][k]) for k in saved[0])


def test_an_error_in_validation_leaves_the_weights_in_their_place(tmp_path) -> None:
    def act(module, phase, index):
        if phase == "val":
            raise ArithmeticError("planted")

    module, history = Toy(act), History()
    ema = EMA(decay=0.9, validate=True)
    with pytest.raises(ArithmeticError):
        fit(tmp_path, [ema, history], module=module, max_steps=6)
    assert torch.equal(weights(module), history.steps[-1][1])
    assert not torch.equal(flat(ema.shadow), weights(module))


def test_frozen_weights_have_no_average_and_bfloat16_ones_a_float32_one(tmp_path) -> None:
    module = Toy()
    module.net.bias.requires_grad_(False)
    ema = EMA(decay=0.9)
    fit(tmp_path, [ema], module=module, max_steps=2)
    assert set(ema.shadow) == {"net.weight"}
    fine, module, history = EMA(decay=0.999), Toy(), History()
    module.net.to(torch.bfloat16)
    fit(tmp_path / "b", [fine, history], module=module, max_steps=4, precision="bf16-mixed")
    assert weights(module).dtype == torch.bfloat16
    assert fine.shadow["net.weight"].dtype == torch.float32
    assert torch.allclose(flat(fine.shadow), slow(history, 0.999), atol=1e-7)  # a bfloat16 average would not move


def test_a_checkpoint_without_an_average_begins_one_and_says_so(tmp_path) -> None:
    fit(tmp_path, [Checkpoint(every=2)], max_steps=2)
    ema, history = EMA(decay=0.9), History()
    with pytest.warns(UserWarning, match="no average"):
        fit(tmp_path, [ema, history, Checkpoint(every=2)], max_steps=4, resume=newest(tmp_path))
    assert torch.allclose(flat(ema.shadow), slow(history, 0.9), atol=1e-7)
    path = newest(tmp_path)
    saved = torch.load(path, weights_only=True)
    saved["ema"]["weights"].pop("net.bias")
    torch.save(saved, path)
    with pytest.raises(UserError, match=r"1 missing \(net\.bias"):
        fit(tmp_path, [EMA(decay=0.9)], max_steps=6, resume=path)


@pytest.mark.parametrize("settings", [{"decay": 1.0}, {"decay": -0.1}, {"every": 0}, {"start": -1}])
def test_settings_that_mean_nothing_are_refused(settings) -> None:
    with pytest.raises(UserError, match="ema: "):
        EMA(**settings)


@pytest.fixture
def mesh(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_weights_keep_their_placement_and_equal_whole_ones(tmp_path, mesh) -> None:
    """The callback's hooks on DTensor parameters, driven by hand; two ranks: tests/distributed."""
    runs = {}
    for kind in ("whole", "sharded"):
        module, ema = Toy(), EMA(decay=0.9)
        if kind == "sharded":
            for name, p in list(module.net.named_parameters()):
                module.net.register_parameter(name, torch.nn.Parameter(distribute_tensor(p.data, mesh, [Shard(0)])))
        runs[kind] = drive(module, ema, trainer(tmp_path, [], logger=False), steps=5)
        again = EMA(decay=0.9)
        again.on_load_checkpoint(None, module, runs[kind])
        runs[f"{kind} again"] = drive(module, again, trainer(tmp_path, [], logger=False), steps=0)
        if kind == "sharded":
            assert all(isinstance(t, DTensor) and t.placements == (Shard(0),) for t in again.shadow.values())
    expected = runs.pop("whole")["ema"]
    for kind, checkpoint in runs.items():
        assert checkpoint["ema"]["updates"] == 5
        for name, tensor in expected["weights"].items():
            saved = checkpoint["ema"]["weights"][name]
            assert isinstance(saved, DTensor) == kind.startswith("sharded")  # a sharded checkpoint takes the parts
            assert torch.equal(whole(saved), tensor)


def drive(module, ema, run, steps):
    """Training as the callback sees it: weights that move, a step counter, two calls per step."""
    counter = run.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    ema.on_train_start(run, module)
    for step in range(steps):
        ema.on_train_batch_end(run, module, None, None, 2 * step)
        counter.completed += 1
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(0.9).add_(0.01 * (step + 1))
        ema.on_train_batch_end(run, module, None, None, 2 * step + 1)
    assert run.global_step == steps
    ema._swap_in(module)
    ema._swap_out(module)
    checkpoint = {}
    ema.on_save_checkpoint(run, module, checkpoint)
    return checkpoint
