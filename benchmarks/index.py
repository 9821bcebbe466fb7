"""The plan of global batches over 1, 10 and 100 million rows: memory, time to open, to the first batch, batches/s.

    python benchmarks/index.py [--quick] [--rows N ...] [--ranks 64]

Every measurement runs in a fresh process. "shared" is the file, whose pages all processes of a host share; "private" is
what one planning process adds of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from datamodules.sampling.buckets import BatchPlan, Index
from datamodules.sampling.index import save
from firered_lit.models.sizes import shape_table

AREA = 1024 * 1024
CAPACITY = 12 * 4096
CLUSTERS = 1000
CHUNK = 64  # rows of a chunk: about 256 MB of latents at this size


def synthesise(folder: Path, rows: int) -> None:
    """An index of `rows` rows in 360 uneven buckets (ten tasks, zero to three references, nine shapes)."""
    keys = sorted(
        (f"task{task}", n, shape, (shape,) * n, (), False)
        for task in range(10)
        for n in range(4)
        for shape in shape_table(AREA)
    )
    share = np.random.default_rng(0).dirichlet(np.full(len(keys), 0.5))
    counts = np.maximum(1, np.floor(share * (rows - len(keys)))).astype(np.int64)
    counts[0] += rows - counts.sum()
    numbers = np.arange(rows, dtype=np.uint32)
    starts = np.cumsum(counts) - counts
    segments = np.concatenate([s + np.linspace(0, c, min(c, CLUSTERS), endpoint=False) for s, c in zip(starts, counts)])
    columns = {
        "positions": numbers,
        "blocks": np.union1d(starts, numbers[::CHUNK]),
        "by_cluster": numbers,
        "segment_start": segments.astype(np.int64),
        "segment_cluster": np.concatenate([np.arange(min(c, CLUSTERS)) for c in counts]),
    }
    save(folder, list(zip(keys, counts.tolist())), [f"cluster{i}" for i in range(CLUSTERS)], columns)


def _private() -> int:
    """Return the bytes that this process alone holds."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Private_Dirty")) * 1024


def measure(folder: Path, ranks: int, batches: int) -> dict[str, float]:
    """Return the figures of one index, in this process."""
    before, start = _private(), time.perf_counter()
    index = Index.open(folder)
    opened = time.perf_counter()
    plan = BatchPlan(index, capacity=CAPACITY, plan_ranks=ranks, seed=0)
    plan[0, 0]
    first = time.perf_counter()
    middle = max(0, plan.steps() // 2 - batches)
    at = [(1, (middle + i) % plan.steps()) for i in range(batches)]
    for address in at[: batches // 4]:  # every bucket's order for the epoch is laid out on its first batch
        plan[address]
    begin = time.perf_counter()
    for address in at[batches // 4 :]:
        plan[address]
    rate = (batches - batches // 4) / (time.perf_counter() - begin)
    private = _private() - before
    begin = time.perf_counter()
    weighted = BatchPlan(index, capacity=CAPACITY, plan_ranks=ranks, seed=0, weights={"cluster": "uniform"})
    weighted[0, 0]
    weighed = time.perf_counter()
    for i in range(batches):
        weighted[divmod(i, weighted.steps())]
    return {
        "rows": len(index),
        "shared": (folder / "index.safetensors").stat().st_size / len(index),
        "private": private / 1e6,
        "open": opened - start,
        "first": first - opened,
        "rate": rate,
        "left": plan.left_out(0).share,
        "weigh": weighed - begin,
        "weighted": batches / (time.perf_counter() - weighed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--batches", type=int, default=8000)
    parser.add_argument("--quick", action="store_true", help="small sizes, a few seconds")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.batches = [20_000, 200_000], 400
    if args.measure:
        print(json.dumps(measure(args.measure, args.ranks, args.batches)))
        return
    print(f"{args.ranks} plan ranks, 360 buckets, {CLUSTERS} clusters, capacity {CAPACITY} tokens")
    print(
        "       rows  shared B/row  private MB  open s  first batch s  batches/s  left out  weigh s  weighted batches/s"
    )
    for rows in args.rows:
        with tempfile.TemporaryDirectory() as folder:
            synthesise(Path(folder), rows)
            command = [sys.executable, __file__, "--measure", folder, "--ranks", args.ranks, "--batches", args.batches]
            out = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
        print(
            "{rows:>11,}  {shared:12.2f}  {private:10.1f}  {open:6.3f}  {first:13.3f}  {rate:9.0f}  {left:8.3%}  "
            "{weigh:7.2f}  {weighted:18.0f}".format(**json.loads(out)),
            flush=True,
        )


if __name__ == "__main__":
    main()
