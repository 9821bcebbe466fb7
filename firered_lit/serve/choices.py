"""Models that a page can draw with: the base, the checkpoints and the average of a run, or a model and its LoRAs."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from firered_lit.errors import UserError

if TYPE_CHECKING:
    from firered_lit.editing import Editor


@dataclass(frozen=True)
class WeightsChoice:
    """One set of weights that the page can draw with.

    Attributes:
        name: What the page calls it.
        model: A run's folder, or whatever `edit --model` takes.
        loras: LoRAs over it, PATH or PATH@STRENGTH.
        checkpoint: Of a run: a checkpoint's path.
        ema: Of a run: the averaged weights.
    """

    name: str
    model: str
    loras: tuple[str, ...] = ()
    checkpoint: str = "last"
    ema: bool = False


def choices_of_run(run: Path) -> list[WeightsChoice]:
    """Return the base of a run, its checkpoints from the first to the last, and the average of the last one.

    Raises:
        UserError: The folder is no run, or has no checkpoint yet.
    """
    from firered_lit.checkpoints import lineage
    from firered_lit.checkpoints.checkpoint import FOLDER, listed
    from firered_lit.inference.trained import checkpoint_of, is_run

    if not is_run(run):
        raise UserError(f"serve --run {run}: not a run's folder")
    last = checkpoint_of(run)
    base = lineage.base_of(last, lineage.recorded(last), run)
    choices = [WeightsChoice("base", str(base.folder))]
    choices += [WeightsChoice(path.stem, str(run), checkpoint=str(path)) for path in listed(run / FOLDER)]
    if _averages(run):
        choices.append(WeightsChoice(f"{last.stem}, averaged", str(run), checkpoint=str(last), ema=True))
    return choices


def _averages(run: Path) -> bool:
    """Return whether the run's recipe keeps an average of the weights."""
    from firered_lit.config.recipe import TARGET, load

    file = run / "recipe.yaml"
    if not file.is_file():
        return False
    callbacks = load(file).root.get("callbacks") or {}
    return any(isinstance(node, dict) and node.get(TARGET) == "callbacks.ema.EMA" for node in callbacks.values())


def choices_of_model(model: str, loras: Sequence[str]) -> list[WeightsChoice]:
    """Return a model alone, and with each of its LoRAs.

    Raises:
        UserError: There is no such model or LoRA.
    """
    from firered_lit.editing import lora_of
    from firered_lit.inference.trained import open_model

    open_model(model)
    for lora in loras:
        lora_of(lora)
    choices = [WeightsChoice("base" if loras else Path(model).name, model)]
    for lora in loras:
        choices.append(WeightsChoice(_unused(Path(lora).name, choices), model, loras=(lora,)))
    return choices


def _unused(name: str, choices: Sequence[WeightsChoice]) -> str:
    """Return a name that no other choice has."""
    taken = {choice.name for choice in choices}
    number = 2
    unused = name
    while unused in taken:
        unused = f"{name} ({number})"
        number += 1
    return unused


@dataclass
class Loaded:
    """The editors that are in memory: the ones used last.

    Attributes:
        choices: What may be drawn with, by name.
        keep: How many stay in memory.
    """

    choices: dict[str, WeightsChoice]
    keep: int = 1
    drawing: Lock = field(default_factory=Lock)  # one picture is drawn at a time
    _editors: "OrderedDict[str, Editor]" = field(default_factory=OrderedDict)

    def editor(self, name: str) -> "Editor":
        """Return the editor of a choice, loaded if it is not in memory. For the holder of `drawing`.

        Raises:
            UserError: There is no such choice, or it cannot be loaded.
        """
        from firered_lit.editing import Editor

        if name not in self.choices:
            raise UserError(f"no model {name!r} here; there are {', '.join(self.choices)}")
        if name not in self._editors:
            while len(self._editors) >= self.keep:
                self._editors.popitem(last=False)
            choice = self.choices[name]
            self._editors[name] = Editor(choice.model, choice.loras, checkpoint=choice.checkpoint, ema=choice.ema)
        self._editors.move_to_end(name)
        return self._editors[name]
