"""The formula of operations against PyTorch's own count, and what is logged of them."""

import pytest
import test_dpo_stage
import test_nft_stage
import tiny_edits
import torch
from test_progress import rows
from torch.utils.flop_counter import FlopCounterMode
from toy_prompts import Prompts
from toy_run import trainer

from callbacks.throughput import Throughput
from firered_lit.batch import Condition, Text
from firered_lit.models.backbone import Backbone
from firered_lit.models.cost.flops import TFLOPS, forward_flops, peak, training_flops
from firered_lit.models.family import FULL_SIZE
from firered_lit.models.lora import TARGETS, LoRA, add_adapter
from firered_lit.models.qwen_image import freeze_unused, velocity
from firered_lit.models.shard import skeleton

SMALL = {**FULL_SIZE, "num_layers": 3, "num_attention_heads": 4}


def counted(config, references, side, text, backward=False, lora=None):
    """By PyTorch, on tensors without memory."""
    transformer = skeleton(config, torch.float32)
    if lora:
        add_adapter(transformer, lora, 0)
    else:
        freeze_unused(transformer)
    images = [torch.zeros(1, 16, side, side, device="meta") for _ in range(1 + references)]
    embeddings = torch.zeros(1, text, config["joint_attention_dim"], device="meta")
    condition = Condition(Text(embeddings, None), tuple(images[1:]))
    with FlopCounterMode(display=False) as counter:
        v = velocity(transformer, images[0], torch.zeros(1, device="meta"), condition)
        if backward:
            v.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(("references", "side", "text"), [(0, 16, 32), (1, 32, 200), (3, 16, 64)])
def test_a_forward(references, side, text):
    visual = (1 + references) * side * side // 4
    assert forward_flops(SMALL, visual, text) == pytest.approx(counted(SMALL, references, side, text), rel=1e-6)


def test_a_forward_of_full_width():
    config = {**FULL_SIZE, "num_layers": 1}
    assert forward_flops(config, 8192, 512) == pytest.approx(counted(config, 1, 128, 512), rel=1e-6)
    assert forward_flops(FULL_SIZE, 8192, 512) == pytest.approx(174e12, rel=0.01)


def test_forward_and_backward():
    """The first layers give no gradient to their inputs, and the last block's text branch gets none."""
    config = {**SMALL, "num_layers": 12, "joint_attention_dim": 64}
    assert training_flops(config, 1024, 32) == pytest.approx(counted(config, 3, 32, 32, backward=True), rel=0.02)


@pytest.mark.parametrize("targets", [TARGETS, ["to_q", "img_mlp.net.2"]])
def test_an_adapter(targets):
    config, lora = {**SMALL, "num_layers": 12, "joint_attention_dim": 64}, LoRA(rank=64, alpha=64, targets=targets)
    found = counted(config, 3, 32, 32, backward=True, lora=lora)
    assert training_flops(config, 1024, 32, lora) == pytest.approx(found, rel=0.03)


def test_devices_by_name():
    assert peak("NVIDIA H100 80GB HBM3") == peak("NVIDIA H200") == 989e12
    assert peak("NVIDIA H100 PCIe") == 756e12
    assert peak("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak("NVIDIA GeForce RTX 3090 Ti") == 80e12
    assert peak("NVIDIA L40S") == 362e12
    assert peak("NVIDIA L4") == TFLOPS["L4"] * 1e12
    assert peak("cpu") is None


def watched(module):
    """Operations of every forward of a stage's transformer, three times as many where a backward follows."""
    done = []

    def note(transformer, given, kept, output):
        batch, visual = kept["hidden_states"].shape[:2]
        text = kept["encoder_hidden_states"].shape[1]
        times = 3 if torch.is_grad_enabled() else 1
        done.append(times * batch * forward_flops(transformer.config, visual, text))

    module.configure_model()
    module.transformer.register_forward_hook(note, with_kwargs=True)
    return done


def test_a_supervised_step_and_one_on_pairs():
    sft = tiny_edits.stage(Backbone("tiny"))
    batch, done = tiny_edits.TinyEdits(4).batch(0), watched(sft)
    sft.losses(batch)
    assert sft.flops(batch) == pytest.approx(sum(done))
    dpo = test_dpo_stage.stage()
    pairs, done = test_dpo_stage.pairs(), watched(dpo)
    dpo.losses(pairs)
    assert dpo.flops(pairs) == pytest.approx(sum(done))
    assert len(done) == 2


@pytest.mark.parametrize("kl", [0.0, 0.1])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_an_iteration_of_reinforcement_learning(tmp_path, kl, decay):
    nft = test_nft_stage.stage(group_size=3, rollout_steps=2, points=2, kl=kl, decay=lambda steps: decay)
    done = watched(nft)
    test_nft_stage.fit(tmp_path, nft)
    assert nft.flops(Prompts().batch(0)) == pytest.approx(sum(done))


def test_what_is_logged_of_them(tmp_path, monkeypatch):
    """A device is named as one whose best is known; samples and operations come from the same time."""
    module = tiny_edits.stage(Backbone("tiny"))
    monkeypatch.setattr("callbacks.throughput._name", lambda device: "NVIDIA L4")
    run = trainer(tmp_path, [Throughput(every=2)], max_steps=4, limit_val_batches=0, enable_checkpointing=False)
    run.fit(module, tiny_edits.TinyEdits(4))
    (_, samples), (_, tflops), (_, mfu) = (
        rows(tmp_path, f"perf/{name}")[0] for name in ("samples_per_s", "tflops", "mfu")
    )
    batch = tiny_edits.TinyEdits(4).batch(0)
    assert tflops * 1e12 == pytest.approx(samples * module.flops(batch) / len(batch), rel=1e-4)
    assert mfu == pytest.approx(tflops / 121)
