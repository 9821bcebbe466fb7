"""Speed of the corpus engine on one core, and the growth of its memory.

    python benchmarks/curation.py pictures [--count 60] [--side 1024] [--against]
    python benchmarks/curation.py duplicates [--rows 1000000 ...]
    python benchmarks/curation.py select [--rows 1000000 ...] [--columns 30]
    python benchmarks/curation.py vectors [--rows 100000 ...]
    python benchmarks/curation.py phrases [--rows 1000000 ...]

`pictures` times decoding and every annotator on the same JPEG files, crops of the photographs that the dependencies
bring; with --against, cleanvision and imagededup too, where they are installed. The others run each size in a process
of its own and print the peak of its resident memory.
"""

import argparse
import contextlib
import io
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]

ROUNDS = 3
SHARD_ROWS = 50_000


def write_crops(folder: Path, count: int, side: int) -> None:
    """JPEG files of quality 90, crops of photographs scaled to `side` px."""
    from defects import photographs

    photos = photographs()
    for number in range(count):
        rng = random.Random(number)
        photo = photos[number % len(photos)]
        least = min(photo.shape[:2])
        size = rng.randint(least * 2 // 3, least)
        top, left = rng.randint(0, photo.shape[0] - size), rng.randint(0, photo.shape[1] - size)
        pixels = cv2.resize(photo[top : top + size, left : left + size], (side, side), interpolation=cv2.INTER_CUBIC)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


def pictures(count: int, side: int, against: bool) -> None:
    """Milliseconds a picture, the median of some rounds, of decoding, of every annotator, and of others' checks."""
    from datamodules.sources.raw import RawRows
    from firered_lit.config.build import build
    from firered_lit.config.recipe import load

    cv2.setNumThreads(1)
    recipe = load("recipes/curate/laptop.yaml").root
    annotators = build(recipe["annotators"], key="annotators")
    spent: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_crops(folder, count, side)
        rows = RawRows(place)
        paths = sorted(map(str, folder.glob("*.jpg")))
        of_pictures = {name: annotator for name, annotator in annotators.items() if annotator.of == "picture"}
        for annotator in of_pictures.values():
            annotator.open()
        for _ in range(ROUNDS):
            clocks = dict.fromkeys(("decoding", "photometric", "hashes", *of_pictures), 0.0)
            for path in paths:
                begun = time.process_time()
                picture = rows.open(path, "target")
                clocks["decoding"] += time.process_time() - begun
                for name in ("photometric", "hashes", *(set(of_pictures) - {"photometric", "hashes"})):
                    begun = time.process_time()
                    of_pictures[name].annotate([picture])
                    clocks[name] += time.process_time() - begun
            if against:
                clocks |= others(folder)
            for name, seconds in clocks.items():
                spent.setdefault(name, []).append(1000 * seconds / len(paths))
    times = {name: median(values) for name, values in spent.items()}
    print(
        f"{count} JPEG files of {side} px, one core, milliseconds of the processor a picture, median of {ROUNDS} rounds"
    )
    for name, value in times.items():
        print(f"{name:28} {value:8.2f}")
    together = times["decoding"] + times["photometric"] + times["hashes"]
    print(f"decoding, photometric and hashes together: {together:.2f} ms, {1000 / together:.0f} pictures/s")
    for name in ("cleanvision", "imagededup"):
        if name in times:
            print(f"{name}: {times[name]:.2f} ms")


def processor() -> float:
    """Return the seconds of the processor that this process and those that it has waited for have taken."""
    return sum(os.times()[:4])


def others(folder: Path) -> dict[str, float]:
    """Return the seconds of the processor that cleanvision's and imagededup's checks take for all files."""
    clocks = {}
    with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
        from cleanvision import Imagelab

        lab = Imagelab(data_path=str(folder))
        begun = processor()
        lab.find_issues({name: {} for name in ("dark", "light", "blurry", "low_information", "grayscale")}, n_jobs=1)
        clocks["cleanvision"] = processor() - begun
    with contextlib.suppress(ImportError), contextlib.redirect_stdout(io.StringIO()):
        from imagededup.methods import PHash

        begun = processor()
        method = PHash(verbose=False)
        hashes = method.encode_images(image_dir=str(folder), num_enc_workers=0)
        method.find_duplicates(encoding_map=hashes, max_distance_threshold=3, num_dist_workers=0)
        clocks["imagededup"] = processor() - begun
    return clocks


def planted(rows: int, place: Path) -> tuple[np.ndarray, np.ndarray]:
    """Write random hashes to the disk; of every hundred one has a neighbour at a distance of 0 to 3 bits."""
    rng = np.random.default_rng(rows)
    hashes = np.memmap(place, np.uint64, "w+", shape=(rows,))
    for start in range(0, rows, 1 << 20):
        size = min(1 << 20, rows - start)
        hashes[start : start + size] = rng.integers(0, 1 << 64, size, dtype=np.uint64, endpoint=False)
    first = np.arange(rows // 100) * 50
    distances = np.arange(len(first)) % 4
    mask = np.zeros(len(first), np.uint64)
    for number in range(3):
        bits = rng.integers(0, 21, len(first)) + 21 * number
        mask ^= np.where(distances > number, np.uint64(1) << bits.astype(np.uint64), np.uint64(0))
    hashes[first + 25] = hashes[first] ^ mask
    hashes.flush()
    return first, distances


def peak(begin: bool = False) -> float:
    """Return the highest resident memory of this process in MB, counted from a call with `begin` (Linux)."""
    if begin:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def duplicates(rows: int) -> None:
    """Recall at each distance, hashes a second, and the peak of memory above the process before."""
    from firered_lit.curation.duplicates import groups

    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "hashes"
        first, distances = planted(rows, path)
        hashes = np.memmap(path, np.uint64, "r", shape=(rows,))
        before = peak(begin=True)
        begun = time.process_time()
        members, labels = groups(hashes, 3)
        seconds = time.process_time() - begun
        above = peak() - before
    label = dict(zip(members.tolist(), labels.tolist()))
    found = np.array([label.get(row, -1) == label.get(row + 25, -2) for row in first.tolist()])
    recall = [float(found[distances == distance].mean()) for distance in range(4)]
    print(
        f"{rows:>12,} | {' '.join(f'{100 * share:.2f}' for share in recall)} | {rows / seconds / 1e6:.2f} | {above:.0f}"
    )


def select(rows: int, columns: int) -> None:
    """Seconds and peak memory of selecting from a synthetic table, first and again with another threshold."""
    from firered_lit.curation import fit, scores
    from firered_lit.curation.annotator import Annotator, identity
    from firered_lit.curation.corpus import Corpus
    from firered_lit.curation.fit import Duplicates
    from firered_lit.curation.hashes import Hashes
    from firered_lit.curation.rules import read
    from firered_lit.curation.select import select as settle
    from firered_lit.curation.shards import OWN
    from firered_lit.curation.words import Words

    class Numbers(Annotator):
        pass

    Numbers.columns = {f"c{number}": "number" for number in range(columns)}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        annotators = {"numbers": Numbers(), "hashes": Hashes(), "words": Words()}
        corpus = Corpus(folder, rows, SHARD_ROWS, annotators)
        rng = np.random.default_rng(0)
        for shard in range(corpus.shards):
            size = corpus.size(shard)
            keys: dict[str, Any] = {"row": np.arange(size) + shard * SHARD_ROWS, "picture": np.zeros(size, np.int16)}
            none = [None] * size
            ids = [f"id{row}" for row in keys["row"]]
            row = dict.fromkeys(OWN["row"], none) | {"id": ids, "source": ids, "kind": ["text-to-image"] * size}
            values: dict[str, dict[str, Any]] = {
                "row": row | {"source": ["a"] * size, "pictures": np.ones(size, int)},
                "file": dict.fromkeys(OWN["file"], none),
                "numbers": {name: rng.random(size, np.float32) for name in Numbers.columns},
                "hashes": {"exact": none, "perceptual": rng.integers(0, 1 << 63, size, dtype=np.uint64)},
                "words": {"characters": none, "words": none, "language": none, "folded": none},
            }
            for name, own in values.items():
                kinds = OWN[name] if name in OWN else annotators[name].columns
                made_by = {} if name in OWN else identity(annotators[name])
                scores.write(scores.path_of(folder, name, shard), kinds, {**own, **keys, "failure": none}, made_by)
        fit.fit(corpus, Duplicates(), None)
        known = corpus.kinds
        times = []
        for bound in (0.01, 0.02):
            rules = {
                f"rule{n}": read(f"rule{n}", {"column": f"numbers.c{n}", "below": bound}, known)
                for n in range(columns - 2)
            }
            by_quantile = {"column": f"numbers.c{columns - 1}", "above_quantile": 0.995}
            rules["quantile"] = read("quantile", by_quantile, known)
            peak(begin=True)
            begun = time.perf_counter()
            done = settle(corpus, rules, Duplicates(best={"numbers.c0": "highest"}))
            times.append(time.perf_counter() - begun)
        highest = peak()
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    kept = 100 * done.kept / rows
    print(f"{rows:>12,} | {times[0]:.1f} | {times[1]:.1f} | {highest:.0f} | {size / 1e6:.0f} | {kept:.1f}")


def written(
    folder: Path, rows: int, shard_rows: int, name: str, annotator: Any, values: Callable[[int, int], dict[str, Any]]
) -> Any:
    """Return a corpus with the columns of one annotator; `values(shard, size)` gives them by name."""
    from firered_lit.curation import scores
    from firered_lit.curation.corpus import Corpus

    corpus = Corpus(folder, rows, shard_rows, {name: annotator})
    for shard in range(corpus.shards):
        size = corpus.size(shard)
        keys: dict[str, Any] = {"row": np.arange(size) + shard * shard_rows, "picture": np.zeros(size, np.int16)}
        own = values(shard, size)
        scores.write(
            scores.path_of(folder, name, shard), annotator.columns, {**own, **keys, "failure": [None] * size}, {}
        )
    return corpus


def vectors(rows: int, width: int = 256) -> None:
    """Print recall of planted neighbours by vectors in 500 blurred clusters, seconds, and memory above before."""
    from firered_lit.curation.annotator import Annotator
    from firered_lit.curation.vectors import near_groups

    class Look(Annotator):
        columns = {"vector": "vector"}  # noqa: RUF012

    rng = np.random.default_rng(0)
    found = 0.7 * rng.normal(size=(500, width))[rng.integers(0, 500, rows)] + rng.normal(size=(rows, width))
    count = rows // 50
    found[-count:] = found[:count] + 0.15 * rng.normal(size=(count, width))
    lengths = np.linalg.norm(found[:count], axis=1) * np.linalg.norm(found[-count:], axis=1)
    near = (found[:count] * found[-count:]).sum(1) / lengths >= 0.97
    with tempfile.TemporaryDirectory() as place:

        def values(shard: int, size: int) -> dict[str, Any]:
            return {"vector": list(found[shard * 5000 : shard * 5000 + size].astype(np.float32))}

        corpus = written(Path(place), rows, 5000, "look", Look(), values)
        before = peak(begin=True)
        begun = time.process_time()
        members, labels = near_groups(corpus, "look.vector", 0, 0.97, np.zeros(rows, np.uint64))
        seconds = time.process_time() - begun
        above = peak() - before
    label = np.arange(rows)
    label[members] = labels
    recall = float((label[:count] == label[-count:])[near].mean())
    print(f"{rows:>12,} | {int(near.sum()):>7,} | {100 * recall:.2f} | {seconds:.0f} | {above:.0f}")


def phrases(rows: int) -> None:
    """Print seconds and peak memory of the instruction index over English texts of 4 to 14 words."""
    from firered_lit.curation import scores
    from firered_lit.curation.phrases import Phrases
    from firered_lit.curation.shards import OWN
    from firered_lit.curation.words import Instructions

    rng = np.random.default_rng(0)

    def values(shard: int, size: int) -> dict[str, Any]:
        drawn = np.minimum(rng.pareto(0.6, (size, 14)), 19_999).astype(int)
        lengths = rng.integers(4, 15, size)
        texts = [" ".join(f"w{word}" for word in words[:length]) for words, length in zip(drawn, lengths)]
        return {"en": texts, "cn": [None] * size}

    with tempfile.TemporaryDirectory() as place:
        corpus = written(Path(place), rows, SHARD_ROWS, "said", Instructions(), values)
        for shard in range(corpus.shards):
            size = corpus.size(shard)
            keys: dict[str, Any] = {"row": np.arange(size) + shard * SHARD_ROWS, "picture": np.zeros(size, np.int16)}
            own = dict.fromkeys(OWN["row"], [None] * size) | {"kind": ["edit"] * size, "task": ["color"] * size}
            scores.write(
                scores.path_of(corpus.folder, "row", shard), OWN["row"], {**own, **keys, "failure": [None] * size}, {}
            )
        before = peak(begin=True)
        begun = time.process_time()
        Phrases(["said.en"]).run(corpus, None)
        print(f"{rows:>12,} | {time.process_time() - begun:.0f} | {peak() - before:.0f}")


def each(work: Callable[..., None], sizes: Sequence[int], *more: Any) -> None:
    """Run a size in a process of its own, so that one's memory is not the next one's."""
    for size in sizes:
        process = multiprocessing.get_context("spawn").Process(target=work, args=(size, *more))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("pictures", "duplicates", "select", "vectors", "phrases"))
    parser.add_argument("--count", type=int, default=60, help="pictures (default: 60)")
    parser.add_argument("--side", type=int, default=1024, help="px of a picture (default: 1024)")
    parser.add_argument("--against", action="store_true", help="time cleanvision and imagededup on the same files")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000], help="of all but pictures")
    parser.add_argument("--columns", type=int, default=30, help="of select (default: 30)")
    arguments = parser.parse_args()
    if arguments.what == "pictures":
        pictures(arguments.count, arguments.side, arguments.against)
    elif arguments.what == "duplicates":
        print("      hashes | recall % at 0 1 2 3 bits | million/s | MB above", flush=True)
        each(duplicates, arguments.rows)
    elif arguments.what == "vectors":
        print("     vectors | planted | recall % | s of the processor | MB above", flush=True)
        each(vectors, arguments.rows)
    elif arguments.what == "phrases":
        print("        rows | s of the processor | MB above", flush=True)
        each(phrases, arguments.rows)
    else:
        print("        rows | select s | again s | peak MB | score files MB | kept %", flush=True)
        each(select, arguments.rows, arguments.columns)


if __name__ == "__main__":
    main()
