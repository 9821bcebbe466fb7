"""Samples a second of one worker: chunks of cached latents, against one file per sample as the authors' loader reads.

    python benchmarks/loader.py [--quick] [--samples 192] [--side 1024] [--workers 1] [--rounds 3]

Both show the same edits, one reference each, in batches of four. The plain loader holds its JSONL in memory and for
each sample opens a torch file with the prompt's embedding, decodes source and target, resizes and crops them; the VAE
would still have to run. The files are in the page cache, and rounds alternate, so that a busy machine slows both.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.chunks.samples import Sample
from datamodules.edits import EditDataModule
from datamodules.prepare.parts import Parts

TOKENS, WIDTH = 320, 3584  # of a prompt with one reference, as Qwen2.5-VL-7B embeds it
BATCH = 4


def photo(random: np.random.Generator, side: int) -> Image.Image:
    """Something that a JPEG decoder has to work on: coarse shapes with some grain, a fifth larger than the crop."""
    width, height = side * 5 // 4, side * 6 // 5
    coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    grain = random.normal(0, 6, (height, width, 1))
    return Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8))


def embedding(seed: int) -> Tensor:
    return torch.randn(TOKENS, WIDTH, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


def write_files(folder: Path, count: int, side: int) -> None:
    """One JPEG per image, one torch file per embedding, and the rows."""
    folder.mkdir()
    random, rows = np.random.default_rng(0), []
    for i in range(count):
        row = {name: f"{i}_{name}.jpg" for name in ("source_image", "target_image")}
        for name in row.values():
            photo(random, side).save(folder / name, quality=92)
        torch.save(embedding(i), folder / f"{i}.pt")
        rows.append(row | {"instruction": f"edit {i}", "embedding": f"{i}.pt"})
    (folder / "edits.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def samples(count: int, side: int) -> Iterator[Sample]:
    """Return the same edits, encoded."""
    meta = {"task": "edit", "target": [side, side], "references": [[side, side]], "cluster": "", "held_out": False}
    for i in range(count):
        noise = torch.Generator().manual_seed(i)
        latents = torch.randn(2, 16, side // 8, side // 8, generator=noise).to(torch.bfloat16)
        texts = {"text.original/en": embedding(i), "text.unconditional": embedding(i)[:250]}
        tensors = {"target": latents[0].clone(), "reference.0": latents[1].clone()} | texts
        yield Sample(str(i), meta | {"instructions": {"original/en": f"edit {i}"}}, tensors, {})


class SampleFiles(Dataset):
    """Load a sample as the authors' loader does."""

    def __init__(self, folder: Path, side: int) -> None:
        self.folder, self.side = folder, side
        self.rows = [json.loads(line) for line in (folder / "edits.jsonl").read_text().splitlines()]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        row = self.rows[i]
        text = torch.load(self.folder / row["embedding"], weights_only=True)
        return self._image(row["source_image"]), self._image(row["target_image"]), text

    def _image(self, name: str) -> Tensor:
        """Return the centre of the image at the shape of its bucket, (3, H, W) in [-1, 1]."""
        with Image.open(self.folder / name) as file:
            image = file.convert("RGB")
        scale = self.side / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - self.side) // 2, (image.height - self.side) // 2
        image = image.crop((left, top, left + self.side, top + self.side))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1


def rate(batches: Iterator, count: int) -> float:
    """Return the samples a second over `count` batches; the first two are not timed."""
    for _ in islice(batches, 2):
        pass
    begun = time.perf_counter()
    seen = sum(1 for _ in islice(batches, count))
    return seen * BATCH / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few samples, one round")
    parser.add_argument("--samples", type=int, default=192)
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.quick:
        args.samples, args.rounds = 24, 1
    torch.set_num_threads(1)
    count = args.samples // BATCH - 2
    found: dict[str, list[float]] = {"chunks of latents": [], "one file per sample": []}
    with tempfile.TemporaryDirectory() as scratch:
        files, chunks = Path(scratch) / "files", Path(scratch) / "chunks"
        write_files(files, args.samples, args.side)
        parts = Parts(chunks)
        parts.write(0, args.samples, samples(args.samples, args.side), [])
        parts.finish({"fingerprints": {}, "model": "none", "sizes": {}})
        for _ in range(args.rounds):
            data = EditDataModule(str(chunks), capacity=1 << 20, max_batch=BATCH, workers=args.workers, plan_ranks=1)
            ours = data.train_dataloader()
            found["chunks of latents"].append(rate(iter(ours), count) / max(1, args.workers))
            ours.close()
            plain = DataLoader(SampleFiles(files, args.side), BATCH, shuffle=True, num_workers=args.workers)
            found["one file per sample"].append(rate(iter(plain), count) / max(1, args.workers))
    print(f"{args.samples} edits of {args.side}x{args.side}, one reference, batches of {BATCH}, {args.workers} workers")
    print(f"{'loader':<20} {'samples/s per worker, median':>28} {'lowest':>8} {'highest':>8}")
    for name, rates in found.items():
        print(f"{name:<20} {np.median(rates):>28.1f} {min(rates):>8.1f} {max(rates):>8.1f}")
    ratios = [a / b for a, b in zip(*found.values())]
    print(f"times faster         {np.median(ratios):>28.1f} {min(ratios):>8.1f} {max(ratios):>8.1f}")


if __name__ == "__main__":
    main()
