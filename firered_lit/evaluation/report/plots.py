"""Plots of a report: bars with intervals and a radar of the categories, as SVG."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from firered_lit.evaluation.report.results import OVERALL, Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.projections.polar import PolarAxes

COLORS = ("#2f6fb7", "#d9822b", "#3a9a5b", "#b0446f", "#7a5cc0", "#6b6b6b", "#a8a22b", "#3aa6a6")
CSS_PIXELS = 96  # an inch
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",  # words stay words, so that the reader's own fonts draw Chinese ones
    "svg.hashsalt": "firered_lit",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9,
}


@dataclass(frozen=True)
class Plot:
    """A plot as a file.

    Attributes:
        name: The file's.
        content: SVG.
        width: Pixels of CSS.
        height: Pixels of CSS.
    """

    name: str
    content: bytes
    width: int
    height: int


def plots(results: Results) -> list[Plot]:
    """Return all plots of a report, in strict mode."""
    import matplotlib

    drawn = []
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's font draws it
        for suite in results.scorings:
            drawn.append(_plot(f"{_file_name(suite)}_bars.svg", _bars(results, suite)))
            if len(results.categories(suite)) > 2:
                drawn.append(_plot(f"{_file_name(suite)}_radar.svg", _radar(results, suite)))
    return drawn


def _bars(results: Results, suite: str) -> "Figure":
    from matplotlib.figure import Figure

    names = [*results.categories(suite), OVERALL]
    figure = Figure(figsize=(max(6.0, 0.27 * len(names) * (len(results.models) + 1)), 3.6), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(results.models)
    for rank, model in enumerate(results.models):
        places = [place - 0.4 + width * (rank + 0.5) for place in range(len(names))]
        values = [_value(results, suite, model, name) for name in names]
        axes.bar(places, values, width, color=_color(rank), label=_label(model))
        for place, name in zip(places, names):
            estimate = results.estimate(suite, model, "strict", name)
            if estimate.get("low") is not None:
                axes.plot([place, place], [estimate["low"], estimate["high"]], color="#222222", linewidth=1.2)
    axes.set_xticks(range(len(names)), _short(names), rotation=35, ha="right")
    axes.margins(x=0.01)
    axes.set_ylabel("strict score")
    axes.set_ylim(bottom=results.scorings[suite].lowest)
    axes.set_title(shorten(f"{suite}, judge {results.judges(suite)}", 90), loc="left")
    _finish(axes)
    return figure


def _radar(results: Results, suite: str) -> "Figure":
    from matplotlib.figure import Figure

    names = results.categories(suite)
    angles = [2 * math.pi * place / len(names) for place in range(len(names))]
    figure = Figure(figsize=(5.6, 5.0), layout="constrained")
    axes = cast("PolarAxes", figure.add_subplot(projection="polar"))
    for rank, model in enumerate(results.models):
        values = [_value(results, suite, model, name) for name in names]
        axes.plot([*angles, angles[0]], [*values, values[0]], color=_color(rank), label=_label(model))
        axes.fill(angles, values, color=_color(rank), alpha=0.1)
    axes.set_xticks(angles, _short(names))
    axes.set_rlabel_position(180 / len(names))
    axes.tick_params(axis="y", labelsize=7, labelcolor="#666666")
    axes.set_rmin(results.scorings[suite].lowest)
    axes.set_title(f"{suite}, strict", loc="left")
    _finish(axes)
    return figure


def _value(results: Results, suite: str, model: str, category: str) -> float:
    value = results.score(suite, model, "strict", category).get("score")
    return math.nan if value is None else float(value)


def _color(rank: int) -> str:
    return COLORS[rank % len(COLORS)]


def _label(model: str) -> str:
    """Return a model's name for the legend, which would hide one that begins with an underscore."""
    name = shorten(model)
    return f" {name}" if name.startswith("_") else name


def _short(names: Sequence[str]) -> list[str]:
    return [shorten(name) for name in names]


def shorten(text: str, length: int = 24) -> str:
    """Return a text of at most so many letters."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _finish(axes: "Axes") -> None:
    axes.spines[:].set_alpha(0.2)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _file_name(suite: str) -> str:
    """Return a suite's name in letters that any file may have."""
    return re.sub(r"[^\w-]", "_", suite)


def _plot(name: str, figure: "Figure") -> Plot:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    width, height = figure.get_size_inches() * CSS_PIXELS
    return Plot(name, file.getvalue(), round(width), round(height))
