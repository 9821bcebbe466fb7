"""Rows a second of `prepare`, encoded one by one and several together, in one process on the same rows.

    python benchmarks/prepare.py [--quick] [--rows 64] [--batch 8] [--rounds 5] [--model tiny] [--side 64] [--device D]

Each round encodes the rows both ways, taking turns, with the models loaded once; images are opened and cropped outside
of what is timed. Beside the whole, the VAE's and the text encoder's own share of the gain, and how far the results lie
apart.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image

from datamodules.chunks.samples import Sample
from datamodules.prepare.crops import Cropped, Opening
from datamodules.prepare.encode import Encoder
from datamodules.sources.records import Record
from firered_lit.models.family import open_base
from firered_lit.models.sizes import Sizes

SHAPES = ((96, 64), (64, 96), (80, 80))  # width, height, a quarter of the way to the sides asked for


def edits(folder: Path, count: int, side: int, opening: Opening) -> list[Cropped]:
    """Return edits of one reference, in two languages, of three shapes."""
    found: list[Cropped] = []
    for i in range(count):
        names = [str(folder / f"{role}{i}.png") for role in "st"]
        for name in names:
            noise = np.random.default_rng([i, len(name)]).integers(0, 256, (8, 8, 3), np.uint8)
            width, height = SHAPES[i % len(SHAPES)]
            picture = Image.fromarray(noise + np.uint8(name == names[0]))
            picture.resize((width * side // 64, height * side // 64)).save(name)
        texts = {"original/en": f"make thing {i} as red as the other one", "original/cn": f"把第{i}个变成红色"}
        opened = opening([Record(f"r{i}", "edit", names[1], (names[0],), texts, f"rows:{i}")])
        assert isinstance(opened, list), opened
        found += opened
    return found


def seconds(run: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def distance(encoder: Encoder, some: list[Cropped], batch: int) -> float:
    """Return the largest difference between the tensors that the two ways store."""
    encoder.batch = 1
    alone = [encoder.encode([cropped])[0] for cropped in some]
    encoder.batch = batch
    together = encoder.encode(some)
    largest = 0.0
    for one, other in zip(alone, together, strict=True):
        assert isinstance(one, Sample), one
        assert isinstance(other, Sample), other
        for name in one.tensors:
            largest = max(largest, float((one.tensors[name] - other.tensors[name]).abs().max()))
    return largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rows, one round: whether it runs")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    count, rounds = (8, 1) if options.quick else (options.rows, options.rounds)
    sizes = Sizes(options.side**2, options.side**2, min(384, options.side) ** 2)
    base = open_base(options.model).resized(sizes)
    encoder = Encoder(base, "bfloat16" if options.device == "cuda" else "float32", options.device)
    with tempfile.TemporaryDirectory() as folder:
        some = edits(Path(folder), count, options.side, Opening(sizes, lambda row: False))
    prompts = [encoder._prompts(cropped) for cropped in some]
    parts: dict[str, Callable[[list[Cropped], list], object]] = {
        "all": lambda own, _: encoder.encode(own),
        "VAE": lambda own, _: encoder._latents(own),
        "text": lambda own, asked: encoder._texts(own, asked),
    }
    taken: dict[tuple[str, int], list[float]] = {}
    encoder.encode(some[:1])
    for _ in range(rounds):
        for name, run in parts.items():
            for batch in (1, options.batch):
                encoder.batch = batch
                groups = [slice(i, i + batch) for i in range(0, count, batch)]
                spent = seconds(lambda: [run(some[own], prompts[own]) for own in groups])  # noqa: B023, run at once
                taken.setdefault((name, batch), []).append(spent)
    print(f"{'':<5} {'rows/s, 1':>10} {f'rows/s, {options.batch}':>10} {'ratio':>6}")
    for name in parts:
        one, many = (taken[name, batch] for batch in (1, options.batch))
        ratio = statistics.median(a / b for a, b in zip(one, many))
        rates = [count / statistics.median(spent) for spent in (one, many)]
        print(f"{name:<5} {rates[0]:>10.1f} {rates[1]:>10.1f} {ratio:>6.2f}")
    print(f"largest difference {distance(encoder, some[: options.batch], options.batch):.1e}")


if __name__ == "__main__":
    main()
