"""FSDP2 and HSDP under Lightning: the mesh, the precision, and checkpoints that every process writes its part of."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from ..checkpoints import lineage, sharded
from ..checkpoints.background import Background
from ..checkpoints.checkpoint import check_architecture, read_safely, sound
from ..checkpoints.resume import SavedOptimizer, dequantised, refuse_other_optimizer
from ..errors import UserError
from ..models.shard import Sharding, mesh_shape, placed_like, synchronise
from ..optim import HALF, eight_bit, refuse_without_torchao

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, None: None}


class FSDP2(ModelParallelStrategy):
    """Shard weights, gradients and optimizer state over `shard` processes, `replicate` times (HSDP).

    replicate: copies of the sharded model. shard: processes that share one copy; None: as many as there are.
    compute: precision of the gathered weights and of the forward, with gradients reduced in float32; None: that of the
    weights themselves. It takes the place of `trainer.precision`, which stays 32-true.
    whole_gradients: when accumulating, reduce over the shards once a step instead of once a micro-batch; every process
    then holds the whole model's gradients. Over the replicas gradients are reduced once a step in any case.
    timeout_s: seconds after which a process that waits for the others gives up.
    """

    background: Background | None = None  # writes checkpoints beside the training
    _writers: Any = None

    def __init__(
        self,
        replicate: int = 1,
        shard: int | None = None,
        compute: Literal["bfloat16", "float32"] | None = "bfloat16",
        whole_gradients: bool = False,
        timeout_s: float = 1800,
    ) -> None:
        super().__init__("auto", 1, timeout=timedelta(seconds=timeout_s))
        for name, value in {"replicate": replicate, "shard": 1 if shard is None else shard}.items():
            if value < 1:
                raise UserError(f"trainer.strategy.{name}={value}: at least 1")
        if compute not in DTYPES:
            raise UserError(f"trainer.strategy.compute={compute}: one of bfloat16, float32, null")
        self.replicate, self.shard, self.compute = replicate, shard, compute
        self.whole_gradients = whole_gradients

    def check(self, stage: Any, processes: int, precision: str = "32-true", accumulate: int = 1) -> None:
        """Refuse what cannot be trained sharded, before any process is started or any weight is read."""
        mesh_shape(processes, self.replicate, self.shard)
        if self.compute is not None and not str(precision).startswith("32"):
            what = f"strategy.compute={self.compute} sets the precision already"
            raise UserError(f"trainer.precision={precision}: with FSDP2, {what}; use trainer.precision=32-true")
        factory = getattr(stage, "optimizer_factory", None)
        if getattr(getattr(factory, "func", factory), "__module__", "").startswith("bitsandbytes"):
            raise UserError(
                "stage.optimizer: bitsandbytes cannot step sharded parameters; use firered_lit.optim.adamw8bit or"
                " torch.optim.AdamW, or train on one GPU or with strategy=ddp"
            )
        if eight_bit(factory):
            refuse_without_torchao()
        self._refuse_half_sums(stage, accumulate)
        if quantize := getattr(getattr(stage, "backbone", None), "quantize", None):
            raise UserError(
                f"stage.backbone.quantize={quantize}: quantised weights cannot be sharded; use strategy=ddp"
            )

    def _refuse_half_sums(self, stage: Any, accumulate: int) -> None:
        """Refuse to add up gradients of half-precision shards, which FSDP2 keeps in the weights' precision."""
        half = getattr(stage, "trained_dtype", torch.float32) in HALF
        if half and accumulate > 1 and not self.whole_gradients:
            raise UserError(
                f"trainer.accumulate_grad_batches={accumulate}: gradients of half-precision shards would add up in"
                " half precision; set stage.backbone.dtype=float32 or trainer.strategy.whole_gradients=true"
            )

    def setup_environment(self) -> None:
        ParallelStrategy.setup_environment(self)
        self._setup_distributed()  # without the parent's mesh of (data, tensor)
        shape = mesh_shape(self.world_size, self.replicate, self.shard)
        names = ("replicate", "shard")
        self._writers = torch.distributed.new_group(backend="gloo")  # where those who write a checkpoint meet
        self._device_mesh = init_device_mesh(self.root_device.type, shape, mesh_dim_names=names)
        stage: Any = self.lightning_module
        stage._device_mesh = self._device_mesh

    @property
    def _module(self) -> nn.Module:
        """The stage, once it is set up."""
        if self.model is None:
            raise RuntimeError("FSDP2: the strategy has no model yet")
        return self.model

    @property
    def sharding(self) -> Sharding:
        """The sharding by which `Stage.configure_model` builds its transformer."""
        mesh = self.device_mesh if self.replicate > 1 else self.device_mesh["shard"]
        return Sharding(mesh, self.root_device, DTYPES[self.compute])

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        return {"num_replicas": self.world_size, "rank": self.global_rank}

    @contextmanager
    def block_backward_sync(self) -> Generator[None, None, None]:
        """While accumulating: keep gradients from the replicas, and with `whole_gradients` from the shards too."""
        synchronise(self._module, gradients=not self.whole_gradients, replicas=False)
        try:
            yield
        finally:
            synchronise(self._module, gradients=True, replicas=True)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return get_model_state_dict(self._module)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return _optimizer_state(self._module, getattr(optimizer, "_optimizer", optimizer))

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        sharded.save(checkpoint, Path(self.broadcast(str(filepath))), self.background, self._writers)

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Weights and optimizer state, from a folder of any number of processes or from a single file."""
        path = Path(self.broadcast(str(checkpoint_path)))
        path = sound(path, getattr(self.checkpoint_io, "fall_back", False))
        checkpoint = self._load_folder(path) if path.is_dir() else self._load_file(path)
        checkpoint.setdefault(lineage.KEY, lineage.recorded(path))
        return checkpoint

    def _load_folder(self, path: Path) -> dict[str, Any]:
        reader = sharded.IndexReader(path)
        metadata = reader.read_metadata()
        meta = sharded.read_meta(path)
        found = sharded.blank(metadata, [sharded.WEIGHTS], lambda _, facts: torch.empty(facts.size, device="meta"))
        weights = self._expected(found[sharded.WEIGHTS])
        sharded.load_into({sharded.WEIGHTS: weights}, reader)
        set_model_state_dict(self._module, weights, options=StateDictOptions(strict=False))
        for index, optimizer in enumerate(self.optimizers):
            name = f"{sharded.OPTIMIZER}{index}"
            saved = sharded.blank(metadata, [name], lambda _, facts: torch.empty(facts.size, device="meta"))
            refuse_other_optimizer(SavedOptimizer.of(meta, saved.get(name, {})), optimizer)
            state = _optimizer_state(self._module, optimizer)
            moments = {name: {"state": state["state"]}}  # the options are the recipe's
            sharded.load_into(moments, reader)
            set_optimizer_state_dict(self._module, optimizer, {**state, **moments[name]})
        parts = [p for p in sharded.top_level(metadata) if p != sharded.WEIGHTS and not p.startswith(sharded.OPTIMIZER)]
        rest = sharded.blank(metadata, parts, self._place)
        sharded.load_into(rest, reader)
        return {**meta, **rest, **found}

    def _load_file(self, path: Path) -> dict[str, Any]:
        """Load a checkpoint of another strategy: every process maps the file and takes its shards."""
        checkpoint = read_safely(path)
        weights = self._expected(checkpoint["state_dict"])
        weights = {name: placed_like(checkpoint["state_dict"][name], own) for name, own in weights.items()}
        set_model_state_dict(self._module, weights, options=StateDictOptions(strict=False))
        whole = StateDictOptions(full_state_dict=True)
        names = {parameter: name for name, parameter in self._module.named_parameters()}
        states = checkpoint.get("optimizer_states")
        if not states:
            raise UserError(f"{path}: has weights alone; begin a new run with run.start_from={path}")
        for optimizer, saved in zip(self.optimizers, states):
            refuse_other_optimizer(SavedOptimizer.of(checkpoint, saved), optimizer)
            state = dequantised(saved)
            order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
            set_optimizer_state_dict(self._module, optimizer, sharded.named(state, order), options=whole)
        return checkpoint

    def _expected(self, saved: Mapping[str, Tensor]) -> dict[str, Any]:
        """The model's own tensors that a checkpoint fills. It may lack frozen ones; else the two must agree."""
        kept = getattr(self.lightning_module, "kept", lambda state: state)
        own = kept(get_model_state_dict(self._module))
        frozen = {name for name, parameter in self._module.named_parameters() if not parameter.requires_grad}
        own = {name: tensor for name, tensor in own.items() if name in saved or name not in frozen}
        check_architecture(own, saved)
        return own

    def _place(self, name: str, facts: Any) -> Tensor:
        """Room for a saved tensor: sharded as the parameter of that name is, else whole."""
        like = dict(self._module.named_parameters()).get(name)
        if like is None or like.shape != facts.size:
            return torch.empty(facts.size, dtype=facts.properties.dtype, device=self.root_device)
        return torch.empty_like(like, dtype=facts.properties.dtype, requires_grad=False)


def _optimizer_state(model: Any, optimizer: Optimizer) -> dict[str, Any]:
    """Its state by the parameters' names, each process its part; empty at first."""
    state = get_optimizer_state_dict(model, optimizer)
    return getattr(optimizer, "portable", dict)(state)
