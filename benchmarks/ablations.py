"""Worth of each part of the method in the learning world: one part on and off, three seeds each.

    python benchmarks/ablations.py --learned .learn --out runs/ablations [--only dpo nft] [--seeds 0 1 2]

Starts from the package's weights or what `make learn` left in `--learned`. Every arm is an ordinary run of a recipe
with some keys changed, then measured on held-out edits; arms whose result is there are not run again, so it can be
stopped and continued. Writes report.md and results.json to `--out`.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
if TYPE_CHECKING:
    from datamodules.world.families import WorldEdit

DRAWS = 32  # steps over which a gradient's variance is taken
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # number of seeds -> t of a 95 % interval
Measures = dict[str, float]


@dataclass(frozen=True)
class Ablation:
    """One part of the method. arms: name -> keys of the recipe; measure: numbers of a finished run of an arm. Without a
    recipe nothing is run, and an arm's first key is what `without_run` is told."""

    about: str
    recipe: str
    arms: dict[str, tuple[str, ...]]
    measure: Callable[[Path, Path], Measures] = lambda run, learned: {}  # (run, what was learned)
    common: tuple[str, ...] = ()
    prepare: Callable[[], None] = lambda: None
    without_run: Callable[[str, int, Path], Measures] | None = None  # (key, seed, what was learned)


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric of a run."""
    from mlflow.tracking import MlflowClient

    from firered_lit.run.store import read_record

    record = read_record(run)
    client = MlflowClient(record["mlflow_uri"])
    points = client.get_metric_history(record["mlflow_run_id"], name)
    return sorted((point.step, point.value) for point in points)


def exported(run: Path, *how: str) -> str:
    """Return the run's model as a folder."""
    out = run / "model"
    if not out.exists():
        command("export", "--run", str(run), "--out", str(out), *how)
    return str(out)


def learned(name: str, counts: Mapping[str, int]) -> dict[str, Any]:
    from benchmarks import learning

    return learning.side_by_side(name, learning.STEPS, counts, 0)


