"""Samples of the learning world on disk: rows and pictures in the layout that `prepare` reads."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .families import FAMILIES, WorldEdit
from .phrases import KINDS
from .sample import Split, stream
from .scene import SIDE, Scene, draw

FREE = 16  # of 255; a pixel of which a channel differs by more is one that the edit may change


def write(
    out: Path,
    count: int,
    seed: int = 0,
    split: Split = "train",
    families: Sequence[str] = tuple(FAMILIES),
    side: int = SIDE,
) -> int:
    """Write samples, a folder per family with `edits.jsonl` and `images/`; rows that are there stay.

    Args:
        out: Folder to write to.
        count: The number of samples.
        seed: Seed of the samples.
        split: Combinations that are trained on, or those that are held out.
        families: Families, in turn.
        side: Pixels of a picture's side.

    Returns:
        The number of rows written.
    """
    for number, edit in stream(seed, count, split, families):
        folder = out / edit.task
        (folder / "images").mkdir(parents=True, exist_ok=True)
        line = json.dumps(row(edit, folder, f"{split}-{seed}-{number:06d}", side), ensure_ascii=False)
        with (folder / "edits.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    return count


def row(edit: WorldEdit, folder: Path, name: str, side: int = SIDE) -> dict[str, Any]:
    """Write the pictures of an edit, and return its row.

    Args:
        edit: The edit.
        folder: Folder of its table.
        name: Its id.
        side: Pixels of a picture's side.
    """
    # The pictures.
    sources = [draw(scene, side) for scene in edit.sources]
    target = draw(edit.target, side)
    names = [f"images/{name}_source{i}.png" for i in range(len(sources))]
    for path, source in zip(names, sources, strict=True):
        source.save(folder / path)
    target.save(folder / f"images/{name}_target.png")
    mask(sources, target).save(folder / f"images/{name}_mask.png")

    # The row.
    columns: dict[str, Any] = {
        "id": name,
        "source_image": names if len(names) > 1 else names[0],
        "target_image": f"images/{name}_target.png",
        "mask": f"images/{name}_mask.png",
    }
    for column, key in KINDS.items():
        columns[column] = edit.texts[key]
    columns["held_out"] = name.startswith("held_out")
    columns["cluster"] = "_".join(edit.combination)
    columns["regions"] = regions(edit.target, side)
    if edit.target_text:
        columns["target_text"] = edit.target_text
        columns["replaced_text"] = edit.replaced_text
    if edit.captions:
        columns["reference_captions"] = [english for english, _ in edit.captions]
        columns["reference_captions_cn"] = [chinese for _, chinese in edit.captions]
    return columns


def regions(scene: Scene, side: int = SIDE) -> list[dict[str, Any]]:
    """Return the face's five landmarks, else the boxes of the things, in the picture's pixels; none of a turned one.

    Landmarks are pixel centres, the first pixel's being (0, 0); boxes are edges.
    """
    scale = side / SIDE
    if scene.looks:
        return []
    if scene.face:
        points = [[x * scale - 0.5, y * scale - 0.5] for x, y in scene.face.landmarks]
        return [{"points": points}]
    boxes = []
    for thing in scene.things:
        boxes.append({"box": [min(max(edge * scale, 0), side) for edge in thing.box]})
    return boxes


def mask(sources: Sequence[Image.Image], target: Image.Image) -> Image.Image:
    """Return a mask of the pixels that the edit may change, white: those that it does change, and one around.

    Args:
        sources: The source pictures; the one that is nearest to the target is the one that is edited.
        target: The edited picture.
    """
    after = np.asarray(target).astype(int)
    pictures = [np.asarray(source).astype(int) for source in sources]
    before = min(pictures, key=lambda picture: float(np.abs(picture - after).mean()))
    free = np.pad(np.abs(before - after).max(-1) > FREE, 1)
    height, width = after.shape[:2]
    grown = np.zeros((height, width), bool)
    for dy in range(3):
        for dx in range(3):
            grown |= free[dy : dy + height, dx : dx + width]
    return Image.fromarray(np.where(grown, 255, 0).astype(np.uint8))
