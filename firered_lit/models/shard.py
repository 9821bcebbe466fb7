"""FSDP2: the sharded modules of the transformer, their precision, and the loading of their weights."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ..errors import UserError
from .component import loading, weight_files

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from .transformer import Transformer

Drawn = Callable[[str, torch.Size], Tensor]


@dataclass(frozen=True)
class Sharding:
    """The spreading of a model over processes.

    Args:
        mesh: one dimension (shard) or two (replicate, shard).
        device: this process's own.
        compute: precision of the gathered weights, of the activations and so of the forward; None: that of the weights.
    """

    mesh: "DeviceMesh"
    device: torch.device
    compute: torch.dtype | None = None


def skeleton(config: Mapping[str, Any], dtype: torch.dtype) -> "Transformer":
    """Build the transformer of diffusers' config.json without weights: its parameters lie on the meta device."""
    from diffusers import QwenImageTransformer2DModel

    with loading("the transformer's config"), torch.device("meta"):
        transformer: Any = QwenImageTransformer2DModel.from_config(dict(config))
    nn.Module.to(transformer, dtype)  # diffusers' own `to` warns about the parts that stay in float32; there are none
    rope = transformer.pos_embed  # its tables are plain attributes, which no `to_empty` would ever fill
    transformer.pos_embed = type(rope)(theta=rope.theta, axes_dim=rope.axes_dim, scale_rope=rope.scale_rope)
    return transformer


def shard(transformer: "Transformer", sharding: Sharding) -> None:
    """Shard every block and then the rest. Gradients are reduced in float32 or better, whatever the weights are.

    The output's precision is set on the root alone: a block that returned float32 would not fit the next one's weights.
    The root, too, gives its gathered weights back after a forward, so that between forwards all parameters are shards:
    who reads or writes them (an average, a checkpoint) need not ask.
    """
    weights = next(transformer.parameters()).dtype
    reduce_dtype = torch.promote_types(weights, torch.float32)
    of_block = MixedPrecisionPolicy(param_dtype=sharding.compute, reduce_dtype=reduce_dtype)
    of_root = MixedPrecisionPolicy(
        param_dtype=sharding.compute,
        reduce_dtype=reduce_dtype,
        output_dtype=torch.float32 if sharding.compute else None,
    )
    for block in transformer.transformer_blocks:
        fully_shard(block, mesh=sharding.mesh, mp_policy=of_block)
    fully_shard(transformer, mesh=sharding.mesh, mp_policy=of_root, reshard_after_forward=True)


@torch.no_grad()
def fill(transformer: nn.Module, folder: Path, device: torch.device, drawn: Drawn | None = None) -> None:
    """Give a sharded skeleton its memory and its weights. Each process reads only the shards that it keeps.

    Args:
        transformer: the skeleton.
        folder: of its weights.
        device: this process's own.
        drawn: values of the parameters that no file has (an adapter's), by name and whole shape.

    Raises:
        UserError: the files lack a parameter, or hold one of another shape.
    """
    transformer.to_empty(device=device)
    files = weight_files(folder)
    with ExitStack() as stack:
        opened = {file: stack.enter_context(safe_open(file, framework="pt")) for file in sorted(set(files.values()))}
        for name, parameter in transformer.named_parameters():
            key = name.replace(".base_layer.", ".")
            if key in files:
                stored = opened[files[key]].get_slice(key)
                if list(stored.get_shape()) != list(parameter.shape):
                    shapes = f"{tuple(stored.get_shape())} in the file, {tuple(parameter.shape)} by its config"
                    raise UserError(f"{files[key]}: {key} is {shapes}")
            elif drawn is None:
                raise UserError(f"{folder}: no weights for {key}; is the download complete?")
            else:
                stored = drawn(name, parameter.shape)
            if local(parameter).numel():  # a short tensor leaves nothing for the last processes
                local(parameter).copy_(stored[own_part(parameter)])


def own_part(tensor: Tensor) -> tuple[slice, ...]:
    """Return this process's shard of the whole tensor, as slices."""
    if not isinstance(tensor, DTensor):
        return (slice(None),) * tensor.ndim
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))


def local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a tensor, sharing its memory."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor. For a sharded one, every process must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, example: Tensor) -> Tensor:
    """Return a whole tensor, sharded and placed as `example` is."""
    if not isinstance(example, DTensor) or isinstance(tensor, DTensor):
        return tensor.to(example.device)
    return distribute_tensor(tensor.to(example.device), example.device_mesh, example.placements, src_data_rank=None)


def grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients over all shards, a plain scalar, the same on every process."""
    return whole(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def accumulate_in_float32(parameters: Iterable[nn.Parameter]) -> None:
    """Let the gradients of half-precision parameters be float32, so that those of many micro-batches add up.

    Sharded ones are left as they are: FSDP2 sums them itself, see `strategy.FSDP2.check`.
    """
    for parameter in parameters:
        if not isinstance(parameter, DTensor) and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.grad_dtype = torch.float32


def synchronise(module: nn.Module, gradients: bool, replicas: bool) -> None:
    """Set whether the next backward passes reduce gradients over the shards, and over the replicas."""
    for submodule in module.modules():
        if isinstance(submodule, FSDPModule):
            submodule.set_requires_gradient_sync(gradients, recurse=False)
            submodule.set_requires_all_reduce(replicas, recurse=False)


def mesh_shape(processes: int, replicate: int, shard: int | None) -> tuple[int, int]:
    """Return (replicate, shard) for so many processes.

    Raises:
        UserError: they cannot be arranged so.
    """
    if shard is not None and replicate * shard != processes:
        wanted = f"replicate={replicate} times shard={shard} needs {replicate * shard} processes, there are {processes}"
        raise UserError(f"trainer.strategy: {wanted}: change trainer.devices or trainer.num_nodes")
    if processes % replicate:
        raise UserError(f"trainer.strategy.replicate={replicate}: {processes} processes cannot be divided by it")
    return replicate, processes // replicate