def late(run: Path, *names: str) -> Measures:
    """Return the means of the last quarter of some metrics."""
    values = {name: [value for _, value in curve(run, name)] for name in names}
    return {name: mean(found[-max(1, len(found) // 4) :]) for name, found in values.items()}


def loss_curve(run: Path, _: Path) -> Measures:
    """Return the validation loss at fixed noise, at every validation of the run."""
    points = curve(run, "val/loss")
    return {f"loss after {step}": value for step, value in points}


def edits_right(families: Sequence[str]) -> Callable[[Path, Path], Measures]:
    def measure(run: Path, _: Path) -> Measures:
        found = learned(exported(run, "--ema"), dict.fromkeys(families, 60))
        count = sum(one["count"] for one in found.values())
        errors = [error for one in found.values() for error in one["errors"]]
        right = sum(one["correct"] for one in found.values())
        return {"correct": right / count, "error": sum(errors) / len(errors)}

    return measure


def preferred(run: Path, before: Path) -> Measures:
    """Wins over the SFT model on held-out edits but those of words, and what became of the winner's and the loser's
    error."""
    from benchmarks.report import wins

    families = json.loads((before / "sft.json").read_text(encoding="utf-8"))["families"]
    families.pop("text", None)
    now = learned(exported(run, "--ema"), {family: one["count"] for family, one in families.items()})
    won, moved = wins(families, now)
    return {"win rate": won / max(moved, 1), **late(run, "train/win_diff", "train/lose_diff")}


def borrowed(number: int, split: Literal["train", "held_out"], turned: bool = False) -> "WorldEdit":
    """A picture that takes the background of another, which the world's own edits never do: the pretrained weights
    have seen no order of its references. The picture comes first, or last when `turned`; the instruction says which."""
    from datamodules.references.instruction import reindex
    from datamodules.world.sample import edit
    from datamodules.world.scene import Scene
    from datamodules.world.vocabulary import COLOURS

    found = edit(7, number, split, ("background",))
    lender = edit(8, number, split, ("background",)).sources[0].things[-1:]
    sources = (found.sources[0], Scene(found.target.background, lender))
    en, cn = "Give Picture 1 the background of Picture 2", "把图1的背景换成图2的背景"
    texts = {key: cn if key.endswith("cn") else en for key in found.texts}
    captions = tuple((f"a picture on {s.background}", f"{COLOURS[s.background][0]}背景上的图") for s in sources)
    if turned:
        sources, captions = sources[::-1], captions[::-1]
        texts = {key: reindex(text, [2, 1]) for key, text in texts.items()}
    return replace(found, task="compose", sources=sources, texts=texts, captions=captions)


def borrowings(out: Path, count: int) -> None:
    """Rows of `borrowed` in one order, prepared: other orders are for alignment to draw."""
    from datamodules.world.write import row

    if (out / "data" / "data.json").exists():
        return
    folder = out / "compose"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    with (folder / "edits.jsonl").open("w", encoding="utf-8") as file:
        for number in range(count):
            line = row(borrowed(number, "train"), folder, f"compose-{number:06d}")
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    command("prepare", "--recipe", "recipes/world/prepare.yaml", f"source={folder}", f"out={out / 'data'}")


def orders_never_seen(run: Path, _: Path, count: int = 128) -> Measures:
    """Return the share of held-out edits that are right, and of their blocks, in the rows' order and in the other one.

    The rows never had the other order.
    """
    from benchmarks import learning

    model = learning.LoadedModel.open(exported(run, "--ema"), learning.STEPS)
    judge = learning.Correctness()
    found: Measures = {}
    for order, turned in (("order of the rows", False), ("never seen", True)):
        right: list[float] = []
        blocks: list[float] = []
        for start in range(0, count, 32):
            numbers = range(start, min(start + 32, count))
            drawn = [
                (borrowed(i, "held_out", turned), f"borrowed-{i}", "original/en" if i % 2 else "original/cn")
                for i in numbers
            ]
            batch = model.batch(drawn)
            scores = judge.submit(model.edits(batch), batch).result()
            right += scores.value.tolist()
            blocks += scores.terms["edited"].tolist()
        found |= {f"{order}: correct": mean(right), f"{order}: blocks": mean(blocks)}
    return found


def gradient_noise(strata: str, seed: int, before: Path) -> Measures:
    """The variance of the SFT model's gradient, and of the loss, over steps of training; batches and noise are the same
    for both arms, which differ in how sigmas are drawn alone."""
    from functools import partial

    import torch

    from benchmarks.strata import independent
    from datamodules.loading.loader import BatchAddress
    from datamodules.sampling.captions import Captions
    from datamodules.world.families import FAMILIES
    from datamodules.world.stream import Drawn
    from firered_lit.flow.timesteps import uniform
    from firered_lit.models.backbone import Backbone
    from firered_lit.stages.sft import SFT

    backbone, adamw = Backbone(str(before / "sft" / "model")), partial(torch.optim.AdamW, lr=0.0)
    stage = SFT(backbone, adamw, timesteps=uniform, edit_share=0.5, seed=seed)
    stage.configure_model()
    if strata == "independent":
        stage.draw_sigma = lambda batch: stage.law(batch)(  # type: ignore[method-assign]
            independent(1000 * seed + batch.step, len(batch))
        )
    drawn = Drawn("world", tuple(FAMILIES), Captions({"original": 1.0}, None, 0.05), seed)
    weights = [p for p in stage.transformer.parameters() if p.requires_grad]
    total, squares, losses = torch.zeros(sum(p.numel() for p in weights), dtype=torch.float64), 0.0, []
    for step in range(DRAWS):
        batch, _ = drawn[BatchAddress(step, tuple(range(16)), 16)]
        loss = stage.losses(batch).mean()  # type: ignore[arg-type]
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)]).double()
        total += gradient
        squares += float(gradient.square().sum())
        losses.append(float(loss.detach()))
    spread = (squares - float(total.square().sum()) / DRAWS) / (DRAWS - 1)
    return {"variance of the gradient": spread, "variance of the loss": stdev(losses) ** 2}


def mixture(out: Path, count: int) -> None:
    """Edits with one to three references, prepared."""
    if not (out / "data" / "data.json").exists():
        words = ("--out", str(out / "world"), "--count", str(count), "--families", "color,remove,compose,compose")
        subprocess.run([sys.executable, "-m", "datamodules.world", *words], check=True)
        command("prepare", "--recipe", "recipes/world/prepare.yaml", f"source={out / 'world'}", f"out={out / 'data'}")


def speed(run: Path, _: Path) -> Measures:
    return {"samples/s": late(run, "perf/samples_per_s")["perf/samples_per_s"]}


def faces_alike(run: Path, _: Path) -> Measures:
    """Return the cosine of held-out faces' features with the exact answers', and the share of edits that are right."""
    from benchmarks import learning
    from callbacks.rewards.consistency import ConsistencyReward
    from firered_lit.rewards.correctness import FACES

    model, judge = learning.LoadedModel.open(exported(run, "--ema"), learning.STEPS), learning.Correctness()
    alike = ConsistencyReward("tiny", preservation_weight=0.0, whole=False)
    cosines, right = [], []
    for family in FACES:
        for _found, batch in learning.batches(model, family, range(60), 0, "held_out"):
            pictures = model.edits(batch)
            cosines += alike.submit(pictures, batch).result().terms["identity"].tolist()
            right += judge.submit(pictures, batch).result().value.tolist()
    return {"cosine of the faces": mean(cosines), "correct": mean(right)}


def words_of(run: Path, _: Path) -> Measures:
    words = learned(exported(run, "--merge"), {"text": 400})["text"]["words"]
    found = {name: words[name] for name in ("reward", "text", "layout", "glyph_ratio", "dark", "edges")}
    return found | {"exact words": words["exact"] / words["count"]}


def ablations(before: Path, out: Path) -> dict[str, Ablation]:
    """Return the ablations by name."""
    edits = "{_target_: datamodules.edits.EditDataModule, root: %s, capacity: 1024, max_batch: 8, workers: 1" % (
        out / "orders" / "data"
    )
    mixed = "{_target_: datamodules.edits.EditDataModule, root: %s, capacity: 512, workers: 1" % (
        out / "mixed" / "data"
    )
    start = f"run.start_from={before}/sft/model"
    words = (f"run.start_from={before}/dpo/model", f"data.root={before}/nft/data", "trainer.max_steps=40")
    mined = f"data.mined={before}/nft/mined"
    return {
        "curriculum": Ablation(
            "noise first, then uniform, against uniform from the start; from the untrained copier",
            "pretrain",
            {"on": ("stage.start_weight=1.0",), "off": ("stage.start_weight=0.0",)},
            loss_curve,
            (
                "trainer.max_steps=200",
                "run.validate_every=50",
                "stage.schedule.warmup=20",
                "stage.schedule.fall=100",
                "checkpoint.every=1000",
            ),
        ),
        "strata": Ablation(
            "timesteps in strata, against independent ones",
            "",
            {"on": ("strata",), "off": ("independent",)},
            without_run=gradient_noise,
        ),
        "buckets": Ablation(
            "a budget of tokens, against a batch as large as the longest samples allow in the same memory",
            "sft",
            {"token budget": (f"data={mixed}, max_batch: null}}",), "fixed batch": (f"data={mixed}, max_batch: 8}}",)},
            speed,
            ("trainer.max_steps=80", "trainer.log_every_n_steps=5", "run.validate_every=1000"),
            lambda: mixture(out / "mixed", 1000),
        ),
        "edit share": Ablation(
            "half of the loss on what the edit changes, against every pixel alike",
            "sft",
            {"on": ("stage.edit_share=0.5",), "off": ("stage.edit_share=0.0",)},
            edits_right(("add", "remove", "color", "motion")),
            ("trainer.max_steps=300", "data.families=[add,remove,color,motion]"),
        ),
        "alignment": Ablation(
            "references permuted and dropped with the prompt re-indexed, against the order of the rows",
            "sft",
            {"on": (f"data={edits}, alignment: true}}",), "off": (f"data={edits}, alignment: false}}",)},
            orders_never_seen,
            ("trainer.max_steps=400", "stage.optimizer.lr=6e-4"),
            lambda: borrowings(out / "orders", 1500),
        ),
        "consistency": Ablation(
            "the consistency loss on faces, against none",
            "sft",
            {
                "on": (
                    "stage.consistency={_target_: firered_lit.stages.consistency.Consistency, encoder: tiny, eta: 1.0}",
                ),
                "off": ("stage.consistency=null",),
            },
            faces_alike,
            ("trainer.max_steps=200", "data.families=[portrait,beauty]"),
        ),
        "dpo": Ablation(
            "asymmetric against plain",
            "dpo",
            {"asymmetric": (), "plain": ("stage.omega=1.0", "stage.sft_weight=0.0")},
            preferred,
            (start, f"data.root={before}/dpo/data", "trainer.max_steps=100"),
        ),
        "nft": Ablation(
            "layout-aware against text-only reward, neither beside the reward of correctness",
            "nft",
            {"layout": (), "text only": ("callbacks.ocr.text_weight=1.0", "callbacks.ocr.layout_weight=0.0")},
            words_of,
            (*words, mined, "stage.weights.correctness=0.0"),
        ),
        "mining": Ablation(
            "reinforcement on requests that the model solves sometimes, against all",
            "nft",
            {"semi-hard": (mined,), "all": ("data.mined=null",)},
            words_of,
            words,
        ),
    }


def command(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "firered_lit", *words], check=True)


