"""Gain of a token budget over a fixed batch size, loss by cropping to the shape table, and evenness of the ranks.

    python benchmarks/buckets.py [--quick] [--rows N] [--ranks 8] [--tasks 1] [--area PIXELS] [--as-written]

Mixtures of 0, 1, 2 and 3 references at 1:1:1:0 and 1:1:1:1, targets uniform over the nine ratios. References have the
target's shape ("same"), or one in five has any of the nine ("mixed": many more buckets, so more small last batches).
Capacities and pixel areas are the recipes' own: pretrain.yaml's, where twelve targets fit, and sft.yaml's, where four
do; with --area 12 and 4 times that table's largest target. "used" is the share of the tokens that fit: in full batches,
and over the whole epoch with the smaller batches that end a bucket, where samples that come twice count once. "left
out" and "twice" are of the samples, in an epoch of the default plan, the worst of five.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from datamodules.sampling.buckets import BatchPlan, Index, IndexRow, write_index
from firered_lit.config.recipe import load
from firered_lit.models.sizes import Shape, assign, cover, largest_tokens, shape_table, tokens

RECIPES = {"pretrain": 512 * 512, "sft": 1024 * 1024}  # the pixel area that each prepares its data at


def mixture(
    rows: int, shares: tuple[int, ...], table: tuple[Shape, ...], mixed: float, tasks: int = 1, canonical: bool = True
) -> Iterator[IndexRow]:
    """Return rows with `shares[n]` parts of n references, in the canonical order of their shapes or in any."""
    random = np.random.default_rng(0)
    counts = random.choice(len(shares), rows, p=np.array(shares) / sum(shares)).tolist()
    shapes = random.integers(len(table), size=(rows, len(shares)))
    shapes[:, 1:] = np.where(random.random((rows, len(shares) - 1)) < mixed, shapes[:, 1:], shapes[:, :1])
    for position, (n, (target, *references)) in enumerate(zip(counts, shapes.tolist())):
        own = sorted(references[:n]) if canonical else references[:n]
        yield IndexRow(f"edit {position % tasks}", table[target], tuple(table[i] for i in own), position)


def budget(index: Index, capacity: int, ranks: int) -> tuple[float, float, float, float, float]:
    """Use of the capacity by full batches, and by an epoch; worst imbalance of ranks; share of rows left out, twice."""
    plan = BatchPlan(index, capacity=capacity, plan_ranks=ranks, seed=0)
    used, worst = 0, 0.0
    for step in range(plan.steps()):
        bucket, ids = plan[0, step]
        each = np.array([len(rows) * bucket.tokens for rows in ids])
        used += len(np.unique(np.concatenate(ids))) * bucket.tokens
        worst = max(worst, each.max() / each.mean() - 1)
    samples = np.array([[b.tokens, b.count] for b in index.buckets], float)
    full = capacity // samples[:, 0]
    whole = (samples[:, 0] * samples[:, 1]).sum() / (samples[:, 1] / full).sum() / capacity
    left = [plan.left_out(epoch) for epoch in range(5)]
    twice = max(epoch.repeated for epoch in left) / len(index)
    return float(whole), used / (plan.steps() * ranks * capacity), worst, max(epoch.share for epoch in left), twice


def fixed(index: Index, capacity: int, ranks: int) -> tuple[int, float, float]:
    """The batch size that fits the largest sample, its share of the capacity, the mean imbalance of a random order."""
    sizes = np.repeat([b.tokens for b in index.buckets], [b.count for b in index.buckets])
    batch = capacity // int(sizes.max())
    np.random.default_rng(0).shuffle(sizes)
    each = sizes[: len(sizes) // (batch * ranks) * batch * ranks].reshape(-1, ranks, batch).sum(2)
    return batch, each.mean() / capacity, float((each.max(1) / each.mean(1) - 1).mean())


def crops(rows: int, table: tuple[Shape, ...]) -> np.ndarray:
    """Share of the area lost to cropping: half common camera and screen ratios, half any ratio from 1:2.2 to 2.2:1."""
    random = np.random.default_rng(0)
    ratios = np.exp(random.uniform(-np.log(2.2), np.log(2.2), rows))
    common = random.choice(
        [4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9, 9 / 16, 1.0, 5 / 4, 4 / 5, 1.85, 19.5 / 9, 9 / 19.5], rows
    )
    ratios = np.where(random.random(rows) < 0.5, ratios, common)
    areas = np.exp(random.uniform(np.log(0.5e6), np.log(12e6), rows))
    lost = []
    for height, width in zip(np.sqrt(areas / ratios).round().tolist(), np.sqrt(areas * ratios).round().tolist()):
        shape = assign(int(height), int(width), table)
        scale = cover(int(height), int(width), shape)
        lost.append(1 - shape[0] * shape[1] / (scale * scale * height * width))
    return np.array(lost)


def budgets(area: int | None) -> list[tuple[int, int]]:
    """Return (pixel area, capacity) pairs: the recipes' own or, of another area, room for 12 and for 4 targets."""
    if area is not None:
        return [(area, targets * largest_tokens(area)) for targets in (12, 4)]
    trees = {name: load(str(ROOT / "recipes" / f"{name}.yaml")).root for name in RECIPES}
    return [(own, trees[name]["data"]["capacity"]) for name, own in RECIPES.items()]


