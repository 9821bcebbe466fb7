"""Tables and pictures of what models of the learning world have learned.

    python benchmarks/report.py tables --results pretrained.json sft.json --names pretrained SFT --out DIR
    python benchmarks/report.py edits --models MODEL ... --names ... --out edits.png
    python benchmarks/report.py run --run RUN [RUN ...] --out pretrain.json

`tables` reads what `benchmarks/learning.py evaluate` wrote, copies it to DIR beside report.md and correctness.png, and
with --against says whether the results agree with those of an earlier report. `edits` draws held-out edits, a column
for each model. `run` takes a run's curves and hours out of its store, as numbers and a plot; of several runs, each goes
on from a checkpoint of the one before.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, pstdev, stdev
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from datamodules.world.families import FAMILIES as DRAWN

EASY = ("color", "remove", "background", "viewpoint")
FAMILIES = (*EASY, *(family for family in DRAWN if family not in EASY))  # in the order of the tables
Z = 1.959964  # of a 95 % interval
TERMS = ("edited", "kept", "landmarks", "restored")
WORDS = ("text", "layout", "glyph_ratio", "dark", "edges")
EDITS = (("color", 1), ("remove", 1), ("background", 1), ("viewpoint", 1), ("text", 1), ("compose", 2), ("compose", 3))
SETTINGS = ("stage.seed", "data.seed")
POINTS = 200  # of a curve that is kept
PAUSE = 600_000  # milliseconds without a metric after which a run is taken to have been stopped

Interval = tuple[float, float, float]  # a mean and the bounds of its 95 % interval


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share, as Wilson (1927) computes it."""
    share = correct / count
    z2 = Z * Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def share(correct: int, count: int) -> Interval:
    """Return a share with its 95 % interval."""
    return (correct / count, *wilson(correct, count))


def average(values: Sequence[float]) -> Interval:
    """Return a mean with its normal 95 % interval."""
    middle = mean(values)
    if len(values) < 2:
        return middle, middle, middle
    half = Z * stdev(values) / math.sqrt(len(values))
    return middle, middle - half, middle + half


def over_families(families: dict[str, Any]) -> Interval:
    """Return the mean of the families' shares with its interval.

    Each family counts once, whatever its number of edits. The interval adds up the variances, each of a share with two
    right and two wrong edits more, so that none is 0.

    Source:
        Agresti and Coull, 1998.
    """
    shares = []
    variances = []
    for one in families.values():
        shares.append(one["correct"] / one["count"])
        count = one["count"] + 4
        softened = (one["correct"] + 2) / count
        variances.append(softened * (1 - softened) / count)
    middle = mean(shares)
    half = Z * math.sqrt(sum(variances)) / len(shares)
    return middle, max(0.0, middle - half), min(1.0, middle + half)


def gained(before: dict[str, Any], after: dict[str, Any]) -> Interval:
    """Return the rise of the mean of the families' shares, edit by edit, with its interval.

    The pairs' variances, each with one edit gained and one lost more, add up.

    Source:
        Agresti and Min, 2005.
    """
    rises = []
    variances = []
    for family, one in before.items():
        if family not in after:
            continue
        changes = [new - old for old, new in zip(one["right"], after[family]["right"], strict=True)]
        softened = [*changes, 1, -1]
        rises.append(mean(changes))
        variances.append(pstdev(softened) ** 2 / len(softened))
    middle = mean(rises)
    half = Z * math.sqrt(sum(variances)) / len(rises)
    return middle, middle - half, middle + half


def percent(found: Interval) -> str:
    """Return a share with its interval, in percent."""
    middle, low, high = (100 * one for one in found)
    return f"{middle:.0f} ({low:.0f}-{high:.0f})"


def points(found: Interval) -> str:
    """Return a rise with its interval, in points of a hundred."""
    middle, low, high = (100 * one for one in found)
    return f"{middle:+.1f} ({low:+.1f} to {high:+.1f})"


def known(results: Sequence[dict[str, Any]]) -> list[str]:
    """Return the families that one of the results has, in the order of the tables."""
    return [family for family in FAMILIES if any(family in result["families"] for result in results)]