def overrides(one: Ablation, keys: Sequence[str], run: Path, seed: int) -> list[str]:
    """Return an arm's keys; the seeds last, for an arm may bring data of its own."""
    return [*one.common, *keys, f"run.dir={run}", "run.resume=last", f"stage.seed={seed}", f"data.seed={100 + seed}"]


def run_arm(one: Ablation, keys: Sequence[str], folder: Path, seed: int, before: Path) -> Measures:
    """Return the measures of one arm with one seed; run, continued or read."""
    result = folder / "result.json"
    if not result.exists() and one.without_run:
        result.write_text(json.dumps(one.without_run(keys[0], seed, before)), encoding="utf-8")
    elif not result.exists():
        run = folder / "run"
        command("fit", "--recipe", f"recipes/world/{one.recipe}.yaml", *overrides(one, keys, run, seed))
        result.write_text(json.dumps(one.measure(run, before)), encoding="utf-8")
    return json.loads(result.read_text(encoding="utf-8"))


def interval(values: Sequence[float]) -> str:
    """Return the mean and the 95 % interval over seeds, by Student's t."""
    if len(values) < 2:
        return f"{values[0]:.4g}"
    half = STUDENT.get(len(values), 1.96) * stdev(values) / math.sqrt(len(values))
    return f"{mean(values):.4g} ± {half:.2g}"


