"""The movement of the weights that rounding lets through, by full-size recipe, against training in float32.

    python benchmarks/precision.py [--steps 40] [--recipes sft dpo ...] [--all]

Every recipe that trains all weights, on the tiny model: its stage, optimizer and rate, computed in bfloat16 as its
strategy does, from the same weights and over the same draws as a run in which everything is float32. Printed is the
projection of what the weights moved by on what they move by in float32, <d, d32> / <d32, d32>, and the share of weights
that moved at all.
--all adds stochastic rounding of bfloat16 weights, and rounding to the nearest, which `fit` refuses.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from firered_lit.batch import Condition, EditBatch, PreferenceBatch, Text
from firered_lit.config.build import build
from firered_lit.config.recipe import load
from firered_lit.draws import gaussian
from firered_lit.facts import Facts
from firered_lit.models.backbone import Backbone
from firered_lit.optim import parameter_groups, stochastic_adamw8bit

KEPT = ("lr", "betas", "weight_decay")
WAYS = ("as the recipe has it", "bfloat16, rounded stochastically", "bfloat16, rounded to the nearest")

Dtype = Literal["float32", "bfloat16"]


def full_weight_recipes() -> dict[str, dict[str, Any]]:
    """Return the recipes that train all weights of a full-size model, by name."""
    found = {path.stem: load(str(path)).root for path in sorted((ROOT / "recipes").glob("*.yaml"))}
    fits = {name: root for name, root in found.items() if root["_target_"] == "firered_lit.training.fit"}
    return {name: root for name, root in fits.items() if not root["stage"]["backbone"].get("lora")}


def batch(step: int, pairs: bool) -> EditBatch:
    """Return two edits, or two pairs, drawn by their numbers."""
    numbers = (2 * step, 2 * step + 1)
    target, loser, source = (gaussian((16, 8, 8), numbers, what) for what in ("target", "loser", "source"))
    condition = Condition(Text.pad(list(gaussian((5, 64), numbers, "text"))), (source,))
    facts = tuple(Facts(str(number)) for number in numbers)
    if pairs:
        return PreferenceBatch(target, condition, facts, step, (0, 1), 2, loser=loser)
    return EditBatch(target, condition, facts, step, (0, 1), 2)


def stage_of(root: dict[str, Any], dtype: Dtype) -> Any:
    """Build a recipe's stage over the tiny model, without what needs other data."""
    node = {name: value for name, value in root["stage"].items() if name not in ("preview", "consistency")}
    node["backbone"] = None
    if "beta" in node:
        node["beta"] = 20.0  # the tiny model's errors are a hundred times those of a trained one
    made = build({**node, "_partial_": True})(backbone=Backbone("tiny", dtype=dtype))
    made.configure_model()
    return made


def moved(root: dict[str, Any], steps: int, dtype: Dtype, compute: bool, optimizer: Callable[..., Any]) -> torch.Tensor:
    """Return what so many steps at the recipe's full rate add to the weights, in float32."""
    stage = stage_of(root, dtype)
    weights = [parameter for parameter in stage.transformer.parameters() if parameter.requires_grad]
    before = torch.cat([parameter.detach().float().flatten() for parameter in weights])
    stepper = optimizer(parameter_groups(stage.transformer.named_parameters()))
    for step in range(steps):
        stepper.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=compute):
            loss = stage.losses(batch(step, pairs=hasattr(stage, "beta"))).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        stepper.step()
    return torch.cat([parameter.detach().float().flatten() for parameter in weights]) - before


def row(name: str, root: dict[str, Any], way: str, steps: int, exact: torch.Tensor) -> str:
    """Return one line of the table."""
    options = {option: root["stage"]["optimizer"][option] for option in KEPT}
    if way == WAYS[0]:
        own = build(root["stage"]["optimizer"])
        found = moved(root, steps, root["stage"]["backbone"]["dtype"], compute=True, optimizer=own)
    else:
        kind = stochastic_adamw8bit if way == WAYS[1] else torch.optim.AdamW
        found = moved(root, steps, "bfloat16", compute=True, optimizer=partial(kind, **options))
    projection = float(found @ exact / (exact @ exact))
    share = float((found != 0).float().mean())
    return f"| `{name}.yaml` | {options['lr']:g} | {way} | {projection:.3f} | {share:.1%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--recipes", nargs="*", default=None)
    parser.add_argument("--all", action="store_true", help="also bfloat16 weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    compiler: Any = torch
    compiler.compile = lambda function, **_: function  # torchao compiles its step, which takes long

    print("| recipe | rate | weights | projection | moved |\n|---|---|---|---|---|", flush=True)
    for name, root in full_weight_recipes().items():
        if options.recipes is not None and name not in options.recipes:
            continue
        settings = {option: root["stage"]["optimizer"][option] for option in KEPT}
        exact = moved(root, options.steps, "float32", compute=False, optimizer=partial(torch.optim.AdamW, **settings))
        for way in WAYS if options.all else WAYS[:1]:
            print(row(name, root, way, options.steps, exact), flush=True)


if __name__ == "__main__":
    main()
