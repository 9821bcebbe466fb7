"""From a checkpoint to what others load: a diffusers folder, or the files of a LoRA."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .cards.model_card import Trained, add_pictures, model_card
from .checkpoints import lineage
from .checkpoints.checkpoint import read_weights, resolve, sound
from .errors import UserError
from .files import appearing
from .models.family import Base
from .models.lora import delta, factors
from .models.lora_files import pipeline_of, write_lora
from .models.sizes import Sizes
from .places import writable
from .run.mlflow_runs import RUN
from .run.store import RECORD, read_record
from .textfiles import read_object, read_text

PREFIX = "transformer."
START_NOTE = "start.json"  # in a folder of weights that one stage has handed to another
KEPT = 0.9  # share of a run's change under which rounding is worth a warning
PARTS = ("vae", "text_encoder", "tokenizer", "scheduler", "processor")


@dataclass(frozen=True)
class Saved:
    """The transformer's weights in a checkpoint."""

    path: Path
    weights: dict[str, Tensor]  # by diffusers' names; with LoRA, the adapter's alone
    step: int
    lora: dict[str, Any] | None  # rank, alpha, targets
    base: dict[str, Any] | None  # what it says of the base that it was trained over

    @property
    def scale(self) -> float:
        return self.lora["alpha"] / self.lora["rank"] if self.lora else 1.0


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    checkpoint: str = "last",
    max_shard_size: str = "5GB",
    merge: bool = False,
    ema: bool = False,
    log: bool = False,
    dtype: Literal["base", "float32", "bfloat16"] = "base",
) -> None:
    """Write a run's weights as `out`: a diffusers folder of sharded safetensors, configs and model card.

    Of a LoRA run, two files are written instead, for diffusers and for ComfyUI; with `merge`, the folder with the LoRA
    in the base's weights as they are stored, quantised or not in training. The folder appears whole or not at all.

    Args:
        run: the run's folder.
        out: the folder to write.
        checkpoint: "last", "best" or a checkpoint's path.
        max_shard_size: of one file of weights.
        merge: of a LoRA run, write the whole model.
        ema: write the averaged weights.
        log: keep the folder in the run's MLflow record too.
        dtype: precision of the weights. "base" is that of the base, so that a run of no steps exports the base bit for
            bit; "float32" keeps changes that are smaller than a step of bfloat16.

    Raises:
        UserError: the run has no such checkpoint, that has no average, or `out` holds something.
    """
    run = os.fspath(run)
    out = os.fspath(out)
    target = Path(out)
    if target.exists() and any(target.iterdir()):
        raise UserError(f"{out}: not empty; choose another --out")
    writable(target.parent)
    saved = _open(Path(run), checkpoint, ema)
    if log and not read_record(Path(run)).get("mlflow_run_id"):
        raise UserError(f"{run}: --log, but the run has no MLflow record")
    if merge and saved.lora is None:
        raise UserError(f"{saved.path}: --merge, but the run trained no LoRA; its export is whole without")
    if dtype != "base" and saved.lora is not None and not merge:
        raise UserError(f"--dtype {dtype}: the files of a LoRA are float32; it goes with --merge")

    with appearing(target) as staging:
        base = _write(Path(run), saved, staging, max_shard_size, merge, dtype)

    # What was written, and how to load it.
    model = base.name
    load = f"DiffusionPipeline.from_pretrained({out!r})"
    if saved.lora is not None and not merge:
        model = f"a LoRA over {base.name}"
        load = f"pipe.load_lora_weights({out!r})"
    source = f"{saved.path.name}, EMA" if ema else saved.path.name
    print(f"{out}: {model} after {saved.step} steps ({source}); load it with {load}")
    if log:
        from .run.tracking import log_folder

        print(f"{out}: kept as the artifact {target.name} of MLflow run {log_folder(run, out, target.name)}")


def _open(run: Path, checkpoint: str, ema: bool) -> Saved:
    """Open the checkpoint of a run that `checkpoint` means: "last", "best" or a path."""
    if not (run / "run.json").exists():
        raise UserError(f"{run}: not a run's folder (no run.json)")
    path = resolve(run, checkpoint)
    if path is None:
        raise UserError(f"{run}: has no checkpoint yet")
    return load_weights(sound(path, fall_back=checkpoint == "last"), ema)


