"""A step of supervised fine-tuning against the released training code's, in samples a second, on one transformer.

    python benchmarks/step.py [--quick] [--rounds 3] [--targets 3] [--layers 4] [--lora] [--compile]

The plain step is the released examples': the VAE encodes target and references each time, the batch is fixed (the
largest sample of 0, 1 or 2 references must fit: one sample with the budget as it is), text is masked also where nothing
is padded, every block is checkpointed, AdamW is not fused. Each gain is given to it alone, then all; embeddings are
ready on both sides. Ours is the stage in Lightning. All take the same samples in turn. The transformer has a twelfth of
the full width and a sixteenth of the tokens, the VAE as many FLOPs beside it as the full-size one (counted on the meta
device), so that the cache gains what it would. A second table: Lightning against a bare loop over the same stage, bare
and with all that a recipe adds.
"""

import argparse
import io
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from callbacks.progress import Progress
from callbacks.signals import Signals
from callbacks.throughput import Throughput
from firered_lit.batch import Condition, EditBatch, Text
from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO
from firered_lit.draws import gaussian, generator
from firered_lit.facts import Facts
from firered_lit.flow.path import interpolate, velocity
from firered_lit.losses.flow_matching import flow_matching_loss
from firered_lit.models import qwen_image
from firered_lit.models.backbone import Backbone
from firered_lit.models.codec import Codec
from firered_lit.models.family import FULL_SIZE
from firered_lit.models.lora import LoRA, add_adapter
from firered_lit.models.shard import skeleton
from firered_lit.models.tiny import cached_tiny, vae_config
from firered_lit.optim import constant, parameter_groups
from firered_lit.run.tracking import MLflow
from firered_lit.stages.sft import SFT

