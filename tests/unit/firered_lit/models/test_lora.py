"""LoRA: nothing at the start, nothing when off, the same merged; what a run of it saves; over a quantised base."""

import warnings
import weakref

import pytest
import torch
from tiny_edits import TinyEdits, adapters, fit, stage
from torch.utils.checkpoint import checkpoint

from callbacks.checkpoint import Checkpoint
from firered_lit.batch import EditBatch
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.models.cost.cuda_casts import cast_as_cuda
from firered_lit.models.factor import Factor
from firered_lit.models.lora import LoRA, delta, factors, matched, merge
from firered_lit.models.quantize import _layer
from firered_lit.models.qwen_image import velocity

warnings.filterwarnings("ignore", message=".*bottleneck.*|.*num_workers.*")
LORA = LoRA(4, 8)


def batch(step: int = 0) -> EditBatch:
    return TinyEdits(4).batch(step)


def output(transformer: torch.nn.Module) -> torch.Tensor:
    b = batch()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=transformer.dtype == torch.bfloat16):
        return velocity(transformer.eval(), b.target, torch.tensor([0.3, 0.8]), b.condition).float()


def stir(transformer: torch.nn.Module) -> torch.nn.Module:
    """Give every B some weight, as training would."""
    g = torch.Generator().manual_seed(1)
    for name, parameter in transformer.named_parameters():
        if ".lora_B." in name:
            parameter.data.copy_(0.05 * torch.randn(parameter.shape, generator=g))
    return transformer


@pytest.fixture(scope="module")
def base() -> torch.nn.Module:
    return Backbone("tiny").load()


@pytest.fixture(scope="module")
def adapted() -> torch.nn.Module:
    return stir(Backbone("tiny", lora=LORA).load(seed=3))


def test_a_new_adapter_changes_nothing(base) -> None:
    fresh = Backbone("tiny", lora=LORA).load(seed=3)
    assert torch.equal(output(fresh), output(base))
    assert not torch.equal(output(stir(fresh)), output(base))


def test_switched_off_it_is_the_base_and_merged_it_is_on(base, adapted) -> None:
    on = output(adapted)
    adapted.disable_adapters()
    assert torch.equal(output(adapted), output(base))
    adapted.enable_adapters()
    assert torch.equal(output(adapted), on)
    merged = Backbone("tiny").load()
    merge(merged, factors(adapted.state_dict()), LORA.scale)
    assert torch.allclose(output(merged), on, atol=2e-5)
    assert not torch.allclose(output(merged), output(base), atol=1e-2)


def test_the_scale_is_alpha_over_rank(adapted) -> None:
    layer = adapted.transformer_blocks[0].attn.to_q
    a, b = factors(adapted.state_dict())["transformer_blocks.0.attn.to_q"]
    assert torch.allclose(layer.get_delta_weight("default"), delta(a, b, 2.0), atol=1e-6)


def test_first_weights_are_a_function_of_the_seed() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = factors(Backbone("tiny", lora=LORA).load(seed=3).state_dict())
    assert torch.equal(torch.rand(3), expected)  # the global state is as it was
    again = factors(Backbone("tiny", lora=LORA).load(seed=3).state_dict())
    other = factors(Backbone("tiny", lora=LORA).load(seed=4).state_dict())
    assert all(torch.equal(first[k][0], again[k][0]) and not torch.equal(first[k][0], other[k][0]) for k in first)
    a = first["transformer_blocks.0.img_mlp.net.2"][0]  # peft's own law: uniform in +-1 / sqrt(inputs)
    assert a.abs().max() <= a.shape[1] ** -0.5
    assert a.std().item() == pytest.approx((3 * a.shape[1]) ** -0.5, rel=0.05)


def test_only_the_adapter_is_trained_and_the_loss_reaches_all_of_it() -> None:
    module = stage(Backbone("tiny", dtype="bfloat16", lora=LORA))
    module.configure_model()
    stir(module.transformer)
    with torch.autocast("cpu", torch.bfloat16):
        module.losses(batch()).mean().backward()
    for name, parameter in module.transformer.named_parameters():
        assert parameter.requires_grad == (".lora_" in name), name
        assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
        assert not parameter.requires_grad or parameter.grad.abs().sum() > 0, name


