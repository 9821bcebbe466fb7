"""Models by their names: a folder of pictures, a model of this machine or of the hub, or a node of a recipe."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from firered_lit.errors import UserError
from firered_lit.evaluation.models.local import GUIDANCE, STEPS, Local
from firered_lit.evaluation.models.pictures import ENDINGS, Pictures
from firered_lit.evaluation.protocols import Model
from firered_lit.places import user_path

_OF_MODELS = ("model_index.json", "run.json", "firered_lit.json")  # of a model, a run, the files of a LoRA
FIRST = "model"  # the name of a model that stands alone and has none


@dataclass(frozen=True)
class Drawing:
    """Settings of the models that are named by a folder or a hub id.

    Args:
        steps: Of the sampler.
        guidance: The stock pipelines' `true_cfg_scale`; 1 switches it off.
        loras: LoRAs over the model, PATH or PATH@STRENGTH.
        checkpoint: Of a run: "last", "best" or a checkpoint's path.
        ema: Of a run: the averaged weights.
        stock: Use the stock pipeline as it is.
    """

    steps: int = STEPS
    guidance: float = GUIDANCE
    loras: Sequence[str] = field(default_factory=tuple)
    checkpoint: str = "last"
    ema: bool = False
    stock: bool = False


def open_models(
    model: str | Model | None, models: Mapping[str, str | Model | None], settings: Drawing
) -> dict[str, Model]:
    """Return the models of an evaluation by their names, the one that stands alone first.

    Raises:
        UserError: There is none, two have one name, or one cannot be opened.
    """
    found: dict[str, Model] = {}
    if model is not None:
        name = name_of(model) if isinstance(model, str) else FIRST
        found[name] = open_model(model, settings)
    for name, one in models.items():
        if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
            raise UserError(f"models.{name}: a name is made of letters, digits, '_', '-' and '.'")
        if name in found:
            raise UserError(f"models.{name}: another model has this name")
        if one is not None:
            found[name] = open_model(one, settings)
    if not found:
        raise UserError("model: name one: a run, an export, a hub id or a folder of pictures")
    return found


def open_model(model: str | Model, settings: Drawing) -> Model:
    """Return a model: itself, or what its name means.

    Args:
        model: A folder of pictures, or whatever `Local` takes.
        settings: How it draws.

    Raises:
        UserError: It is none, or there is no such model.
    """
    if not isinstance(model, str):
        if not callable(getattr(model, "draw", None)):
            raise UserError(f"model {model!r}: name a folder, a hub id, or a node with a _target_")
        return model
    folder = user_path(model)
    if _holds_pictures(folder):
        return Pictures(str(folder))
    return Local(
        model,
        loras=settings.loras,
        checkpoint=settings.checkpoint,
        ema=settings.ema,
        stock=settings.stock,
        steps=settings.steps,
        guidance=settings.guidance,
    )


def name_of(model: str) -> str:
    """Return a name for a folder or a hub id: its last part, without what a file's name should not have."""
    last = user_path(model).resolve().name if user_path(model).exists() else model.rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]+", "_", last).strip(".") or FIRST


def _holds_pictures(folder: Path) -> bool:
    """Return whether a folder has pictures somewhere in it, and no model."""
    if not folder.is_dir() or any((folder / name).exists() for name in _OF_MODELS):
        return False
    return any(path.suffix.lower() in ENDINGS for path in folder.rglob("*"))
