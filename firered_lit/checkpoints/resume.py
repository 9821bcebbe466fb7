"""Resuming by the recipe: rates, decays, schedules and settings come from it, not from the checkpoint."""

import copy
import inspect
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ..errors import UserError
from ..models.shard import local
from ..optim import ScheduleFactory

PARAMETERS = "params"
BASE_RATE = "initial_lr"  # where a schedule keeps the rate that it multiplies
ADAM = {"exp_avg", "exp_avg_sq"}
ADAM_MORE = {"step", "max_exp_avg_sq"}


@dataclass(frozen=True)
class SavedOptimizer:
    """The record that a checkpoint has of its optimizer.

    Args:
        name: its class, with the module; None in checkpoints of earlier versions.
        options: names of its options, as "lr".
        moments: names of what it keeps of a parameter, as "exp_avg"; empty before the first step.
    """

    name: str | None
    options: frozenset[str]
    moments: frozenset[str]

    @staticmethod
    def of(checkpoint: Mapping[str, Any], state: Mapping[str, Any]) -> "SavedOptimizer":
        """Return what `checkpoint` says of the optimizer whose state dict is `state`."""
        groups = state.get("param_groups") or [{}]
        held = state.get("state") or {}
        first: Mapping[str, Any] = next(iter(held.values()), {})
        return SavedOptimizer(checkpoint.get("optimizer"), frozenset(groups[0]), frozenset(first))


def name_of(optimizer: Optimizer) -> str:
    """Return the class of an optimizer with its module."""
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def refuse_other_optimizer(saved: SavedOptimizer, optimizer: Optimizer) -> None:
    """Refuse to go on with an optimizer that cannot use what the checkpoint's has kept.

    Optimizers of the Adam family take each other's moments. A checkpoint of an earlier version does not name its
    optimizer: it is another one when each has an option that the other lacks.

    Raises:
        UserError: it is another optimizer; it says how to go on.
    """
    now = name_of(optimizer)
    if saved.name == now or not saved.moments:
        return
    if _keeps_adam_moments(optimizer) and ADAM <= saved.moments <= ADAM | ADAM_MORE:
        return
    if saved.name is None:
        ignored = {PARAMETERS, BASE_RATE}
        before = saved.options - ignored
        after = set(optimizer.param_groups[0]) - ignored
        if before <= after or after <= before:
            return
    known = saved.name or f"another one (its state: {', '.join(sorted(saved.moments))})"
    raise UserError(
        f"stage.optimizer: this run was trained by {known}, whose state {now} cannot go on from: set it back, or begin"
        " a new run from these weights with run.start_from=RUN"
    )


def _keeps_adam_moments(optimizer: Optimizer) -> bool:
    """Return whether an optimizer is of the Adam family."""
    ours = any(kind.__module__ == "torchao.optim.adam" for kind in type(optimizer).__mro__)
    return ours or isinstance(optimizer, torch.optim.Adam)


