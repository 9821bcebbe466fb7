"""Progress of a model of the learning world: held-out correctness by family, as numbers.

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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from callbacks.rewards.correctness import Correctness
from callbacks.rewards.ocr import OCRReward
from datamodules.loading.loader import BatchAddress
from datamodules.world.families import FAMILIES, WorldEdit
from datamodules.world.sample import Split, edit
from datamodules.world.scene import draw
from datamodules.world.stream import SHAPES, Encoders
from firered_lit.batch import EditBatch
from firered_lit.draws import gaussian
from firered_lit.flow.sampler import schedule
from firered_lit.models.codec import to_image
from firered_lit.models.family import Base, open_base
from firered_lit.models.qwen_image import unused_parameters
from firered_lit.models.sampling import sample
from firered_lit.rewards.protocol import Scores

STEPS = 4  # of the solver
PIECE = 320  # edits of a family that a process judges at a time; whole batches, so that pieces change no number


@dataclass(frozen=True)
class LoadedModel:
    """A base with its weights, and how it draws."""

    base: Base
    encoders: Encoders
    transformer: Any
    steps: int

    @staticmethod
    def open(name: str, steps: int) -> "LoadedModel":
        base = open_base(name)
        return LoadedModel(base, Encoders(base), base.transformer().eval(), steps)

    def batch(self, drawn: Sequence[tuple[WorldEdit, str, str]]) -> EditBatch:
        """Return edits with their ids and the keys of their texts, with pictures, as a batch."""
        return self.encoders.batch(drawn, BatchAddress(0, tuple(range(len(drawn))), len(drawn)), pictured=True)

    def edits(self, batch: EditBatch) -> Tensor:
        """Return edits (B, 3, H, W) in [-1, 1]; the noise is keyed by the sample."""
        noise = torch.cat([gaussian(batch.target.shape[1:], (0,), "learning", name) for name in batch.ids])
        tokens = batch.target.shape[-2] * batch.target.shape[-1] // 4
        sigmas = schedule(self.steps, tokens, self.base.scheduler_config)
        return self.encoders.codec.decode(sample(self.transformer, noise, sigmas, batch.condition))


def batches(
    model: LoadedModel, family: str, chosen: range, seed: int, split: Split, size: int = 32
) -> Iterator[tuple[list[WorldEdit], EditBatch]]:
    """The chosen edits of a family with their batches; both languages in turn. Compositions take their numbers in
    turn."""
    numbers = sorted(set(SHAPES.get(family, (1,))))
    for place, references in enumerate(numbers):
        own = [i for i in chosen if i % len(numbers) == place]
        for start in range(0, len(own), size):
            found = [edit(seed, i, split, (family,), references) for i in own[start : start + size]]
            keys = ["original/cn" if i % 4 > 1 else "original/en" for i in own[start : start + size]]
            names = [f"{split}-{seed}-{family}-{i}" for i in own[start : start + size]]
            yield found, model.batch(list(zip(found, names, keys, strict=True)))


@dataclass
class FamilyResults:
    """Results of some edits of a family, a number for each: terms, and values that were read, by name."""

    right: list[int] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)
    terms: dict[str, list[float]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    read: dict[str, list[float]] = field(default_factory=dict)

    def extend(self, more: "FamilyResults") -> None:
        self.right += more.right
        self.errors += more.errors
        self.rewards += more.rewards
        for mine, theirs in ((self.terms, more.terms), (self.read, more.read)):
            for name, values in theirs.items():
                mine.setdefault(name, []).extend(values)

    def numbers(self) -> dict[str, Any]:
        """Return {"count", "correct", "right", "errors", terms...}: right is 1 or 0 for each edit, errors are root mean
        squares of pixels on [0, 1] against the exact answer, terms are means. "words" are what the OCR reward says:
        means, and each edit's reward."""
        found: dict[str, Any] = {"count": len(self.right), "correct": sum(self.right)}
        found |= {name: value for name, value in means(self.terms).items() if "/" not in name}
        found |= {"right": self.right, "errors": [round(error, 4) for error in self.errors]}
        if self.read:
            read = [int(word == 1) for word in self.read["text"]]
            found["words"] = {"reward": means({"": self.rewards})[""], **means(self.read)}
            found["words"] |= {"exact": sum(read), "count": len(read)}
            found["words"] |= {"rewards": [round(reward, 4) for reward in self.rewards], "read": read}
        return found


