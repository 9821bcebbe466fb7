"""Small pictures with something in them, and tables of them, for tests of the corpus engine."""

import json
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

CREDIT = "CC0-1.0"


def picture(seed, side=96):
    """A picture (side, side, 3) of smooth light, a few shapes and a little grain; another one for every seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    pixels = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    for _ in range(6):
        centre = tuple(int(value) for value in rng.integers(0, side, 2))
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        cv2.circle(pixels, centre, int(rng.integers(4, side // 4)), colour, -1)
    grain = rng.normal(0, 3, pixels.shape)
    return (pixels + grain).clip(0, 255).astype(np.uint8)


def save(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def loose(folder, count, side=96):
    """A folder of pictures without a table."""
    for number in range(count):
        save(folder / f"{number:04d}.jpg", picture(number, side), quality=92)
    return folder


def edits(folder, count, **more):
    """A table of edits, with a licence each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(count):
        pixels = picture(number)
        save(folder / f"{number}_source.png", pixels)
        edited = pixels.copy()
        edited[20:60, 20:60] = 255 - edited[20:60, 20:60]
        save(folder / f"{number}_target.png", edited)
        row = {"source_image": f"{number}_source.png", "target_image": f"{number}_target.png"}
        row |= {"instruction": f"Invert square {number}", "task": "colour", "license": CREDIT} | more
        rows.append(row)
    return table(folder / "edits.jsonl", rows)


def table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def lines(path):
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def contents(folder):
    """What a curation is for: the bytes of scores, groups, decisions and rows, by name; the page has seconds in it."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and not path.name.startswith(".") and "costs" not in name and not name.startswith("report"):
            found[name] = path.read_bytes()
    return found
