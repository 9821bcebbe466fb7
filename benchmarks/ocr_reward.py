"""The OCR reward against a plain scorer: the same PaddleOCR engine, one image at a time, edit distance only.

    python benchmarks/ocr_reward.py [--threads 1 2] [--rounds 3] [--images 64]

Both sides build the engine once, use the same models, options and number of threads, and take turns on the same images
of mixed sizes; their text scores must agree within 0.01. On every fourth image the asked text has a wrong letter. Ours
is the reward as a run asks it: text and layout, against the layout of the right picture that `prepare` has read ahead.
"Without a layout" is ours where a sample has none, so that the text alone counts, as the plain scorer's does. Each gain
is then given to the plain scorer alone. Seconds are the wall's; the CPU's stand beside them, because other work on
the machine moves the former.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import cv2
import numpy as np
from rendered import length, paper, write

from callbacks.ocr.closeup import score_where_due
from callbacks.ocr.engine import PaddleEngine, Picture, paddle
from callbacks.ocr.layout import Layout, cut, read_layouts
from callbacks.ocr.models import OCRModel, offline_models
from firered_lit.draws import chooser
from firered_lit.models.cache import cache_folder
from firered_lit.rewards.layout_ocr import cells, fold, joined, nearest_run, text_score

SIZES = [(256, 256), (384, 256), (512, 384), (512, 512), (640, 480), (768, 512), (768, 768), (1024, 768)]
TEXTS = ["2nd Edition", "SALE 50%", "Open Daily", "No. 42", "2026.11.23", "Coffee", "Exit", "欢迎光临", "今日特价"]
TEXTS += ["新年快乐", "第二版", "茶馆 Cafe", "Hello World", "Fresh Bread", "18:30", "请勿吸烟"]
MAX_SIDE = 960
Scorer = Callable[[Sequence[Picture], Sequence[str], Sequence[Layout | None]], list[float]]


def draw(number: int, right: bool = False) -> tuple[Picture, str]:
    """Return a page of 2 to 5 short lines, and the one that is asked for; on every fourth page it is misspelt."""
    choose, size = chooser("ocr benchmark", number), SIZES[number % len(SIZES)]
    page = paper(size, choose.choice(["white", "#f0e8d0", "#203040"]))
    ink = "white" if sum(page.getpixel((0, 0))) < 300 else choose.choice(["black", "#802010"])
    lines = choose.sample(TEXTS, choose.randint(2, 5))
    wanted = choose.choice(lines)
    for n, line in enumerate(lines):
        height = min(choose.randint(18, 34), int(size[0] * 0.9 / length(line, 1.0)))
        spoiled = line == wanted and number % 4 == 0 and not right
        shown = line[:-1] + ("8" if line[-1] != "8" else "3") if spoiled else line
        write(page, shown, (size[0] / 2, size[1] * (n + 0.5) / len(lines)), height, ink)
    return np.asarray(page), wanted


class PlainOCR:
    """One image at a time through PaddleOCR; R_text of the lines nearest to the text."""

    def __init__(self, models: Sequence[OCRModel], intra: int) -> None:
        detection, recognition = models
        self.ocr = paddle(detection, recognition, MAX_SIDE, intra)

    def score(self, image: Picture, text: str) -> float:
        read = self.ocr.predict(np.ascontiguousarray(image[:, :, ::-1]), return_word_box=False)[0]["rec_texts"]
        wanted = folded(text)
        split = [cells((0, 0, 1, 1), folded(line)) for line in read]
        return text_score(joined(nearest_run(split, wanted)), wanted)


folded = partial(fold, case=True, space=True)


def sides(models: Sequence[OCRModel], threads: int) -> dict[str, Scorer]:
    """Name -> a scorer of (images, texts, layouts): R_text of each."""
    plain, single = PlainOCR(models, threads), PlainOCR(models, 1)
    alone = PaddleEngine(*models, threads=1, intra=threads, max_side=MAX_SIDE)
    ours = PaddleEngine(*models, threads=threads, max_side=MAX_SIDE)
    pool = ThreadPoolExecutor(threads)

    def scored(
        engine: PaddleEngine, images: Sequence[Picture], texts: Sequence[str], layouts: Sequence[Layout | None]
    ) -> list[float]:
        scores = []
        for one in score_where_due(engine.read, images, texts, layouts):
            assert not isinstance(one, str), one
            scores.append(one.score.text)
        return scores

    def whole(
        engine: PaddleEngine, images: Sequence[Picture], texts: Sequence[str], layouts: Sequence[Layout | None]
    ) -> list[float]:
        return scored(engine, images, texts, [None] * len(images))

    def one_by_one(images: Sequence[Picture], texts: Sequence[str], layouts: Sequence[Layout | None]) -> list[float]:
        return [whole(alone, [image], [text], layouts)[0] for image, text in zip(images, texts)]

    def close_up(images: Sequence[Picture], texts: Sequence[str], layouts: Sequence[Layout | None]) -> list[float]:
        scores = []
        for layout, text, image in zip(layouts, texts, images):
            region = layout.region(text, (image.shape[0], image.shape[1])) if layout else None
            scores.append(plain.score(cut(image, region), text))
        return scores

    def plainly(images: Sequence[Picture], texts: Sequence[str], layouts: Sequence[Layout | None]) -> list[float]:
        return list(map(plain.score, images, texts))

    def side_by_side(images: Sequence[Picture], texts: Sequence[str], layouts: Sequence[Layout | None]) -> list[float]:
        return list(pool.map(single.score, images, texts))

    found: dict[str, Scorer] = {
        "plain": plainly,
        "plain, lines at their own width": one_by_one,
        "plain, only where the text belongs": close_up,
        "the lines of all images in batches": partial(whole, alone),
    }
    if threads > 1:
        found["plain, images side by side"] = side_by_side
    found["ours, without a layout"] = partial(whole, ours)
    found["ours"] = partial(scored, ours)
    return found


def measure(
    scorers: dict[str, Scorer],
    images: Sequence[Picture],
    texts: Sequence[str],
    layouts: Sequence[Layout | None],
    rounds: int,
) -> tuple[dict[str, list[tuple[float, float]]], list[float]]:
    """Return the wall and CPU seconds of each round by side, in turns; the first only warms up. Scores must agree."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in scorers}
    scores: dict[str, list[float]] = {}
    for _ in range(rounds + 1):
        for name, scorer in scorers.items():
            wall, cpu = time.perf_counter(), time.process_time()
            scores[name] = scorer(images, texts, layouts)
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    far = {name: np.abs(np.subtract(found, scores["plain"])) for name, found in scores.items()}
    assert all(gap.max() <= 0.01 for gap in far.values()), {name: gap.round(2).tolist() for name, gap in far.items()}
    return {name: values[1:] for name, values in seconds.items()}, scores["plain"]