SIDE, TEXT, SEED, RATE = 256, (24, 40), 0, 1e-5  # pixels, tokens of a prompt: a sixteenth of the full-size ones
SMALL = {**FULL_SIZE, "num_attention_heads": 2, "joint_attention_dim": 3584 // 12}
KEPT = {"gradient_checkpointing": False}
REFERENCES = (0, 1, 2)  # equally often, as the released examples draw them


def inputs(config: dict[str, Any], side: int, text: int, references: int = 1) -> tuple[Tensor, Tensor, Condition]:
    """Return x_t, sigma and condition of one sample, on the meta device."""
    images = [torch.zeros(1, 16, side // 8, side // 8, device="meta") for _ in range(1 + references)]
    embeddings = torch.zeros(1, text, config["joint_attention_dim"], device="meta")
    return images[0], torch.zeros(1, device="meta"), Condition(Text(embeddings, None), tuple(images[1:]))


def flops_of_step(
    config: dict[str, Any], side: int, text: int, checkpointed: bool = False, lora: LoRA | None = None
) -> int:
    """Return the FLOPs of a forward and backward of one sample with one reference, from those of two depths."""
    counts = []
    for layers in (1, 2):
        transformer = skeleton({**config, "num_layers": layers}, torch.bfloat16)
        if lora:
            add_adapter(transformer, lora, SEED)
        if checkpointed:
            transformer.enable_gradient_checkpointing()
        with FlopCounterMode(display=False) as counter:
            qwen_image.velocity(transformer, *inputs(config, side, text)).float().sum().backward()
        counts.append(counter.get_total_flops())
    return counts[0] + (config["num_layers"] - 1) * (counts[1] - counts[0])


def flops_of_encoding(config: dict[str, Any], side: int) -> int:
    """Return the FLOPs of the VAE on one target and one reference."""
    with torch.device("meta"):
        vae = AutoencoderKLQwenImage(**config)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        vae.encode(torch.zeros(1, 3, 1, side, side, device="meta"))
    return 2 * counter.get_total_flops()


def arithmetic(lora: LoRA | None) -> None:
    """Print the gain of caching latents and making nothing again, at full size, where only operations take time."""
    plain, ours = (flops_of_step(FULL_SIZE, 1024, 512, checkpointed, lora) for checkpointed in (True, False))
    encoding = flops_of_encoding({}, 1024)
    print(f"operations of a full-size step, plain / ours: {(plain + encoding) / ours:.2f}")


def model_folder(folder: Path, layers: int) -> str:
    """A base whose VAE costs, beside its transformer, what the full-size one costs beside the full-size transformer."""
    config = {**SMALL, "num_layers": layers}
    share = flops_of_encoding({}, 1024) / flops_of_step(FULL_SIZE, 1024, 512)
    wanted = share * flops_of_step(config, SIDE, sum(TEXT) // 2)
    sizes = {width: flops_of_encoding(vae_config() | {"base_dim": width}, SIDE) for width in range(4, 64)}
    width = min(sizes, key=lambda w: abs(sizes[w] - wanted))
    print(f"VAE / transformer FLOPs of a step: full size {share:.2%}, here {sizes[width] / wanted * share:.2%}")
    shutil.copytree(cached_tiny(), folder, ignore=shutil.ignore_patterns("transformer", "vae"))
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        QwenImageTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
        AutoencoderKLQwenImage(**vae_config() | {"base_dim": width}).save_pretrained(folder / "vae")
    return str(folder)


def micro_batches(codec: Codec, targets: int) -> list[EditBatch]:
    """One round: about as many samples of 0, 1 and 2 references, in batches that fill a budget of `targets` targets."""
    text = generator("text")
    found: list[EditBatch] = []
    for n in REFERENCES:
        size = max(1, targets // (n + 1))
        for _ in range(targets // size):
            pixels = [gaussian((3, SIDE, SIDE), tuple(range(size)), "pixels", len(found), i) for i in range(n + 1)]
            latents = [codec.encode(p.clamp(-1, 1)) for p in pixels]
            rows = [torch.randn(int(torch.randint(*TEXT, (), generator=text)), 3584 // 12, generator=text)] * size
            made = EditBatch(
                target=latents[0],
                condition=Condition(Text.pad(rows), tuple(latents[1:])),
                facts=tuple(Facts(f"{len(found)}.{k}") for k in range(size)),
                step=len(found),
                slots=tuple(range(size)),
                num_slots=size,
                pixels=pixels[0],
                sources=tuple(pixels[1:]),
            )
            found.append(made)
    return found


class PlainStep:
    """The released loop. cached: latents; fixed: its batch, None for as many samples as the budget takes; unmasked: a
    mask only where one is needed; backbone: what of the blocks is made again or compiled, and the LoRA."""

    def __init__(
        self,
        base: str,
        codec: Codec,
        fixed: int | None,
        cached: bool = False,
        unmasked: bool = False,
        fused: bool = False,
        **backbone: Any,
    ) -> None:
        self.net, self.codec = Backbone(base, **{"gradient_checkpointing": True} | backbone).load(SEED), codec
        self.cached, self.fixed, self.unmasked = cached, fixed, unmasked
        self.optimizer = torch.optim.AdamW(parameter_groups(self.net.named_parameters()), lr=RATE, fused=fused)

    def run(self, batch: EditBatch) -> None:
        size = self.fixed or len(batch)
        for i in range(0, len(batch), size):
            self.step(part(batch, slice(i, i + size)))

    def step(self, batch: EditBatch) -> None:
        x_0, references, text = batch.target, batch.condition.references, batch.condition.text
        if not self.cached:
            assert batch.pixels is not None
            x_0 = self.codec.encode(batch.pixels)
            references = tuple(self.codec.encode(source) for source in batch.sources)
        if not self.unmasked and text.mask is None:
            text = replace(text, mask=torch.ones(text.embeddings.shape[:2], dtype=torch.bool))
        sigma = torch.sigmoid(gaussian((), batch.slots, SEED, "sigma", batch.step))
        eps = gaussian(x_0.shape[1:], batch.slots, SEED, "noise", batch.step)
        v = qwen_image.velocity(self.net, interpolate(x_0, eps, sigma), sigma, Condition(text, references))
        flow_matching_loss(v, velocity(x_0, eps)).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def part(batch: EditBatch, rows: slice) -> EditBatch:
    """Return some samples of a batch."""
    text, mask = batch.condition.text, batch.condition.text.mask
    text = Text(text.embeddings[rows], None if mask is None else mask[rows])
    condition = Condition(text, tuple(r[rows] for r in batch.condition.references))
    return replace(
        batch,
        target=batch.target[rows],
        condition=condition,
        facts=batch.facts[rows],
        slots=batch.slots[rows],
        pixels=None if batch.pixels is None else batch.pixels[rows],
        sources=tuple(source[rows] for source in batch.sources),
    )


class BareLoop:
    """Our stage in a loop of its own."""

    def __init__(self, stage: SFT) -> None:
        self.stage, self.parameters = stage, list(stage.transformer.parameters())
        self.optimizer = stage.optimizer_factory(parameter_groups(stage.transformer.named_parameters()))
        assert stage.schedule_factory is not None
        self.schedule = stage.schedule_factory(self.optimizer)

    def run(self, batch: EditBatch) -> None:
        self.stage.losses(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()


class TimedSteps(L.Callback):
    """Times the trainer from the end of one batch to the end of the next, and lets the others take the same one."""

    def __init__(self, others: dict[str, Any], clock: Callable[[], float]) -> None:
        self.clock = clock
        self.others = others
        self.seconds: dict[str, list[float]] = {name: [] for name in ["ours", *others]}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.begun = self.clock()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: EditBatch, batch_idx: int
    ) -> None:
        self.seconds["ours"].append(self.clock() - self.begun)
        for name, other in self.others.items():
            begun = self.clock()
            other.run(batch)
            self.seconds[name].append(self.clock() - begun)
        self.begun = self.clock()


def stage_of(base: str, **backbone: Any) -> SFT:
    adam = partial(torch.optim.AdamW, lr=RATE, fused=True)
    return SFT(Backbone(base, **backbone), adam, partial(constant, warmup=10), seed=SEED)


def measure(
    stage: SFT, batches: list[EditBatch], others: dict[str, Any], given: argparse.Namespace, folder: str | None = None
) -> dict[str, list[float]]:
    """Seconds of every batch by side, the first round left out. folder: with a recipe's callbacks and logger in it."""
    turns = TimedSteps(others, time.process_time if given.cpu_time else time.perf_counter)
    callbacks: list[L.Callback] = [turns]
    if folder:
        callbacks = [Signals(), Progress(), Throughput(), turns]
    trainer = L.Trainer(
        accelerator="cpu", max_steps=(given.rounds + 1) * len(batches), logger=MLflow(dir=folder) if folder else False,
        callbacks=callbacks, enable_progress_bar=bool(folder), enable_checkpointing=False, enable_model_summary=False,
        limit_val_batches=0, gradient_clip_val=1.0, log_every_n_steps=10, plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    every = [replace(b, step=i) for i, b in enumerate(batches * (given.rounds + 1))]
    loader: torch.utils.data.DataLoader[EditBatch] = torch.utils.data.DataLoader(every, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(stage, loader)
    return {name: values[len(batches) :] for name, values in turns.seconds.items()}


def rates(seconds: dict[str, list[float]], batches: list[EditBatch]) -> dict[str, list[float]]:
    """Return the samples a second of every round, by side."""
    samples, n = sum(map(len, batches)), len(batches)
    return {k: [samples / sum(v[i : i + n]) for i in range(0, len(v), n)] for k, v in seconds.items()}


def against_the_plain_loop(base: str, batches: list[EditBatch], given: argparse.Namespace) -> None:
    lora: dict[str, Any] = {}
    if given.lora:
        lora["lora"] = LoRA(rank=11, alpha=11)  # a twelfth of the released example's rank
    kept = KEPT | {"compile_blocks": given.compile}
    plain = partial(PlainStep, base, Codec(stage_of(base).base), fixed=given.targets // (1 + max(REFERENCES)), **lora)
    others = {
        "plain": plain(),
        "plain, latents cached": plain(cached=True),
        "plain, token budget": plain(fixed=None),
        "plain, mask only where needed": plain(unmasked=True),
        "plain, AdamW fused": plain(fused=True),
        "plain, products kept": plain(gradient_checkpointing="products"),
        "plain, nothing made again": plain(**KEPT),
    }
    if given.compile:
        others["plain, nothing made again, compiled"] = plain(**kept)
    others["plain, all of these"] = plain(fixed=None, cached=True, unmasked=True, fused=True, **kept)
    found = rates(measure(stage_of(base, **kept, **lora), batches, others, given), batches)
    print(f"\nsamples a second, medians of {given.rounds} rounds of {sum(map(len, batches))} samples")
    for name in [*others, "ours"]:
        gains = [a / b for a, b in zip(found[name], found["plain"])]
        print(f"  {name:<34} {statistics.median(found[name]):7.2f}   {statistics.median(gains):.2f}x")


def against_a_bare_loop(base: str, batches: list[EditBatch], given: argparse.Namespace, scratch: Path) -> None:
    """The overhead as the median over batches of the difference of a batch's two times."""
    print(f"\nLightning against a bare loop over the same stage, {given.rounds * len(batches)} steps")
    for name, folder in (("Lightning alone", None), ("with a recipe's callbacks and MLflow", str(scratch / "run"))):
        stage = stage_of(base)
        stage.configure_model()
        bare = BareLoop(stage)
        with redirect_stdout(io.StringIO()):
            seconds = measure(stage_of(base), batches, {"bare": bare}, given, folder)
        step = statistics.median(seconds["bare"])
        more = statistics.median((a - b) / b for a, b in zip(seconds["ours"], seconds["bare"]))
        print(f"  {name:<38} step {step * 1000:6.0f} ms, overhead {more:+.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--targets", type=int, default=3, help="the budget, in targets without references")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument(
        "--lora", action="store_true", help="train an adapter, with the frozen weights' gradients spared"
    )
    parser.add_argument("--compile", action="store_true", help="blocks compiled too; takes minutes")
    parser.add_argument("--gains", action="store_true", help="the first table alone")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds of this process, for a shared machine")
    parser.add_argument("--quick", action="store_true", help="two layers, one round")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.layers = 1, 1
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        base = model_folder(scratch / "model", given.layers)
        arithmetic(LoRA(rank=128, alpha=128) if given.lora else None)
        batches = micro_batches(Codec(stage_of(base).base), given.targets)
        against_the_plain_loop(base, batches, given)
        if not given.gains:
            against_a_bare_loop(base, batches, given, scratch)


if __name__ == "__main__":
    main()
