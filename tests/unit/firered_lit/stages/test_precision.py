"""Small steps reach the weights: float32 masters, stochastic rounding, and what would lose them is refused."""

import subprocess
import sys
from functools import cache, partial
from tempfile import TemporaryDirectory

import pytest
import torch
from toy_edits import Edits, same, train, weights

from firered_lit.distributed.strategy import FSDP2
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.models.lora import LoRA
from firered_lit.optim import adamw8bit, refuse_eight_bit, refuse_rounding, stochastic_adamw8bit
from firered_lit.stages.dpo import DPO
from firered_lit.stages.nft import NFT
from firered_lit.stages.sft import SFT

HALF = Backbone("tiny", dtype="bfloat16")
STOCHASTIC = partial(stochastic_adamw8bit, lr=2e-6)


@pytest.fixture(autouse=True)
def _eager(monkeypatch):
    """torchao compiles its step, which takes long."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def projection(update, exact):
    """<update, exact> / <exact, exact>: 1 for the same, 0 for nothing."""
    return float(update @ exact / (exact @ exact))


def stepped(factory, rate, dtype, steps=50, shape=(256, 256)):
    """What a steady gradient with noise adds to weights of 0.02, exact in bfloat16."""
    start = (gaussian(shape, (0,), "weight")[0] * 0.02).bfloat16()
    parameter = torch.nn.Parameter(start.to(dtype, copy=True))
    optimizer = factory([parameter], lr=rate)
    steady = gaussian(shape, (0,), "gradient")[0]
    for step in range(steps):
        parameter.grad = (steady + gaussian(shape, (0,), "noise", step)[0]).to(dtype)
        optimizer.step()
    return (parameter.detach().float() - start.float()).flatten()


@pytest.mark.parametrize("rate", [2e-6, 2e-5])
@pytest.mark.parametrize("shape", [(256, 256), (3000,)], ids=["8-bit moments", "too few for 8 bits"])
def test_stochastic_rounding_goes_where_float32_goes(rate, shape):
    exact = stepped(torch.optim.AdamW, rate, torch.float32, shape=shape)
    rounded = stepped(torch.optim.AdamW, rate, torch.bfloat16, shape=shape)
    assert projection(rounded, exact) < 0.4
    assert projection(stepped(stochastic_adamw8bit, rate, torch.bfloat16, shape=shape), exact) == pytest.approx(
        1, abs=0.05
    )


def test_the_compiled_step_goes_where_the_plain_one_goes(monkeypatch):
    """As training takes it; of one weight, since every shape is compiled anew."""
    plain = stepped(stochastic_adamw8bit, 1e-3, torch.bfloat16, steps=5, shape=(64, 64))
    monkeypatch.undo()
    compiled = stepped(stochastic_adamw8bit, 1e-3, torch.bfloat16, steps=5, shape=(64, 64))
    assert projection(compiled, plain) == pytest.approx(1, abs=0.05)


def test_rounding_is_drawn_by_seed_and_step_and_leaves_the_global_state_alone():
    def made(seed, start=None):
        parameter = torch.nn.Parameter(gaussian((64, 64), (0,), "weight")[0].bfloat16())
        optimizer = stochastic_adamw8bit([parameter], lr=1e-4)
        optimizer.seed = seed
        return parameter, optimizer

    def step(parameter, optimizer, number):
        parameter.grad = gaussian((64, 64), (0,), "gradient", number)[0].bfloat16()
        optimizer.step()
        return parameter.detach().clone()

    (first, optimizer), (other, another), (again, third) = made(1), made(2), made(1)
    before = torch.get_rng_state()
    one = step(first, optimizer, 0)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(one, step(other, another, 0))
    torch.manual_seed(7)
    assert torch.equal(one, step(again, third, 0))

    # Another step rounds by other draws, and a closure draws from the training's own state.
    drawn = []
    first.grad = gaussian((64, 64), (0,), "gradient", 0)[0].bfloat16()
    torch.manual_seed(7)
    optimizer.step(lambda: drawn.append(torch.rand(3)))
    torch.manual_seed(7)
    assert torch.equal(drawn[0], torch.rand(3))


def stage(backbone=HALF, optimizer=STOCHASTIC, kind=SFT, **options):
    return kind(backbone, optimizer, seed=3, **options)


def test_half_weights_that_round_stochastically_are_resumed_bit_for_bit(tmp_path):
    """Moments in 8 bits, and the few in float32, which torch would load as bfloat16."""
    straight, _ = train(tmp_path / "straight", stage(optimizer=partial(stochastic_adamw8bit, lr=1e-3)), 2)
    train(tmp_path / "begun", stage(optimizer=partial(stochastic_adamw8bit, lr=1e-3)), 1)
    checkpoint = tmp_path / "begun" / "step_00000001.ckpt"
    resumed = stage(optimizer=partial(stochastic_adamw8bit, lr=1e-3))
    again, engine = train(tmp_path / "resumed", resumed, 2, checkpoint)
    assert same(weights(straight), weights(again))
    states = engine.optimizers[0].state.values()
    assert {type(held["exp_avg"]).__name__ for held in states} == {"Tensor", "OptimState8bit"}
    assert {held["exp_avg"].dtype for held in states} == {torch.float32}


def test_another_process_reads_moments_in_8_bits(tmp_path):
    """`export`, `average` and a resumed run open the file before anything else has imported torchao."""
    from torchao.optim.subclass_8bit import OptimState8bit

    torch.save({"state_dict": {}, "moment": OptimState8bit.zeros((64, 64))}, tmp_path / "step.ckpt")
    read = "import sys; from pathlib import Path; from firered_lit.checkpoints.checkpoint import read_safely"
    command = f"{read}; print(type(read_safely(Path(sys.argv[1]))['moment']).__name__)"
    done = subprocess.run([sys.executable, "-c", command, str(tmp_path / "step.ckpt")], capture_output=True, text=True)
    assert done.stdout.strip() == "OptimState8bit", done.stderr


def test_a_run_that_rounded_stochastically_goes_on_in_float32(tmp_path):
    train(tmp_path, stage(), 1)
    module, engine = train(
        tmp_path, stage(Backbone("tiny"), partial(torch.optim.AdamW, lr=2e-6)), 2, tmp_path / "step_00000001.ckpt"
    )
    assert {type(held["exp_avg"]) for held in engine.optimizers[0].state.values()} == {torch.Tensor}
    assert {parameter.dtype for parameter in module.transformer.parameters()} == {torch.float32}


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, adamw8bit], ids=lambda o: o.__name__)
@pytest.mark.parametrize("kind", [SFT, DPO])
def test_half_weights_under_an_optimizer_that_rounds_are_refused(kind, optimizer):
    module = stage(kind=kind, optimizer=partial(optimizer, lr=1e-3))
    module.configure_model()
    with pytest.raises(
        UserError, match=r"rounds every step of bfloat16 weights.*dtype=float32.*stochastic_adamw8bit"
    ) as e:
        module.configure_optimizers()
    assert "\n" not in str(e.value)
    with pytest.raises(UserError, match="rounds every step"):  # known before a weight is read
        refuse_rounding(module.optimizer_factory, [module.trained_dtype])


def test_float16_is_refused_too_and_frozen_half_weights_are_not():
    with pytest.raises(UserError, match="float16 weights"):
        refuse_rounding(torch.optim.AdamW, [torch.float32, torch.float16])
    adapter = stage(Backbone("tiny", dtype="bfloat16", lora=LoRA(2, 2, ["to_q"])), partial(torch.optim.AdamW, lr=1e-3))
    adapter.configure_model()
    adapter.configure_optimizers()
    for name, parameter in adapter.transformer.named_parameters():
        if ".lora_A." in name:
            parameter.data = parameter.data.bfloat16()
    with pytest.raises(UserError, match="bfloat16 weights"):
        adapter.configure_optimizers()


def test_an_old_policy_is_not_averaged_in_half_precision():
    with pytest.raises(UserError, match="the old policy is an average"):
        stage(kind=NFT)


def test_only_where_gradients_of_half_weights_add_up_in_float32():
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

    for strategy in (SingleDeviceStrategy("cpu"), FSDP2()):
        refuse_eight_bit(STOCHASTIC, strategy)
    with pytest.raises(UserError, match="add up in half precision"):
        refuse_eight_bit(STOCHASTIC, DDPStrategy())
    FSDP2().check(stage(), 2)
    FSDP2(whole_gradients=True).check(stage(), 2, accumulate=4)
    FSDP2().check(stage(Backbone("tiny")), 2, accumulate=4)
    with pytest.raises(UserError, match=r"accumulate_grad_batches=4.*whole_gradients=true"):
        FSDP2().check(stage(), 2, accumulate=4)


@pytest.mark.parametrize("backbone", [HALF, Backbone("tiny")], ids=["bfloat16", "float32"])
def test_gradients_of_many_micro_batches_add_up_in_float32(backbone, tmp_path):
    """A step's gradient is the float32 sum of what its micro-batches give alone."""
    seen = {}

    class Look(SFT):
        def on_before_optimizer_step(self, optimizer):
            seen.update({name: p.grad.clone() for name, p in self.transformer.named_parameters() if p.grad is not None})

    factory = STOCHASTIC if backbone is HALF else partial(torch.optim.AdamW, lr=2e-6)
    train(tmp_path, stage(backbone, factory, Look), 1, accumulate_grad_batches=4)
    alone = stage(backbone, factory)
    alone.configure_model()
    total = {}
    for number in range(4):
        alone.zero_grad()
        (alone.losses(Edits().batch(number)).mean() / 4).backward()
        for name, parameter in alone.transformer.named_parameters():
            if parameter.grad is not None:
                total[name] = total.get(name, 0) + parameter.grad.float()
    assert {gradient.dtype for gradient in seen.values()} == {torch.float32}
    assert all(torch.allclose(seen[name], total[name], rtol=1e-5, atol=1e-7) for name in total)


