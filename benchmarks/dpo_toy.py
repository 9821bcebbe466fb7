"""Effect of the asymmetry of DPO: on one pair, plain DPO raises the winner's own error, the asymmetric form does not.

    python benchmarks/dpo_toy.py [--seeds 0 1 2] [--steps 100] [--svg docs/dpo_toy.svg]

The tiny transformer is first fine-tuned on both sides of a pair of the synthetic world alike, as an editor that makes
either. From there the DPO stage trains it by both forms, with equal draws. Errors are flow matching losses at fixed
noise and sigma; the reference's are those at step 0.
"""

import argparse
import sys
from collections.abc import Iterable
from functools import partial
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from datamodules import synthetic
from firered_lit.batch import Condition, PreferenceBatch, Text
from firered_lit.draws import chooser
from firered_lit.facts import Facts
from firered_lit.flow.path import interpolate, velocity
from firered_lit.losses.flow_matching import flow_matching_loss
from firered_lit.models.backbone import Backbone
from firered_lit.models.codec import to_pixels
from firered_lit.models.family import Base, open_base
from firered_lit.stages.dpo import DPO

FORMS = {"plain": (1.0, 0.0), "omega alone": (2.0, 0.0), "asymmetric": (2.0, 1.0)}  # omega, sft_weight
COLOURS = {"plain": "#c33", "omega alone": "#c90", "asymmetric": "#26a"}
SIDE, ROWS, WARM, EVERY = 64, 4, 400, 10
BETA, RATE, WARM_RATE = 10.0, 2e-4, 2e-3


Curve = list[tuple[float, float]]


def pair(base: Base, seed: int) -> PreferenceBatch:
    """Return one pair of the synthetic world, in every row of the batch; the rows have their own draws."""
    number = next(n for n in count(7 * seed) if len(synthetic.edit(seed, n).sources) == 1)
    sample = synthetic.edit(seed, number)
    scenes = [sample.target, synthetic.spoiled(chooser("spoiled", seed, number), sample), sample.sources[0]]
    images = [synthetic.draw(scene).resize((SIDE, SIDE)) for scene in scenes]
    winner, loser, source = base.codec().encode(torch.stack([to_pixels(image) for image in images])).split(1)
    text = base.conditioner().encode([sample.en], [[images[2]]], base.sizes.condition_area)
    rows = (ROWS, -1, -1, -1)
    condition = Condition(Text.pad(text * ROWS), (source.expand(rows),))
    facts = tuple(Facts(f"{seed}.{row}") for row in range(ROWS))
    return PreferenceBatch(winner.expand(rows), condition, facts, 0, tuple(range(ROWS)), ROWS, loser=loser.expand(rows))


def at(batch: PreferenceBatch, step: int) -> PreferenceBatch:
    return PreferenceBatch(**(vars(batch) | {"step": step}))


def measured(stage: DPO, batch: PreferenceBatch) -> tuple[float, float]:
    """Return the errors of winner and loser at fixed noise."""
    with torch.no_grad():
        scores = stage.fixed_scores(batch)
    return scores["winner"].mean().item(), scores["loser"].mean().item()


def warm_up(stage: DPO, batch: PreferenceBatch) -> None:
    """Fine-tune on both sides alike."""
    optimizer, (x_0, condition) = stage.configure_optimizers(), batch.both()
    for step in range(WARM):
        eps, sigma = (torch.cat([draw, draw]) for draw in stage.draws(at(batch, step)))
        v = stage.velocity(interpolate(x_0, eps, sigma), sigma, condition)
        optimizer.zero_grad()
        flow_matching_loss(v, velocity(x_0, eps)).mean().backward()
        optimizer.step()


def train(stage: DPO, batch: PreferenceBatch, steps: int) -> Curve:
    """Return the errors (winner's, loser's) at every tenth step of DPO."""
    optimizer, curve = stage.configure_optimizers(), [measured(stage, batch)]
    for step in range(steps):
        optimizer.zero_grad()
        stage.losses(at(batch, step)).mean().backward()
        optimizer.step()
        if (step + 1) % EVERY == 0:
            curve.append(measured(stage, batch))
    return curve


def curves(seed: int, steps: int, forms: Iterable[str] = FORMS) -> dict[str, Curve]:
    """Return the errors over training by each form, from one start."""
    backbone, batch = Backbone("tiny"), pair(open_base("tiny"), seed)
    start = DPO(backbone, partial(torch.optim.AdamW, lr=WARM_RATE), seed=seed)
    start.configure_model()
    warm_up(start, batch)
    found = {}
    for name in forms:
        omega, sft_weight = FORMS[name]
        optimizer = partial(torch.optim.AdamW, lr=RATE, weight_decay=0.0)
        stage = DPO(backbone, optimizer, beta=BETA, omega=omega, sft_weight=sft_weight, seed=seed)
        stage.transformer = backbone.load()
        stage.transformer.load_state_dict(start.transformer.state_dict())
        stage.configure_model()  # keeps this transformer, and takes it as the reference
        found[name] = train(stage, batch, steps)
    return found


def plot(found: dict[int, dict[str, Curve]], path: Path) -> None:
    """The winner's error over its first value, for every seed and form, as an SVG."""
    width, height, left, top = 640, 300, 50, 20
    ratios = {(name, seed): [w / c[0][0] for w, _ in c] for seed, forms in found.items() for name, c in forms.items()}
    most, last = max(map(max, ratios.values())), max(map(len, ratios.values())) - 1

    def place(i: int, ratio: float) -> str:
        return f"{left + i * (width - left - 10) / last:.1f},{top + (1 - ratio / most) * (height - top - 40):.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">']
    parts += ['<rect width="100%" height="100%" fill="white"/>']
    parts += [f'<polyline points="{place(0, 1)} {place(last, 1)}" stroke="#999" stroke-dasharray="4" fill="none"/>']
    for (name, _), curve in ratios.items():
        points = " ".join(place(i, ratio) for i, ratio in enumerate(curve))
        parts.append(f'<polyline points="{points}" stroke="{COLOURS[name]}" stroke-width="2" fill="none"/>')
    labels: list[tuple[float, float, str, str]] = [
        (left, height - 8, f"winner's error / its value at step 0, over {last * EVERY} steps of DPO", "#333")
    ]
    labels += [(8, float(place(0, 1).split(",")[1]) + 4, "1.0", "#333"), (8, top + 4, f"{most:.1f}", "#333")]
    labels += [(left + 20 + 130 * i, 14, name, COLOURS[name]) for i, name in enumerate(FORMS)]
    parts += [f'<text x="{x}" y="{y}" font-size="12" fill="{colour}">{text}</text>' for x, y, text, colour in labels]
    path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--svg", type=Path)
    arguments = parser.parse_args()
    found = {}
    print(f"| seed | form | winner's error, first | last | highest | loser's error, first | last |\n|{'---|' * 7}")
    for seed in arguments.seeds:
        found[seed] = curves(seed, arguments.steps)
        for name, curve in found[seed].items():
            (first, loser), (last, loser_last) = curve[0], curve[-1]
            highest = max(winner for winner, _ in curve)
            print(f"| {seed} | {name} | {first:.3f} | {last:.3f} | {highest:.3f} | {loser:.3f} | {loser_last:.3f} |")
            sys.stdout.flush()
    if arguments.svg:
        plot(found, arguments.svg)


if __name__ == "__main__":
    main()
