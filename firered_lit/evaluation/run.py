"""The straight line of an evaluation: draw, judge, score, report. Each step goes on where it was stopped."""

import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from firered_lit.errors import UserError
from firered_lit.evaluation import text_reading
from firered_lit.evaluation.arena import Arena, ask_arena
from firered_lit.evaluation.benchmarks.copies import unique
from firered_lit.evaluation.judge_here import JudgeHere
from firered_lit.evaluation.judge_server import JudgeServer
from firered_lit.evaluation.models.opening import FIRST, Drawing, name_of, open_models
from firered_lit.evaluation.protocols import Asking, Benchmark, EvaluationFolder, Item, Model
from firered_lit.evaluation.text_reading import TextReading
from firered_lit.files import write_json
from firered_lit.places import writable
from firered_lit.process.locks import in_turn, shard_held
from firered_lit.run.store import read_record
from firered_lit.textfiles import read_object

if TYPE_CHECKING:
    from firered_lit.evaluation.answers import AnswersFile
    from firered_lit.evaluation.report.record import RunRecord
    from firered_lit.judges.asker import Asker

logger = logging.getLogger(__name__)
STEPS = ("draw", "judge", "score", "report")
NOTE = "evaluation.json"  # in OUT: what was evaluated, by fingerprints
TRIED = 5  # items of a category of which one must be such that a judge can be asked about it


def evaluate(
    out: str,
    benchmarks: Mapping[str, Benchmark | None],
    model: str | Model | None = None,
    models: Mapping[str, str | Model | None] | None = None,
    data: str = "",
    drawing: Drawing | None = None,
    judge: JudgeServer | JudgeHere | None = None,
    answers: str | Mapping[str, Any] | None = None,
    text: TextReading | None = None,
    arena: Arena | None = None,
    steps: Sequence[str] = STEPS,
    seed: int = 43,
    shard: int = 0,
    num_shards: int = 1,
    mlflow: "RunRecord | None" = None,
) -> None:
    """Evaluate models on benchmarks into the folder `out`; run again, it goes on.

    Args:
        out: The folder.
        benchmarks: Name -> a user's copy of a benchmark; None leaves one out.
        model: A run, an export, a hub id, a folder of pictures, or a node of `firered_lit.evaluation.models`.
        models: Name -> more of them; two or more are compared on the same items. None leaves one out.
        data: The folder of the benchmark, for the recipe's other keys to name.
        drawing: Settings of the models that are named by a folder or a hub id.
        judge: The judge: a server, or a model of this process.
        answers: Answers made elsewhere, as the official scripts write them, in place of drawing and judging: a file, or
            suite -> file, or model -> suite -> file.
        text: How the text on pictures is read and scored; it is not without this.
        arena: Which edits the judge sees side by side; none without this.
        steps: Which of draw, judge, score and report.
        seed: Of every picture's noise, set anew for each, and of the statistics.
        shard: Which share of the items this process draws and asks about.
        num_shards: Into how many shares the items are divided. Each process of torchrun takes a share of its own.
        mlflow: Where tables and plots are recorded.

    Raises:
        UserError: A benchmark's copy is not whole, there is no such model, or nothing can go on.
    """
    shard, num_shards = _share(shard, num_shards)
    wanted = _wanted(steps, answers)
    judge = judge or JudgeServer()
    folder = EvaluationFolder(Path(out).resolve())
    copies = {name: benchmark for name, benchmark in benchmarks.items() if benchmark is not None}
    suites = _suites(copies)
    chosen = list(copies.values())
    opened, names = _models(model, models or {}, drawing or Drawing(), answers)
    if "judge" in wanted:
        _check_judge(chosen, judge)
        if arena is not None:
            arena.check(judge.model)
    writable(folder.out)

    with shard_held(folder.out, "eval", shard, num_shards):
        asking = judge.asking if "judge" in wanted else _asked_before(folder, judge)
        drawing_models = opened if "draw" in wanted else {}
        fingerprints = {name: one.fingerprint() for name, one in drawing_models.items()}
        _write_note(folder, chosen, fingerprints, seed, judge if "judge" in wanted else None)
        if "draw" in wanted:
            _draw(folder, chosen, opened, seed, shard, num_shards)
        elif answers is None:
            _warn_of_mixtures(folder, chosen, names)
        if "judge" in wanted:
            _judge(folder, chosen, names, judge, text, arena, shard, num_shards)
        if num_shards > 1:
            missing = _count_missing(folder, chosen, fingerprints, seed)
            if missing:
                print(f"shard {shard} of {num_shards} is done; {missing} pictures are left to the others")
                return
        with in_turn(folder.out):  # the last process to get here has everything before it
            if "score" in wanted:
                _score(folder, chosen, names, asking, seed, answers, text, arena)
                _print_scores(folder, suites, names)
            if "report" in wanted:
                _report(folder, chosen, names, opened, seed, mlflow)


