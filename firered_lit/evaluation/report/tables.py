"""Tables of a report, built once and written as Markdown, as HTML and into MLflow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from firered_lit.evaluation.report.results import COUNTED, MODES, OVERALL, Results
from firered_lit.evaluation.scores import Scoring

NOTHING = "–"


@dataclass(frozen=True)
class Table:
    """A table of words.

    Attributes:
        name: For a file, in letters, digits and underscores.
        title: What it shows.
        notes: The lines above it: the judge and its date.
        warnings: The lines above it that must not be missed.
        head: The lines of each column's head.
        rows: The cells; the first names the row.
        shown: The page shows it unfolded.
    """

    name: str
    title: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    head: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    shown: bool = False


def tables(results: Results) -> list[Table]:
    """Return all tables of a report: scores, comparisons and text of each suite, then what is said of the judge."""
    found = []
    for suite, scoring in results.scorings.items():
        found.append(_scores(results, suite, scoring))
        for comparison in results.comparisons(suite):
            found.append(_comparison(results, suite, comparison))
        text = (results.statistics.get("text") or {}).get(suite)
        if text:
            found.append(_text(results, suite, text))
    noise = results.statistics.get("noise")
    if noise:
        found.append(_noise(results, noise))
    for suite, content in (results.statistics.get("arena") or {}).items():
        found += [_strengths(suite, content), _duels(suite, content)]
    agreement = results.statistics.get("agreement")
    if agreement:
        found.append(_facts("agreement", "Agreement of the judge with people", agreement))
    return found


# Scores


def _scores(results: Results, suite: str, scoring: Scoring) -> Table:
    """Return a row per category, and for each model both modes side by side."""
    columns = [(model, mode, name) for model in results.models for mode in MODES for name in scoring.dimensions]
    head: list[tuple[str, ...]] = [("category",)]
    for model, mode, dimension in columns:
        label = mode if len(scoring.dimensions) == 1 else f"{mode} {dimension}"
        head.append((f"{model}: {label}", _counted(results.counts(suite, model, mode))))
    rows = []
    for category in results.categories(suite):
        cells = [_score(results, suite, scoring, column, category) for column in columns]
        rows.append((category, *cells))
    for name, key in (("mean of the categories", "macro"), ("mean of the items", "micro")):
        cells = [_overall(results, suite, scoring, column, key) for column in columns]
        rows.append((name, *cells))
    return Table(
        name=suite,
        title=f"{suite}: scores",
        notes=(f"Judge: {results.judges(suite)}", _explanation(scoring)),
        warnings=tuple(results.warnings(suite)),
        head=tuple(head),
        rows=tuple(rows),
        shown=True,
    )


def _explanation(scoring: Scoring) -> str:
    return (
        "official equals the benchmark's own code and leaves out what has no score; in strict such an item counts as"
        f" {scoring.lowest:g}. In brackets: the interval of 95 % of the mean."
    )


def _counted(counts: Mapping[str, int]) -> str:
    """Return the counts of a table's head."""
    words = ", ".join(f"{counts[name]} {name}" for name in COUNTED)
    return f"⚠ {words}" if counts["scored"] < counts["expected"] else words


def _score(results: Results, suite: str, scoring: Scoring, column: tuple[str, str, str], category: str) -> str:
    model, mode, dimension = column
    name = "score" if dimension == scoring.headline else dimension
    value = results.score(suite, model, mode, category).get(name)
    digits = 3 if scoring.digits is None else scoring.digits
    cell = _number(value, digits)
    if dimension == scoring.headline:
        cell += _interval(results.estimate(suite, model, mode, category))
    return cell


def _overall(results: Results, suite: str, scoring: Scoring, column: tuple[str, str, str], key: str) -> str:
    model, mode, dimension = column
    overall = results.score(suite, model, mode, OVERALL)
    if dimension != scoring.headline:
        return _number(overall.get(dimension)) if key == "macro" else NOTHING
    estimate = results.estimate(suite, model, mode, OVERALL if key == "macro" else key)
    return _number(overall.get(key)) + _interval(estimate)


# Two models


def _comparison(results: Results, suite: str, comparison: Mapping[str, Any]) -> Table:
    first = comparison["first"]
    second = comparison["second"]
    differences = {**comparison["categories"], "mean of the categories": comparison["overall"]}
    rows = []
    for category, found in differences.items():
        size = _signed(found["difference"]) + _interval({"low": found.get("low"), "high": found.get("high")})
        record = f"{found['wins']} / {found['ties']} / {found['losses']}"
        cells = (size, record, _number(found.get("adjusted_p")), _whole(found.get("items_needed")))
        rows.append((category, *cells, str(found.get("verdict", ""))))
    counts = [f"{model}: {_counted(results.counts(suite, model, 'strict'))}" for model in (first, second)]
    return Table(
        name=f"{suite}_{first}_{second}",
        title=f"{suite}: {first} against {second}, item by item",
        notes=(f"Judge: {results.judges(suite)}", *counts),
        warnings=tuple(results.warnings(suite, (first, second))),
        head=(
            ("category",),
            (f"{first} - {second}", "strict, interval of 95 %"),
            ("wins / ties / losses",),
            ("p", "corrected for the number of tests"),
            ("items needed", "to show this difference"),
            ("verdict",),
        ),
        rows=tuple(rows),
    )


