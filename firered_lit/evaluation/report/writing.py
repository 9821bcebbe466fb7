"""The last step of an evaluation: OUT/report with a page, Markdown, JSON and plots, and a record in MLflow."""

import json
from collections.abc import Sequence
from typing import Any

from firered_lit.evaluation.protocols import Benchmark, EvaluationFolder
from firered_lit.evaluation.report import markdown
from firered_lit.evaluation.report.page import PICTURES, PLOTS, Sources, cards, page, pictures_of
from firered_lit.evaluation.report.plots import plots
from firered_lit.evaluation.report.record import RunRecord
from firered_lit.evaluation.report.results import MODES, Results, read
from firered_lit.evaluation.report.tables import tables
from firered_lit.evaluation.report.thumbnails import Thumbnails
from firered_lit.files import replacing


def write(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    seed: int,
    mlflow: RunRecord | None = None,
) -> None:
    """Write the report of what was scored: a function of the files, which asks nobody and draws nothing.

    Args:
        folder: The evaluation's; `report/` in it gets index.html, report.md, report.json, plots and thumbnails.
        benchmarks: Those that were scored.
        models: Names, in the order of the report.
        seed: Chooses the items whose pictures MLflow gets, where `mlflow` wants some.
        mlflow: Where tables and plots are recorded; None: nowhere.

    Raises:
        UserError: Nothing is scored yet, or a file is damaged.
    """
    results = read(folder, benchmarks, models)
    found = tables(results)
    drawn = plots(results)

    # Plots and tables.
    for plot in drawn:
        with replacing(folder.report / PLOTS / plot.name, "wb") as file:
            file.write(plot.content)
    _put(folder, "report.md", markdown.document(found, [f"{PLOTS}/{plot.name}" for plot in drawn]))
    _put(folder, "report.json", json.dumps(summary(results), indent=2, ensure_ascii=False) + "\n")

    # The page, when its pictures are there.
    thumbnails = Thumbnails(folder.report / PICTURES)
    contents = cards(results, Sources.of(benchmarks), thumbnails)
    _put(folder, "index.html", page(results, found, drawn, contents))
    thumbnails.keep_only(pictures_of(contents))

    if mlflow is not None:
        mlflow.keep(folder, results, found, contents, seed)


def summary(results: Results) -> dict[str, Any]:
    """Return the report as data: judges, counts, warnings, scores and all statistics of every suite."""
    suites: dict[str, Any] = {}
    for suite in results.scorings:
        by_model = {}
        for model in results.models:
            scores = results.tables[model].get(suite, {})
            counts = {mode: results.counts(suite, model, mode) for mode in MODES}
            by_model[model] = {"counts": counts, "scores": scores}
        suites[suite] = {
            "judge": results.judges(suite),
            "warnings": results.warnings(suite),
            "models": by_model,
        }
    return {"models": list(results.models), "suites": suites, **results.statistics}


def _put(folder: EvaluationFolder, name: str, text: str) -> None:
    """Write a file of the report; half of a surrogate pair, which a judge may send, becomes a question mark."""
    with replacing(folder.report / name, "wb") as file:
        file.write(text.encode("utf-8", "replace"))