def _write(run: Path, saved: Saved, folder: Path, max_shard_size: str, merge: bool, dtype: str) -> Base:
    """Write everything that an export holds, and return the base that the run started from."""
    read_object(run / RECORD, "base", "sizes", "stage")
    facts = read_record(run)
    sizes = Sizes.read(facts["sizes"], f"{run / RECORD}: sizes")
    recipe = _recipe_of(run)
    base = lineage.base_of(saved.path, saved.base, run)
    lora = None if merge else saved.lora
    if lora:
        _write_lora(base, saved, folder)
    else:
        precision = stored_precision(base) if dtype == "base" else getattr(torch, dtype)
        kept = write_transformer(base, saved, folder / "transformer", max_shard_size, precision)
        if kept < KEPT:
            print(f"warning: {lost(kept, precision)}; --dtype float32 keeps all of it")
        _copy_parts(base, folder)
    _write_note(sizes, facts.get(RUN), folder)
    trained = Trained(
        base=origin_of(base),
        stage=facts["stage"],
        sizes=sizes,
        checkpoint=saved.path.name,
        step=saved.step,
        lora=lora,
        data=facts.get("data", {}),
        recipe=recipe,
    )
    grids = add_pictures(run, saved.step, folder)
    (folder / "README.md").write_text(model_card(base, trained, grids), encoding="utf-8")
    return base


def _recipe_of(run: Path) -> str:
    """Return the text of a run's recipe, for the model card; nothing where it is not there, or cannot be read."""
    try:
        return read_text(run / "recipe.yaml")
    except (OSError, UnicodeDecodeError):
        return ""


def load_weights(path: Path, ema: bool = False) -> Saved:
    """Read the transformer's weights in a checkpoint, or with `ema` their running average where there is one.

    Args:
        path: a checkpoint whose bytes are checked, see `checkpoint.sound`.
        ema: the running average.

    Raises:
        UserError: the run kept no average.
    """
    checkpoint = read_weights(path, ["ema"] if ema else [])
    state = dict(checkpoint["state_dict"])
    if ema:
        if "ema" not in checkpoint:
            raise UserError(f"{path}: --ema, but the run kept no average (callbacks.ema was not in its recipe)")
        state |= checkpoint["ema"]["weights"]
    weights = {}
    for key, value in state.items():
        if key.startswith(PREFIX):
            weights[key.removeprefix(PREFIX)] = value
    step = int(checkpoint["global_step"])
    return Saved(path, weights, step, checkpoint.get("lora"), checkpoint.get(lineage.KEY))


def stored_precision(base: Base) -> torch.dtype:
    """Return the precision of a base's files; of weights that a stage has handed over, that of the base before them."""
    note = base.folder / START_NOTE
    if note.exists():
        stored = read_object(note).get("stored")
        if stored in ("float32", "bfloat16", "float16", "float64"):
            return getattr(torch, stored)
    return base.precision


def origin_of(base: Base) -> str:
    """Return the name of a base; of weights that a stage has handed over, that of the base that the first stage had."""
    name, folder = base.name, base.folder
    while (folder / START_NOTE).exists():
        note = read_object(folder / START_NOTE)
        if "origin" in note:
            return str(note["origin"])
        if "base" not in note:
            return name
        name, folder = str(note["base"]), Path(str(note["base"]))
    return name


def lost(kept: float, precision: torch.dtype) -> str:
    """Return the words for a change that rounding has taken most of."""
    name = str(precision).removeprefix("torch.")
    return f"{kept:.0%} of what this run changed in the weights is left in {name}, the rest is under half a step of it"


