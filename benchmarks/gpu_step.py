"""A training step of the full-size transformer on the GPU that is here: time, memory and MFU, as a table and as JSON.

    python benchmarks/gpu_step.py [--layers 60] [--modes lora full] [--references 0 1 2] [--side 1024]
                                  [--compile no yes] [--steps 8] [--out gpu_step.json]

Only the config is read: weights are drawn on the device, in bf16. "lora": rank 64, AdamW. "full": all weights, 8-bit
AdamW. Blocks are recomputed in the backward; one sample a step. The estimate is what `check` says of the same step,
without the decoder. Without a GPU the same lines run in a tiny setting on the CPU, whose figures mean nothing.
"""

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from firered_lit.batch import Condition, Text
from firered_lit.draws import generator
from firered_lit.models.cost.flops import forward_flops, peak, training_flops
from firered_lit.models.cost.memory import GB, TEXT, Training, estimate
from firered_lit.models.family import FULL_SIZE
from firered_lit.models.lora import LoRA, add_adapter
from firered_lit.models.qwen_image import freeze_unused, velocity
from firered_lit.models.shard import skeleton
from firered_lit.models.sizes import Sizes
from firered_lit.optim import parameter_groups, stochastic_adamw8bit

TINY = {**FULL_SIZE, "num_attention_heads": 4, "attention_head_dim": 32, "axes_dims_rope": [8, 12, 12]}


def built(config: dict[str, Any], device: torch.device, lora: LoRA | None, compiled: bool) -> Any:
    """Return the transformer with random weights on the device, ready to train."""
    transformer = skeleton(config, torch.bfloat16).to_empty(device=device).train()
    rope = transformer.pos_embed
    transformer.pos_embed = type(rope)(theta=rope.theta, axes_dim=rope.axes_dim, scale_rope=rope.scale_rope)
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        for parameter in transformer.parameters():
            parameter.normal_(std=0.02)
    if lora:
        add_adapter(transformer, lora, 0)
        transformer.to(device)
    else:
        freeze_unused(transformer)
    transformer.enable_gradient_checkpointing()
    if compiled:
        transformer.compile_repeated_blocks()
    return transformer


