"""Estimate of the memory that a recipe needs on every device, made before anything is loaded."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from firered_lit.config.dialect import flow
from firered_lit.places import user_path
from firered_lit.textfiles import read_object

from ..family import BUILT_IN, transformer_config
from ..sizes import Shape, Sizes, largest_tokens, shape_table, tokens

if TYPE_CHECKING:
    from ..lora import LoRA
    from .footprint import Footprint

GB = 2**30
SIZES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
STORED = {  # bytes of a quantised weight, with its scales
    "8bit": 1 + 4 / 3072,  # a float32 scale for each row
    "4bit": 0.5 + 1 / 64 + 4 / (64 * 256),  # an 8-bit scale for each 64 weights, a float32 one for each 256 of those
}
EIGHT_BIT_ADAMW = "firered_lit.optim.adamw8bit"
EIGHT_BIT = 2 * (1 + 4 / 256)  # an 8-bit AdamW's two states, a float32 scale for each 256 values
VAE_WEIGHTS = 126_892_531 * 4  # of AutoencoderKLQwenImage, float32
VAE_PER_PIXEL = 6920  # bytes of a float32 decode, by PyTorch's memory tracker at 512 and 1024 px
TEXT_ENCODER = 8_292_166_656  # parameters of Qwen2.5-VL-7B
TEXT = 512  # tokens of a prompt's embedding: the instruction and three references as the text encoder sees them
RESERVE = 2.5 * GB  # CUDA context, NCCL's buffers, workspaces
WASTE = 0.05  # of the rest, lost between the allocator's blocks


class MemoryPart(NamedTuple):
    """One line of the estimate; their sum is what the device must have."""

    name: str
    size: float  # bytes on one device


@dataclass(frozen=True)
class Training:
    """The settings that decide the memory of a recipe's training.

    Attributes:
        shards: devices that share one copy of the model, of `gpus` in all.
        weights: precision in which they are kept.
        compute: FSDP2's precision of the forward; None: that of the weights.
        capacity: visual tokens of a micro-batch.
        sides: of a pair, each a sample of its own; else 1.
        copies: of the trained weights, for an old policy and a reference.
        group: edits that a rollout draws, each with a reference; as many as the capacity holds are decoded at once.
        accumulates: gradients of several micro-batches add up, on one device in float32 whatever the weights are.
        averaged_validation: the average takes the place of the weights, which are put aside.
        text_encoder: bytes of the text encoder on the device, where prompts are encoded in the step; else 0.
        judge: bytes of the judges of this process.
    """

    config: Mapping[str, Any]
    sizes: Sizes
    gpus: int = 1
    shards: int = 1
    sharded: bool = False
    weights: str = "float32"
    compute: str | None = None
    autocast: bool = False
    checkpointing: bool | Literal["products"] = False
    whole_gradients: bool = False
    optimizer: str = "torch.optim.AdamW"
    fused: bool = False
    lora: "LoRA | None" = None
    quantize: str | None = None
    ema: bool = False
    preview: bool = True
    capacity: int = 16384
    max_batch: int | None = None
    sides: int = 1
    copies: int = 0
    group: int | None = None
    accumulates: bool = False
    averaged_validation: bool = False
    text_encoder: float = 0.0
    judge: float = 0.0

    @property
    def references(self) -> int:
        """References beside every target of the largest micro-batch: none bring the most text."""
        return 0 if self.group is None else 1

    @property
    def shape(self) -> Shape:
        """The target's shape (height, width) in the micro-batch that fills the capacity most."""
        shapes = shape_table(self.sizes.target_area)
        fitting = [shape for shape in shapes if self.sides * self.tokens_of(shape) <= self.capacity]
        return max(fitting or shapes, key=lambda shape: self._fit(shape) * self.tokens_of(shape))

    @property
    def batch(self) -> int:
        """Samples of the largest micro-batch."""
        return self.sides * self._fit(self.shape)

    @property
    def tokens(self) -> int:
        """Visual tokens of a sample of the largest micro-batch."""
        return self.tokens_of(self.shape)

    def _fit(self, shape: Shape) -> int:
        """Return how many samples with targets of this shape a micro-batch holds; of preferences, pairs."""
        fit = max(1, self.capacity // self.sides // self.tokens_of(shape))
        return min(fit, self.max_batch or self.group or fit)

    def tokens_of(self, shape: Shape) -> int:
        """Return the visual tokens of a sample whose target has this shape; its references are the largest."""
        return tokens(shape) + self.references * largest_tokens(self.sizes.reference_area)

    @property
    def decoded(self) -> int:
        """Images that the VAE decodes at once: in validation one."""
        return self.batch if self.group else int(self.preview)


def training_of(recipe: Mapping[str, Any], gpus: int) -> Training:
    """Read from a `fit` recipe all that decides its memory.

    Raises:
        UserError: for a mesh that does not fit so many GPUs.
    """
    stage = recipe["stage"]
    trainer = recipe["trainer"]
    data = recipe["data"]
    backbone = stage["backbone"]
    strategy = trainer.get("strategy")
    sharded = isinstance(strategy, Mapping) and str(strategy.get("_target_")).endswith(".FSDP2")
    shards = _shards(strategy, gpus) if sharded else 1
    name = str(backbone["name"])
    average = next(_named(recipe, ".EMA"), None)
    more = _of_stage(str(stage["_target_"]).rpartition(".")[2], stage, data)
    return Training(
        config=transformer_config(name),
        sizes=_sizes(name, data.get("root")),
        gpus=gpus,
        shards=shards,
        sharded=sharded,
        weights=backbone.get("dtype") or "float32",
        compute=strategy.get("compute", "bfloat16") if sharded else None,
        autocast=str(trainer.get("precision")) == "bf16-mixed",
        checkpointing=backbone.get("gradient_checkpointing") or False,
        whole_gradients=bool(sharded and strategy.get("whole_gradients")),
        optimizer=str(stage["optimizer"]["_target_"]),
        fused=bool(stage["optimizer"].get("fused")),
        lora=_lora(backbone.get("lora")),
        quantize=backbone.get("quantize"),
        ema=average is not None,
        averaged_validation=bool(average and average.get("validate")),
        text_encoder=_text_encoder(name, data),
        judge=sum(_judge(node) for node in _named(recipe, ".LocalVLM")),
        preview=bool(stage.get("preview")),
        max_batch=data.get("max_batch"),
        accumulates=int(trainer.get("accumulate_grad_batches") or 1) > 1,
        **more,
    )


def _of_stage(name: str, stage: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what DPO and NFT hold beside the transformer, and how much they compute at once."""
    lora = bool(stage["backbone"].get("lora"))
    if name == "NFT":
        group = int(stage.get("group_size", 12))
        capacity = stage.get("capacity") or group << 20  # None: the whole group
        return {"group": group, "copies": 1 + bool(stage.get("kl")), "capacity": int(capacity)}
    if name == "DPO":
        return {"sides": 2, "copies": 0 if lora else 1, "capacity": int(data["capacity"])}
    return {"capacity": int(data["capacity"])}


def estimate(training: Training) -> list[MemoryPart]:
    """Return the bytes on one device, item by item, at the peak of a step or of drawing a validation edit."""
    from .footprint import Forward, footprint

    t = training
    dtype = t.compute or t.weights
    height, width = t.shape
    forward = Forward(
        t.batch,
        (height // 8, width // 8),
        TEXT,
        t.references,
        _torch(dtype),
        uniform=t.compute is not None,
        autocast=t.autocast,
        checkpointing=t.checkpointing,
        lora=t.lora,
        quantize=t.quantize,
    )
    f = footprint(t.config, forward)

    # Weights, gradients and optimizer states.
    trained = f.trained / t.shards
    size = SIZES["float32"] if t.lora else SIZES[t.weights]
    of_gradient = SIZES["float32"] if t.accumulates and not t.sharded else size
    gradients = f.trained * SIZES["float32"] if t.whole_gradients else trained * of_gradient
    states = trained * (EIGHT_BIT if "8bit" in t.optimizer else 2 * size)
    adapter = f.trained if t.lora else 0
    weights: float = (f.parameters - f.quantised - adapter) * SIZES[t.weights] + adapter * size
    if t.quantize:
        weights += f.quantised * STORED[t.quantize]
    average = trained * SIZES["float32"] if t.ema else 0.0
    if t.averaged_validation:
        average += trained * size

    # What comes and goes.
    peak = _peak(t, f, SIZES[dtype], gradients, trained * size)
    decoding = VAE_PER_PIXEL * 256 * largest_tokens(t.sizes.target_area) * t.decoded
    parts = [
        MemoryPart("weights", weights / t.shards),
        MemoryPart("gradients", gradients),
        MemoryPart("optimizer", states),
        MemoryPart("average", average),
        MemoryPart("other policies", t.copies * trained * size),
        *peak,
        MemoryPart("text encoder", t.text_encoder),
        MemoryPart("judge", t.judge),
        MemoryPart("decoder", VAE_WEIGHTS if t.decoded else 0),
        MemoryPart(
            "decoding", max(0.0, decoding - sum(part.size for part in peak))
        ),  # while nothing else of these is there
    ]
    return [*parts, MemoryPart("reserve", RESERVE + WASTE * sum(part.size for part in parts))]


def _peak(t: Training, footprint: "Footprint", size: int, gradients: float, trained: float) -> list[MemoryPart]:
    """Return the peak of the temporary tensors, beside weights, optimizer states and all gradients.

    That is at the forward's end, while the last step's gradients are still there; or as the backward begins, without
    them; or as it ends, when of the activations only those of one block are left; or in the optimizer's step, which
    takes the roots of all second moments at once unless it is fused.
    """
    block = (footprint.block_saved if t.checkpointing else 0) + footprint.working
    kept = footprint.block_kept if t.checkpointing == "products" else 0  # of what is made again, already there
    forward, backward = _gathered(t, footprint, size)
    at_once = t.optimizer.startswith("torch.optim.Adam") and not t.fused
    moments = [
        {"activations": footprint.saved, "gathered blocks": forward},
        {"activations": footprint.saved + block - kept - gradients, "gathered blocks": backward},
        {"activations": block, "gathered blocks": backward},
        {"optimizer's step": trained if at_once else 0},
    ]
    highest = max(moments, key=lambda moment: sum(moment.values()))
    return [MemoryPart(name, size) for name, size in highest.items()]


def _gathered(training: Training, footprint: "Footprint", size: int) -> tuple[float, float]:
    """Return the bytes of gathered whole blocks under sharding: in the forward, and in the backward.

    Forward: a block's gathered weights, the buffer that the next one arrives in, and what belongs to no block.
    Backward: also the block's whole gradients, and the float32 buffer from which they are reduced.
    """
    if not training.sharded:
        return 0.0, 0.0
    layers = training.config["num_layers"]
    rest = footprint.parameters - layers * footprint.block
    forward = (2 * footprint.block + rest) * size
    share = footprint.trained / footprint.parameters
    return forward, forward + share * footprint.block * (size + 4)


def report(recipe: Mapping[str, Any], gpus: int, gpu_memory: float) -> Iterator[tuple[str, bool]]:
    """Yield the lines of the estimate, the last one the verdict: (line, is it wrong)."""
    t = training_of(recipe, gpus)
    parts = estimate(t)
    how = f"{t.shards} shards x {gpus // t.shards} replicas" if t.sharded else f"{gpus} whole copies"
    yield f"memory on each of {gpus} GPUs, {how}; {t.batch} x {t.tokens} visual and {TEXT} text tokens", False
    for part in parts:
        if part.size:
            yield f"  {part.name:<16} {part.size / GB:8.1f} GB", False
    total = sum(part.size for part in parts) / GB
    verdict = "fits"
    if total > gpu_memory:
        overrides = first_that_fits(recipe, t, gpu_memory)
        remedy = f"it fits with {' '.join(overrides)}" if overrides else _advice(t)
        verdict = f"does not fit; {remedy}"
    yield f"  {'in all':<16} {total:8.1f} GB of {gpu_memory:g}: {verdict}", total > gpu_memory


def _advice(t: Training) -> str:
    """Return what to change, the cheapest first, where no command line is known that fits."""
    if t.checkpointing is not True:
        return "set stage.backbone.gradient_checkpointing=true"
    if not t.sharded and not t.lora:
        strategy = "{_target_: firered_lit.distributed.strategy.FSDP2}"
        return f"shard it: 'trainer.strategy={strategy}' (recipes/sft.yaml), or train a LoRA"
    if t.sharded and t.shards < t.gpus:
        return "fewer replicas, or more GPUs"
    if t.group and t.batch > 1:
        return f"lower stage.capacity, now {t.capacity}"
    if t.batch > t.sides:
        return f"lower data.capacity, now {t.capacity}, and raise trainer.accumulate_grad_batches"
    return "more GPUs to shard over, an 8-bit optimizer, or a LoRA"


class Saving(NamedTuple):
    """A way to need less memory: what stands on the command line, and the training that it makes."""

    override: str
    training: Training


def first_that_fits(recipe: Mapping[str, Any], t: Training, gpu_memory: float) -> list[str]:
    """Return the overrides of the first change that fits: each by itself in this order, then one upon the other.

    Args:
        recipe: the recipe.
        t: what it trains.
        gpu_memory: GB of one GPU.

    Returns:
        Overrides for the command line; empty where none of them, nor all together, are enough.
    """
    for change in _changes(recipe, t):
        if _fits(change.training, gpu_memory):
            return [change.override]

    # None alone: one upon the other. Each is left out of the changes of the training that it makes.
    taken: dict[str, str] = {}  # key -> override; a later one of the same key takes its place
    while True:
        following = next(_changes(recipe, t), None)
        if following is None:
            break
        key = following.override.partition("=")[0]
        taken[key] = following.override
        t = following.training
        if _fits(t, gpu_memory):
            return list(taken.values())
    return []


def _fits(t: Training, gpu_memory: float) -> bool:
    """Return whether a training fits into a GPU of so many GB."""
    return sum(part.size for part in estimate(t)) / GB <= gpu_memory


def _changes(recipe: Mapping[str, Any], t: Training) -> Iterator[Saving]:
    """Yield the changes that this training has left, what costs least of speed and quality first."""
    if t.checkpointing is not True:
        yield Saving("stage.backbone.gradient_checkpointing=true", replace(t, checkpointing=True))
    largest = max(t.tokens_of(shape) for shape in shape_table(t.sizes.target_area))
    if t.group and t.capacity > largest:
        yield Saving(f"stage.capacity={largest}", replace(t, capacity=largest))
    if t.ema:
        for name in _averages(recipe):
            yield Saving(f"callbacks.{name}=null", replace(t, ema=False))
    if t.lora is None:
        return
    if t.autocast and t.weights == "bfloat16":
        yield Saving("trainer.precision=32-true", replace(t, autocast=False))
    optimizer = recipe["stage"]["optimizer"]
    if optimizer.get("_target_") == "torch.optim.AdamW" and "8bit" not in t.optimizer:
        kept = {key: optimizer[key] for key in ("_partial_", "lr", "betas", "eps", "weight_decay") if key in optimizer}
        node = flow({"_target_": EIGHT_BIT_ADAMW} | kept)
        yield Saving(f"'stage.optimizer={node}'", replace(t, optimizer=EIGHT_BIT_ADAMW))
    if t.lora.rank > 16:
        yield Saving("stage.backbone.lora.rank=16", replace(t, lora=replace(t.lora, rank=16)))
    if t.quantize is None:
        yield Saving("stage.backbone.quantize=8bit", replace(t, quantize="8bit"))
    if t.quantize in (None, "8bit"):
        yield Saving("stage.backbone.quantize=4bit", replace(t, quantize="4bit"))


def _averages(recipe: Mapping[str, Any]) -> list[str]:
    """Return the names of the callbacks that keep an average of the weights."""
    callbacks = recipe.get("callbacks") or {}
    averages = []
    for name, node in callbacks.items():
        if isinstance(node, Mapping) and str(node.get("_target_")).endswith(".EMA"):
            averages.append(name)
    return averages


def _named(node: Any, ending: str) -> Iterator[Mapping[str, Any]]:
    """Yield the nodes of a recipe, at any depth, whose `_target_` ends so."""
    if isinstance(node, Mapping) and str(node.get("_target_")).endswith(ending):
        yield node
    inner = node
    if isinstance(node, Mapping):
        inner = node.values()
    elif not isinstance(node, list):
        return
    for value in inner:
        yield from _named(value, ending)


def _text_encoder(name: str, data: Mapping[str, Any]) -> float:
    """Return the bytes of the text encoder on the device, which is there where prompts are encoded in the step.

    Args:
        name: of the base.
        data: the recipe's.
    """
    summary = _summary(data.get("root"))
    asked = data.get("alignment", True)
    online = asked == "online" or (asked is True and summary.get("alignment") == "online")
    if not online:
        return 0.0
    return float(text_encoder_parameters(name) * SIZES[str(summary.get("dtype", "bfloat16"))])


def text_encoder_parameters(name: str) -> int:
    """Return the number of a base's text encoder's weights: of a hub id, Qwen2.5-VL-7B's."""
    if name not in BUILT_IN and not user_path(name).is_dir():
        return TEXT_ENCODER
    from ..component import shapes_of, weight_files
    from ..family import open_base

    base = open_base(name)
    if base.has_no_weights("text_encoder"):
        return 0
    shapes = shapes_of(weight_files(base.part("text_encoder")))
    return sum(math.prod(shape) for shape in shapes.values())


def _judge(node: Mapping[str, Any]) -> float:
    """Return the bytes of a judge of this process on the device: its weights, as their files hold them."""
    folder = user_path(str(node.get("model")))
    on_gpu = str(node.get("device") or "cuda") != "cpu"
    return float(sum(file.stat().st_size for file in folder.rglob("*.safetensors"))) if on_gpu else 0.0


def _shards(strategy: Mapping[str, Any], gpus: int) -> int:
    """Return how many devices share one copy of the model."""
    from ..shard import mesh_shape

    return mesh_shape(gpus, strategy.get("replicate", 1), strategy.get("shard"))[1]


def _lora(node: Any) -> "LoRA | None":
    """Return the adapter that a recipe's node describes."""
    if not node:
        return None
    from ..lora import LoRA

    return LoRA(**{key: value for key, value in node.items() if not key.startswith("_")})


def _torch(name: str) -> Any:
    """Return a dtype by its name."""
    import torch

    return getattr(torch, name)


def _summary(root: Any) -> dict[str, Any]:
    """Return what `prepare` wrote of a data folder; empty where there is none yet."""
    path = Path(str(root), "data.json")
    return read_object(path) if root not in (None, "???") and path.exists() else {}


def _sizes(name: str, root: Any) -> Sizes:
    """Return the sizes of the prepared data where there is some, else of the base."""
    summary = _summary(root)
    if summary:
        path = Path(str(root), "data.json")
        return Sizes.read(read_object(path, "sizes")["sizes"], f"{path}: sizes")
    from ..family import open_base

    is_here = name in BUILT_IN or user_path(name).is_dir()
    return open_base(name).sizes if is_here else Sizes()