# Before anything is drawn


def _share(shard: int, num_shards: int) -> tuple[int, int]:
    """Return this process's share: of those that a user divides into, and within it of torchrun's processes."""
    if not 0 <= shard < num_shards:
        raise UserError(f"shard={shard}, num_shards={num_shards}: shards are numbered from 0 to num_shards - 1")
    world = int(os.environ.get("WORLD_SIZE", "1"))
    rank = int(os.environ.get("RANK", "0"))
    if world > 1:
        _take_own_gpu(int(os.environ.get("LOCAL_RANK", "0")))
    return shard * world + rank, num_shards * world


def _take_own_gpu(number: int) -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _wanted(steps: Sequence[str], answers: "AnswersFile | None") -> list[str]:
    """Return the steps in their order."""
    for step in steps:
        if step not in STEPS:
            raise UserError(f"steps: no step {step!r}; there are {', '.join(STEPS)}")
    if not steps:
        raise UserError(f"steps: name some of {', '.join(STEPS)}")
    wanted = [step for step in STEPS if step in steps]
    if answers is not None:
        wanted = [step for step in wanted if step in ("score", "report")]
    return wanted


def _suites(benchmarks: Mapping[str, Benchmark]) -> list[str]:
    """Return the suites of all benchmarks, whose copies are read and checked here."""
    if not benchmarks:
        raise UserError("benchmarks: name at least one")
    suites: list[str] = []
    for name, benchmark in benchmarks.items():
        for suite in benchmark.suites():
            if suite in suites:
                raise UserError(f"benchmarks.{name}: another benchmark has the suite {suite} too")
            suites.append(suite)
        items = benchmark.items()
        if not items:
            raise UserError(f"benchmarks.{name}: holds no items")
        unique((f"{item.suite} {item.id}" for item in items), f"benchmarks.{name}")
        unique((f"{item.suite} {item.output}" for item in items), f"benchmarks.{name}")
    return suites


def _models(
    model: str | Model | None,
    models: Mapping[str, str | Model | None],
    settings: Drawing,
    answers: "AnswersFile | None",
) -> tuple[dict[str, Model], list[str]]:
    """Return the models, and their names; of answers made elsewhere the names alone."""
    if answers is None:
        opened = open_models(model, models, settings)
        return opened, list(opened)
    named = [name for name, one in answers.items() if isinstance(one, Mapping)] if isinstance(answers, Mapping) else []
    if not named:
        named = [name_of(model) if isinstance(model, str) else FIRST]
    return {}, named


def _check_judge(benchmarks: Sequence[Benchmark], judge: JudgeServer | JudgeHere) -> None:
    """See that every category can be asked about: that prompts are there, and a judge where one is wanted.

    Raises:
        UserError: They are not.
    """
    for benchmark in benchmarks:
        by_category: dict[str, list[Item]] = {}
        for item in benchmark.items():
            by_category.setdefault(item.category, []).append(item)
        for items in by_category.values():
            if _asks(benchmark, items[:TRIED], judge) and judge.url is None:
                suites = ", ".join(benchmark.suites())
                remedy = "give judge.url=http://HOST:PORT/v1, or draw alone by steps=[draw]"
                raise UserError(f"judge.url: {suites} is scored by a judge; {remedy}")


def _asks(benchmark: Benchmark, items: Sequence[Item], judge: JudgeServer | JudgeHere) -> bool:
    """Return whether a judge is asked about items, by what would be asked about the first one's own source.

    Raises:
        UserError: Nothing can be asked about any of them. A single one may have a damaged source.
    """
    problem = UserError("no items")
    for item in items:
        try:
            sources = benchmark.sources(item)
            return bool(sources) and bool(benchmark.requests(item, sources[0], judge.asking))
        except UserError as error:
            problem = error
    raise problem


# The steps


def _write_note(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    fingerprints: Mapping[str, str],
    seed: int,
    judge: JudgeServer | JudgeHere | None,
) -> None:
    """Write down what is evaluated and who judges, beside what was before in the same folder."""
    path = folder.out / NOTE
    with in_turn(folder.out):
        note: dict[str, Any] = read_object(path) if path.exists() else {}
        suites = {suite: benchmark.fingerprint() for benchmark in benchmarks for suite in benchmark.suites()}
        note["suites"] = {**note.get("suites", {}), **suites}
        note["models"] = {**note.get("models", {}), **fingerprints}
        note["seed"] = seed
        if judge is not None:
            asking = judge.asking
            note["judge"] = {"url": judge.url, "model": asking.model, "settings": dict(asking.settings)}
        note["firered_lit"] = version("firered-lit")
        write_json(path, note)