def sample(
    config: dict[str, Any], side: int, references: int, device: torch.device
) -> tuple[Tensor, Tensor, Condition]:
    """Return x_0, eps and condition of one edit, all images of one size."""
    shape, keyed = (1, 16, side // 8, side // 8), generator("gpu_step")
    x_0, eps, *images = [torch.randn(shape, generator=keyed).to(device) for _ in range(2 + references)]
    text = torch.randn(1, TEXT if side > 256 else 32, config["joint_attention_dim"], generator=keyed)
    return x_0, eps, Condition(Text(text.to(device, torch.bfloat16), None), tuple(images))


def step(transformer: Any, optimizer: torch.optim.Optimizer, x_0: Tensor, eps: Tensor, condition: Condition) -> Tensor:
    """Take a step as `SFT` and its trainer do, and return its loss."""
    sigma = torch.full((1,), 0.5, device=x_0.device)
    with torch.autocast(x_0.device.type, torch.bfloat16):
        v = velocity(transformer, 0.5 * (x_0 + eps), sigma, condition).float()
        loss = (v - (eps - x_0)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_([p for p in transformer.parameters() if p.grad is not None], 1.0)
    optimizer.step()
    return loss.detach()


def timed(device: torch.device, run: Callable[[], Tensor], steps: int) -> list[float]:
    """Return the seconds of each step but the first two: one compiles, in the other the optimizer's state is made."""
    seconds = []
    for _ in range(steps + 2):
        begun = time.perf_counter()
        assert torch.isfinite(run()), "the loss is not finite"
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return seconds[2:]


def expected(config: dict[str, Any], side: int, references: int, lora: LoRA | None) -> float:
    """Return the bytes of the estimate: the same tokens, as one large target."""
    pixels = (1 + references) * side * side
    sizes = Sizes(target_area=pixels, reference_area=pixels)
    trained = {"lora": lora} if lora else {"optimizer": "firered_lit.optim.stochastic_adamw8bit"}
    t = Training(
        config, sizes, weights="bfloat16", autocast=True, checkpointing=True, preview=False, max_batch=1, **trained
    )
    return sum(part.size for part in estimate(t))


def measure(
    config: dict[str, Any], device: torch.device, mode: str, compiled: bool, references: int, given: argparse.Namespace
) -> dict[str, Any]:
    """Return one row, as it goes into the JSON."""
    lora = LoRA(rank=64 if device.type == "cuda" else 4, alpha=64) if mode == "lora" else None
    row = {
        "mode": mode,
        "compiled": compiled,
        "references": references,
        "layers": config["num_layers"],
        "side": given.side,
    }
    try:
        transformer = built(config, device, lora, compiled)
        groups = parameter_groups(transformer.named_parameters())
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True) if lora else stochastic_adamw8bit(groups, lr=1e-5)
        x_0, eps, condition = sample(config, given.side, references, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds = timed(device, lambda: step(transformer, optimizer, x_0, eps, condition), given.steps)
    except torch.OutOfMemoryError:
        return row | {"error": "out of memory"}
    visual, text = (1 + references) * (given.side // 16) ** 2, condition.text.embeddings.shape[1]
    second, flops = statistics.median(seconds), training_flops(config, visual, text, lora)
    row |= {"tokens": visual, "step_s": second, "tokens_per_s": visual / second, "tflops": flops / second / 1e12}
    row["hardware_tflops"] = (flops + forward_flops(config, visual, text)) / second / 1e12  # blocks made again
    row["estimate_gb"] = expected(config, given.side, references, lora) / GB
    if device.type == "cuda":
        row["peak_gb"] = torch.cuda.max_memory_allocated(device) / GB
        best = peak(torch.cuda.get_device_name(device))
        row["mfu"] = flops / second / best if best else None
    return row


def line(row: dict[str, Any]) -> str:
    """Return a row of the table."""
    what = f"| {row['mode']} | {'yes' if row['compiled'] else 'no'} | {row['references']} |"
    if "error" in row:
        return f"{what} {row['error']} | | | | |"
    memory = f"{row['peak_gb']:.1f}" if "peak_gb" in row else "-"
    mfu = f"{row['mfu']:.1%}" if row.get("mfu") else "-"
    figures = (
        f"{row['step_s']:.3f} | {row['tokens_per_s']:,.0f} | {memory} | {row['estimate_gb']:.1f} | {row['tflops']:.3g}"
    )
    return f"{what} {figures} | {mfu} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--modes", nargs="+", choices=["lora", "full"], default=["lora", "full"])
    parser.add_argument("--compile", nargs="+", choices=["no", "yes"])
    parser.add_argument("--references", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--side", type=int)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", default="gpu_step.json")
    parser.add_argument("--cpu", action="store_true", help="the tiny setting, though there is a GPU")
    given = parser.parse_args()
    gpu = torch.cuda.is_available() and not given.cpu
    device = torch.device("cuda" if gpu else "cpu")
    layers = given.layers or (60 if gpu else 2)
    given.side, given.steps = given.side or (1024 if gpu else 128), given.steps or (8 if gpu else 1)
    config = {**(FULL_SIZE if gpu else TINY), "num_layers": layers}
    name = torch.cuda.get_device_name(device) if gpu else "CPU, a tiny setting"
    print(f"{name}; {layers} layers, {given.side} px, torch {torch.__version__}\n")
    print(
        "| mode | compiled | references | s / step | tokens/s | peak GB | estimate GB | TFLOP/s | MFU |\n"
        + "|---" * 9
        + "|"
    )
    rows, setting = [], {"device": name, "torch": torch.__version__, "layers": layers, "side": given.side}
    compiling = given.compile or (["no", "yes"] if gpu else ["no"])
    for mode, compiled, references in product(given.modes, compiling, given.references):
        rows.append(measure(config, device, mode, compiled == "yes", references, given))
        print(line(rows[-1]), flush=True)
        gc.collect()
        torch.compiler.reset()
        if gpu:
            torch.cuda.empty_cache()
    Path(given.out).write_text(json.dumps(setting | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
