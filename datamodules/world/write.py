"""Samples of the learning world on disk: rows and pictures in the layout that `prepare` reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .families import FAMILIES, Edit
from .phrases import KINDS
from .sample import Split, stream
from .scene import SIDE, Scene, draw

FREE = 16  # of 255: where a channel differs more, the edit may change the picture


def write(
    out: Path,
    count: int,
    seed: int = 0,
    split: Split = "train",
    families: Sequence[str] = tuple(FAMILIES),
    side: int = SIDE,
) -> int:
    """Add `count` samples to `out`, a folder per family with `edits.jsonl` and `images/`. Returns the rows written."""
    for number, edit in stream(seed, count, split, families):
        folder = out / edit.task
        (folder / "images").mkdir(parents=True, exist_ok=True)
        line = json.dumps(row(edit, folder, f"{split}-{seed}-{number:06d}", side), ensure_ascii=False)
        with (folder / "edits.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return count


def row(edit: Edit, folder: Path, name: str, side: int = SIDE) -> dict[str, Any]:
    """The row of an edit, whose pictures are written beside it."""
    sources, target = [draw(scene, side) for scene in edit.sources], draw(edit.target, side)
    pictures = {f"images/{name}_source{i}.png": source for i, source in enumerate(sources)}
    names = [*pictures]
    pictures |= {f"images/{name}_target.png": target, f"images/{name}_mask.png": mask(sources, target)}
    for path, picture in pictures.items():
        picture.save(folder / path)
    found: dict[str, Any] = {"id": name, "source_image": names if len(names) > 1 else names[0]}
    found |= {"target_image": f"images/{name}_target.png", "mask": f"images/{name}_mask.png"}
    found |= {column: edit.texts[key] for column, key in KINDS.items()}
    found |= {"held_out": name.startswith("held_out"), "cluster": "_".join(edit.combination)}
    found |= {"regions": regions(edit.target, side)}
    if edit.target_text:
        found |= {"target_text": edit.target_text, "replaced_text": edit.replaced_text}
    if edit.captions:
        found |= {"reference_captions": [en for en, _ in edit.captions]}
        found |= {"reference_captions_cn": [cn for _, cn in edit.captions]}
    return found


def regions(scene: Scene, side: int = SIDE) -> list[dict[str, Any]]:
    """The face's five landmarks, else the boxes of the things, in the picture's pixels; none of a turned picture.

    Landmarks are pixel centres, the first pixel's being (0, 0); boxes are edges.
    """
    scale = side / SIDE
    if scene.looks:
        return []
    if scene.face:
        return [{"points": [[x * scale - 0.5, y * scale - 0.5] for x, y in scene.face.landmarks]}]
    return [{"box": [min(max(edge * scale, 0), side) for edge in thing.box]} for thing in scene.things]


def mask(sources: Sequence[Image.Image], target: Image.Image) -> Image.Image:
    """White where the edit may change the picture that it is made of: where it does, and a pixel around."""
    after = np.asarray(target).astype(int)
    before = min((np.asarray(source).astype(int) for source in sources), key=lambda x: float(np.abs(x - after).mean()))
    free = np.pad(np.abs(before - after).max(-1) > FREE, 1)
    grown = np.zeros(after.shape[:2], bool)
    for dy in range(3):
        for dx in range(3):
            grown |= free[dy : dy + grown.shape[0], dx : dx + grown.shape[1]]
    return Image.fromarray(np.where(grown, 255, 0).astype(np.uint8))