def _asked_before(folder: EvaluationFolder, judge: JudgeServer | JudgeHere) -> Asking:
    """Return how the judge was asked that the folder's answers are of, where no other one is named."""
    path = folder.out / NOTE
    if judge.asking != Asking() or not path.exists():
        return judge.asking
    noted = read_object(path).get("judge") or {}
    return Asking(str(noted.get("model", "")), dict(noted.get("settings", {})))


def _draw(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Mapping[str, Model],
    seed: int,
    shard: int,
    num_shards: int,
) -> None:
    from firered_lit.evaluation.drawing import draw

    for name, tally in draw(folder, benchmarks, models, seed, shard, num_shards).items():
        print(f"draw    {name}: {tally}")


def _warn_of_mixtures(folder: EvaluationFolder, benchmarks: Sequence[Benchmark], names: Sequence[str]) -> None:
    """Warn of pictures under one name that several models, seeds or settings have drawn."""
    from firered_lit.evaluation.drawing import count_origins

    for name in names:
        origins = count_origins(folder, benchmarks, name)
        if origins > 1:
            what = f"its pictures are of {origins} models, seeds or settings"
            logger.warning("model %s: %s; run the step `draw` to its end", name, what)


def _judge(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    names: Sequence[str],
    judge: JudgeServer | JudgeHere,
    text: TextReading | None,
    arena: Arena | None,
    shard: int,
    num_shards: int,
) -> None:
    from firered_lit.evaluation import judging

    if judge.url is None:  # nothing here is scored by a judge
        _read_texts(folder, benchmarks, names, judge, text, None, shard, num_shards)
        return
    with judge.client(folder.responses) as client:
        judged = judging.ask(
            folder,
            benchmarks,
            names,
            client,
            judge.asking,
            attempts=judge.attempts,
            repeats=judge.repeats,
            repeated_items=judge.repeated_items,
            shard=shard,
            num_shards=num_shards,
        )
        print(f"judge   {judged}")
        if arena is not None:
            kinds = ask_arena(
                folder, benchmarks, names, client, judge.asking, arena, shard=shard, num_shards=num_shards
            )
            print(f"arena   {', '.join(f'{count} {kind}' for kind, count in kinds.items()) or 'nothing new to ask'}")
        _read_texts(folder, benchmarks, names, judge, text, client, shard, num_shards)


def _read_texts(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    names: Sequence[str],
    judge: JudgeServer | JudgeHere,
    text: TextReading | None,
    client: "Asker | None",
    shard: int,
    num_shards: int,
) -> None:
    """Read the text on the pictures of items that ask for text, where it is wanted."""
    if text is None:
        return
    reader = text_reading.reader_of(text, client, judge.asking)
    targets = text_reading.targets_of(benchmarks, text.targets)
    read = text_reading.read_texts(folder, benchmarks, names, reader, targets, shard=shard, num_shards=num_shards)
    print(f"text    {read} pictures read by {reader.identity}")


def _count_missing(
    folder: EvaluationFolder, benchmarks: Sequence[Benchmark], fingerprints: Mapping[str, str], seed: int
) -> int:
    from firered_lit.evaluation.drawing import count_missing

    return count_missing(folder, benchmarks, fingerprints, seed)


def _score(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    names: Sequence[str],
    asking: Asking,
    seed: int,
    answers: "AnswersFile | None",
    text: TextReading | None,
    arena: Arena | None,
) -> None:
    from firered_lit.evaluation import scoring

    scoring.score(folder, benchmarks, names, asking, seed, answers=answers, text=text, arena=arena)


def _print_scores(folder: EvaluationFolder, suites: Sequence[str], names: Sequence[str]) -> None:
    """Print the headline of each suite and model, with what it rests on."""
    for suite in suites:
        for name in names:
            tables = read_object(folder.model_scores(name)).get(suite, {})
            parts = []
            counts = ""
            for mode, table in tables.items():
                overall = table["overall"]
                score = "none" if overall["score"] is None else f"{overall['score']:.4f}"
                parts.append(f"{mode} {score}")
                counts = f"expected {overall['expected']}, scored {overall['scored']}"
            print(f"score   {suite} {name}: {', '.join(parts)} ({counts})")


def _report(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    names: Sequence[str],
    models: Mapping[str, Model],
    seed: int,
    mlflow: "RunRecord | None",
) -> None:
    from firered_lit.evaluation import report

    if mlflow is not None:
        mlflow = mlflow.beside(_recorded_runs(models))
    report.write(folder, benchmarks, names, seed, mlflow=mlflow)
    print(f"report  {folder.report / 'index.html'}")


def _recorded_runs(models: Mapping[str, Model]) -> dict[str, str]:
    """Return model -> folder of its training run, of the models that are runs with a record in MLflow."""
    from firered_lit.evaluation.models.local import Local

    found = {}
    for name, model in models.items():
        if isinstance(model, Local) and model.run is not None and read_record(model.run).get("mlflow_run_id"):
            found[name] = str(model.run)
    return found
