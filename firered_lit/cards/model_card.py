"""The model card of an export, its README.md: what it is made of, what it draws, and how to use it."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from ..config.dialect import dump, parse
from ..errors import UserError
from ..models.family import BUILT_IN, Base, Variant
from ..models.hub import parse as parse_hub_id
from ..models.lora_files import COMFYUI, DIFFUSERS
from ..models.sizes import Sizes
from ..run.grids import grids, read_instructions
from ..textfiles import read_text
from .data_card import CARDS, ENTRIES, markdown, plain

_EDIT_TOO = """or `python -m firered_lit edit --model THIS_FOLDER --image photo.jpg --prompt "..." --out edited.png`, which also encodes
the prompt with the positions that the weights were trained with (diffusers 0.42 with transformers 5 loses them)."""  # noqa: E501
_PIPELINES = {Variant.EDIT: "QwenImageEditPipeline", Variant.EDIT_PLUS: "QwenImageEditPlusPipeline"}
_GRIDS = ("prompts", "samples")  # folders of a run; the user's own prompts before the held-out edits
_PICTURES = "pictures"  # in the export
_SIDE = 1280  # px of a picture's longer side, at most
_MOST_PROMPTS = 8
# What data.json says for programs alone.
_INNER = ("format", "source", "fingerprints", "fingerprint", "part_rows", "mentions", "colours", "orders", "origin")
_OWN_LICENCE = "apache-2.0"  # of the built-in models
_LICENCE = re.compile(r"^license:\s*[\"']?([\w.+-]+)[\"']?\s*$", re.MULTILINE)
_HEAD = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_PLACE = re.compile(r"(~|/|\.{1,2}/|[A-Za-z]:[\\/]|(file|sqlite):/)")  # how a path begins that is one of a machine


@dataclass(frozen=True)
class Trained:
    """Facts of a training.

    Args:
        base: The base's name; of a run that began from another run's weights, that of the base under them.
        stage: The stage's class.
        sizes: That it was trained at.
        checkpoint: The checkpoint's name.
        step: Its optimizer steps.
        lora: Rank and alpha, when the export is the files of a LoRA.
        data: What the data said of itself.
        recipe: The run's, as text; "" where it cannot be read.
    """

    base: str
    stage: str
    sizes: Sizes
    checkpoint: str
    step: int
    lora: Mapping[str, Any] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
    recipe: str = ""


@dataclass(frozen=True)
class ShownPictures:
    """Pictures that the run drew.

    Args:
        pictures: Title -> file, relative to the export.
        prompts: What the pictures were asked for.
    """

    pictures: Mapping[str, str] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()


def add_pictures(run: Path, step: int, folder: Path) -> ShownPictures:
    """Copy the grids that a run drew before its first step and at a step, smaller and as JPEG, into an export.

    Args:
        run: The run's folder.
        step: The exported one; the last grid up to it is taken.
        folder: The export.
    """
    for name in _GRIDS:
        drawn = {at: path for at, path in grids(run / name).items() if at <= step}
        if not drawn:
            continue
        chosen = {"Before": drawn[0]} if 0 in drawn and len(drawn) > 1 else {}
        last = max(drawn)
        chosen[f"After {last} steps"] = drawn[last]
        try:
            return _copied(chosen, folder)
        except (OSError, ValueError, Image.DecompressionBombError) as problem:
            print(f"note: {run / name}: no picture for the model card ({problem})")
    return ShownPictures()


def model_card(base: Base, trained: Trained, shown: ShownPictures) -> str:
    """Return the README.md of an export. It names no place of this machine.

    Args:
        base: What it was trained from.
        trained: What was trained.
        shown: What it drew.
    """
    # Where it is loaded from.
    of_hub = None if Path(trained.base).is_dir() else parse_hub_id(trained.base)
    name, revision = of_hub or (_without_place(trained.base), None)
    load, tags, also = '"THIS_FOLDER"', "image-editing, qwen-image, firered-lit", _EDIT_TOO
    note = (
        "Trained at the stock pipeline's sizes."
        if base.resized(trained.sizes).at_stock_sizes
        else "Trained at other sizes than the stock pipeline's constants; they are in `firered_lit.json`, and "
        "`python -m firered_lit edit` keeps to them."
    )
    lora = trained.lora
    if lora is not None:
        load = f'"{name}", revision="{revision}"' if revision else f'"{name}"'
        tags = f"{tags}, lora"
        also = (
            f"`{COMFYUI}` is the same for ComfyUI's LoRA loader, `{DIFFUSERS}` is what diffusers loads; strength 1.0."
        )
        note = note.partition(", and `python")[0].removesuffix(".") + "."
        note = f"LoRA of rank {lora['rank']}, alpha {lora['alpha']:g}, its scale in the weights. {note}"
    adapter = '\npipe.load_lora_weights("THIS_FOLDER")' if lora is not None else ""
    kind = _PIPELINES.get(base.variant, "QwenImagePipeline")
    image = "" if base.variant == Variant.TEXT else 'image=[Image.open("photo.jpg").convert("RGB")], '
    prompt = json.dumps(shown.prompts[0], ensure_ascii=False) if shown.prompts else '"..."'

    # Whose licence it has.
    licence = licence_of(base, trained.base)
    head = f"license: {licence}\n" if licence else ""
    bound = f"`{licence}`" if licence else "not known here, see its page"

    return f"""---
