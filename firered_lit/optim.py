"""Which parameters are trained how: optimizers, groups with and without weight decay, schedules of the rate."""

import math
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from .errors import UserError

OptimizerFactory = Callable[..., Optimizer]
ScheduleFactory = Callable[[Optimizer], LambdaLR]
HALF = (torch.bfloat16, torch.float16)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
    """Return trainable parameters in two groups: matrices decay, biases and norms (one dimension) do not."""
    trained = [parameter for _, parameter in named if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1]},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw8bit(
    params: Iterable[Any],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """AdamW with both moments in 8 bits (2110.02861): bitsandbytes' on whole parameters, torchao's on sharded ones.

    Neither can do the other's work: bitsandbytes knows no sharded tensors, and torchao's states in a plain checkpoint
    are read by torchao alone. Raises UserError when some are sharded and some are not, or torchao is not installed.

    Args:
        lr: The rate.
        betas: Of the running means of gradient and square.
        eps: Added to the root of the second moment.
        weight_decay: Of the groups that name none of their own.
    """
    groups = list(params)
    own = [p for group in groups for p in (group["params"] if isinstance(group, Mapping) else [group])]
    options = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay}
    if not any(isinstance(parameter, DTensor) for parameter in own):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, **options)
    if not all(isinstance(parameter, DTensor) for parameter in own):
        raise UserError("stage.optimizer: of the parameters some are sharded and some are not; use torch.optim.AdamW")
    refuse_without_torchao()
    from .distributed.eight_bit import ShardedAdamW8bit

    return ShardedAdamW8bit(groups, **options)


def stochastic_adamw8bit(
    params: Iterable[Any],
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> Optimizer:
    """Build torchao's AdamW with 8-bit moments, for bfloat16 weights without a float32 copy.

    A bfloat16 weight has 8 bits: most steps of a fine-tuning's rate lie under half of its last one and are lost when
    they are rounded to the nearest. Here a weight is rounded up or down at random, with the probabilities that make
    the mean right (stochastic rounding, 2010.06192). The draws are keyed by the stage's seed and the optimizer's
    step, and where weights are sharded by the shard, so that a resumed run rounds as an uninterrupted one does.

    Args:
        params: parameters or groups of them, on one device or all sharded.
        lr: learning rate.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: share of the rate by which weights shrink in a step.

    Raises:
        UserError: torchao is not installed.
    """
    refuse_without_torchao()
    from .distributed.eight_bit import StochasticAdamW8bit

    return StochasticAdamW8bit(list(params), lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay)


def rounds_stochastically(factory: Any) -> bool:
    """Return whether a factory, or an optimizer, rounds half-precision weights without losing small steps.

    An optimizer of yours that does has a class attribute `rounds_stochastically = True`, and takes the stage's seed as
    its attribute `seed`.
    """
    made = getattr(factory, "func", factory)
    return made is stochastic_adamw8bit or bool(getattr(made, "rounds_stochastically", False))


def refuse_rounding(factory: Any, dtypes: Iterable[torch.dtype]) -> None:
    """Refuse to train weights in half precision by an optimizer that rounds each step to the nearest of them.

    Args:
        factory: an optimizer, or what makes one.
        dtypes: of the trained weights.

    Raises:
        UserError: there are such weights; it says what to set.
    """
    half = sorted({str(dtype).removeprefix("torch.") for dtype in dtypes if dtype in HALF})
    if not half or rounds_stochastically(factory):
        return
    made = getattr(factory, "func", factory)
    name = getattr(made, "__name__", type(made).__name__)
    raise UserError(
        f"stage.backbone.dtype: {name} rounds every step of {half[0]} weights to the nearest and loses the small ones;"
        " set stage.backbone.dtype=float32 ('trainer.strategy={_target_: firered_lit.distributed.strategy.FSDP2}'"
        " shards it), or on"
        " one device stage.optimizer._target_=firered_lit.optim.stochastic_adamw8bit"
    )


def refuse_without_torchao() -> None:
    """Raise UserError when torchao is not installed."""
    if find_spec("torchao") is None:
        raise UserError("stage.optimizer: 8 bits on sharded parameters need torchao; run: pip install torchao")


def eight_bit(factory: Any) -> str | None:
    """Return whose 8-bit optimizer a factory makes: "bitsandbytes", "torchao" or, as it fits, "either"; else None."""
    made = getattr(factory, "func", factory)
    if made is adamw8bit:
        return "either"
    if made is stochastic_adamw8bit:
        return "torchao"
    room = getattr(made, "__module__", "").partition(".")[0]
    return room if room == "torchao" or (room == "bitsandbytes" and "8bit" in made.__name__) else None


def refuse_eight_bit(factory: Any, strategy: object) -> None:
    """Refuse an 8-bit optimizer under a Lightning strategy that flattens the weights or steps them itself."""
    names = {kind.__name__ for kind in type(strategy).__mro__}
    if rounds_stochastically(factory) and names.isdisjoint({"SingleDeviceStrategy", "FSDP2"}):
        raise UserError(
            f"trainer.strategy: under {type(strategy).__name__} gradients of half-precision weights add up in half"
            " precision; with stage.optimizer=stochastic_adamw8bit use one device or"
            " {_target_: firered_lit.distributed.strategy.FSDP2}"
        )
    if eight_bit(factory) and names.isdisjoint({"SingleDeviceStrategy", "DDPStrategy", "FSDP2"}):
        raise UserError(
            f"trainer.strategy: no 8-bit optimizer works under {type(strategy).__name__}; use one GPU, strategy=ddp or"
            " 'trainer.strategy={_target_: firered_lit.distributed.strategy.FSDP2}', or"
            " stage.optimizer._target_=torch.optim.AdamW"
        )


def constant(optimizer: Optimizer, *, warmup: int = 0) -> LambdaLR:
    """A linear rise over `warmup` optimizer steps, then constant.

    Args:
        warmup: Steps of the linear rise.
    """
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(warmup, 1)))


def cosine(optimizer: Optimizer, *, steps: int, warmup: int = 0, floor: float = 0.0) -> LambdaLR:
    """A linear rise over `warmup` steps, then a half cosine down to `floor` times the rate at `steps`.

    Args:
        steps: Steps of training.
        warmup: Steps of the linear rise.
        floor: Share of the rate that is left at the end.
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(steps - warmup, 1))
        return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2

    return LambdaLR(optimizer, factor)


def wsd(optimizer: Optimizer, *, steps: int, fall: int, warmup: int = 0, floor: float = 0.0) -> LambdaLR:
    """Warmup, stable, decay: a linear rise, a constant rate, and over the last `fall` of `steps` 1 - sqrt to `floor`.

    Up to `steps - fall` the rate does not depend on `steps`: a run is made longer by resuming it from a checkpoint
    before the fall with more of them (2405.18392). Raises UserError when rise and fall do not fit into `steps`.

    Args:
        steps: Steps of training.
        fall: Steps of the fall at the end.
        warmup: Steps of the linear rise.
        floor: Share of the rate that is left at the end.
    """
    if fall < 1 or warmup + fall > steps:
        raise UserError(f"stage.schedule: warmup={warmup} and fall={fall} do not fit into steps={steps}")

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, max(0, step - (steps - fall)) / fall)
        return floor + (1 - floor) * (1 - math.sqrt(progress))

    return LambdaLR(optimizer, factor)
