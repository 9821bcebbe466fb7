"""A model by its name, with the weights that it draws with: a run, an export, a diffusers folder, a hub id."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firered_lit.errors import UserError
from firered_lit.places import user_path
from firered_lit.run.store import RECORD

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from firered_lit.models.family import Base

Weights = Callable[["torch.dtype"], Any]  # a precision -> the transformer


@dataclass(frozen=True)
class Opened:
    """A model that can be drawn with.

    Attributes:
        base: The model, at the sizes that it is used at.
        checkpoint: Of a run: the checkpoint that is used; None of any other model.
        weights: Loads the transformer of a run; None where it lies in the base's folder.
    """

    base: "Base"
    checkpoint: Path | None = None
    weights: Weights | None = None


def is_run(model: str | Path) -> bool:
    """Return whether a name is the folder of a run."""
    return (user_path(model) / RECORD).is_file()


def open_model(model: str, checkpoint: str = "last", ema: bool = False) -> Opened:
    """Open a model by its name; nothing heavy is loaded yet.

    Args:
        model: A run's folder, an export's, a diffusers folder, a hub id or a built-in base.
        checkpoint: Of a run: "last", "best" or a checkpoint's path.
        ema: Of a run: the averaged weights.

    Raises:
        UserError: There is no such model, or the run has no such checkpoint.
    """
    from firered_lit.models.family import open_base

    if not is_run(model):
        return Opened(open_base(model))

    from firered_lit.checkpoints import lineage
    from firered_lit.models.family import read_sizes

    run = user_path(model)
    path = checkpoint_of(run, checkpoint)
    base = lineage.base_of(path, lineage.recorded(path), run)
    base = base.resized(read_sizes(run / RECORD))
    falls_back = checkpoint == "last"
    return Opened(base, path, lambda dtype: trained_weights(base, path, dtype, ema=ema, falls_back=falls_back))


def checkpoint_of(run: Path, checkpoint: str = "last") -> Path:
    """Return a run's checkpoint.

    Raises:
        UserError: The run has none of that name.
    """
    from firered_lit.checkpoints.checkpoint import resolve

    path = resolve(run, checkpoint)
    if path is None:
        raise UserError(f"{run}: has no checkpoint yet")
    return path


def trained_weights(
    base: "Base", checkpoint: Path, dtype: "torch.dtype", *, ema: bool = False, falls_back: bool = False
) -> Any:
    """Return a run's transformer: the weights that its export would have, in another precision.

    Args:
        base: The base that was trained over.
        checkpoint: The checkpoint.
        dtype: The precision that is returned.
        ema: Take the averaged weights.
        falls_back: Whether an earlier checkpoint may stand in for a damaged one.

    Raises:
        UserError: The checkpoint is damaged, or of another base.
    """
    from firered_lit.checkpoints import lineage
    from firered_lit.checkpoints.checkpoint import sound
    from firered_lit.exporting import load_weights, stored_precision, trained_transformer

    saved = load_weights(sound(checkpoint, fall_back=falls_back), ema)
    lineage.refuse_other_base(saved.base, base, checkpoint, lineage.PUT_BACK)
    transformer, _ = trained_transformer(base, saved, stored_precision(base))
    return transformer.to(dtype)


def is_checkpoint(path: Path) -> bool:
    """Return whether a path is a run's checkpoint rather than a file of a LoRA."""
    return path.suffix == ".ckpt"


def read_checkpoint(base: "Base", checkpoint: Path) -> "tuple[dict[str, tuple[Tensor, Tensor]], float]":
    """Read the LoRA of a run's checkpoint.

    Args:
        base: The base that is drawn with.
        checkpoint: The checkpoint.

    Returns:
        Its factors by module, and the scale of their products.

    Raises:
        UserError: The run trained all weights, or over another base.
    """
    from firered_lit.checkpoints import lineage
    from firered_lit.checkpoints.checkpoint import sound
    from firered_lit.exporting import load_weights
    from firered_lit.models.lora import factors

    saved = load_weights(sound(checkpoint, fall_back=True))
    if saved.lora is None:
        run = checkpoint.parents[1]
        raise UserError(f"--lora {run}: a run that trained all weights has no LoRA; name it as --model {run}")
    lineage.refuse_other_base(saved.base, base, checkpoint, "name that base as --model, or export the LoRA first")
    return factors(saved.weights), saved.scale
