"""Prompts of one's own, drawn by the base first and then while it learns: `Prompts`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from PIL import Image
from torch import Tensor

from callbacks.grids.sample_grid import GridRow, draw_grid, fitted
from callbacks.lettering import Lettering
from callbacks.live import Encoded, draw, encode
from callbacks.signals import stopped_by_signal
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.files import replacing
from firered_lit.inference.prompt_file import PromptRow, open_picture, read_prompts
from firered_lit.run.grids import save_grid
from firered_lit.run.tracking import log_image

FOLDER = "prompts"


class Prompts(L.Callback):
    """Draw prompts of one's own before the first step, every `every` optimizer steps, and at the end.

    Below the run's folder, in `prompts/`: a grid of all prompts for each step (`step_00000250.png`, in the logger too),
    each picture by itself (`pictures/step_00000250/01.png`), and for each prompt a strip over the steps
    (`strip_01.png`). The noise of a prompt is the same at every step. The weights that are trained draw, never their
    average. What lies there already, as in a resumed run, is not drawn again. Nothing of the training changes.

    Args:
        file: A .jsonl file, a row per prompt: `instruction`, `images` (paths relative to the file; none for
            text-to-image), and if wanted `width`, `height`, `seed`. No target is needed.
        every: Optimizer steps between drawings, at least 1.
        steps: Steps of the solver.
        guidance: The stock pipelines' `true_cfg_scale`; 1 switches it off.
        side: Height of the pictures in grids and strips, in pixels.
        font: Font file; one that can draw Chinese is looked for when null.

    Raises:
        UserError: a number out of range; the file or a row of it cannot be used.
    """

    def __init__(
        self,
        file: str,
        every: int = 250,
        steps: int = 20,
        guidance: float = 4.0,
        side: int = 256,
        font: str | None = None,
    ) -> None:
        super().__init__()
        if every < 1 or steps < 1 or side < 16:
            numbers = f"every={every} steps={steps} side={side}"
            raise UserError(f"callbacks.prompts: {numbers}: every and steps are at least 1, side at least 16")
        self.prompts = read_prompts(Path(file), "callbacks.prompts.file")
        self.every = every
        self.steps = steps
        self.guidance = guidance
        self.side = side
        self.lettering = Lettering(font)
        self._encoded: list[Encoded] = []
        self._seen_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._seen_step = trainer.global_step
        if trainer.global_step % self.every == 0:
            self._draw_all(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._seen_step:  # in the middle of an accumulation
            return
        self._seen_step = step
        if step % self.every == 0:
            self._draw_all(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if stopped_by_signal(trainer):  # whoever sent it does not wait
            return
        self._draw_all(trainer, pl_module)

    # Drawing

    def _draw_all(self, trainer: L.Trainer, stage: Any) -> None:
        """Draw every prompt at this step and write the grid, unless the grid is there.

        All processes draw, since sharded weights are gathered by all of them together; the first one writes.
        """
        step = trainer.global_step
        folder = Path(trainer.default_root_dir) / FOLDER
        grid = folder / f"step_{step:08d}.png"
        if trainer.strategy.broadcast(grid.exists()):
            return
        if not self._encoded:
            self._encoded = [encoded_prompt(prompt, stage, self.guidance > 1) for prompt in self.prompts]

        # The mode of the module is put back as it was.
        training = stage.training
        stage.eval()
        pictures = [draw(stage, encoded, self.steps, self.guidance) for encoded in self._encoded]
        stage.train(training)

        if trainer.is_global_zero:
            try:
                self._write(pictures, folder, step)
            except OSError as error:
                rank_zero_warn(f"{folder}: the pictures of the prompts could not be written ({error.strerror})")
                return
            for logger in trainer.loggers:
                log_image(logger, FOLDER, Image.open(grid), step)

    # Files

    def _write(self, pictures: Sequence[Image.Image], folder: Path, step: int) -> None:
        """Write each picture, then the strips, and the grid last: where it stands, all of them do."""
        own = folder / "pictures" / f"step_{step:08d}"
        for number, picture in enumerate(pictures, start=1):
            _save(picture, own / f"{number:02d}.png")
        for number, prompt in enumerate(self.prompts, start=1):
            _save(self._strip(prompt, number, folder), folder / f"strip_{number:02d}.png")
        rows = []
        shown = zip(self.prompts, self._encoded, pictures, strict=True)
        for number, (prompt, encoded, picture) in enumerate(shown, start=1):
            cells = [*self._controls(encoded), (f"step {step}", fitted(picture, self.side))]
            rows.append(GridRow((number,), tuple(cells), prompt.instruction))
        grid = draw_grid(rows, f"step {step}", self.lettering)
        save_grid(grid, folder / f"step_{step:08d}.png", [prompt.instruction for prompt in self.prompts])

    def _strip(self, prompt: PromptRow, number: int, folder: Path) -> Image.Image:
        """Return one prompt's pictures of all steps so far, side by side behind its control pictures."""
        cells = self._controls(self._encoded[number - 1])
        for file in sorted((folder / "pictures").glob(f"step_*/{number:02d}.png")):
            step = int(file.parent.name.removeprefix("step_"))
            with Image.open(file) as picture:
                cells.append((f"step {step}", fitted(picture.convert("RGB"), self.side)))
        return draw_grid([GridRow((number,), tuple(cells), prompt.instruction)], f"prompt {number}", self.lettering)

    def _controls(self, encoded: Encoded) -> list[tuple[str, Image.Image]]:
        single = len(encoded.sources) == 1
        names = ["control" if single else f"control {n}" for n in range(1, len(encoded.sources) + 1)]
        return [(name, fitted(picture, self.side)) for name, picture in zip(names, encoded.sources, strict=True)]


def encoded_prompt(prompt: PromptRow, stage: Any, guided: bool) -> Encoded:
    """Return a prompt as the frozen models encode it, with the noise of its seed."""
    pictures = [open_picture(path, "callbacks.prompts") for path in prompt.images]

    def noise(shape: tuple[int, int, int]) -> Tensor:
        return gaussian(shape, (0,), "prompt", prompt.seed or 0)

    return encode(stage, prompt.instruction, pictures, noise, guided=guided, width=prompt.width, height=prompt.height)


def _save(picture: Image.Image, path: Path) -> None:
    with replacing(path, "wb") as file:
        picture.save(file, format="PNG")
