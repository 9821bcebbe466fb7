"""Made-up evaluations: the files that drawing, judging and scoring leave behind, for tests of what reads them."""

import io
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from firered_lit.evaluation.protocols import EvaluationFolder, Item
from firered_lit.evaluation.scores import REDEDIT, JudgedItem, Scoring, score_item, score_table, scores_by_category
from firered_lit.evaluation.statistics import compare_models, estimate_means
from firered_lit.files import write_json, write_text

CATEGORIES = (
    "add", "adjust", "background", "beauty", "color", "compose", "extract", "lowlevel", "motion", "portrait", "remove",
    "replace", "stylize", "text", "viewpoint",
)  # fmt: skip
JUDGE = {"model": "made-up-judge", "date": "2026-01-31"}
REFUSAL = "I cannot judge this picture."
GARBAGE = "I like both of them very much."


def picture(seed: int, size: tuple[int, int] = (96, 64)) -> bytes:
    """Return a PNG file with smooth colours and a rectangle, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (3, 4, 3), dtype=np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    left = int(rng.integers(0, size[0] // 2))
    top = int(rng.integers(0, size[1] // 2))
    image.paste(tuple(rng.integers(0, 255, 3).tolist()), (left, top, left + size[0] // 4, top + size[1] // 3))
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=1)
    return file.getvalue()


@dataclass
class MadeUp:
    """A benchmark of items that exist nowhere else, with one source picture each."""

    contents: Sequence[Item]
    names: Sequence[str] = ("rededit_en", "rededit_cn")
    size: tuple[int, int] = (96, 64)

    def suites(self) -> Mapping[str, Scoring]:
        return dict.fromkeys(self.names, REDEDIT)

    def fingerprint(self) -> str:
        return "made up"

    def items(self) -> Sequence[Item]:
        return self.contents

    def sources(self, item: Item) -> list[bytes]:
        return [picture(int(item.facts["seed"]), self.size)]

    def requests(self, item: Item, edited: bytes, asking: object) -> list[object]:
        return []

    def measure(self, item: Item, edited: bytes) -> None:
        return None


def made_up(count: int, size: tuple[int, int] = (96, 64)) -> MadeUp:
    """Return a benchmark of `count` items, half of them in Chinese."""
    items = []
    for index in range(count):
        language = ("en", "zh")[index % 2]
        category = CATEGORIES[(index // 2) % len(CATEGORIES)]
        instruction = (f"Paint number {index} green", f"把第{index}个涂成绿色")[index % 2]
        suite = ("rededit_en", "rededit_cn")[index % 2]
        name = f"{category}-{index // 2}.png"
        facts = {"seed": index // 2}
        items.append(
            Item(suite, str(index // 2), category, language, instruction, (name,), f"{category}/{name}", facts)
        )
    return MadeUp(items, size=size)


def evaluated(
    out: Path,
    benchmark: MadeUp,
    models: Sequence[str] = ("ours", "theirs"),
    words: str = "",
    pictures: int | None = None,
) -> EvaluationFolder:
    """Write an evaluation: pictures, items.jsonl, scores.json and statistics.json.

    Args:
        out: The folder.
        benchmark: What was evaluated.
        models: The names; the first is the best.
        words: What the judge writes before its numbers.
        pictures: How many different pictures a model has; None: one for each item.
    """
    folder = EvaluationFolder(out)
    estimates: dict[str, dict[str, object]] = {}
    tables: dict[str, dict[str, object]] = {}
    scored: dict[str, dict[str, dict[str, dict[str, float]]]] = {}
    files: dict[int, bytes] = {}
    for rank, model in enumerate(models):
        lines = []
        judged: dict[str, list[JudgedItem]] = {}
        for index, item in enumerate(benchmark.items()):
            draw = random.Random(f"{model} {item.suite} {item.id}")
            failed = (index // 2) % 20 == 7 + rank
            attempts: tuple[tuple[str, ...], ...] = ()
            if not failed:
                attempts = ((_answer(draw, 5 - rank, words, index),),)
                seed = 1000 * (rank + 1) + (index if pictures is None else index % pictures)
                if seed not in files:
                    files[seed] = picture(seed, benchmark.size)
                path = folder.picture(model, item)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(files[seed])
            entry = JudgedItem(item.id, item.category, attempts, refused=attempts == ((REFUSAL,),))
            judged.setdefault(item.suite, []).append(entry)
            lines.append(_line(folder, model, item, entry))
        write_text(folder.model_items(model), "".join(json.dumps(line) + "\n" for line in lines))
        tables[model] = {}
        for suite, entries in judged.items():
            by_mode = {mode: [score_item(REDEDIT, entry, mode) for entry in entries] for mode in ("official", "strict")}
            tables[model][suite] = {mode: score_table(REDEDIT, scores) for mode, scores in by_mode.items()}
            scored.setdefault(suite, {})[model] = scores_by_category(by_mode["strict"])
            estimates.setdefault(suite, {})[model] = {
                mode: _estimates(scores_by_category(scores)) for mode, scores in by_mode.items()
            }
        write_json(folder.model_scores(model), tables[model])
    write_json(folder.scores, tables[models[0]])
    comparisons = []
    for suite, by_model in scored.items():
        if len(models) > 1:
            comparisons += [_comparison(suite, found) for found in compare_models(by_model, seed=0, draws=200)]
    statistics = {"judge": JUDGE, "estimates": estimates, "comparisons": comparisons}
    write_json(folder.statistics, {**statistics, "noise": None, "arena": None, "agreement": None, "text": {}})
    return folder


def _answer(draw: random.Random, best: int, words: str, index: int) -> str:
    if (index // 2) % 20 == 3:
        return REFUSAL
    if (index // 2) % 20 == 5:
        return GARBAGE
    numbers = [max(1, min(5, best - draw.choice((0, 0, 1, 2)))) for _ in range(3)]
    lines = [f"Criterion {place}: {number}" for place, number in enumerate(numbers)]
    return "\n".join([words or "The edit follows the instruction in part.", *lines])


def _line(folder: EvaluationFolder, model: str, item: Item, entry: JudgedItem) -> dict[str, object]:
    line: dict[str, object] = {
        "suite": item.suite,
        "id": item.id,
        "category": item.category,
        "language": item.language,
        "instruction": item.instruction,
        "sources": list(item.sources),
    }
    path = folder.picture(model, item)
    line["picture"] = str(path.relative_to(folder.out)) if entry.attempts else None
    line["failed"] = None if entry.attempts else "out of memory"
    for mode in ("official", "strict"):
        score = score_item(REDEDIT, entry, mode)
        line[mode] = {"state": score.state, "values": dict(score.values)}
    line["answers"] = [[None] if entry.refused else list(attempt) for attempt in entry.attempts]
    line["judge"] = JUDGE
    line["facts"] = dict(item.facts)
    return line


def _estimates(scores: Mapping[str, Mapping[str, float]]) -> dict[str, object]:
    means = estimate_means(scores, seed=0, draws=200)
    categories = {name: asdict(value) for name, value in means.categories.items()}
    return {**categories, "overall": asdict(means.macro), "micro": asdict(means.micro)}


def _comparison(suite: str, found: object) -> dict[str, object]:
    categories = {name: _difference(value) for name, value in found.categories.items()}
    entry = {"suite": suite, "first": found.first, "second": found.second}
    return {**entry, "overall": _difference(found.overall), "categories": categories}


def _difference(difference: object) -> dict[str, object]:
    content = asdict(difference)
    estimate = content.pop("estimate")
    return {"difference": estimate["value"], "low": estimate["low"], "high": estimate["high"], **content}
