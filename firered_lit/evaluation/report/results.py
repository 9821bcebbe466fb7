"""The files of an evaluation, read for its report: what each model scored on each item, and what that allows to say."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.evaluation.protocols import Benchmark, EvaluationFolder
from firered_lit.evaluation.scores import OVERALL, STATES, Scoring
from firered_lit.evaluation.scoring import INTERSECTION, MODES
from firered_lit.textfiles import open_regular, read_object

COUNTED = ("expected", *STATES)


@dataclass(frozen=True)
class ItemRow:
    """One item of a benchmark beside what the models made of it.

    Attributes:
        suite: The benchmark in one language.
        id: Unique within the suite.
        category: The item's task.
        language: "en" or "zh".
        instruction: What the models were asked to do.
        lines: Model -> its line of `items.jsonl`.
    """

    suite: str
    id: str
    category: str
    language: str
    instruction: str
    lines: Mapping[str, Mapping[str, Any]]

    def score(self, model: str, mode: str, dimension: str) -> float | None:
        """Return a model's number; None where it has none."""
        line = self.lines.get(model)
        if line is None:
            return None
        return line[mode]["values"].get(dimension)

    def state(self, model: str, mode: str) -> str:
        """Return "scored", or why the judge's score is missing."""
        line = self.lines.get(model)
        if line is None:
            return "missing"
        return line[mode]["state"]

    def gap(self, models: Sequence[str], dimension: str) -> float:
        """Return how far the models lie apart in strict mode; 0 where fewer than two have a number."""
        scores = [self.score(model, "strict", dimension) for model in models]
        known = [score for score in scores if score is not None]
        return max(known) - min(known) if len(known) > 1 else 0.0


@dataclass(frozen=True)
class Results:
    """An evaluation as it lies in its folder.

    Attributes:
        out: The folder.
        models: Names, in the order of the report.
        scorings: Suite -> how its answers are scored, in the order of the report; suites without a score are left out.
        origins: Suite -> the suite whose items it has; GEdit-Bench counts some of its items a second time.
        rows: All items, in the order of the benchmarks.
        tables: Model -> suite -> mode -> category or "overall" -> score and counts.
        statistics: The content of `statistics.json`.
    """

    out: Path
    models: tuple[str, ...]
    scorings: Mapping[str, Scoring]
    origins: Mapping[str, str]
    rows: Sequence[ItemRow]
    tables: Mapping[str, Mapping[str, Any]]
    statistics: Mapping[str, Any] = field(default_factory=dict)

    def rows_of(self, suite: str) -> Iterator[ItemRow]:
        """Yield the items of a suite."""
        return (row for row in self.rows if row.suite == suite)

    def categories(self, suite: str) -> list[str]:
        """Return the categories of a suite in the order of its items."""
        tables = [self.tables[model].get(suite, {}).get(mode, {}) for model in self.models for mode in MODES]
        return list(dict.fromkeys(name for table in tables for name in table if name != OVERALL))

    def score(self, suite: str, model: str, mode: str, category: str) -> Mapping[str, Any]:
        """Return the scores and counts of a category or "overall"; empty where the model has none."""
        return self.tables.get(model, {}).get(suite, {}).get(mode, {}).get(category, {})

    def estimate(self, suite: str, model: str, mode: str, category: str) -> Mapping[str, Any]:
        """Return the mean of a category, "overall" or "micro", with its interval; empty where there is none."""
        estimates = self.statistics.get("estimates") or {}
        return estimates.get(suite, {}).get(model, {}).get(mode, {}).get(category) or {}

    def comparisons(self, suite: str) -> list[Mapping[str, Any]]:
        """Return the comparisons of two models each."""
        return [found for found in self.statistics.get("comparisons") or () if found["suite"] == suite]

    def judges(self, suite: str) -> str:
        """Return the names and days of a suite's judges, as "gpt-4.1 (2026-01-31)"."""
        dates: dict[str, set[str]] = {}
        for row in self.rows_of(self.origins[suite]):
            for line in row.lines.values():
                judge = line.get("judge") or {}
                if judge.get("model"):
                    dates.setdefault(str(judge["model"]), set()).add(str(judge.get("date") or "")[:10])
        if not dates:
            return "none: the benchmark measures without a judge, or nothing was judged"
        return "; ".join(_judge(name, sorted(days - {""})) for name, days in dates.items())

    def counts(self, suite: str, model: str, mode: str) -> dict[str, int]:
        """Return how many items are expected, scored, missing, refused and unparsed."""
        overall = self.score(suite, model, mode, OVERALL)
        return {name: int(overall.get(name, 0)) for name in COUNTED}

    def warnings(self, suite: str, models: Sequence[str] | None = None) -> list[str]:
        """Return a line for every model of which less was scored than expected.

        Args:
            suite: The benchmark in one language.
            models: Those that are looked at; None: all.
        """
        lines = []
        for model in self.models if models is None else models:
            counts: dict[str, dict[str, int]] = {mode: self.counts(suite, model, mode) for mode in MODES}
            if any(counted["scored"] < counted["expected"] for counted in counts.values()):
                lines.append(_warning(model, counts, self.scorings[suite]))
        return lines