def test_the_usual_targets_are_all_of_a_block_but_the_last_blocks_text_branch(base) -> None:
    names = matched(base, LORA.targets)
    assert sum(name.startswith("transformer_blocks.0.") for name in names) == 12
    dead = {"attn.to_add_out", "attn.add_q_proj", "txt_mlp.net.2"}
    assert {n.removeprefix("transformer_blocks.0.") for n in names if ".0." in n[:21]} - {
        n.removeprefix("transformer_blocks.1.") for n in names if ".1." in n[:21]
    } == dead


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Backbone("tiny", lora=LoRA(4, 8, ["to_q", "to_kk"])).load(), ("'to_kk'", "nearest are to_k")),
        (lambda: Backbone("tiny", lora=LoRA(4, 8, ["img_mlp.net.0"])).load(), ("img_mlp.net.0.proj", "nearest")),
        (lambda: Backbone("tiny", lora=LoRA(4, 8, ["norm_q"])).load(), ("'norm_q'", "no linear layer")),
        (
            lambda: Backbone("tiny", lora=LoRA(4, 8, ["transformer_blocks.1.txt_mlp.net.2"])).load(),
            ("no loss reaches",),
        ),
        (lambda: Backbone("tiny", quantize="4bit"), ("backbone.quantize=4bit", "add a lora")),
        (lambda: LoRA(0, 8), ("rank=0",)),
        (lambda: LoRA(4, 8, "to_q"), ("list of module names",)),
        (lambda: LoRA(4, 8, dropout=1.0), ("dropout=1.0",)),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(make, words) -> None:
    with pytest.raises(UserError) as refusal:
        make()
    assert "\n" not in str(refusal.value)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_fault_6_a_lora_run_resumes_bit_for_bit(tmp_path, quantize) -> None:
    """The authors' LoRA resume raises TypeError. With dropout, whose only source is the global random state."""
    backbone = Backbone("tiny", "bfloat16", lora=LoRA(4, 8, dropout=0.2), quantize=quantize)
    whole = fit(tmp_path / "whole", backbone, 6, [Checkpoint(every=3)])
    fit(tmp_path / "half", backbone, 3, [Checkpoint(every=3)])
    torch.manual_seed(99)
    again = fit(tmp_path / "half", backbone, 6, [Checkpoint(every=3)], resume=newest(tmp_path / "half"))
    assert again.global_step == 6
    a, b = adapters(whole), adapters(again)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert all(v.abs().sum() > 0 for v in a.values())
    assert {v.dtype for v in a.values()} == {torch.float32}
    plain = fit(tmp_path / "plain", Backbone("tiny", "bfloat16", lora=LORA, quantize=quantize), 6, [])
    assert not all(torch.equal(a[k], v) for k, v in adapters(plain).items())  # dropout does something


def test_a_checkpoint_holds_the_adapter_alone_and_gives_it_back(tmp_path) -> None:
    backbone = Backbone("tiny", lora=LORA)
    trained = fit(tmp_path, backbone, 2, [Checkpoint(every=2)])
    saved = torch.load(newest(tmp_path), weights_only=True)
    assert saved["lora"]["rank"] == 4
    assert saved["lora"]["alpha"] == 8
    expected = {f"transformer.{k}": v for k, v in adapters(trained).items()}
    assert saved["state_dict"].keys() == expected.keys()
    assert all(torch.equal(saved["state_dict"][k], expected[k]) for k in expected)
    fresh = stage(backbone, seed=8)
    fresh.configure_model()
    fresh.on_load_checkpoint(saved)
    fresh.load_state_dict(saved["state_dict"], strict=fresh.strict_loading)
    assert torch.equal(output(fresh.transformer), output(trained.transformer))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (LoRA(8, 8), ("another architecture", "lora_A", "(4, 128)", "(8, 128)")),
        (LoRA(4, 4), ("alpha 8", "4")),
        (LoRA(4, 8, ["to_q"]), ("unknown (transformer.transformer_blocks.0.attn.add_k_proj.lora_A",)),
        (None, ("another architecture", "missing (transformer.img_in.bias", "unknown (transformer.transformer_blocks")),
    ],
)
def test_a_checkpoint_of_another_architecture_is_refused(tmp_path_factory, other, words) -> None:
    folder = tmp_path_factory.getbasetemp() / "rank4"
    if newest(folder) is None:
        fit(folder, Backbone("tiny", lora=LORA), 1, [Checkpoint(every=1)])
    with pytest.raises(UserError) as refusal:
        fit(folder, Backbone("tiny", lora=other), 2, [], resume=newest(folder))
    assert "\n" not in str(refusal.value)
    assert all(word in str(refusal.value) for word in words), refusal.value


