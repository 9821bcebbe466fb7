"""One iteration of DiffusionNFT against a plain loop, with a judge over HTTP that takes a fixed time for every picture.

    python benchmarks/nft_iteration.py [--judge 1 1.5] [--points 1] [--rounds 5] [--local pixel ocr]

Both sides: the tiny model, the same samples, edits, Euler steps, sigmas, noise, rewards, KL weight and threads; they
take turns in one process, and their losses and rewards must agree. The plain loop encodes the prompt of every edit,
waits for the rewards once all are drawn, and learns when it has them. Each gain is then given to it alone; what the
stage gains beyond both is that it learns from one group while the next one's rewards are under way.

How much waiting there is to save depends on how slow the judge is: --judge gives the time that it takes for all
pictures, as a multiple of the time that drawing them takes (measured first; from then on the latency is fixed). A ratio
is the median over rounds of plain / side, each pair measured one right after the other.
"""

import argparse
import base64
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image, ImageStat
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datamodules.prompts import PromptDataModule
from datamodules.synthetic import write
from firered_lit.batch import Condition, EditBatch, PromptBatch, Text
from firered_lit.cli import main as firered_lit
from firered_lit.config.build import build
from firered_lit.draws import gaussian
from firered_lit.flow.path import interpolate
from firered_lit.flow.sampler import euler, schedule
from firered_lit.flow.timesteps import stratified_uniform
from firered_lit.losses.flow_matching import flow_matching_loss
from firered_lit.losses.nft import adaptive, group_optimality, old_policy_decay, policy_mask
from firered_lit.models import qwen_image
from firered_lit.models.backbone import Backbone
from firered_lit.models.codec import to_image
from firered_lit.models.family import Base
from firered_lit.models.weight_swap import WeightSwap
from firered_lit.optim import parameter_groups
from firered_lit.rewards.protocol import Scores
from firered_lit.stages.nft import NFT

GROUPS, EDITS, STEPS, KL, SEED, RATE = 8, 4, 6, 1e-4, 0, 1e-4
ROOT = Path(__file__).resolve().parents[1]


class HTTPJudge(L.Callback):
    """Asks an HTTP server about every picture, `connections` at a time."""

    def __init__(self, url: str, connections: int) -> None:
        self.name, self.url, self.pool = "judge", url, ThreadPoolExecutor(connections)
        self.waiting = ThreadPoolExecutor(64)

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        asked = [self.pool.submit(self.ask, image) for image in images]
        valid = torch.ones(len(asked), dtype=torch.bool)
        return self.waiting.submit(lambda: Scores(torch.tensor([a.result() for a in asked]), valid))

    def ask(self, image: Tensor) -> float:
        file = io.BytesIO()
        to_image(image).save(file, "PNG", compress_level=1)
        body = json.dumps({"image": base64.b64encode(file.getvalue()).decode()}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url, body), timeout=60) as answer:
            return json.load(answer)["score"]


def serve(latency: float) -> None:
    """The judge: after `latency` seconds, how bright the picture is. Prints its port."""

    class JudgeHandler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            mean = ImageStat.Stat(Image.open(io.BytesIO(base64.b64decode(body["image"]))).convert("L")).mean[0]
            time.sleep(latency)
            said = json.dumps({"score": mean / 255}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), JudgeHandler)
    print(server.server_port, flush=True)
    server.serve_forever()


