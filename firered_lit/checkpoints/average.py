"""The arithmetic mean of a run's last checkpoints, as one checkpoint that `export` reads."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from ..places import writable
from . import lineage
from .checkpoint import FOLDER, AtomicCheckpointIO, damage, listed, read_facts, read_weights

KEPT = ("lora", lineage.KEY, "epoch", "global_step", "pytorch-lightning_version")


def average(run: str, out: str, last: int = 3) -> None:
    """Write the mean of the weights of `run`'s newest `last` checkpoints as the checkpoint `out`.

    Summed in float64, one checkpoint in memory at a time, and rounded once, to float32 also where the checkpoints have
    less; what is no floating number is the newest's. With LoRA the two factors are averaged, not their product. The
    file has weights only: it can be exported or started from, not resumed. A damaged checkpoint is left out.
    Raises UserError when there are fewer checkpoints, when two differ in their base, keys or shapes, or when `out`
    exists.
    """
    target = Path(out)
    if target.exists():
        raise UserError(f"{out}: exists; choose another --out")
    if target.suffix != ".ckpt":
        raise UserError(f"{out}: --out is a checkpoint's file, NAME.ckpt")
    writable(target.parent)
    paths = _newest_sound(Path(run), last)
    total: dict[str, Tensor] = {}
    newest: dict[str, Any] = {}
    facts: dict[str, Any] | None = None
    for path in paths:
        newest = read_weights(path)
        newest[lineage.KEY] = read_facts(path)
        if differing := lineage.differences(facts, newest[lineage.KEY]):
            raise UserError(f"{path}: trained over another base than those before it ({', '.join(differing)})")
        facts = newest[lineage.KEY]
        _add(total, newest["state_dict"], path)
    state = {key: _mean(total[key], last, tensor) for key, tensor in newest["state_dict"].items()}
    kept = {key: newest[key] for key in KEPT if key in newest}
    averaged = {"state_dict": state, "averaged": [path.name for path in paths]}
    AtomicCheckpointIO().save_checkpoint(kept | averaged, target)
    print(f"{out}: the mean of {', '.join(path.name for path in paths)}; export --run {run} --checkpoint {out}")


def _newest_sound(run: Path, count: int) -> list[Path]:
    """The newest `count` checkpoints whose bytes are those that were written, oldest first."""
    found: list[Path] = []
    for path in reversed(listed(run / FOLDER)):
        if len(found) == count:
            break
        problem = damage(path)
        if problem is None:
            found.insert(0, path)
        else:
            print(f"{path}: the checkpoint is damaged ({problem}); left out")
    if len(found) < count:
        raise UserError(f"{run}: has {len(found)} checkpoints, not {count}; lower --last or raise checkpoint.keep")
    return found


def _add(total: dict[str, Tensor], state: dict[str, Tensor], path: Path) -> None:
    """Add one checkpoint's weights to the sums."""
    if total and {k: t.shape for k, t in total.items()} != {k: t.shape for k, t in state.items()}:
        raise UserError(f"{path}: its weights differ in names or shapes from the checkpoints before it")
    for key, tensor in state.items():
        total[key] = total[key].add_(tensor) if key in total else tensor.to(torch.float64, copy=True)


def _mean(total: Tensor, count: int, like: Tensor) -> Tensor:
    if not like.is_floating_point():
        return like
    return (total / count).to(torch.promote_types(like.dtype, torch.float32))
