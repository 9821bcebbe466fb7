"""Memory of one training step, measured on tensors without storage: no weight is read."""

import json
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from firered_lit.batch import Condition, Text

from ..lora import LoRA, add_adapter
from ..qwen_image import checkpoint_blocks, freeze_unused, velocity
from ..shard import skeleton
from .cuda_casts import cast_as_cuda
from .quantised_stand_in import QuantisedStandIn

if TYPE_CHECKING:
    from ..transformer import Transformer


@dataclass(frozen=True)
class Footprint:
    """The memory of a transformer and one micro-batch: parameters as counts, sizes in bytes.

    block: parameters of one block. trained: those that get a gradient. quantised: weights in a few bits. saved: what
    the forward keeps for the backward, weights aside. block_kept: one block's part of it. block_saved: what one block
    would keep without checkpointing, and so makes again with it. working: what the backward of one block needs beside.
    """

    parameters: int
    trained: int
    quantised: int
    block: int
    saved: int
    block_kept: int
    block_saved: int
    working: int


@dataclass(frozen=True)
class Forward:
    """A micro-batch and how it is computed.

    latents: height and width of the target's, and of each reference's. text: tokens of a prompt's embedding, padding
    included.
    dtype: of the weights as the forward sees them. uniform: adapters are cast to it too, as FSDP2 does. autocast: to
    bfloat16, as CUDA does. checkpointing: a block keeps its input alone, or its "products". quantize: the frozen linear
    layers of the blocks in "4bit" or "8bit".
    """

    batch: int
    latents: tuple[int, int]
    text: int
    references: int = 0
    dtype: torch.dtype = torch.float32
    uniform: bool = False
    autocast: bool = False
    checkpointing: bool | Literal["products"] = False
    lora: LoRA | None = None
    quantize: str | None = None


def footprint(config: Mapping[str, Any], forward: Forward) -> Footprint:
    """Measure the transformer that `config` (diffusers' config.json) describes.

    All blocks but the last need the same, so that one and two of them show the needs of any number.
    """
    layers = config["num_layers"]
    one, two = _traced_twice(config, forward)
    first, second = one, two
    if forward.checkpointing:
        first, second = _traced_twice(config, replace(forward, checkpointing=False))
    parameters, trained, quantised, saved = (
        getattr(one, name) + (layers - 1) * (getattr(two, name) - getattr(one, name))
        for name in ("parameters", "trained", "quantised", "saved")
    )
    made = second.saved - first.saved
    kept, block = two.saved - one.saved, two.parameters - one.parameters
    return Footprint(parameters, trained, quantised, block, saved, kept, made, second.peak - second.saved)


class _Trace(NamedTuple):
    """The trace of one step of a transformer of few blocks."""

    parameters: int
    trained: int
    quantised: int
    saved: int
    peak: int


class _Live(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, for as long as those live."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known, self.now, self.peak = set(known), 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._made, result)
        return result

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def _traced_twice(config: Mapping[str, Any], forward: Forward) -> tuple[_Trace, _Trace]:
    """Return the traces of a transformer of one block and of one with two, whatever its number of blocks."""
    one, two = (json.dumps({**config, "num_layers": layers}, sort_keys=True) for layers in (1, 2))
    return _traced(one, forward), _traced(two, forward)


@lru_cache(maxsize=1024)
def _traced(text: str, forward: Forward) -> _Trace:
    """Trace one forward and one backward of a transformer of few blocks; each takes about a second, and once is enough.

    Args:
        text: its config as JSON.
        forward: the pass.
    """
    config = json.loads(text)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    transformer = _built(config, forward)
    parameters = list(transformer.parameters())
    in_few_bits = [layer.weight for layer in transformer.modules() if isinstance(layer, QuantisedStandIn)]
    with FakeTensorMode(allow_non_fake_inputs=True):  # the tables of the positions are real
        _stand_in(transformer)
        own = {parameter.untyped_storage()._cdata for parameter in transformer.parameters()}
        inputs = _inputs(config, forward)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _loss(transformer, inputs, forward)
        saved = sum(tensor.untyped_storage().nbytes() for key, tensor in kept.items() if key not in own)
        kept.clear()
        for parameter in transformer.parameters():
            if parameter.requires_grad:  # gradients are counted by their number
                parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        with _Live(own) as live:
            _loss(transformer, inputs, forward).backward()
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    quantised = sum(weight.numel() for weight in in_few_bits)
    return _Trace(sum(p.numel() for p in parameters), trained, quantised, saved, live.peak)


def _loss(transformer: "Transformer", inputs: tuple[Tensor, Condition], forward: Forward) -> Tensor:
    x_t, condition = inputs
    with torch.autocast("cpu", torch.bfloat16, enabled=forward.autocast):
        v = velocity(transformer, x_t, torch.zeros(forward.batch), condition).float()
        return ((v - x_t) ** 2).mean()


def _built(config: Mapping[str, Any], forward: Forward) -> "Transformer":
    transformer = skeleton(config, forward.dtype).train()
    cast_as_cuda(transformer)
    if forward.quantize:
        for name, module in list(transformer.transformer_blocks.named_modules()):
            if isinstance(module, nn.Linear):
                transformer.transformer_blocks.set_submodule(name, QuantisedStandIn(module, forward.quantize))
    if forward.lora:
        add_adapter(transformer, forward.lora, 0)
    else:
        freeze_unused(transformer)
    if forward.uniform:
        nn.Module.to(transformer, forward.dtype)
    if forward.checkpointing:
        checkpoint_blocks(transformer, forward.checkpointing)
    return transformer


def _stand_in(transformer: nn.Module) -> None:
    """Parameters of no device become parameters of the host, without memory; within a FakeTensorMode."""
    for module in transformer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            tensor = torch.empty(parameter.shape, dtype=parameter.dtype)
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=parameter.requires_grad))


def _inputs(config: Mapping[str, Any], forward: Forward) -> tuple[Tensor, Condition]:
    def latents() -> Tensor:
        return torch.zeros(forward.batch, config["in_channels"] // 4, *forward.latents)

    embeddings = torch.zeros(forward.batch, forward.text, config["joint_attention_dim"])
    mask = torch.ones(forward.batch, forward.text, dtype=torch.bool)
    return latents(), Condition(Text(embeddings, mask), tuple(latents() for _ in range(forward.references)))