# Text on pictures, and the judge


def _text(results: Results, suite: str, text: Mapping[str, Any]) -> Table:
    columns = list(dict.fromkeys(name for numbers in text.values() for name in numbers))
    rows = []
    for model in results.models:
        numbers = text.get(model) or {}
        rows.append((model, *(_any(numbers.get(name)) for name in columns)))
    return Table(
        name=f"{suite}_text",
        title=f"{suite}: text on the pictures",
        notes=("ED: mean edit distance; CR: share of exact texts; WAC: share of the words that were read.",),
        warnings=(),
        head=(("model",), *((name,) for name in columns)),
        rows=tuple(rows),
    )


def _noise(results: Results, noise: Mapping[str, Any]) -> Table:
    rows = []
    for suite, found in noise.items():
        shares = (found["deviation"], found["identical"])
        rows.append((suite, *map(_number, shares), _whole(found["items"]), _number(found.get("floor"))))
    judges = [f"{suite}: judge {results.judges(suite)}" for suite in noise if suite in results.origins]
    return Table(
        name="noise",
        title="The judge's own noise, from pictures that it judged several times",
        notes=tuple(judges),
        warnings=(),
        head=(
            ("benchmark",),
            ("standard deviation", "of one score"),
            ("identical", "share of the repeated scores"),
            ("items", "judged several times"),
            ("floor", "difference of two means that noise alone makes"),
        ),
        rows=tuple(rows),
    )


def _strengths(suite: str, arena: Mapping[str, Any]) -> Table:
    """Return a row per model, strongest first."""
    models = arena.get("models") or {}
    rows = [
        (name, _number(found["value"]) + _interval(found), _whole(found.get("items"))) for name, found in models.items()
    ]
    return Table(
        name=f"{suite}_arena",
        title=f"{suite}: arena",
        notes=_arena_notes(arena),
        warnings=(),
        head=(("model",), ("strength", "log-odds around 0, interval of 95 %"), ("duels",)),
        rows=tuple(rows),
    )


def _duels(suite: str, arena: Mapping[str, Any]) -> Table:
    """Return a row per pair of models."""
    rows = []
    for found in arena.get("results") or ():
        record = f"{found['wins']} / {found['ties']} / {found['losses']}"
        rows.append((f"{found['first']} against {found['second']}", record))
    return Table(
        name=f"{suite}_duels",
        title=f"{suite}: arena, pair by pair",
        notes=_arena_notes(arena),
        warnings=(),
        head=(("models",), ("wins / ties / losses", "a win is one in both orders")),
        rows=tuple(rows),
    )


def _arena_notes(arena: Mapping[str, Any]) -> tuple[str, ...]:
    """Return how many pairs the judge saw, and how steady it was."""
    lines = []
    if "pairs" in arena:
        lines.append(
            f"{arena['pairs']} pairs seen in both orders; {arena.get('left_out', 0)} left out without a verdict"
        )
    if arena.get("reason"):
        lines.append(f"no strengths: {arena['reason']}")
    for key, words in (
        ("same_in_both_orders", "same verdict in both orders"),
        ("first_shown_wins", "first shown wins"),
    ):
        share = arena.get(key)
        if share:
            lines.append(f"{words}: {_number(share['value'])}{_interval(share)}")
    return tuple(lines)


def _facts(name: str, title: str, content: Mapping[str, Any]) -> Table:
    rows = tuple(_flat(content))
    return Table(name, title, (), (), (("of what",), ("value",)), rows)


def _flat(content: Any, key: str = "") -> list[tuple[str, str]]:
    """Return the numbers of nested mappings; a mean with its interval is one."""
    if isinstance(content, Mapping) and "value" in content:
        return [(key, _number(content["value"]) + _interval(content))]
    if isinstance(content, Mapping):
        rows = []
        for name, value in content.items():
            rows += _flat(value, f"{key}, {name}" if key else str(name))
        return rows
    if isinstance(content, Sequence) and not isinstance(content, str):
        rows = []
        for place, value in enumerate(content):
            rows += _flat(value, f"{key} {place + 1}")
        return rows
    return [(key, _any(content))]


# Cells


def _number(value: float | None, digits: int = 3) -> str:
    return NOTHING if value is None else f"{value:.{digits}f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _whole(value: int | None) -> str:
    return NOTHING if value is None else str(value)


def _any(value: Any) -> str:
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return NOTHING if value is None else str(value)


def _interval(estimate: Mapping[str, Any]) -> str:
    low = estimate.get("low")
    high = estimate.get("high")
    if low is None or high is None:
        return ""
    return f" ({low:.2f} to {high:.2f})"
