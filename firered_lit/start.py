"""Where a stage starts that goes on from another one's output: a diffusers folder in the new run's own folder."""

import time
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from .checkpoint import resolve
from .errors import UserError
from .export import KEPT, PARTS, load_weights, lost, stored_precision, write_transformer
from .export import START_NOTE as NOTE
from .files import appearing, write_json
from .models.family import Base, open_base
from .textfiles import read_object

PATIENCE = 3600.0  # seconds that the other processes wait for the first one to write the folder


def start_folder(start_from: str, run: Path, base: Base, dtype: str | None = None) -> Path:
    """Return the diffusers folder that a run starts from: `start_from` itself when it is one, else RUN/start.

    Weights of a run or a checkpoint are written to RUN/start once, a LoRA merged into the weights that it was trained
    over; all else is linked. A resumed run finds them there, so its reference cannot change.

    Args:
        start_from: a diffusers folder, a run's folder (its newest checkpoint) or a checkpoint.
        run: the new run's folder.
        base: of the new stage.
        dtype: precision of the weights in RUN/start, as "float32"; None for that of the base's files.

    Raises:
        UserError: there are no such weights, or the run began from others.
    """
    if (Path(start_from) / "model_index.json").exists():
        return Path(start_from)
    folder = run / "start"
    if rank_zero_only.rank == 0 and not folder.exists():
        _write(_checkpoint(start_from), start_from, folder, base, dtype)
    _wait(folder)
    begun = read_object(folder / NOTE, "start_from")["start_from"]
    if begun != start_from:
        raise UserError(f"run.start_from={start_from}: this run began from {begun}; set it back, or begin a new run")
    return folder


def _checkpoint(start_from: str) -> Path:
    path = Path(start_from)
    if not path.exists():
        raise UserError(f"run.start_from={start_from}: no such run, checkpoint or diffusers folder")
    if path.suffix == ".ckpt":
        return path
    found = resolve(path, "last")
    if found is None:
        raise UserError(f"run.start_from={start_from}: neither a diffusers folder nor a run with a checkpoint")
    return found


def _write(checkpoint: Path, start_from: str, folder: Path, base: Base, dtype: str | None) -> None:
    """Write the folder, whole or not at all."""
    saved, own = load_weights(checkpoint), _base_of(checkpoint) or base
    if own.fingerprints != base.fingerprints:
        raise UserError(f"run.start_from={start_from}: trained over {own.name}, with another VAE or text encoder")
    stored = stored_precision(own)
    precision = stored if dtype is None else getattr(torch, dtype)
    with appearing(folder) as staging:
        kept = write_transformer(own, saved, staging / "transformer", precision=precision)
        for name in (*PARTS, "model_index.json", "firered_lit.json"):
            if (own.folder / name).exists():
                (staging / name).symlink_to((own.folder / name).resolve())
        note = {"start_from": start_from, "checkpoint": str(checkpoint.resolve()), "base": own.name}
        note["stored"] = str(stored).removeprefix(
            "torch."
        )  # what `export` writes of this stage, unless asked otherwise
        write_json(staging / NOTE, note)
    if kept < KEPT:
        remedy = "stage.backbone.dtype=float32 with run.start_dtype=float32 keeps all of it"
        rank_zero_warn(f"run.start_from={start_from}: {lost(kept, precision)}; {remedy}")
    merged = ", its LoRA merged" if saved.lora else ""
    rank_zero_info(f"starting from {checkpoint}, {saved.step} steps{merged}; written to {folder}")


def _base_of(checkpoint: Path) -> Base | None:
    """What the checkpoint's run was trained over; None when it lies in no run."""
    facts = checkpoint.resolve().parent.parent / "run.json"
    return open_base(read_object(facts, "base_folder")["base_folder"]) if facts.exists() else None


def _wait(folder: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not folder.exists():
        if time.monotonic() > end:
            raise UserError(f"{folder}: the first process has not written it in {PATIENCE:.0f} s; see what it says")
        time.sleep(0.2)