def table(seconds: dict[str, list[tuple[float, float]]], count: int, threads: int) -> None:
    wall, cpu = ({n: statistics.median(pair[i] for pair in pairs) for n, pairs in seconds.items()} for i in (0, 1))
    print(f"{'':<42}{'images/s/core':>14}{'ratio':>8}{'range':>16}{'CPU ms/image':>14}{'ratio':>8}")
    for name, pairs in seconds.items():
        ratios = sorted(base[0] / own[0] for base, own in zip(seconds["plain"], pairs))
        print(
            f"{name:<42}{count / wall[name] / threads:>14.2f}{wall['plain'] / wall[name]:>8.2f}"
            f"{f'{ratios[0]:.2f} to {ratios[-1]:.2f}':>16}"
            f"{1000 * cpu[name] / count:>14.1f}{cpu['plain'] / cpu[name]:>8.2f}"
        )


def verdict(seconds: dict[str, list[tuple[float, float]]]) -> None:
    """Print the gain of a run, and the share of samples without a layout up to which it still is 1.5 times."""
    plain, ours, bare = (
        statistics.median(pair[0] for pair in seconds[name]) for name in ("plain", "ours", "ours, without a layout")
    )
    print(f"the reward, layouts read ahead: {plain / ours:.2f} times the plain scorer; without any: {plain / bare:.2f}")
    if ours < plain / 1.5 < bare:
        share = (plain / 1.5 - ours) / (bare - ours)
        print(f"1.5 times with up to {100 * share:.0f} % of the samples without a layout")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=64)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    models = offline_models(cache_folder())
    images, texts = zip(*map(draw, range(given.images)))
    reader = PaddleEngine(*models, max_side=MAX_SIDE)
    right = [draw(number, right=True)[0] for number in range(given.images)]
    layouts: list[Layout | None] = []
    for layout in read_layouts(reader.read, right, texts):
        assert not isinstance(layout, str), layout
        layouts.append(layout)
    for threads in given.threads:
        seconds, scores = measure(sides(models, threads), images, texts, layouts, given.rounds)
        print(f"\n{len(images)} images of {len(SIZES)} sizes, {threads} threads, mean text {np.mean(scores):.3f}")
        table(seconds, len(images), threads)
        verdict(seconds)


if __name__ == "__main__":
    main()