def _judge(name: str, days: Sequence[str]) -> str:
    if not days:
        return f"{name} (date unknown)"
    if len(days) == 1:
        return f"{name} ({days[0]})"
    return f"{name} ({days[0]} to {days[-1]})"


def _warning(model: str, counts: Mapping[str, Mapping[str, int]], scoring: Scoring) -> str:
    scored = {mode: counted["scored"] for mode, counted in counts.items()}
    expected = counts["strict"]["expected"]
    return (
        f"{model}: of {expected} items {scored['official']} have an official and {scored['strict']} a strict score;"
        f" official leaves the others out of its mean, strict counts them as {scoring.lowest:g}"
    )


def read(folder: EvaluationFolder, benchmarks: Sequence[Benchmark], models: Sequence[str]) -> Results:
    """Read the scores of an evaluation.

    Args:
        folder: The evaluation's.
        benchmarks: Those that were scored.
        models: Names, in the order of the report.

    Raises:
        UserError: Nothing is scored yet, or a file is damaged.
    """
    scorings: dict[str, Scoring] = {}
    for benchmark in benchmarks:
        scorings.update(benchmark.suites())

    # The items of all models, side by side.
    lines: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for model in models:
        for line in _lines(folder.model_items(model)):
            if line["suite"] in scorings:
                lines.setdefault((line["suite"], str(line["id"])), {})[model] = line
    if not lines:
        raise UserError(f"{folder.out}: no item is scored; run the steps draw, judge and score before report")
    rows = []
    for (suite, name), by_model in lines.items():
        first = next(iter(by_model.values()))
        rows.append(ItemRow(suite, name, first["category"], first["language"], first["instruction"], by_model))

    tables = {model: read_object(folder.model_scores(model)) for model in models}
    origins = _origins(scorings, tables)
    return Results(
        out=folder.out,
        models=tuple(models),
        scorings={suite: scorings[origin] for suite, origin in origins.items()},
        origins=origins,
        rows=rows,
        tables=tables,
        statistics=read_object(folder.statistics) if folder.statistics.exists() else {},
    )


def _origins(suites: Iterable[str], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return every suite that has scores -> the benchmark's suite whose items it has, all or some of them."""
    scored = {suite for by_suite in tables.values() for suite in by_suite}
    origins: dict[str, str] = {}
    for origin in suites:
        for suite in (origin, f"{origin}_{INTERSECTION}"):
            if suite in scored:
                origins.setdefault(suite, origin)
    return origins


NEEDED = ("suite", "id", "category", "language", "instruction", *MODES)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of one model's `items.jsonl`.

    Raises:
        UserError: The file is not there, or a line is no item.
    """
    try:
        with open_regular(path) as file:
            for number, text in enumerate(file, 1):
                yield _line(text, f"{path}: line {number}")
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}; run the step score again") from None


def _line(text: bytes, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text, parse_constant=lambda _: None)  # NaN and infinity are no scores
    except (ValueError, RecursionError):
        line = None
    if not isinstance(line, dict) or not all(name in line for name in NEEDED):
        raise UserError(f"{where}: no item of an evaluation; run the step score again")
    return line


__all__ = ["COUNTED", "MODES", "OVERALL", "ItemRow", "Results", "read"]