@pytest.mark.parametrize(("bits", "dtype", "error"), [("8bit", torch.int8, 0.02), ("4bit", torch.uint8, 0.05)])
def test_over_a_quantised_base(bits, dtype, error) -> None:
    plain = Backbone("tiny", dtype="bfloat16").load()
    module = stage(Backbone("tiny", dtype="bfloat16", lora=LORA, quantize=bits), lr=3e-2)
    module.configure_model()
    inner = module.transformer
    assert inner.transformer_blocks[0].attn.to_q.base_layer.weight.dtype == dtype
    assert inner.img_in.weight.dtype == torch.bfloat16
    held = sum(p.numel() * p.element_size() for p in inner.transformer_blocks.parameters() if not p.requires_grad)
    share = held / sum(2 * p.numel() for p in plain.transformer_blocks.parameters())
    assert share < (0.53 if bits == "8bit" else 0.28)
    off = output(inner)
    assert 0 < ((off - output(plain)).norm() / output(plain).norm()).item() < error
    before = {n: p.detach().clone() for n, p in inner.named_parameters() if not p.requires_grad}
    optimizer, losses = module.configure_optimizers(), []
    inner.train()
    for _ in range(8):
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.losses(batch()).mean()
        loss.backward()
        if not losses:
            assert all(p.grad.abs().sum() > 0 for n, p in inner.named_parameters() if ".lora_B." in n)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(before[n], p) for n, p in inner.named_parameters() if n in before)
    inner.disable_adapters()
    assert torch.equal(output(inner), off)


# --- without autocast: the stream between the blocks stays in the base's bfloat16 ---


def losses_and_stream(quantize, autocast):
    """The stage, its loss (B,) with gradients made, and the precisions of the last block's and the adapter's inputs."""
    module = stage(Backbone("tiny", dtype="bfloat16", lora=LORA, quantize=quantize))
    module.configure_model()
    stir(module.transformer)
    stream, adapter = set(), set()

    def look(_, positional, named):
        stream.update(value.dtype for value in (named["hidden_states"], named["encoder_hidden_states"]))

    module.transformer.transformer_blocks[-1].register_forward_pre_hook(look, with_kwargs=True)
    for layer in module.transformer.modules():
        if isinstance(layer, Factor):
            layer.register_forward_pre_hook(lambda _, inputs: adapter.add(inputs[0].dtype))
    cast_as_cuda(module.transformer)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = module.losses(batch())
    loss.mean().backward()
    return module, loss.detach(), stream, adapter


@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_an_adapter_without_autocast_computes_in_the_base_s_bfloat16(quantize) -> None:
    """Within bfloat16 of CUDA's autocast, whose LayerNorms make the stream float32 over a 4-bit base."""
    module, loss, stream, adapter = losses_and_stream(quantize, autocast=False)
    other, expected, wide, _ = losses_and_stream(quantize, autocast=True)
    assert stream == adapter == {torch.bfloat16}
    assert wide == {torch.float32 if quantize == "4bit" else torch.bfloat16}  # 8 bits: on CUDA alone
    assert torch.allclose(loss, expected, rtol=2**-8)
    gradients = dict(other.transformer.named_parameters())
    for name, parameter in module.transformer.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.dtype == torch.float32
            gap = (parameter.grad - gradients[name].grad).norm() / gradients[name].grad.norm()
            assert gradients[name].grad.norm() > 0
            assert gap < 0.05, name


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_a_checkpointed_block_keeps_no_input_of_a_quantised_layer(bits) -> None:
    layer = _layer(torch.nn.Linear(64, 64, dtype=torch.bfloat16), bits).to("cpu")
    inputs = []

    def block(x):
        inner = x * 2
        inputs.append(weakref.ref(inner))
        return layer(inner)

    x = torch.ones(2, 64, dtype=torch.bfloat16, requires_grad=True)
    output = checkpoint(block, x, use_reentrant=False)
    assert inputs[0]() is None
    output.sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_an_8_bit_layer_computes_as_bitsandbytes_does(training) -> None:
    from bitsandbytes.nn import Linear8bitLt

    g = torch.Generator().manual_seed(2)
    layer = _layer(torch.nn.Linear(64, 96, dtype=torch.bfloat16), "8bit").to("cpu").train(training)
    x = (3 * torch.randn(2, 5, 64, generator=g)).bfloat16().requires_grad_()
    results = []
    for product in (layer, lambda x: Linear8bitLt.forward(layer, x)):
        output = product(x)
        (gradient,) = torch.autograd.grad(output.square().mean(), x)
        results.append((output, gradient))
    assert all(torch.equal(a, b) for a, b in zip(*results))
