"""What a model of the learning world has learned: held-out correctness by family, as numbers.

    python benchmarks/learning.py evaluate --model MODEL --out pretrained.json
    python benchmarks/learning.py pairs --model MODEL --count 2000 --out DIR
    python benchmarks/learning.py ship --model DIR --said "steps, hours" --out firered_lit/models/world.safetensors

MODEL is a base's name or a folder that `export` wrote. `evaluate` draws edits of combinations that were never trained
on and judges each against its exact answer. `pairs` writes what the model does wrong beside what is right, in the
layout of preferences that `prepare` reads. `ship` writes a model's weights in 16 bits, as the package carries them.
benchmarks/report.py makes tables and pictures of what was measured.
"""

import argparse
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.correctness import Correctness
from callbacks.ocr_reward import OCRReward
from datamodules.world.families import FAMILIES, Edit
from datamodules.world.sample import Split, edit
from datamodules.world.scene import draw
from datamodules.world.stream import SHAPES, Encoders, Place
from firered_lit.batch import EditBatch
from firered_lit.draws import gaussian
from firered_lit.flow.sampler import schedule
from firered_lit.models.codec import to_image
from firered_lit.models.family import Base, open_base
from firered_lit.models.qwen_image import unused_parameters
from firered_lit.models.sampling import sample
from firered_lit.rewards.protocol import Scores

STEPS = 4  # of the solver


@dataclass(frozen=True)
class Model:
    """A base with its weights, and how it draws."""

    base: Base
    encoders: Encoders
    transformer: Any
    steps: int

    @staticmethod
    def open(name: str, steps: int) -> "Model":
        base = open_base(name)
        return Model(base, Encoders(base), base.transformer().eval(), steps)

    def batch(self, drawn: Sequence[tuple[Edit, str, str]]) -> EditBatch:
        """Of edits with their ids and the keys of their texts, with pictures."""
        return self.encoders.batch(drawn, Place(0, tuple(range(len(drawn))), len(drawn)), pictured=True)

    def edits(self, batch: EditBatch) -> Tensor:
        """(B, 3, H, W) in [-1, 1]; the noise is keyed by the sample."""
        noise = torch.cat([gaussian(batch.target.shape[1:], (0,), "learning", name) for name in batch.ids])
        tokens = batch.target.shape[-2] * batch.target.shape[-1] // 4
        sigmas = schedule(self.steps, tokens, self.base.scheduler_config)
        return self.encoders.codec.decode(sample(self.transformer, noise, sigmas, batch.condition))


def batches(
    model: Model, family: str, count: int, seed: int, split: Split, size: int = 32
) -> Iterator[tuple[list[Edit], EditBatch]]:
    """`count` edits of a family with their batches; both languages in turn. Compositions take their numbers in turn."""
    numbers = sorted(set(SHAPES.get(family, (1,))))
    for place, references in enumerate(numbers):
        own = range(place, count, len(numbers))
        for start in range(0, len(own), size):
            found = [edit(seed, i, split, (family,), references) for i in own[start : start + size]]
            keys = ["original/cn" if i % 4 > 1 else "original/en" for i in own[start : start + size]]
            names = [f"{split}-{seed}-{family}-{i}" for i in own[start : start + size]]
            yield found, model.batch(list(zip(found, names, keys, strict=True)))


def evaluate(model: Model, counts: Mapping[str, int], seed: int, split: Split = "held_out") -> dict[str, Any]:
    """{family: {"count", "correct", "right", "errors", terms...}} of `counts`' edits of each family; right is 1 or 0
    for each edit, errors are root mean squares of pixels on [0, 1] against the exact answer, terms are means. "text"
    has what the OCR reward says of it, too: means, and each edit's reward."""
    judge, reader, found = Correctness(), OCRReward(threads=1), {}
    for family, count in counts.items():
        scores, errors, read = [], [], []
        for _, batch in batches(model, family, count, seed, split):
            pictures = model.edits(batch)
            scores.append(judge.submit(pictures, batch).result())
            errors += ((pictures - batch.pixels) / 2).square().mean((1, 2, 3)).sqrt().tolist()
            read += [reader.submit(pictures, batch).result()] if family == "text" else []
        values = torch.cat([score.value for score in scores])
        found[family] = {"count": len(values), "correct": int(values.sum())}
        found[family] |= {name: value for name, value in means(scores).items() if "/" not in name}
        found[family] |= {"right": values.int().tolist(), "errors": [round(error, 4) for error in errors]}
        if read:
            words = torch.cat([one.terms["text"] for one in read])
            found[family]["words"] = {"reward": rounded(torch.cat([one.value for one in read])), **means(read)}
            found[family]["words"] |= {"exact": int((words == 1).sum()), "count": len(words)}
            rewards = torch.cat([one.value for one in read]).tolist()
            found[family]["words"] |= {"rewards": [round(reward, 4) for reward in rewards]}
            found[family]["words"] |= {"read": (words == 1).int().tolist()}
        print(f"{family:<12}{found[family]['correct']:>5} of {len(values)}", flush=True)
    reader.close()
    return found


