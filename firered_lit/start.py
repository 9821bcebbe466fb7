"""Where a stage starts that goes on from another one's output: a diffusers folder in the new run's own folder."""

import time
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only

from .checkpoint import resolve
from .errors import UserError
from .export import PARTS, load_weights, write_transformer
from .files import appearing, write_json
from .models.family import Base, open_base
from .textfiles import read_object

NOTE = "start.json"
PATIENCE = 3600.0  # seconds that the other processes wait for the first one to write the folder


def start_folder(start_from: str, run: Path, base: Base) -> Path:
    """The diffusers folder that a run starts from: `start_from` itself when it is one, else RUN/start.

    start_from: a diffusers folder, a run's folder (its newest checkpoint) or a checkpoint. Of the last two the weights
    are written to RUN/start once, a LoRA merged into the weights that it was trained over, in the precision in which
    `export` writes them; all else is linked. A resumed run finds them there, so its reference cannot change. base: of
    the stage. Raises UserError when there are no such weights, or when the run began from others.
    """
    if (Path(start_from) / "model_index.json").exists():
        return Path(start_from)
    folder = run / "start"
    if rank_zero_only.rank == 0 and not folder.exists():
        _write(_checkpoint(start_from), start_from, folder, base)
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


def _write(checkpoint: Path, start_from: str, folder: Path, base: Base) -> None:
    """The folder, whole or not at all."""
    saved, own = load_weights(checkpoint), _base_of(checkpoint) or base
    if own.fingerprints != base.fingerprints:
        raise UserError(f"run.start_from={start_from}: trained over {own.name}, with another VAE or text encoder")
    with appearing(folder) as staging:
        write_transformer(own, saved, staging / "transformer")
        for name in (*PARTS, "model_index.json", "firered_lit.json"):
            if (own.folder / name).exists():
                (staging / name).symlink_to((own.folder / name).resolve())
        note = {"start_from": start_from, "checkpoint": str(checkpoint.resolve()), "base": own.name}
        write_json(staging / NOTE, note)
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
