"""Edits of real photographs with exact answers, on small crops of photographs that the dependencies bring.

    python -m datamodules.photos --out DIR --count 1024 --seed 0

writes rows and pictures that `prepare` reads. Crops to train on come from two photographs, held-out crops from a third
one, a portrait that is never trained on; its square is `portrait.png`. Sample i of a seed is always the same sample.

Whose photographs they are says CREDITS, which lies beside the crops as `CREDITS.txt`.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

import numpy as np
from PIL import Image

from firered_lit.draws import chooser

Picture = np.ndarray  # (height, width, 3), uint8
Split = Literal["train", "held_out"]
CREDITS = """The crops are cut out of photographs, scaled down, mirrored and edited.
To train on: china.jpg by danielbuechele (https://www.flickr.com/photos/danielbuechele/6061409035/) and flower.jpg by
vultilion (https://www.flickr.com/photos/vultilion/6056698931/), both CC BY 2.0
(https://creativecommons.org/licenses/by/2.0/), from scikit-learn. Name them where you show such crops.
Held out: grace_hopper.jpg, a portrait by the United States Navy, in the public domain, from matplotlib.
"""
SIDE = 64  # pixels of a crop
SMALLEST = 3  # a crop's side is at least this part of its photograph's shorter side
BORDER = 8  # the passe-partout is an eighth of the picture wide
PAPER = 255
CYAN_DARK = (20.0, 40.0, 110.0)  # what black becomes in a cyanotype
CYAN_LIGHT = (220.0, 230.0, 250.0)  # what white becomes


def cyanotype(picture: Picture) -> Picture:
    """Return the picture as a blue print: its luminance on a line from dark blue to nearly white."""
    luminance = np.asarray(Image.fromarray(picture).convert("L"), dtype=np.float64)[..., None] / 255
    dark = np.array(CYAN_DARK)
    light = np.array(CYAN_LIGHT)
    return np.round(dark + luminance * (light - dark)).astype(np.uint8)


def passe_partout(picture: Picture) -> Picture:
    """Return the picture under a white card with a window: a border of an eighth of each side is white."""
    rows = picture.shape[0] // BORDER
    columns = picture.shape[1] // BORDER
    framed = np.full_like(picture, PAPER)
    framed[rows:-rows, columns:-columns] = picture[rows:-rows, columns:-columns]
    return framed


@dataclass(frozen=True)
class PhotoEdit:
    """An edit with an exact answer, and how it is asked for.

    Args:
        task: Name of the edit.
        apply: The edit as a pure function.
        english: Instructions, each as good as another.
        chinese: The same in Chinese.
    """

    task: str
    apply: Callable[[Picture], Picture]
    english: tuple[str, ...]
    chinese: tuple[str, ...]


EDITS = (
    PhotoEdit(
        "cyanotype",
        cyanotype,
        ("Print it as a cyanotype", "Make a cyanotype of this photo"),
        ("做成蓝晒照片", "把它变成蓝晒照片"),
    ),
    PhotoEdit(
        "passe-partout",
        passe_partout,
        ("Put a passe-partout around it", "Give this photo a passe-partout"),
        ("加一圈白色卡纸框", "给照片加上白色卡纸框"),
    ),
)


@dataclass(frozen=True)
class PhotoSample:
    """A crop of a photograph, an instruction in two languages, and the exact answer."""

    name: str
    task: str
    source: Picture
    target: Picture
    english: str
    chinese: str


def photographs(split: Split) -> tuple[Picture, ...]:
    """Return the photographs of a split, one of them twice where it has more to show."""
    if split == "held_out":
        import matplotlib

        path = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
        return (np.asarray(Image.open(path).convert("RGB")),)
    from sklearn.datasets import load_sample_image

    china = load_sample_image("china.jpg")
    flower = load_sample_image("flower.jpg")  # most of it is a blurred background
    return (china, china, flower)


def portrait() -> Picture:
    """Return the upper square of the held-out photograph, as large as it is."""
    (photograph,) = photographs("held_out")
    side = min(photograph.shape[:2])
    left = (photograph.shape[1] - side) // 2
    return photograph[:side, left : left + side]


def crop(rng: Random, photograph: Picture) -> Picture:
    """Return a square of the photograph, at a drawn place and scale, as (SIDE, SIDE, 3); mirrored half of the time."""
    height, width = photograph.shape[:2]
    shorter = min(height, width)
    side = rng.randint(shorter // SMALLEST, shorter)
    left = rng.randint(0, width - side)
    top = rng.randint(0, height - side)
    square = Image.fromarray(photograph[top : top + side, left : left + side])
    small = np.asarray(square.resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    return small[:, ::-1].copy() if rng.random() < 0.5 else small


def samples(
    count: int, seed: int, split: Split, photos: Sequence[Picture] = (), edits: Sequence[PhotoEdit] = EDITS
) -> Iterator[PhotoSample]:
    """Yield the first `count` samples of a seed. Every crop is asked for each of the edits, one after another.

    Args:
        count: Number of samples; each crop has one for every edit.
        seed: Seed of crops and of instructions.
        split: Whose photographs are cropped; the two splits share none.
        photos: Photographs (height, width, 3) in the place of the split's own.
        edits: The edits, which take turns.
    """
    chosen = photos or photographs(split)
    for number in range(count):
        place, turn = divmod(number, len(edits))
        drawn = chooser("photo crop", seed, split, place)
        source = crop(drawn, drawn.choice(chosen))
        edit = edits[turn]
        words = chooser("photo words", seed, split, number)
        yield PhotoSample(
            name=f"{split}-{seed}-{number:05d}",
            task=edit.task,
            source=source,
            target=edit.apply(source),
            english=words.choice(edit.english),
            chinese=words.choice(edit.chinese),
        )


def write(out: Path, count: int, held_out: int, seed: int = 0) -> None:
    """Write `edits.jsonl`, its pictures under `images/`, `portrait.png` and `CREDITS.txt` into the folder `out`."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    (out / "CREDITS.txt").write_text(CREDITS, encoding="utf-8")
    Image.fromarray(portrait()).save(out / "portrait.png")
    with (out / "edits.jsonl").open("w", encoding="utf-8") as file:
        for sample in samples(count, seed, "train"):
            file.write(json.dumps(_row(out, sample, held_out=False), ensure_ascii=False) + "\n")
        for sample in samples(held_out, seed, "held_out"):
            file.write(json.dumps(_row(out, sample, held_out=True), ensure_ascii=False) + "\n")


def _row(out: Path, sample: PhotoSample, held_out: bool) -> dict[str, object]:
    """Return the row of a sample, whose pictures are written."""
    source = f"images/{sample.name}_source.png"
    target = f"images/{sample.name}_target.png"
    Image.fromarray(sample.source).save(out / source)
    Image.fromarray(sample.target).save(out / target)
    return {
        "id": sample.name,
        "task": sample.task,
        "source_image": source,
        "target_image": target,
        "instruction": sample.english,
        "instruction_cn": sample.chinese,
        "held_out": held_out,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="an empty or a new folder")
    parser.add_argument("--count", type=int, default=1024, help="samples to train on")
    parser.add_argument("--held-out", type=int, default=16, help="samples of the portrait, for validation")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.count < 1 or arguments.held_out < 0:
        parser.error("--count is at least 1, --held-out at least 0")
    if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
        parser.error(f"--out {arguments.out}: not an empty folder; choose another")
    write(arguments.out, arguments.count, arguments.held_out, arguments.seed)
    tasks = " and ".join(edit.task for edit in EDITS)
    print(f"{arguments.out}: {arguments.count} edits to train on, {arguments.held_out} held out, {tasks} in turn")


if __name__ == "__main__":
    main()