def side_by_side(name: str, steps: int, counts: Mapping[str, int], seed: int) -> dict[str, Any]:
    """What `evaluate` finds of the model of that name, each family in a process of one thread, as many as cores."""
    found, spawn = {}, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(len(counts), len(os.sched_getaffinity(0))), spawn, one_thread) as pool:
        largest = sorted(counts, key=lambda family: -counts[family])
        asked = [pool.submit(evaluate_alone, name, steps, family, counts[family], seed) for family in largest]
        for done in as_completed(asked):
            found |= done.result()
    return {family: found[family] for family in counts}


def one_thread() -> None:
    torch.set_num_threads(1)


def evaluate_alone(name: str, steps: int, family: str, count: int, seed: int) -> dict[str, Any]:
    return evaluate(opened(name, steps), {family: count}, seed)


@cache
def opened(name: str, steps: int) -> Model:
    return Model.open(name, steps)


def means(scores: Sequence[Scores]) -> dict[str, float]:
    """The mean of each term over all edits that have it."""
    names = sorted({name for score in scores for name in score.terms})
    return {name: rounded(torch.cat([s.terms[name] for s in scores if name in s.terms])) for name in names}


def rounded(values: Tensor) -> float:
    return round(float(values.nanmean()), 4)


def pairs(model: Model, count: int, seed: int, families: Sequence[str], out: Path) -> int:
    """Write `count` pairs: the exact answer and a wrong edit of the model's. Returns how many edits were drawn."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    judge, written, drawn, first = Correctness(), 0, 0, 0
    with (out / "pairs.jsonl").open("w", encoding="utf-8") as file:
        while written < count:
            for family in families:
                for found, batch in batches(model, family, 8, seed + first, "train"):
                    pictures = model.edits(batch)
                    wrong = judge.submit(pictures, batch).result().value == 0
                    drawn += len(found)
                    for i in wrong.nonzero().flatten().tolist()[: count - written]:
                        line = pair(found[i], batch.ids[i], pictures[i], out)
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                        written += 1
            first += 1
    return drawn


def pair(found: Edit, name: str, loser: Tensor, out: Path) -> dict[str, Any]:
    """The row of a pair, whose pictures are written."""
    pictures = {f"images/{name}_source{i}.png": draw(scene) for i, scene in enumerate(found.sources)}
    sources = [*pictures]
    pictures |= {f"images/{name}_chosen.png": draw(found.target), f"images/{name}_rejected.png": to_image(loser)}
    for path, picture in pictures.items():
        picture.save(out / path)
    texts = {"instruction": found.texts["original/en"], "instruction_cn": found.texts["original/cn"]}
    images = {"chosen_image": f"images/{name}_chosen.png", "rejected_image": f"images/{name}_rejected.png"}
    return {"id": name, "task": found.task, "source_image": sources, **images, **texts, "held_out": False}


def ship(model: str, said: str, out: Path) -> int:
    """The transformer's weights in bfloat16 without those that are never used, and what is said of them. Returns the
    bytes written."""
    from safetensors.torch import save_file

    transformer = open_base(model).transformer()
    unused = set(unused_parameters(transformer))
    state = transformer.state_dict().items()
    weights = {name: value.bfloat16().contiguous() for name, value in state if name not in unused}
    save_file(weights, out, metadata={"made": said})
    return out.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("evaluate", "pairs"):
        one = verbs.add_parser(verb)
        one.add_argument("--model", required=True)
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--families", default=",".join(FAMILIES))
        one.add_argument("--steps", type=int, default=STEPS, help="of the solver")
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--count", type=int, default=2000, help="pairs")
        one.add_argument("--each", type=int, default=100, help="edits of a family")
        one.add_argument("--words", type=int, default=600, help="edits of the family text")
    shipping = verbs.add_parser("ship")
    shipping.add_argument("--model", required=True)
    shipping.add_argument("--said", required=True)
    shipping.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "ship":
        print(f"{given.out}: {ship(given.model, given.said, given.out) / 1e6:.1f} MB")
        return
    families = given.families.split(",")
    if given.verb == "pairs":
        model = Model.open(given.model, given.steps)
        print(f"{given.out}: {given.count} pairs of {pairs(model, given.count, given.seed, families, given.out)} edits")
        return
    found = {"model": given.model, "steps": given.steps, "seed": given.seed}
    counts = {family: given.words if family == "text" else given.each for family in families}
    found["families"] = side_by_side(given.model, given.steps, counts, given.seed)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
