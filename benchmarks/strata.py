"""Saving of stratified timesteps: the spread of the batch-mean loss over steps, with strata and without.

    python benchmarks/strata.py [--steps 200] [--slots 8 32 128] [--model-steps 300]

The same loss at independent and at stratified uniforms, with the uniform law. First a toy model whose loss depends on
sigma alone and is known: E ||v_theta - v||^2 of the best predictor of Gaussian data. Then the tiny transformer, trained
for 150 steps on one edit and then fixed, with that edit in every slot: the noise differs from slot to slot and step to
step, as in training, and what it adds is not for strata to remove.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from firered_lit.batch import Condition, Text
from firered_lit.draws import gaussian, generator
from firered_lit.flow.path import interpolate, velocity
from firered_lit.flow.timesteps import stratified_uniform, uniform
from firered_lit.losses.flow_matching import flow_matching_loss
from firered_lit.models.backbone import Backbone
from firered_lit.models.qwen_image import velocity as predict

Draw = Callable[[int, int], Tensor]  # (step, slots) -> u (slots,)


def independent(step: int, slots: int) -> Tensor:
    return torch.rand(slots, generator=generator("independent", step))


def stratified(step: int, slots: int) -> Tensor:
    return stratified_uniform(step, range(slots), slots, seed=0)


def gaussian_loss(sigma: Tensor, spread: float = 0.3) -> Tensor:
    """Return the least loss at sigma for data of N(0, spread^2): the variance of eps - x_0 given x_t."""
    total = ((1 - sigma) * spread).square() + sigma.square()
    return 1 + spread**2 - (sigma - (1 - sigma) * spread**2).square() / total


class TinyLoss:
    """The tiny transformer's losses on one edit of random latents; the noise is keyed by step and slot."""

    def __init__(self, steps: int = 150) -> None:
        self.transformer = Backbone("tiny").load()
        self.target, self.reference = (0.5 * gaussian((16, 8, 8), (0,), name) for name in ("target", "reference"))
        self.text = gaussian((6, 64), (0,), "text")
        optimizer = torch.optim.AdamW(self.transformer.parameters(), lr=2e-3)
        for step in range(steps):
            optimizer.zero_grad()
            self.losses(uniform(stratified(step, 8)), -1 - step).mean().backward()
            optimizer.step()

    def losses(self, sigma: Tensor, step: int) -> Tensor:
        rows = (len(sigma), -1, -1, -1)
        condition = Condition(Text(self.text.expand(rows[:3]), None), (self.reference.expand(rows),))
        x_0, eps = self.target.expand(rows), gaussian((16, 8, 8), tuple(range(len(sigma))), "eps", step)
        v = predict(self.transformer, interpolate(x_0, eps, sigma), sigma, condition)
        return flow_matching_loss(v, velocity(x_0, eps))

    @torch.no_grad()
    def __call__(self, sigma: Tensor, step: int) -> Tensor:
        return self.losses(sigma, step)


def variance(loss: Callable[[Tensor, int], Tensor], draw: Draw, slots: int, steps: int) -> float:
    """Return the spread of the batch-mean loss over steps."""
    return float(torch.stack([loss(uniform(draw(s, slots)), s).mean() for s in range(steps)]).var())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--model-steps", type=int, default=300)
    arguments = parser.parse_args()
    print("| loss | slots | steps | variance, independent | stratified | ratio |\n|---|---|---|---|---|---|")
    losses = {"Gaussian data": (lambda sigma, step: gaussian_loss(sigma), arguments.steps, arguments.slots)}
    losses["tiny transformer"] = (TinyLoss(), arguments.model_steps, arguments.slots[:2])
    for name, (loss, steps, every) in losses.items():
        for slots in every:
            plain, better = (variance(loss, draw, slots, steps) for draw in (independent, stratified))
            print(f"| {name} | {slots} | {steps} | {plain:.2e} | {better:.2e} | {plain / better:.1f} |", flush=True)


if __name__ == "__main__":
    main()