def table(results: dict[str, list[Measures]]) -> str:
    """Return Markdown: a row per measure, a column per arm."""
    names = list(next(iter(results.values()))[0])
    lines = ["| | " + " | ".join(results) + " |", "|---|" + "---|" * len(results)]
    for name in names:
        cells = [interval([one[name] for one in seeds]) for seeds in results.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learned", type=Path, default=Path(".learn"), help="what `make learn` left")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="names of ablations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    known = ablations(given.learned.resolve(), given.out.resolve())
    chosen = given.only or list(known)
    if unknown := sorted(set(chosen) - set(known)):
        parser.error(f"--only {unknown[0]}: one of {', '.join(known)}")
    everything, text = {}, ["# What each part is worth\n"]
    for name in chosen:
        one, results = known[name], {}
        one.prepare()
        for arm, keys in one.arms.items():
            folders = [given.out / name.replace(" ", "_") / arm.replace(" ", "_") / str(seed) for seed in given.seeds]
            for folder in folders:
                folder.mkdir(parents=True, exist_ok=True)
            results[arm] = [
                run_arm(one, keys, folder.resolve(), seed, given.learned) for folder, seed in zip(folders, given.seeds)
            ]
        everything[name] = results
        text += [f"## {name}\n", f"{one.about}; {len(given.seeds)} seeds, means with 95 % intervals.\n", table(results)]
        (given.out / "results.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        (given.out / "report.md").write_text("\n".join(text), encoding="utf-8")
        print("\n".join(text[-3:]))
    print(f"{given.out / 'report.md'}")


if __name__ == "__main__":
    main()