KINDS = {"sft": (SFT, 2e-5, {}), "dpo": (DPO, 2e-6, {"beta": 20.0})}  # with their recipes' rates


@cache
def moved(name, how):
    """What four steps of a stage add to its weights."""
    kind, rate, options = KINDS[name]
    stochastic = how == "stochastic rounding"
    factory = partial(stochastic_adamw8bit if stochastic else torch.optim.AdamW, lr=rate)
    module = stage(HALF if stochastic else Backbone("tiny"), factory, kind, **options)
    module.configure_model()
    before = torch.cat([p.detach().float().flatten() for p in module.transformer.parameters()])
    precision = "bf16-mixed" if how == "computed in bfloat16" else "32-true"
    with TemporaryDirectory() as folder:
        train(folder, module, 4, pairs=name == "dpo", precision=precision)
    return torch.cat([p.detach().float().flatten() for p in module.transformer.parameters()]) - before


@pytest.mark.parametrize("how", ["computed in bfloat16", "stochastic rounding"])
@pytest.mark.parametrize("name", KINDS)
def test_a_stage_moves_its_weights_as_float32_would(name, how):
    """At the recipes' rates, to what a forward in bfloat16 adds to Adam's first four steps, which follow signs.

    `benchmarks/precision.py` does it over 40 steps for every full-size recipe.
    """
    found = projection(moved(name, how), moved(name, "float32"))
    print(f"{name}, {how}: {found:.3f}")
    assert found > 0.9