library_name: diffusers
base_model: {name}
{head}pipeline_tag: image-to-image
tags: [{tags}]
---
# {trained.stage} of {name}

{trained.step} optimizer steps with firered_lit {version("firered-lit")}, from checkpoint `{trained.checkpoint}`. {note}
{_pictures(shown)}
## Use

```python
import torch
from diffusers import {kind}
from PIL import Image

pipe = {kind}.from_pretrained({load}, torch_dtype=torch.bfloat16).to("cuda"){adapter}
image = pipe({image}prompt={prompt}, negative_prompt=" ", true_cfg_scale=4.0).images[0]
```

{also}

## Base and licence

Trained from `{name}`{f" at `{revision}`" if revision else ""}. Its licence, which these weights are bound to: {bound}.

## Data

{_data(trained.data)}

## Recipe

```yaml
{_recipe(trained.recipe)}
```
"""


def licence_of(base: Base, name: str) -> str:
    """Return the licence of a base, as its own model card names it; "" where it names none.

    Args:
        base: The base.
        name: Its name.
    """
    if name in BUILT_IN:
        return _OWN_LICENCE
    try:
        head = _HEAD.match(read_text(base.folder / "README.md"))
    except (OSError, UnicodeDecodeError):
        return ""
    found = _LICENCE.search(head.group(1)) if head else None
    return found.group(1) if found else ""


def without_places(value: Any) -> Any:
    """Return plain values in which a path of this machine is its last part alone."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    return _without_place(value) if isinstance(value, str) else value


def _without_place(text: str) -> str:
    """Return the last part of a text that is a path of this machine, and any other text as it is."""
    is_place = bool(_PLACE.match(text))
    if not is_place and "/" in text and "\n" not in text:
        try:
            is_place = Path(text).exists()
        except (OSError, ValueError):
            is_place = False
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1] if is_place else text


def _copied(chosen: Mapping[str, Path], folder: Path) -> ShownPictures:
    """Copy grids into an export, all or none, and return what they show."""
    # All must be readable before one is written.
    small: dict[str, Image.Image] = {}
    prompts: list[str] = []
    for title, path in chosen.items():
        with Image.open(path) as grid:
            prompts = read_instructions(grid)
            small[title] = grid.convert("RGB")
        small[title].thumbnail((_SIDE, _SIDE))

    pictures = {}
    (folder / _PICTURES).mkdir()
    for title, picture in small.items():
        name = f"{_PICTURES}/{title.partition(' ')[0].lower()}.jpg"
        picture.save(folder / name, quality=88)
        pictures[title] = name
    return ShownPictures(pictures, tuple(prompts[:_MOST_PROMPTS]))


def _pictures(shown: ShownPictures) -> str:
    """Return the part of the card that shows what was drawn; nothing where nothing was."""
    if not shown.pictures:
        return ""
    lines = ["", "## What it draws", ""]
    lines += [f"| {' | '.join(shown.pictures)} |", f"|{'---|' * len(shown.pictures)}"]
    lines += [f"| {' | '.join(f'![{title}]({name})' for title, name in shown.pictures.items())} |", ""]
    if shown.prompts:
        lines += ["Prompts:", "", *(f"- {plain(prompt)}" for prompt in shown.prompts), ""]
    return "\n".join(lines)


def _data(data: Mapping[str, Any]) -> str:
    """Return what the data said of itself, and the cards of the tables that it was made from."""
    facts = without_places({name: value for name, value in data.items() if name not in (CARDS, *_INNER)})
    lines = [f"- {plain(name)}: {_counts(value)}" for name, value in facts.items()] or ["- not recorded"]
    given = data.get(CARDS, [])
    cards = [card for card in given if isinstance(card, Mapping) and all(entry in card for entry in ENTRIES)]
    if cards:
        lines += ["", "### How its rows were chosen", "", markdown(without_places(cards))]
    return "\n".join(lines)


def _counts(value: Any) -> str:
    """Return what the data says of one thing."""
    if isinstance(value, Mapping):
        return ", ".join(f"{plain(name)} {plain(item)}" for name, item in value.items()) or "none"
    return plain(value)


def _recipe(recipe: str) -> str:
    """Return a recipe's text without places of this machine."""
    try:
        return dump(without_places(parse(recipe, "recipe.yaml"))).strip()
    except UserError:
        return ""