def single_shapes(area: int, capacity: int) -> Iterator[tuple[Shape, float, float]]:
    """Return for every shape the use of a capacity by edits of it with one reference, and by that of squares."""
    squares = capacity // largest_tokens(area) * (area // 256)
    for shape in shape_table(area):
        sample = 2 * tokens(shape)
        yield shape, capacity // sample * sample / capacity, squares // sample * sample / squares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--tasks", type=int, default=1, help="task groups, alike in size")
    parser.add_argument("--as-written", action="store_true", help="references in any order of shapes, not canonical")
    parser.add_argument("--area", type=int, help="pixels of every image; without it the recipes' own")
    parser.add_argument("--quick", action="store_true", help="few rows, a few seconds")
    args = parser.parse_args()
    rows = 30_000 if args.quick else args.rows
    print(f"{rows} rows, {args.ranks} ranks")
    for area, capacity in budgets(args.area):
        largest = largest_tokens(area)
        print(f"{capacity} tokens: {capacity // largest} targets near {area} pixels, the largest of {largest} tokens")
    print("references  shapes  buckets  capacity    used (full)  used (epoch)  imbalance  left out   twice", end="")
    print("  |  fixed batch    used  imbalance")
    for shares in [(1, 1, 1, 0), (1, 1, 1, 1)]:
        for shapes, mixed in [("same", 0.0), ("mixed", 0.2)]:
            for area, capacity in budgets(args.area):
                with tempfile.TemporaryDirectory() as folder:
                    write_index(
                        folder, mixture(rows, shares, shape_table(area), mixed, args.tasks, not args.as_written)
                    )
                    index = Index.open(folder)
                    full, used, imbalance, left, twice = budget(index, capacity, args.ranks)
                    batch, share, uneven = fixed(index, capacity, args.ranks)
                    print(f"{':'.join(map(str, shares)):>10}  {shapes:>6}  {len(index.buckets):>7}", end="")
                    print(f"  {capacity // largest_tokens(area):>2} targets  {full:11.1%}", end="")
                    print(f"  {used:12.1%}  {imbalance:9.1%}  {left:8.2%}  {twice:6.2%}", end="")
                    print(f"  |  {batch:>11}  {share:6.1%}  {uneven:9.1%}", flush=True)
    area, capacity = budgets(args.area)[-1]
    for (height, width), used, by_squares in single_shapes(area, capacity):
        print(
            f"{width}x{height} with one reference: used {used:.1%}; by the capacity of as many squares {by_squares:.1%}"
        )
    lost = crops(min(rows, 100_000), shape_table(area))
    print(f"crop loss: mean {lost.mean():.2%}, p99 {np.quantile(lost, 0.99):.2%}, worst {lost.max():.2%} of the area")


if __name__ == "__main__":
    main()
