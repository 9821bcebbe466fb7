"""Number of edits of a photograph that are right before a LoRA and after it, and a picture of the first ones.

    python benchmarks/photo_edits.py --lora DIR --out before_after.jpg

Crops of the held-out photograph (datamodules/photos.py) are edited by the model as it is, and by the model with the
LoRA that `export` wrote into DIR. An edit is right when it is at least 22 dB from the exact answer, and at least 6 dB
nearer to it than its source is.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from callbacks.grids.sample_grid import GridRow, draw_grid, fitted
from callbacks.lettering import Lettering
from datamodules.photos import EDITS, PhotoSample, Picture, samples
from firered_lit.batch import Condition, Text
from firered_lit.cli import quiet
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.flow.sampler import schedule
from firered_lit.models.codec import to_image, to_pixels
from firered_lit.models.family import Base, open_base
from firered_lit.models.lora_files import find_lora, merge_file
from firered_lit.models.sampling import sample

LEAST_PSNR = 22.0  # dB to the exact answer
LEAST_GAIN = 6.0  # dB by which an edit is nearer to the exact answer than its source is
FONT = Path(__file__).with_name("fonts") / "WenQuanYiMicroHei.subset.ttf"
SHOWN = 4  # crops in the picture, each with every edit
CELL = 112  # pixels of a picture in it
EDGE = "#999999"  # a line around each, that white ones end somewhere
QUALITY = 88  # of a JPEG


def psnr(picture: Picture, answer: Picture) -> float:
    """Return the peak signal-to-noise ratio of two pictures (H, W, 3) of uint8, in dB; infinite when they are equal."""
    error = np.square(picture.astype(np.float64) - answer.astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def is_right(edited: Picture, source: Picture, answer: Picture) -> bool:
    """Return whether an edit is near the exact answer, and much nearer than the source: leaving it alone never is."""
    before = psnr(source, answer)
    after = psnr(edited, answer)
    return math.isfinite(before) and after >= LEAST_PSNR and after - before >= LEAST_GAIN


@dataclass(frozen=True)
class PhotoScores:
    """The count of right edits, of all edits, and their mean PSNR to the exact answers in dB."""

    right: int
    count: int
    psnr: float

    @property
    def percent(self) -> int:
        """The share that is right, rounded down: 100 means all of them."""
        return 100 * self.right // self.count


def judge(edited: Sequence[Picture], asked: Sequence[PhotoSample]) -> PhotoScores:
    """Return how the edits compare with the exact answers of what was asked."""
    verdicts = [is_right(picture, one.source, one.target) for picture, one in zip(edited, asked, strict=True)]
    distances = [psnr(picture, one.target) for picture, one in zip(edited, asked, strict=True)]
    return PhotoScores(sum(verdicts), len(verdicts), mean(distances))


def instruction(one: PhotoSample, number: int) -> str:
    """Return what is asked for, every other crop in Chinese; the edits of one crop are asked for in both languages."""
    crop, turn = divmod(number, len(EDITS))
    return one.chinese if (crop + turn) % 2 else one.english


@torch.no_grad()
def edits(base: Base, transformer: Any, asked: Sequence[PhotoSample], steps: int) -> list[Picture]:
    """Return an edit of every sample's source, drawn as `edit` draws it. The noise is keyed by the sample's name."""
    codec = base.codec()
    sources = torch.stack([to_pixels(Image.fromarray(one.source)) for one in asked])
    latents = codec.encode(sources)
    prompts = [instruction(one, number) for number, one in enumerate(asked)]
    references = [[Image.fromarray(one.source)] for one in asked]
    embeddings = base.conditioner().encode(prompts, references, base.sizes.condition_area)
    noise = torch.cat([gaussian(latents.shape[1:], (0,), "photo edit", one.name) for one in asked])
    sigmas = schedule(steps, latents.shape[-2] * latents.shape[-1] // 4, base.scheduler_config)
    drawn = sample(transformer, noise, sigmas, Condition(Text.pad(embeddings), (latents,)))
    return [np.asarray(to_image(pixels)) for pixels in codec.decode(drawn)]


def before_and_after(asked: Sequence[PhotoSample], before: Sequence[Picture], after: Sequence[Picture]) -> Image.Image:
    """Return the picture: for each edit a column of rows source | before | after | exact answer."""
    lettering = Lettering(str(FONT))
    columns = []
    for turn, edit in enumerate(EDITS):
        rows = []
        for number in range(turn, min(len(asked), SHOWN * len(EDITS)), len(EDITS)):
            one = asked[number]
            cells = {"source": one.source, "before": before[number], "after": after[number], "exact answer": one.target}
            pictures = tuple((name, _edged(Image.fromarray(cell))) for name, cell in cells.items())
            rows.append(GridRow((number,), pictures, instruction(one, number)))
        columns.append(draw_grid(rows, edit.task, lettering))
    picture = Image.new("RGB", (sum(column.width for column in columns), columns[0].height), "white")
    left = 0
    for column in columns:
        picture.paste(column, (left, 0))
        left += column.width
    return picture


def _edged(cell: Image.Image) -> Image.Image:
    """Return a picture as it stands in the grid: CELL pixels high, with a thin line around it."""
    return ImageOps.expand(fitted(cell, CELL - 2), border=1, fill=EDGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", type=Path, required=True, help="a folder that `export` wrote of a LoRA, or its file")
    parser.add_argument("--out", type=Path, required=True, help="where the picture goes")
    parser.add_argument("--model", default="world", help="what the LoRA was trained on (default: world)")
    parser.add_argument("--crops", type=int, default=40, help="of the photograph; each is edited in every way")
    parser.add_argument("--steps", type=int, default=8, help="of the solver")
    parser.add_argument("--seed", type=int, default=0, help="of crops, instructions and noise")
    arguments = parser.parse_args()
    if min(arguments.crops, arguments.steps) < 1:
        parser.error("--crops and --steps are at least 1")
    quiet()
    try:
        file = find_lora(arguments.lora)
        base = open_base(arguments.model)
        transformer = base.transformer().eval()
        asked = list(samples(arguments.crops * len(EDITS), arguments.seed, "held_out"))
        before = edits(base, transformer, asked, arguments.steps)
        merge_file(transformer, file)
    except UserError as error:
        parser.error(str(error))
    after = edits(base, transformer, asked, arguments.steps)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    before_and_after(asked, before, after).save(arguments.out, quality=QUALITY, optimize=True)
    print(f"grid          {arguments.out}")
    for name, judged in (("before", judge(before, asked)), ("after", judge(after, asked))):
        found = f"{judged.right} of {judged.count}, {judged.psnr:.1f} dB to the exact answer on average"
        print(f"{f'right {name} {judged.percent} %':<20} {found}")


if __name__ == "__main__":
    main()
