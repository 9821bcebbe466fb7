"""Effect of the consistency loss: how fast things keep their identity with it and without, at equal steps and draws.

    python benchmarks/consistency_toy.py [--seeds 0 1 2] [--steps 60] [--eta 2.0]

The tiny transformer learns four edits of the synthetic world from its random weights, twice: by flow matching alone and
with the term on the things' boxes. Shown is the cosine of the encoder's features on those boxes, between the target and
the one-step estimate at four fixed sigmas (and fixed noise), over training; then the flow matching loss at the same
points, which is what the term costs.
"""

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from datamodules import synthetic
from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.facts import Facts
from firered_lit.flow.path import clean, interpolate, velocity
from firered_lit.losses.flow_matching import flow_matching_loss
from firered_lit.models.backbone import Backbone
from firered_lit.models.codec import to_pixels
from firered_lit.models.family import Base, open_base
from firered_lit.stages.consistency import Consistency
from firered_lit.stages.sft import SFT

SIDE, ROWS, RATE, EVERY, POINTS = 64, 4, 2e-3, 20, 4
Curve = list[tuple[float, float]]  # cosine, flow matching loss


def edits(base: Base, seed: int, rows: int = ROWS) -> EditBatch:
    """Return edits of one source with a thing or two in the target, as latents, with the things' boxes."""
    samples = [synthetic.edit(seed, number) for number in range(40)]
    samples = [sample for sample in samples if len(sample.sources) == 1][:rows]
    images = [[synthetic.draw(s.target), synthetic.draw(s.sources[0])] for s in samples]
    images = [[image.resize((SIDE, SIDE)) for image in pair] for pair in images]
    codec, conditioner = base.codec(), base.conditioner()
    target, source = (codec.encode(torch.stack([to_pixels(pair[i]) for pair in images])) for i in (0, 1))
    text = conditioner.encode([s.en for s in samples], [[p[1]] for p in images], base.sizes.condition_area)
    regions = torch.full((rows, 2, 2, 2), torch.nan)
    for i, sample in enumerate(samples):
        scale = torch.tensor([SIDE / sample.target.canvas[0], SIDE / sample.target.canvas[1]])
        for k, found in enumerate(synthetic.boxes(sample.target)):
            regions[i, k] = torch.tensor(found["box"]).reshape(2, 2) * scale
    slots = tuple(range(rows))
    facts = tuple(Facts(str(slot)) for slot in slots)
    return EditBatch(target, Condition(Text.pad(text), (source,)), facts, 0, slots, rows, regions=regions)


@torch.no_grad()
def measured(stage: SFT, batch: EditBatch, judge: Consistency) -> tuple[float, float]:
    """Return the mean cosine on the boxes, and flow matching loss, of one-step estimates at fixed points."""
    cosine = loss = 0.0
    for eps, sigma in stage.fixed_points(batch, POINTS):
        x_t = interpolate(batch.target, eps, sigma)
        v = stage.velocity(x_t, sigma, batch.condition)
        found = judge(stage.codec, clean(x_t, sigma, v), batch.target, sigma, batch.regions)
        cosine += 1 - float(found.distance.mean())
        loss += float(flow_matching_loss(v, velocity(batch.target, eps)).mean())
    return cosine / POINTS, loss / POINTS


def curve(batch: EditBatch, seed: int, eta: float | None, steps: int, every: int = EVERY) -> Curve:
    """Return the measures of every `every`-th step; eta None: without the term."""
    judge = Consistency("tiny", eta=1.0, cutoff=1.0)
    term = None if eta is None else Consistency("tiny", eta=eta)
    stage = SFT(Backbone("tiny"), partial(torch.optim.AdamW, lr=RATE), consistency=term, seed=seed)
    stage.configure_model()
    optimizer, found = stage.configure_optimizers(), [measured(stage, batch, judge)]
    for step in range(steps):
        optimizer.zero_grad()
        stage.losses(replace(batch, step=step)).mean().backward()
        optimizer.step()
        if (step + 1) % every == 0:
            found.append(measured(stage, batch, judge))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--eta", type=float, default=2.0)
    arguments = parser.parse_args()
    marks = range(0, arguments.steps + 1, EVERY)
    print(f"| seed | form | {' | '.join(f'cosine at {mark}' for mark in marks)} | flow loss, first | last |")
    print(f"|{'---|' * (len(marks) + 4)}")
    for seed in arguments.seeds:
        batch = edits(open_base("tiny"), seed)
        for form, eta in (("without", None), ("with the term", arguments.eta)):
            found = curve(batch, seed, eta, arguments.steps)
            cosines = " | ".join(f"{cosine:.3f}" for cosine, _ in found)
            print(f"| {seed} | {form} | {cosines} | {found[0][1]:.3f} | {found[-1][1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
