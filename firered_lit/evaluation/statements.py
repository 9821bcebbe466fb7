"""Entries of `statistics.json`: intervals, comparisons, the judge's noise."""

from collections.abc import Sequence
from typing import Any, get_args

from .columns import ScoreColumns
from .protocols import Asking
from .scores import OVERALL, Mode
from .statistics import Comparison, Difference, Estimate, MeanEstimates, compare_models, estimate_means, judge_noise

COMPARED: Mode = "strict"  # in which every item has a score, so that models are paired on all of them


def estimates(columns: ScoreColumns, models: Sequence[str], seed: int) -> dict[str, Any]:
    """Return suite -> model -> mode -> category, "overall" (macro) or "micro" -> the mean with its interval."""
    told: dict[str, Any] = {}
    for suite in columns.suites:
        told[suite] = {}
        for model in models:
            told[suite][model] = {}
            for mode in get_args(Mode):
                scores = columns.scores(suite, model, mode)
                if any(scores.values()):
                    told[suite][model][mode] = _means(estimate_means(scores, seed=seed))
    return told


def comparisons(columns: ScoreColumns, models: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Return every two models on the same items, in each suite; what is missing counts as the lowest score."""
    told: list[dict[str, Any]] = []
    if len(models) < 2:
        return told
    for suite in columns.suites:
        scores = {model: columns.scores(suite, model, COMPARED) for model in models}
        told.extend(_comparison(suite, comparison) for comparison in compare_models(scores, seed=seed))
    return told


def noise(columns: ScoreColumns) -> dict[str, Any] | None:
    """Return suite -> how far the judge moves when it is asked the same again; None where nothing was asked twice."""
    told = {}
    for suite in columns.suites:
        repeats = columns.repeats(suite)
        if not repeats:
            continue
        measured = judge_noise(repeats)
        sizes = [columns.size(suite, category) for category in columns.categories(suite)]
        told[suite] = {
            "deviation": measured.deviation,
            "identical": measured.identical,
            "items": measured.items,
            "floor": measured.floor(sizes),
        }
    return told or None


def judge(columns: ScoreColumns, asking: Asking) -> dict[str, Any]:
    """Return who was asked, who answered how often, and between which days."""
    days = [date[:10] for date in columns.dates]
    return {
        "asked": asking.model or None,
        "settings": dict(asking.settings),
        "models": dict(columns.judges.most_common()),
        "first": days[0] if days else None,
        "last": days[-1] if days else None,
    }


def plain(estimate: Estimate | None) -> dict[str, Any] | None:
    """Return an estimate as JSON holds it."""
    if estimate is None:
        return None
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "items": estimate.items}


def _means(means: MeanEstimates) -> dict[str, Any]:
    told = {category: plain(estimate) for category, estimate in means.categories.items()}
    told[OVERALL] = plain(means.macro)
    told["micro"] = plain(means.micro)
    return told


def _comparison(suite: str, comparison: Comparison) -> dict[str, Any]:
    return {
        "suite": suite,
        "mode": COMPARED,
        "first": comparison.first,
        "second": comparison.second,
        "overall": _difference(comparison.overall),
        "categories": {name: _difference(difference) for name, difference in comparison.categories.items()},
    }


def _difference(difference: Difference) -> dict[str, Any]:
    estimate = difference.estimate
    return {
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "items": estimate.items,
        "p": difference.p,
        "adjusted_p": difference.adjusted_p,
        "wins": difference.wins,
        "ties": difference.ties,
        "losses": difference.losses,
        "left_out": difference.left_out,
        "items_needed": difference.items_needed,
        "verdict": difference.verdict,
    }
