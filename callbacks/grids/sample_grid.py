"""Edits that the model draws of held-out samples: source | output | target, the instruction under each row."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor

from callbacks.lettering import Lettering
from firered_lit.batch import EditBatch
from firered_lit.models.codec import to_image
from firered_lit.run.grids import save_grid
from firered_lit.run.tracking import log_image

FOLDER = "samples"
_GAP = 8  # px between pictures
_PAPER = "white"
_INK = "black"
_FAINT = "#666666"


@dataclass(frozen=True)
class GridRow:
    """One held-out edit. `place` gives rows the same order however many processes share them."""

    place: tuple[int, ...]
    cells: tuple[tuple[str, Image.Image], ...]  # (caption, picture), all of one height
    instruction: str


class SampleGrid(L.Callback):
    """Draw `samples/step_00000020.png` in the run's folder, and a picture in the logger, after each validation.

    Shows the first `rows` samples whose `validation_step` returned {"output": pixels (B, 3, H, W) in [-1, 1]} and whose
    batch carries sources and pixels. Every rank sends its own, the first one draws.

    Args:
        rows: Number of edits.
        side: Height of the pictures in the grid, in pixels.
        font: Font file; one that can draw Chinese is looked for when null.
        dir: Folder; `samples` in the trainer's root when null.
    """

    def __init__(self, rows: int = 8, side: int = 256, font: str | None = None, dir: str | None = None) -> None:
        self.rows = rows
        self.side = side
        self.font = font
        self.dir = Path(dir) if dir else None
        self._own: list[GridRow] = []

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._own = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: EditBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        output = outputs.get("output") if isinstance(outputs, dict) else None
        if output is None or (batch.known and batch.pixels is None):
            return
        for i in range(len(batch)):
            counts = batch.weight is None or batch.weight[i] > 0
            if counts and len(self._own) < self.rows:
                self._own.append(self._row(batch, output, batch_idx, i))

    def _row(self, batch: EditBatch, output: Tensor, batch_idx: int, i: int) -> GridRow:
        """Return the row of sample i of a batch: its sources, the output and the target where it has one."""
        pictures = [(source_name(n, batch), to_image(source[i])) for n, source in enumerate(batch.sources)]
        pictures.append(("output", to_image(output[i])))
        if batch.pixels is not None:
            pictures.append(("target", to_image(batch.pixels[i])))
        cells = tuple((caption, fitted(picture, self.side)) for caption, picture in pictures)
        facts = batch.facts[i]
        return GridRow((batch_idx, batch.slots[i]), cells, facts.instruction or facts.id)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        own = self._own
        self._own = []
        folder = self.dir or Path(trainer.default_root_dir) / FOLDER
        publish(own, trainer, self.rows, folder, FOLDER, self.font)


def publish(own: list[GridRow], trainer: L.Trainer, limit: int, folder: Path, name: str, font: str | None) -> None:
    """Draw the first rows of all ranks as a picture: `folder`/step_00000020.png, and one in the logger.

    All ranks call it; the first one draws. A file that cannot be written costs a warning.

    Args:
        own: This rank's rows.
        trainer: The trainer.
        limit: Rows of the picture, at most.
        folder: Folder of the file.
        name: Name of the picture in the logger.
        font: Font file; one that can draw Chinese is looked for when None.
    """
    rows = sorted(_gather(own, trainer), key=lambda row: row.place)[:limit]
    if not rows:
        return
    step = trainer.global_step
    grid = draw_grid(rows, f"step {step}", Lettering(font))
    try:
        save_grid(grid, folder / f"step_{step:08d}.png", [row.instruction for row in rows])
    except OSError as error:
        rank_zero_warn(f"{folder}: the grid could not be written ({error.strerror})")
    for logger in trainer.loggers:
        log_image(logger, name, grid, step)


def draw_grid(rows: list[GridRow], title: str, lettering: Lettering) -> Image.Image:
    """Return the picture of all rows. Its width is that of the widest row, at least enough for a line of text."""
    widths = [sum(picture.width + _GAP for _, picture in row.cells) + _GAP for row in rows]
    width = max(*widths, 480)
    strips = [lettering.text(title, width - 2 * _GAP, _FAINT, _PAPER)]
    strips += [_draw_row(row, width, lettering) for row in rows]
    grid = Image.new("RGB", (width, sum(strip.height + _GAP for strip in strips) + _GAP), _PAPER)
    top = _GAP
    for strip in strips:
        grid.paste(strip, (_GAP, top))
        top += strip.height + _GAP
    return grid


def _draw_row(row: GridRow, width: int, lettering: Lettering) -> Image.Image:
    """Return a row's pictures beside each other, captions above and the instruction under them."""
    captions = [
        lettering.text(caption, picture.width, _FAINT, _PAPER, size=12, lines=1) for caption, picture in row.cells
    ]
    instruction = lettering.text(row.instruction, width - 2 * _GAP, _INK, _PAPER)
    head = max(caption.height for caption in captions)
    body = max(picture.height for _, picture in row.cells)
    strip = Image.new("RGB", (width - 2 * _GAP, head + body + instruction.height + _GAP), _PAPER)
    left = 0
    for caption, (_, picture) in zip(captions, row.cells):
        strip.paste(caption, (left, 0))
        strip.paste(picture, (left, head))
        left += picture.width + _GAP
    strip.paste(instruction, (0, head + body + _GAP // 2))
    return strip


def source_name(index: int, batch: EditBatch) -> str:
    """Return the caption of a source picture."""
    return "source" if len(batch.sources) == 1 else f"source {index + 1}"


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Return a picture at a height of `side` pixels, but no wider than three times that."""
    scale = min(side / picture.height, 3 * side / picture.width)
    width = max(1, round(picture.width * scale))
    height = max(1, round(picture.height * scale))
    return picture.resize((width, height), Image.Resampling.LANCZOS)


def _gather(own: list[GridRow], trainer: L.Trainer) -> list[GridRow]:
    """Return all ranks' rows on the first rank, nothing on the others. All ranks call it."""
    if trainer.world_size == 1:
        return own
    everyone: list[Any] | None = [None] * trainer.world_size if trainer.is_global_zero else None
    placed = [GridRow((row.place[0], trainer.global_rank, *row.place[1:]), row.cells, row.instruction) for row in own]
    dist.gather_object(placed, everyone)
    return [row for rows in everyone or [] for row in rows]