def dequantised(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state dict with quantised moments as the numbers that they stand for."""
    plain = {}
    for name, held in state["state"].items():
        plain[name] = {key: _plain(value) for key, value in held.items()}
    return {**state, "state": plain}


def _plain(value: Any) -> Any:
    """Return a quantised tensor as plain numbers, and anything else as it is."""
    if isinstance(value, Tensor) and hasattr(value, "codes"):
        return value.dequantize()
    return value


def options_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Return a copy of the options of every group of an optimizer, without its parameters."""
    options = []
    for group in optimizer.param_groups:
        options.append({name: copy.deepcopy(value) for name, value in group.items() if name != PARAMETERS})
    return options


def put_back(optimizer: Optimizer, options: Iterable[Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """Give an optimizer the options that it had before a checkpoint was loaded.

    Args:
        optimizer: with the checkpoint's options.
        options: of every group, as `options_of` returned them.

    Returns:
        name -> (the checkpoint's value, the recipe's), of those that differ.
    """
    changed = {}
    for group, own in zip(optimizer.param_groups, options, strict=True):
        # What differs. A scheduled rate is compared by what the schedule multiplies.
        loaded = {name: value for name, value in group.items() if name != PARAMETERS}
        loaded["lr"] = loaded.get(BASE_RATE, loaded.get("lr"))
        for name in own.keys() & loaded.keys():
            before = _comparable(loaded[name])
            after = _comparable(own[name])
            if before != after:
                changed[name] = (before, after)

        # The recipe's options, and no others.
        parameters = group[PARAMETERS]
        group.clear()
        group.update(copy.deepcopy(dict(own)))
        group[PARAMETERS] = parameters

        # Counts of steps lie where the recipe's kind of step reads them.
        on_device = bool(group.get("fused") or group.get("capturable"))
        for parameter in parameters:
            held = optimizer.state.get(parameter, {})
            if isinstance(held.get("step"), Tensor):
                held["step"] = held["step"].to(local(parameter).device if on_device else "cpu")
    return changed


def _comparable(value: Any) -> Any:
    """Return a value as it can be compared and shown."""
    if isinstance(value, Tensor):
        return float(f"{value.item():.6g}")
    return list(value) if isinstance(value, tuple) else value


def schedule_at(factory: ScheduleFactory, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Build a schedule and take it to where it stands after so many optimizer steps.

    A schedule is a function of the number of steps: nothing of it needs to come from a checkpoint.
    """
    schedule: LRScheduler = factory(optimizer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # before the optimizer's: it is meant
        if isinstance(schedule, LambdaLR) and steps > 0:
            schedule.load_state_dict({**schedule.state_dict(), "last_epoch": steps - 1, "_step_count": steps})
            schedule.step()
        else:
            for _ in range(steps):
                schedule.step()
    return schedule


class RecipeWins(L.Callback):
    """On resume, puts the recipe's values in the place of those that came with the checkpoint, and says which differ.

    Weights, moments, averages, counts and the place in the data are the checkpoint's. The optimizer's options, the
    schedule of the rate and the settings of callbacks are the recipe's.
    """

    def __init__(self) -> None:
        self.loaded = False
        self._settings: dict[L.Callback, dict[str, Any]] = {}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Remember what the states of callbacks are about to overwrite: arguments of their constructors."""
        self.loaded = True
        states = checkpoint.get("callbacks") or {}
        callbacks: list[L.Callback] = getattr(trainer, "callbacks")  # noqa: B009, Lightning declares no type
        for callback in callbacks:
            saved = states.get(callback.state_key) or {}
            names = saved.keys() & inspect.signature(type(callback).__init__).parameters.keys() & vars(callback).keys()
            self._settings[callback] = {name: getattr(callback, name) for name in names}

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not self.loaded:
            return
        self.loaded = False
        changed = self._callbacks()
        changed |= self._optimizer(trainer, pl_module)
        if changed:
            shown = ", ".join(f"{name} {before} -> {after}" for name, (before, after) in changed.items())
            rank_zero_info(f"run.resume: the recipe's values replace the checkpoint's: {shown}")

    def _callbacks(self) -> dict[str, tuple[Any, Any]]:
        changed = {}
        for callback, settings in self._settings.items():
            for name, value in settings.items():
                if getattr(callback, name) != value:
                    changed[f"{type(callback).__name__}.{name}"] = (getattr(callback, name), value)
                    setattr(callback, name, value)
        self._settings.clear()
        return changed

    def _optimizer(self, trainer: L.Trainer, stage: Any) -> dict[str, tuple[Any, Any]]:
        (optimizer,) = trainer.optimizers
        loaded_rate = _comparable(optimizer.param_groups[0]["lr"])
        changed = put_back(optimizer, stage.recipe_options)
        if stage.schedule_factory is not None:
            schedule = schedule_at(stage.schedule_factory, optimizer, trainer.global_step)
            trainer.lr_scheduler_configs[0].scheduler = schedule
        rate = _comparable(optimizer.param_groups[0]["lr"])
        if rate != loaded_rate and "lr" not in changed:
            changed[f"the schedule's rate at step {trainer.global_step}"] = (loaded_rate, rate)
        return {f"stage.optimizer.{name}" if " " not in name else name: pair for name, pair in changed.items()}
