"""JSONL of 100 thousand and of 1 million edits: read, validated and indexed by the sizes in its rows; memory, rows/s.

    python benchmarks/read.py [--quick] [--rows N ...]

Every measurement runs in a fresh process. "above" is its peak resident memory, mapped files and all, above what it has
when everything is imported; what the system caches of files that are read and written, such as the scratch files of
ids and of the index, is not the process's. The last line is how much "above" grows from the fewest rows to the most.
"rows/s" is by the clock, "of a core" by the time that the process ran.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datamodules.sampling.buckets import Index, IndexRow, write_index
from datamodules.sources.records import Refusal, read
from datamodules.summary import index_row
from firered_lit.models.sizes import RATIOS, Sizes

WIDTHS = 10, 8, 8, 12, 10, 8, 10


def synthesise(path: Path, rows: int) -> int:
    """Edits of ten tasks, one to three references and many sizes; one row in a thousand is broken. How many are."""
    chance, broken = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        for i in range(rows):
            ratio, side = float(chance.choice(RATIOS)), chance.randrange(600, 1600)
            row = {
                "source_image": [f"source/{i // 4:08d}_{j}.jpg" for j in range(1 + i % 3)],
                "target_image": f"target/{i:08d}.jpg",
                "instruction": f"Put the lamp of Figure 1 on the left of table {i} and keep the rest as it is.",
                "instruction_cn": f"把图1中的灯放到桌子{i}的左边，其余保持不变。",
                "task": f"task {i % 10}",
                "width": round(side * ratio**0.5),
                "height": round(side / ratio**0.5),
            }
            if i % 1000 == 999:
                row["target_image"], broken = None, broken + 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return broken


def _status(name: str) -> float:
    """Return a figure of this process's memory, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def measure(source: Path, folder: Path) -> dict[str, float]:
    """Read, validate and index a file, in this process."""
    refused: Counter[str] = Counter()

    def indexed() -> Iterator[IndexRow]:
        for position, item in enumerate(read(source)):
            if isinstance(item, Refusal):
                refused[item.reason] += 1
            else:
                yield index_row(item, position, Sizes())

    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start, cpu = _status("VmRSS"), time.perf_counter(), time.process_time()
    write_index(folder, indexed())
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    index = Index.open(folder)
    rows = len(index) + refused.total()
    return {
        "rows": rows,
        "refused": refused.total(),
        "buckets": len(index.buckets),
        "above": _status("VmHWM") - before,
        "imports": before,
        "rate": rows / seconds,
        "core": rows / cpu,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--quick", action="store_true", help="5 and 20 thousand rows")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*map(Path, arguments.measure))))
        return
    names = zip(("rows", "refused", "buckets", "imports, MB", "above, MB", "rows/s", "of a core"), WIDTHS)
    print(" ".join(f"{name:>{width}}" for name, width in names))
    above: dict[int, float] = {}
    for count in [5_000, 20_000] if arguments.quick else arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "edits.jsonl")
            broken = synthesise(source, count)
            command = [sys.executable, __file__, "--measure", str(source), f"{folder}/index"]
            out = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert (out["rows"], out["refused"]) == (count, broken), out
        above[count] = out["above"]
        figures = [f"{count:,}", f"{broken:,}", f"{out['buckets']}", f"{out['imports']:.0f}", f"{out['above']:.1f}"]
        figures += [f"{out['rate']:,.0f}", f"{out['core']:,.0f}"]
        print(" ".join(f"{figure:>{width}}" for figure, width in zip(figures, WIDTHS)), flush=True)
    few, many = min(above), max(above)
    if few < many:
        a_row = 1e6 * (above[many] - above[few]) / (many - few)
        print(f"growth from {few:,} to {many:,} rows: {above[many] - above[few]:.1f} MB, {a_row:.1f} bytes a row")


if __name__ == "__main__":
    main()