def table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Return Markdown: a row per family, a column per model; shares with their intervals, in percent."""
    lines = [f"| family | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for family in known(results):
        found = [result["families"].get(family) for result in results]
        cells = [percent(share(one["correct"], one["count"])) if one else "" for one in found]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines.append(f"| all, each alike | {' | '.join(percent(over_families(one['families'])) for one in results)} |")
    return "\n".join(lines) + "\n"


def term_table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Return Markdown: the deciding terms, means over edits: by family and term a row, a column per model."""
    lines = [f"| family | of what | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for family in known(results):
        found = [result["families"].get(family, {}) for result in results]
        for term in TERMS:
            if any(term in one for one in found):
                cells = [f"{one[term]:.3f}" if term in one else "" for one in found]
                lines.append(f"| {family} | {term} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def wins(before: dict[str, Any], after: dict[str, Any], tie: float = 0.002) -> tuple[int, int]:
    """Return (edits that came nearer to the exact answer, edits that moved at all): by more than `tie` of the range."""
    won = 0
    moved = 0
    for family in FAMILIES:
        if family not in before or family not in after:
            continue
        for old, new in zip(before[family]["errors"], after[family]["errors"], strict=True):
            if abs(old - new) > tie:
                moved += 1
                won += new < old
    return won, moved


def win_table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Return Markdown: the rise of the share of correct edits over the model before, each family counted once, and the
    share of edits that are nearer to the exact answer than that model's."""
    lines = [
        "| | correct, points | nearer to the exact answer, of those that moved | mean error |",
        "|---|---|---|---|",
    ]
    for i, (result, name) in enumerate(zip(results, names, strict=True)):
        families = result["families"]
        errors = [error for one in families.values() for error in one["errors"]]
        against = gain = nearer = ""
        if i > 0:
            before = results[i - 1]["families"]
            against = f" against {names[i - 1]}"
            gain = points(gained(before, families))
            won, moved = wins(before, families)
            if moved:
                nearer = f"{percent(share(won, moved))} of {moved}"
        lines.append(f"| {name}{against} | {gain} | {nearer} | {mean(errors):.4f} |")
    return "\n".join(lines) + "\n"


def word_table(results: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Return Markdown: the OCR reward's measures of held-out edits of words; gains are over the model before, edit by
    edit."""
    heads = ("exact words", "more, points", "reward", "gain", *WORDS)
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    earlier: dict[str, Any] = {}
    for result, name in zip(results, names, strict=True):
        words = result["families"].get("text", {}).get("words")
        if not words:
            continue

        # The gain over the model before.
        more = gain = ""
        if earlier:
            more = points(gained({"text": {"right": earlier["read"]}}, {"text": {"right": words["read"]}}))
            start = mean(earlier["rewards"])
            changes = [new - old for old, new in zip(earlier["rewards"], words["rewards"], strict=True)]
            middle, low, high = average(changes)
            relative = f", {100 * middle / start:+.0f} %" if start > 0 else ""
            gain = f"{middle:+.3f} ({low:+.3f} to {high:+.3f}){relative}"

        # The model's own measures.
        middle, low, high = average(words["rewards"])
        cells = [percent(share(words["exact"], words["count"])), more, f"{middle:.3f} ({low:.3f}-{high:.3f})", gain]
        cells += [f"{words[column]:.3f}" for column in WORDS]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        earlier = words
    return "\n".join(lines) + "\n"


def agreement(
    results: Sequence[dict[str, Any]], earlier: Sequence[dict[str, Any]]
) -> tuple[int, list[tuple[int, str]]]:
    """Return (the number of shares compared, (model, family) of those whose 95 % intervals do not meet)."""
    compared = 0
    apart = []
    for number, (new, old) in enumerate(zip(results, earlier, strict=True)):
        for family in known([new, old]):
            compared += 1
            low, high = wilson(new["families"][family]["correct"], new["families"][family]["count"])
            old_low, old_high = wilson(old["families"][family]["correct"], old["families"][family]["count"])
            if max(low, old_low) > min(high, old_high):
                apart.append((number, family))
    return compared, apart


def bars(results: Sequence[dict[str, Any]], names: Sequence[str], path: Path) -> None:
    """Draw the shares as bars by family, a colour per model, with their intervals."""
    pyplot = _pyplot()
    families = known(results)
    figure, axes = pyplot.subplots(figsize=(1.0 * len(families) + 2, 4), layout="constrained")
    width = 0.8 / len(results)
    for k, (result, name) in enumerate(zip(results, names, strict=True)):
        found = [result["families"].get(family, {"correct": 0, "count": 1}) for family in families]
        shares = [share(one["correct"], one["count"]) for one in found]
        errors = [[max(0, s - low) for s, low, _ in shares], [max(0, high - s) for s, _, high in shares]]
        places = [i + (k - (len(results) - 1) / 2) * width for i in range(len(families))]
        axes.bar(places, [s for s, _, _ in shares], width, yerr=errors, label=name, capsize=2)
    axes.set_xticks(range(len(families)), families, rotation=40, ha="right")
    axes.set(ylim=(0, 1), ylabel="correct, held-out combinations")
    axes.margins(x=0.01)
    figure.legend(loc="outside upper right", ncols=len(results))
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def tables(paths: Sequence[Path], names: Sequence[str], out: Path, against: Path | None = None) -> None:
    """Write `out`/report.md and `out`/correctness.png, beside the results that they are made of."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    out.mkdir(parents=True, exist_ok=True)
    for result, name in zip(results, names, strict=True):
        _write(out / f"{name}.json", result)
    bars(results, names, out / "correctness.png")

    # The report, section by section.
    counts = sorted({one["count"] for one in results[0]["families"].values()})
    caption = (
        "Correct edits of held-out combinations, percent with 95 % intervals; "
        f"{' or '.join(map(str, counts))} edits of each family, each judged against its one exact answer."
    )
    body = [f"# What was learned\n\n{caption}\n", table(results, names), "![by family](correctness.png)\n"]
    body += ["## Blocks\n\nShares of the blocks that are right, where the answer differs from the source (edited) and"]
    body += ["elsewhere (kept); landmarks that stayed; of faults, how much is gone (restored).\n"]
    body += [term_table(results, names), "## From stage to stage\n", win_table(results, names)]
    body += ["## Words\n", word_table(results, names)]
    if against:
        earlier = [json.loads((against / f"{name}.json").read_text(encoding="utf-8")) for name in names]
        compared, apart = agreement(results, earlier)
        where = "".join(f"; {names[number]} {family} not" for number, family in apart)
        line = f"{compared - len(apart)} of {compared} shares agree with {against} within both intervals{where}."
        body += ["## Against the report before\n", f"{line}\n"]
        print(line)
    (out / "report.md").write_text("\n".join(body), encoding="utf-8")
    print(f"{out / 'report.md'}")


def edits(models: Sequence[str], names: Sequence[str], out: Path, seed: int, steps: int | None) -> None:
    """Draw a row per kind of edit, the first one of its kind that is held out: references, models' edits, answer."""
    from benchmarks.learning import STEPS, LoadedModel
    from datamodules.world.sample import edit
    from firered_lit.models.codec import to_image

    # An empty table with its heads.
    opened = [LoadedModel.open(name, steps or STEPS) for name in models]
    widest = max(number for _, number in EDITS)
    pyplot = _pyplot()
    columns = [*(f"reference {i + 1}" for i in range(widest)), *names, "exact answer"]
    figure, axes = pyplot.subplots(len(EDITS), len(columns), figsize=(1.5 * len(columns), 1.75 * len(EDITS)))
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.95, wspace=0.06, hspace=0.22)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, column in zip(axes[0], columns, strict=True):
        axis.text(0.5, 1.25, column, transform=axis.transAxes, ha="center", fontsize=9, weight="bold")

    # Its pictures.
    for line, (family, references) in zip(axes, EDITS, strict=True):
        found = edit(seed, 0, "held_out", (family,), references)
        name = f"held_out-{seed}-{family}-0"
        batch = opened[0].batch([(found, name, "original/en")])
        assert batch.pixels is not None
        shown = {i: source[0] for i, source in enumerate(batch.sources)}
        for k, model in enumerate(opened):
            shown[widest + k] = model.edits(batch)[0]
        shown[len(columns) - 1] = batch.pixels[0]
        for place, picture in shown.items():
            line[place].imshow(to_image(picture), interpolation="nearest")
        line[0].set_title(found.texts["original/en"], loc="left", fontsize=9)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
    print(out)


def run(folders: Sequence[Path], out: Path) -> None:
    """Write the record of a run, or of several that went on from each other, and beside it a plot.

    It has the seeds of the last, steps, hours of work, and curves, which of each run end where the next one starts.
    """
    from mlflow.tracking import MlflowClient

    from firered_lit.run.store import read_record

    found: dict[str, Any] = {}
    curves: dict[str, list[tuple[int, float]]] = {}
    work: list[list[tuple[int, int]]] = []  # of each run, (step, milliseconds) of what it logged
    for folder in folders:
        # The curves of this run.
        record = read_record(folder)
        client = MlflowClient(record["mlflow_uri"])
        number = record["mlflow_run_id"]
        data = client.get_run(number).data
        names = [name for name in sorted(data.metrics) if name.startswith(("train/", "val/"))]
        histories = {name: client.get_metric_history(number, name) for name in names}
        own = {name: sorted((point.step, point.value) for point in points) for name, points in histories.items()}

        # Those of the runs before it, up to its start.
        began = min(points[0][0] for points in own.values())
        kept = {name: [point for point in points if point[0] < began] for name, points in curves.items()}
        curves = {name: [*kept.get(name, []), *own.get(name, [])] for name in kept | own}
        settings = {key: data.params.get(key) for key in SETTINGS}
        found = {"stage": record["stage"], "base": record["base"], **settings}
        work = [[moment for moment in moments if moment[0] < began] for moments in work]
        work.append([(point.step, point.timestamp) for points in histories.values() for point in points])

    # The record.
    worked = sum(hours([time for _, time in moments]) for moments in work)
    steps = max(points[-1][0] for points in curves.values())
    curves = {name: thinned(points) for name, points in curves.items()}
    _write(out, found | {"steps": steps, "hours": round(worked, 2), "curves": curves})

    # The plot.
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    for name in ("train/loss", "val/loss"):
        if name in curves:
            axes.plot(*zip(*curves[name]), label=name, marker="o" if len(curves[name]) < 30 else None)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    figure.savefig(out.with_suffix(".png"), dpi=110)
    pyplot.close(figure)
    print(out)


def hours(times: Sequence[int]) -> float:
    """Return the hours from the first of some milliseconds to the last, without pauses of more than PAUSE."""
    gaps = [new - old for old, new in pairwise(sorted(times))]
    return sum(gap for gap in gaps if gap <= PAUSE) / 3.6e6


def thinned(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return the means over neighbours, so that at most `POINTS` are left; a mean stands at its last step."""
    size = math.ceil(len(points) / POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(group[-1][0], round(mean(value for _, value in group), 5)) for group in groups]


def _pyplot() -> Any:
    """Return matplotlib's pyplot, which draws into files."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file; its folder is made when absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    first = verbs.add_parser("tables")
    first.add_argument("--results", type=Path, nargs="+", required=True)
    first.add_argument("--against", type=Path, help="a folder that an earlier report was written to")
    second = verbs.add_parser("edits")
    second.add_argument("--models", nargs="+", required=True)
    second.add_argument("--seed", type=int, default=0)
    second.add_argument("--steps", type=int, help="of the solver")
    third = verbs.add_parser("run")
    third.add_argument("--run", type=Path, nargs="+", required=True)
    for verb in (first, second):
        verb.add_argument("--names", nargs="+", required=True)
    for verb in (first, second, third):
        verb.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if given.verb == "tables":
        tables(given.results, given.names, given.out, given.against)
    elif given.verb == "edits":
        edits(given.models, given.names, given.out, given.seed, given.steps)
    else:
        run(given.run, given.out)


if __name__ == "__main__":
    main()
