"""The memory of the full-size transformer's training on 1 to 128 GPUs, as a table: python benchmarks/memory.py."""

import contextlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from firered_lit.memory import GB, estimate, training_of
from firered_lit.recipe import load

CARDS, COUNTS = (80, 141), (1, 8, 32, 128)
ONE = [
    "stage.backbone.dtype=bfloat16",
    "stage.optimizer={_target_: firered_lit.optim.stochastic_adamw8bit, _partial_: true}",
    "trainer.strategy=auto",
    "trainer.precision=bf16-mixed",
    "trainer.accumulate_grad_batches=1",
    "callbacks.ema=null",
]
ROWS = {
    "LoRA, `sft_lora.yaml`": ("sft_lora", []),
    "full, bf16 rounded stochastically, 8-bit moments, no average": ("sft", ONE),
    "full, float32, AdamW, sharded, no average": ("sft_fsdp", ["callbacks.ema=null"]),
    "full, float32, AdamW, sharded, `sft.yaml`, `sft_fsdp.yaml`": ("sft_fsdp", []),
    "the same, HSDP of 8 shards": ("sft_fsdp", ["HSDP"]),
}


def table() -> str:
    lines = [f"| GB on each GPU | {' | '.join(map(str, COUNTS))} |", "|---" * (len(COUNTS) + 1) + "|"]
    for name, (recipe, overrides) in ROWS.items():
        cells = [cell(recipe, overrides, gpus) for gpus in COUNTS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def cell(recipe: str, overrides: list[str], gpus: int) -> str:
    """The estimate, and which cards hold it."""
    given = [text for text in overrides if text != "HSDP"]
    if "HSDP" in overrides:
        if gpus < 8:
            return "-"
        given.append(f"trainer.strategy.replicate={gpus // 8}")
    read = load(str(ROOT / "recipes" / f"{recipe}.yaml"), given)
    need = sum(part.size for part in estimate(training_of(read.root, gpus))) / GB
    fits = [str(card) for card in CARDS if need <= card]
    return f"{need:.0f} ({', '.join(fits) or 'no card'})"


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        print(table())
