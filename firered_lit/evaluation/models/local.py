"""A model of the Qwen-Image family: a training run, an export, a diffusers folder, a hub id or a built-in base."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from firered_lit.errors import UserError
from firered_lit.evaluation.models import fingerprints
from firered_lit.evaluation.protocols import Item
from firered_lit.inference.trained import Opened, is_run, open_model
from firered_lit.places import user_path

if TYPE_CHECKING:
    from PIL import Image

    from firered_lit.editing import Editor

STEPS = 40  # as the official script of REDEdit-Bench draws
GUIDANCE = 4.0  # its true_cfg_scale


class Local:
    """Draw with a model that is loaded here, once, as `edit` does.

    Args:
        model: A run's folder, an export's, a diffusers folder, a hub id, or a built-in base as "world".
        loras: LoRAs over it, as `edit` takes them: PATH or PATH@STRENGTH.
        checkpoint: Of a run: "last", "best" or a checkpoint's path.
        ema: Of a run: the averaged weights.
        stock: Use the stock pipeline as it is.
        steps: Of the sampler.
        guidance: The stock pipelines' `true_cfg_scale`; 1 switches it off.

    Raises:
        UserError: There is no such model.
    """

    parallel = 1

    def __init__(
        self,
        model: str,
        loras: Sequence[str] = (),
        checkpoint: str = "last",
        ema: bool = False,
        stock: bool = False,
        steps: int = STEPS,
        guidance: float = GUIDANCE,
    ) -> None:
        if steps < 1:
            raise UserError(f"model {model}: steps={steps}: at least 1")
        self.model = model
        self.loras = tuple(loras)
        self.checkpoint = checkpoint
        self.ema = ema
        self.stock = stock
        self.steps = steps
        self.guidance = guidance
        self._editor: Editor | None = None
        folder = user_path(model)
        if not is_run(model) and (folder / "pytorch_lora_weights.safetensors").is_file():
            raise UserError(f"{model}: a LoRA alone; name its base as the model and this folder among the LoRAs")

    @property
    def run(self) -> Path | None:
        """The folder of the training run; None of any other model."""
        return user_path(self.model) if is_run(self.model) else None

    def fingerprint(self) -> str:
        """Return a hash of the weights, the LoRAs, the sizes and the settings of the sampler."""
        from firered_lit.editing import device_and_dtype

        base = self._opened.base
        parts = {part: base.fingerprint(part) for part in ("transformer", "vae", "text_encoder")}
        return fingerprints.of_settings(
            kind="local",
            parts=parts,
            sizes=base.sizes.as_dict(),
            scheduler=base.scheduler_config,
            checkpoint=None if self._opened.checkpoint is None else _checkpoint_digest(self._opened.checkpoint),
            ema=self.ema,
            loras=self._lora_digests(),
            stock=self.stock,
            steps=self.steps,
            guidance=self.guidance,
            precision=str(device_and_dtype()[1]),
        )

    def _lora_digests(self) -> list[tuple[str, float]]:
        """Return a hash of each LoRA's file, with its strength."""
        if not self.loras:
            return []

        from firered_lit.editing import lora_of

        digests = []
        for text in self.loras:
            file, strength = lora_of(text)
            digests.append((_checkpoint_digest(file), strength))
        return digests

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> "Image.Image":
        """Return the edited picture, of the shape of the last source; see `Editor.draw`."""
        editor = self.editor
        size = editor.size_like(sources)
        return editor.draw(list(sources), item.instruction, self.steps, seed, size, self.guidance)

    def close(self) -> None:
        """Forget the weights."""
        self._editor = None

    @property
    def editor(self) -> "Editor":
        """The model, loaded when it is first asked for."""
        from firered_lit.editing import Editor

        if self._editor is None:
            self._editor = Editor(self._opened, self.loras, stock=self.stock)
        return self._editor

    @cached_property
    def _opened(self) -> Opened:
        """The model, without its weights."""
        return open_model(self.model, self.checkpoint, self.ema)


def _checkpoint_digest(path: Path) -> str:
    """Return a hash of a checkpoint: of a sharded one, of the list that has the sum of each of its files."""
    return fingerprints.of_file(path / "complete.json" if path.is_dir() else path)