def write_transformer(
    base: Base,
    saved: Saved,
    folder: Path,
    max_shard_size: str = "5GB",
    precision: torch.dtype | None = None,
) -> float:
    """Write the base's transformer with the saved weights, or with the saved LoRA merged into its own.

    Args:
        base: what the weights were trained from.
        saved: the weights.
        folder: where the transformer goes.
        max_shard_size: of one file.
        precision: of the written weights; None for that of the base's files.

    Returns:
        The share of the change, trained minus base, that the written weights keep: its projection on itself rounded.

    Raises:
        UserError: the weights are of another architecture.
    """
    transformer, kept = trained_transformer(base, saved, precision)
    transformer.save_pretrained(folder, max_shard_size=max_shard_size)

    # The folder that it was loaded from has no place in an export.
    config = read_object(folder / "config.json")
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return kept


def trained_transformer(base: Base, saved: Saved, precision: torch.dtype | None = None) -> tuple[Any, float]:
    """Return the base's transformer with the saved weights, or with the saved LoRA merged into its own.

    Args:
        base: what the weights were trained from.
        saved: the weights.
        precision: that they are rounded to; None for that of the base's files.

    Returns:
        The transformer, and the share of the change, trained minus base, that it keeps: its projection on itself
        rounded.

    Raises:
        UserError: the weights are of another architecture.
    """
    transformer = base.transformer()
    stored = transformer.state_dict()
    trained = factors(saved.weights) if saved.lora else {}

    # The shapes must be those of the base.
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (a, b) in trained.items():
        shapes[f"{name}.weight"] = (b.shape[0], a.shape[1])
    if not trained:
        shapes = {name: tuple(tensor.shape) for name, tensor in saved.weights.items()}
    differing = sorted(k for k, shape in shapes.items() if k not in stored or tuple(stored[k].shape) != shape)
    if not trained:
        differing += sorted(stored.keys() - shapes.keys())
    if differing:
        what = f"made for another architecture than {base.name}: {', '.join(differing[:3])} differ"
        raise UserError(f"{saved.path}: {what}")

    # Rounded once, and measured against what was there.
    precision = precision or transformer.dtype
    nn.Module.to(transformer, torch.promote_types(transformer.dtype, precision))
    stored = transformer.state_dict()
    along = whole = 0.0
    with torch.no_grad():
        for name, value in _trained(saved, stored):
            before = stored[name].float()
            rounded = value.to(precision)
            change = value - before
            along += float(torch.sum(change * (rounded.float() - before), dtype=torch.float64))
            whole += float(torch.sum(change * change, dtype=torch.float64))
            stored[name].copy_(rounded)
    nn.Module.to(transformer, precision)
    return transformer, along / whole if whole else 1.0


def _trained(saved: Saved, stored: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield every weight that a run has trained, by name, in float32."""
    if saved.lora is None:
        for name in stored:
            yield name, saved.weights[name].float()
        return
    for name, (a, b) in factors(saved.weights).items():
        weight = f"{name}.weight"
        yield weight, stored[weight].float() + delta(a, b, saved.scale)


def _write_lora(base: Base, saved: Saved, folder: Path) -> None:
    """Write the LoRA's two files; they are read back and compared."""
    config = read_object(base.folder / "transformer" / "config.json")
    write_lora(factors(saved.weights), saved.scale, folder, config, pipeline_of(base.folder))


def _copy_parts(base: Base, staging: Path) -> None:
    """Copy everything that was not trained, as it is in the base."""
    for part in PARTS:
        if part in ("vae", "text_encoder"):
            base.part(part)
        if (base.folder / part).exists():
            _copy(base.folder / part, staging / part)
    index = read_object(base.folder / "model_index.json")
    (staging / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    """Copy a folder.

    Raises:
        UserError: one of its files cannot be copied.
    """
    try:
        shutil.copytree(source, target)
    except shutil.Error as error:
        where, _, why = error.args[0][0]
        raise UserError(f"{where}: cannot be copied: {why}") from error


def _write_note(sizes: Sizes, mlflow_run: str | None, staging: Path) -> None:
    """Write what travels with the weights: sizes other than the stock pipeline's, which `edit` reads, and the run."""
    note: dict[str, Any] = {"sizes": sizes.as_dict()}
    if mlflow_run is not None:
        note[RUN] = mlflow_run
    (staging / "firered_lit.json").write_text(json.dumps(note, indent=2) + "\n", encoding="utf-8")
