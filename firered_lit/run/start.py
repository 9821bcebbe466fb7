"""The start of a stage from another one's output: a diffusers folder in the new run's own folder."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from ..checkpoints.checkpoint import read_facts, resolve, sound
from ..checkpoints.lineage import START, base_of
from ..errors import UserError
from ..exporting import KEPT, PARTS, load_weights, lost, origin_of, stored_precision, write_transformer
from ..exporting import START_NOTE as NOTE
from ..files import appearing, write_json
from ..models.family import Base
from ..textfiles import read_object

PATIENCE = 3600.0  # seconds that the other processes wait for the first one to write the folder


@dataclass(frozen=True)
class Start:
    """The start of a run: a diffusers folder that exists, or one that is still to be written.

    source: the checkpoint whose weights the first process is to write to `folder`, and their base. dtype: the precision
    to write them in. awaited: another process writes it.
    """

    start_from: str
    folder: Path
    source: tuple[Path, Base] | None = None
    dtype: str | None = None
    awaited: bool = False

    def make(self) -> Path:
        """Return the folder, written by the first process where it is not there; the others wait for it."""
        if self.source is not None:
            if self.folder.exists():  # of weights that no checkpoint of this run was trained from
                shutil.rmtree(self.folder)
            _write(*self.source, self.start_from, self.folder, self.dtype)
        if self.awaited:
            _wait(self.folder, self.start_from)
        return self.folder


def find_start(start_from: str, run: Path, base: Base, dtype: str | None = None, begun: bool = True) -> Start:
    """Find where a run starts, and write nothing.

    Args:
        start_from: a diffusers folder, a run's folder (its newest checkpoint) or a checkpoint. Of the last two the
            weights are to be written to RUN/start once, a LoRA merged into the weights that it was trained over; all
            else is linked.
        run: the new run's folder. Once it has begun, it keeps to the start that it has, so that its reference cannot
            change.
        base: of the new stage.
        dtype: precision of the weights in RUN/start, as "float32"; None for that of the base's files.
        begun: the run has checkpoints.

    Raises:
        UserError: there are no such weights, they are damaged or belong to other frozen models, or the run began from
            others.
    """
    if (Path(start_from) / "model_index.json").exists():
        return Start(start_from, Path(start_from))
    folder = run / START
    before = _started_from(folder)
    if before == start_from:
        return Start(start_from, folder)
    if before is not None and begun:
        raise UserError(f"run.start_from={start_from}: this run began from {before}; set it back, or begin a new run")
    rank = getattr(rank_zero_only, "rank", None)
    if rank not in (0, None):
        return Start(start_from, folder, awaited=True)
    checkpoint = _checkpoint(start_from)
    own = base_of(checkpoint, read_facts(checkpoint), other=base)
    if not (own.same_part("vae", base) and own.same_part("text_encoder", base)):
        raise UserError(f"run.start_from={start_from}: trained over {own.name}, with another VAE or text encoder")
    return Start(start_from, folder, (checkpoint, own), dtype)


def start_folder(start_from: str, run: Path, base: Base, dtype: str | None = None, begun: bool = True) -> Path:
    """Find where a run starts, see `find_start`, and return its diffusers folder, which is written when need be."""
    return find_start(start_from, run, base, dtype, begun).make()


def _started_from(folder: Path) -> str | None:
    """Return what RUN/start was made from; None where it is not there, or being replaced."""
    try:
        return read_object(folder / NOTE, "start_from")["start_from"]
    except UserError:
        if (folder / NOTE).exists():
            raise
        return None


def _checkpoint(start_from: str) -> Path:
    """Return the checkpoint that is meant, every byte of it as it was written."""
    path = Path(start_from)
    if not path.exists():
        raise UserError(f"run.start_from={start_from}: no such run, checkpoint or diffusers folder")
    if path.suffix == ".ckpt":
        return sound(path)
    found = resolve(path, "last")
    if found is None:
        raise UserError(f"run.start_from={start_from}: neither a diffusers folder nor a run with a checkpoint")
    return sound(found, fall_back=True)


def _write(checkpoint: Path, own: Base, start_from: str, folder: Path, dtype: str | None) -> None:
    """Write the folder, whole or not at all."""
    saved = load_weights(checkpoint)
    stored = stored_precision(own)
    precision = stored if dtype is None else getattr(torch, dtype)
    with appearing(folder) as staging:
        kept = write_transformer(own, saved, staging / "transformer", precision=precision)
        for name in (*PARTS, "model_index.json", "firered_lit.json", "README.md"):
            if (own.folder / name).exists():
                (staging / name).symlink_to((own.folder / name).resolve())
        note = {
            "start_from": start_from,
            "checkpoint": str(checkpoint.resolve()),
            "base": own.name,
            "origin": origin_of(own),
            "stored": str(stored).removeprefix("torch."),  # in which `export` writes this stage's weights by default
        }
        write_json(staging / NOTE, note)
    if kept < KEPT:
        remedy = "stage.backbone.dtype=float32 with run.start_dtype=float32 keeps all of it"
        rank_zero_warn(f"run.start_from={start_from}: {lost(kept, precision)}; {remedy}")
    merged = ", its LoRA merged" if saved.lora else ""
    rank_zero_info(f"starting from {checkpoint}, {saved.step} steps{merged}; written to {folder}")


def _wait(folder: Path, start_from: str) -> None:
    """Wait until the first process has written the folder."""
    end = time.monotonic() + PATIENCE
    while _started_from(folder) != start_from:
        if time.monotonic() > end:
            raise UserError(f"{folder}: the first process has not written it in {PATIENCE:.0f} s; see what it says")
        time.sleep(0.2)
