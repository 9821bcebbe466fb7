"""The memory of the full-size transformer's training on 1 to 128 GPUs, as a table: python benchmarks/memory.py."""

import contextlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from firered_lit.config.recipe import load
from firered_lit.models.cost.memory import GB, estimate, training_of

CARDS = (80, 141)  # gigabytes of an H100 and an H200
COUNTS = (1, 8, 32, 128)  # GPUs
SHARDS = 8  # GPUs that share one copy of the weights, with HSDP
ROWS = {
    "LoRA, `sft_lora.yaml`": ("sft_lora", []),
    "full, bf16 rounded stochastically, 8-bit moments, no average": ("sft_141gb", []),
    "full, float32, AdamW, sharded, no average": ("sft_fsdp", ["callbacks.ema=null"]),
    "full, float32, AdamW, sharded, `sft.yaml`, `sft_fsdp.yaml`": ("sft_fsdp", []),
    "the same, HSDP of 8 shards": ("sft_fsdp", ["HSDP"]),
}


def table() -> str:
    """Return the table as Markdown: a row for each way of training, a column for each number of GPUs."""
    lines = [f"| GB on each GPU | {' | '.join(map(str, COUNTS))} |", "|---" * (len(COUNTS) + 1) + "|"]
    for name, (recipe, overrides) in ROWS.items():
        cells = [cell(recipe, overrides, gpus) for gpus in COUNTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(recipe: str, overrides: list[str], gpus: int) -> str:
    """Return the gigabytes that each GPU needs, and the cards that hold them; "-" where there are too few GPUs.

    Args:
        recipe: Name of a recipe of `recipes/`.
        overrides: Overrides as on a command line; "HSDP" stands for sharding over 8 GPUs, replicated over the others.
        gpus: The number of GPUs.
    """
    settings = [text for text in overrides if text != "HSDP"]
    if "HSDP" in overrides:
        if gpus < SHARDS:
            return "-"
        settings.append(f"trainer.strategy.replicate={gpus // SHARDS}")
    loaded = load(str(ROOT / "recipes" / f"{recipe}.yaml"), settings)
    items = estimate(training_of(loaded.root, gpus))
    gigabytes = sum(item.size for item in items) / GB
    cards = [str(card) for card in CARDS if gigabytes <= card]
    return f"{gigabytes:.0f} ({', '.join(cards) or 'no card'})"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        print(table())