def judged(model: LoadedModel, family: str, chosen: range, seed: int) -> FamilyResults:
    """The chosen held-out edits of a family, made by the model and judged. Words are read by the OCR reward, too."""
    judge, reader, found = Correctness(), OCRReward(threads=1), FamilyResults()
    for _, batch in batches(model, family, chosen, seed, "held_out"):
        pictures = model.edits(batch)
        score = judge.submit(pictures, batch).result()
        assert batch.pixels is not None
        errors = ((pictures - batch.pixels) / 2).square().mean((1, 2, 3)).sqrt().tolist()
        one = FamilyResults(score.value.int().tolist(), errors, listed(score))
        if family == "text":
            words = reader.submit(pictures, batch).result()
            one.rewards, one.read = words.value.tolist(), listed(words)
        found.extend(one)
    reader.close()
    return found


def side_by_side(name: str, steps: int, counts: Mapping[str, int], seed: int) -> dict[str, Any]:
    """{family: numbers} of `counts`' held-out edits of each, by the model of that name; in processes of one thread, as
    many as cores, a long family in pieces."""
    found, spawn = {}, multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), spawn, one_thread) as pool:
        asked = {
            family: [
                pool.submit(judged_alone, name, steps, family, range(start, min(start + PIECE, count)), seed)
                for start in range(0, count, PIECE)
            ]
            for family, count in sorted(counts.items(), key=lambda one: -one[1])
        }
        for family, pieces in asked.items():
            whole = FamilyResults()
            for piece in pieces:
                whole.extend(piece.result())
            found[family] = whole.numbers()
            print(f"{family:<12}{sum(whole.right):>5} of {len(whole.right)}", flush=True)
    return {family: found[family] for family in counts}


def one_thread() -> None:
    torch.set_num_threads(1)


def judged_alone(name: str, steps: int, family: str, chosen: range, seed: int) -> FamilyResults:
    return judged(opened(name, steps), family, chosen, seed)


@cache
def opened(name: str, steps: int) -> LoadedModel:
    return LoadedModel.open(name, steps)


def listed(scores: Scores) -> dict[str, list[float]]:
    return {name: values.tolist() for name, values in scores.terms.items()}


def means(terms: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the mean of each term over the edits that have it."""
    return {name: round(float(torch.tensor(terms[name]).nanmean()), 4) for name in sorted(terms)}


def pairs(model: LoadedModel, count: int, seed: int, families: Sequence[str], out: Path) -> int:
    """Write `count` pairs: the exact answer and a wrong edit of the model's. Returns how many edits were drawn."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    judge, written, drawn, first = Correctness(), 0, 0, 0
    with (out / "pairs.jsonl").open("w", encoding="utf-8") as file:
        while written < count:
            for family in families:
                for found, batch in batches(model, family, range(8), seed + first, "train"):
                    pictures = model.edits(batch)
                    wrong = judge.submit(pictures, batch).result().value == 0
                    drawn += len(found)
                    for i in wrong.nonzero().flatten().tolist()[: count - written]:
                        line = pair(found[i], batch.ids[i], pictures[i], out)
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
                        written += 1
            first += 1
    return drawn


def pair(found: WorldEdit, name: str, loser: Tensor, out: Path) -> dict[str, Any]:
    """Return the row of a pair, whose pictures are written."""
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
        model = LoadedModel.open(given.model, given.steps)
        print(f"{given.out}: {given.count} pairs of {pairs(model, given.count, given.seed, families, given.out)} edits")
        return
    found = {"model": given.model, "steps": given.steps, "seed": given.seed}
    counts = {family: given.words if family == "text" else given.each for family in families}
    found["families"] = side_by_side(given.model, given.steps, counts, given.seed)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