class PlainIteration:
    """The loop as public code has it. cached: prompts are encoded once. overlapped: rewards are asked for at once."""

    def __init__(self, base: Base, reward: Any, points: int, cached: bool = False, overlapped: bool = False) -> None:
        self.points = points
        self.net, self.codec, self.config = Backbone("tiny").load(SEED), base.codec(), base.scheduler_config
        self.conditioner, self.area = base.conditioner(), base.sizes.condition_area
        self.reward, self.cached, self.overlapped = reward, cached, overlapped
        self.old, self.reference = WeightSwap(self.net), WeightSwap(self.net)
        trained = parameter_groups(self.net.named_parameters())
        self.optimizer, self.steps = torch.optim.AdamW(trained, lr=RATE), 0

    def condition(self, sample: EditBatch) -> Condition:
        """Return the group's condition, its prompt encoded for every edit."""
        group = sample.repeated(EDITS)
        if self.cached:
            return group.condition
        pictures = [[to_image(source[0]) for source in sample.sources]] * EDITS
        rows = self.conditioner.encode([one.instruction for one in group.facts], pictures, self.area)
        return Condition(Text.pad(rows), group.condition.references)

    def velocity(self, x: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return qwen_image.velocity(self.net, x, sigma, condition)

    @torch.no_grad()
    def draw(self, sample: EditBatch, condition: Condition) -> tuple[Tensor, Tensor]:
        shape = sample.target.shape[1:]
        noise = gaussian(shape, tuple(range(EDITS)), SEED, "rollout", sample.step, sample.slots[0])
        sigmas = schedule(STEPS, shape[-1] * shape[-2] // 4, self.config)
        with self.old.swapped_into(self.net):
            x_0 = euler(lambda x, s: self.velocity(x, s, condition), noise, sigmas)
        return x_0, self.codec.decode(x_0).clamp(-1, 1)

    def iteration(self, batch: PromptBatch) -> tuple[float, float]:
        conditions = [self.condition(sample) for sample in batch.groups]
        drawn, asked = [], []
        for sample, condition in zip(batch.groups, conditions):
            drawn.append(self.draw(sample, condition))
            if self.overlapped:
                asked.append(self.reward.submit(drawn[-1][1], sample.repeated(EDITS)))
        if not self.overlapped:
            asked = [self.reward.submit(d[1], s.repeated(EDITS)) for d, s in zip(drawn, batch.groups)]
        rewards = torch.cat([future.result().value for future in asked])
        groups = torch.arange(GROUPS).repeat_interleave(EDITS)
        optimality = group_optimality(rewards, groups, clip=5.0)
        used = policy_mask(rewards, groups)
        loss = self.learn(batch, conditions, [x_0 for x_0, _ in drawn], optimality, used)
        return float(rewards.mean()), loss

    def learn(
        self,
        batch: PromptBatch,
        conditions: Sequence[Condition],
        edits: Sequence[Tensor],
        optimality: Tensor,
        used: Tensor,
    ) -> float:
        self.optimizer.zero_grad()
        total = 0.0
        places = [(g, j) for g in range(GROUPS) for j in range(self.points)]
        for g, j in places:
            sample, condition, x_0 = batch.groups[g], conditions[g], edits[g]
            slots = [(sample.slots[0] * EDITS + k) * self.points + j for k in range(EDITS)]
            sigma = stratified_uniform(sample.step, slots, sample.num_slots * EDITS * self.points, seed=SEED)
            key = (SEED, "noise", sample.step, sample.slots[0], j)
            eps, mine = gaussian(x_0.shape[1:], tuple(range(EDITS)), *key), slice(g * EDITS, (g + 1) * EDITS)
            x_t = interpolate(x_0, eps, sigma)
            with torch.no_grad(), self.old.swapped_into(self.net):
                v_old = self.velocity(x_t, sigma, condition)
            with torch.no_grad(), self.reference.swapped_into(self.net):
                v_reference = self.velocity(x_t, sigma, condition)
            v = self.velocity(x_t, sigma, condition)
            loss = adaptive(x_0, eps, sigma, v, v_old, optimality[mine], clip=5.0) * used[mine]
            loss = (loss + KL * flow_matching_loss(v, v_reference)).sum() / (GROUPS * EDITS * self.points)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        self.steps += 1
        self.old.follow(self.net, old_policy_decay(self.steps))
        return total


class Lettered(PromptDataModule):
    """Prompts that ask for words, so that reading them is work."""

    def on_after_batch_transfer(self, batch: PromptBatch, dataloader_idx: int) -> PromptBatch:
        groups = []
        for group in batch.groups:
            facts = replace(group.facts[0], target_text="2nd Edition")
            groups.append(replace(group, facts=(facts,)))
        return replace(batch, groups=tuple(groups))


class TimedIterations(L.Callback):
    """Times every iteration of the stage, and after each lets the others do theirs on the same samples."""

    def __init__(self, others: dict[str, PlainIteration]) -> None:
        self.others = others
        self.seconds: dict[str, list[float]] = {name: [] for name in ["ours", *others]}

    def on_train_batch_start(
        self, trainer: L.Trainer, module: L.LightningModule, batch: PromptBatch, batch_idx: int
    ) -> None:
        self.begun = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: PromptBatch, batch_idx: int
    ) -> None:
        self.seconds["ours"].append(time.perf_counter() - self.begun)
        logged = float(trainer.logged_metrics["train/loss"])
        for name, other in self.others.items():
            begun = time.perf_counter()
            reward, loss = other.iteration(batch)
            self.seconds[name].append(time.perf_counter() - begun)
            assert abs(loss - logged) < 1e-3 * abs(logged) + 1e-6, f"{name}: loss {loss}, ours {logged}"
            assert abs(reward - float(outputs["rewards"].mean())) < 1e-3, f"{name}: other rewards"


def drawing(data: str, points: int) -> float:
    """Return the seconds that the rollout of an iteration takes, the fastest of three."""
    stage = build_stage(points)
    plain = PlainIteration(stage.base, None, points, cached=True)
    batch, seconds = next(iter(Lettered(data, groups=GROUPS, workers=0).train_dataloader())), []
    for _ in range(3):
        begun = time.perf_counter()
        for sample in batch.groups:
            plain.draw(sample, plain.condition(sample))
        seconds.append(time.perf_counter() - begun)
    return min(seconds)


def build_stage(points: int) -> NFT:
    adam = partial(torch.optim.AdamW, lr=RATE, weight_decay=0.01)
    return NFT(
        Backbone("tiny"),
        adam,
        seed=SEED,
        group_size=EDITS,
        rollout_steps=STEPS,
        points=points,
        kl=KL,
        resolution_shift=False,
    )


def measure(data: str, reward: Any, points: int, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of every iteration by side; the first one is not counted."""
    stage = build_stage(points)
    plain = partial(PlainIteration, stage.base, reward, points)
    others = {"plain": plain(), "plain, prompts encoded once": plain(cached=True)}
    others["plain, rewards while drawing"] = plain(overlapped=True)
    others["plain, both"] = plain(cached=True, overlapped=True)
    turns = TimedIterations(others)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=rounds + 1, logger=False, callbacks=[reward, turns], enable_progress_bar=False,
        enable_checkpointing=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(stage, Lettered(data, groups=GROUPS, workers=0))
    return {name: values[1:] for name, values in turns.seconds.items()}


def prepared(folder: Path) -> str:
    write(folder / "world", 28)
    recipe = str(ROOT / "recipes" / "tiny" / "prepare.yaml")
    with redirect_stdout(io.StringIO()):
        firered_lit(["prepare", "--recipe", recipe, f"source={folder / 'world'}", f"out={folder / 'data'}"])
    return str(folder / "data")


def table(name: str, seconds: dict[str, list[float]]) -> None:
    print(f"\n{name}: {GROUPS} groups of {EDITS} edits in {STEPS} steps, {len(seconds['ours'])} rounds")
    print(f"  {'':<30} median s      range          plain / side: median, range")
    for side, values in seconds.items():
        ratios = [plain / own for plain, own in zip(seconds["plain"], values, strict=True)]
        spread = f"{min(values):.2f} to {max(values):.2f}"
        gain = f"{statistics.median(ratios):.2f}x  ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"  {side:<30} {statistics.median(values):8.2f}   {spread:<16} {gain}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    judge = "time of the judge for all pictures, by that of drawing them"
    parser.add_argument("--judge", type=float, nargs="*", default=[1.0, 1.5], help=judge)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--points", type=int, default=1, help="sigmas at which each edit is learnt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--local", nargs="*", default=["pixel", "ocr"], help="rewards without a server: pixel, ocr")
    parser.add_argument("--serve", type=float, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        serve(given.serve)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        data = prepared(Path(scratch))
        seconds = drawing(data, given.points) if given.judge else 0.0
        for multiple in given.judge:
            latency = multiple * seconds * given.connections / (GROUPS * EDITS)
            command = [sys.executable, __file__, "--serve", str(latency)]
            server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            try:
                assert server.stdout is not None
                port = int(server.stdout.readline())
                server_judge = HTTPJudge(f"http://127.0.0.1:{port}", given.connections)
                said = f"judge of {latency:.3f} s a picture, {given.connections} at a time, {multiple:g} x the rollout"
                table(said, measure(data, server_judge, given.points, given.rounds))
            finally:
                server.kill()
        for name in given.local:
            reward = build({"_target_": LOCAL[name]})
            table(f"local {name}", measure(data, reward, given.points, given.rounds))


LOCAL = {"pixel": "callbacks.rewards.pixel.PixelReward", "ocr": "callbacks.rewards.ocr.OCRReward"}

if __name__ == "__main__":
    main()
