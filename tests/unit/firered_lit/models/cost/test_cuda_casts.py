"""CUDA's autocast as the estimate stands in for it, against the real one on CUDA tensors without memory."""

import pytest
import torch
import torch.nn.functional as F
from test_memory import config
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from firered_lit.batch import Condition, Text
from firered_lit.models.cost.footprint import Forward, _built
from firered_lit.models.lora import LoRA
from firered_lit.models.qwen_image import velocity

TOKENS = 16


def kept(forward, device):
    """Bytes by precision of what one forward keeps for its backward, and the precisions of the last block's stream.

    Attention is left out: without a driver CUDA tensors take another kernel than a GPU's.
    """
    sizes = {}
    stream = set()
    small = config(2, 4)
    transformer = _built(small, forward)
    for part in ("norm1", "norm2"):
        layer = getattr(transformer.transformer_blocks[-1], f"img_{part}")
        layer.register_forward_pre_hook(lambda _, inputs: stream.add(inputs[0].dtype), prepend=True)

    def keep(tensor):
        sizes[tensor.untyped_storage()._cdata] = (tensor.dtype, tensor.untyped_storage().nbytes(), tensor)
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in transformer.modules():
            for name, parameter in module.named_parameters(recurse=False):
                tensor = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                module.register_parameter(name, nn.Parameter(tensor, requires_grad=parameter.requires_grad))
        own = {parameter.untyped_storage()._cdata for parameter in transformer.parameters()}
        x = torch.zeros(1, 16, 8, 8, device=device)
        mask = torch.ones(1, TOKENS, dtype=torch.bool, device=device)
        text = Text(torch.zeros(1, TOKENS, small["joint_attention_dim"], device=device), mask)
        saved = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with saved, torch.autocast(device, torch.bfloat16):
            velocity(transformer, x, torch.zeros(1, device=device), Condition(text, (x,)))
    totals = {}
    for key, (dtype, size, _) in sizes.items():
        if key not in own:
            totals[dtype] = totals.get(dtype, 0) + size
    return totals, stream


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("dtype", "lora", "quantize"),
    [
        (torch.float32, None, None),
        (torch.bfloat16, LoRA(4, 4), None),
        (torch.bfloat16, LoRA(4, 4), "4bit"),
        (torch.bfloat16, LoRA(4, 4), "8bit"),
    ],
)
def test_the_stand_in_keeps_what_cuda_s_autocast_keeps(monkeypatch, dtype, lora, quantize, checkpointing):
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda query, value, **_: query.bfloat16() * value.bfloat16()
    )
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    forward = Forward(
        1, (8, 8), TOKENS, 1, dtype, autocast=True, checkpointing=checkpointing, lora=lora, quantize=quantize
    )
    assert kept(forward, "cpu") == kept(forward, "cuda")
    assert (torch.float32 in kept(forward, "cpu")[1]) == (quantize is not None)
