"""A report as HTML and as Markdown. Names, captions and numbers are other people's text: all of it is escaped."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from firered_lit.cards.data_card import plain, short

if TYPE_CHECKING:
    from .report import Histogram, Report, ShownRow

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd }
h3 { font-size: 1rem; margin-bottom: .3rem }
table { border-collapse: collapse } th, td { padding: .15rem .8rem .15rem 0; text-align: left; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
.row { display: flex; flex-wrap: wrap; gap: .8rem } figure { margin: 0; width: 150px; font-size: 12px }
figcaption { overflow-wrap: anywhere } img { max-width: 144px; max-height: 144px }
.none { width: 144px; height: 96px; background: #eee } .group { border-left: 3px solid #ccc; padding-left: .8rem }
.bars { display: flex; flex-wrap: wrap; gap: 1.5rem }
"""
_WIDE, _HIGH = 320, 90  # px of a histogram


def html(report: "Report") -> str:
    """Return a report as one page."""
    parts = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>Curation</title><style>{STYLE}</style></head><body><h1>Curation</h1>",
        f"<p>{report.rows:,} rows, {report.kept:,} kept ({_share(report.kept, report.rows)}).</p>",
        "<h2>Funnel</h2>",
        _table(FUNNEL, _funnel(report)),
        "<p>Alone: rows that the rule would drop if it were the only one. Cost: of the columns that it looks at.</p>",
        "<h2>Values and bounds</h2><div class='bars'>",
        *map(_histogram, report.histograms),
        "</div>",
    ]
    if report.changes:
        parts += ["<h2>Since the selection before</h2>", _table(CHANGES, _changes(report))]
    for name, rows in report.tables.items():
        parts += [f"<h2>By {_text(name)}</h2>", _table(_heads(name), _values(report, rows))]
    parts.append("<h2>Dropped</h2>")
    for reason, shown in report.dropped.items():
        parts += [f"<h3>{_text(reason)}</h3><div class='row'>", *map(_figure, shown), "</div>"]
    if report.duplicates:
        parts.append("<h2>Near duplicates</h2>")
        parts += [f"<div class='row group'>{''.join(map(_figure, group))}</div><br>" for group in report.duplicates]
    return "\n".join([*parts, "</body></html>"]) + "\n"


WORDS = ("mostly dropped by", "now", "among them")  # columns that hold no numbers
CHANGES = ("before", "now", "rows", "among them")
FUNNEL = ("reason", "dropped", "alone", "left", "left %", "ms a picture")


def _funnel(report: "Report") -> list[tuple[Any, ...]]:
    rows = []
    for reason, count, alone, left, cost in report.funnel:
        rows.append((reason, f"{count:,}", f"{alone:,}", f"{left:,}", _share(left, report.rows), cost))
    return rows


def _changes(report: "Report") -> list[tuple[Any, ...]]:
    return [(one.before, one.now, f"{one.rows:,}", ", ".join(one.ids)) for one in report.changes]


def _heads(name: str) -> tuple[str, ...]:
    return (name, "rows", "kept", "kept %", "of all kept %", "mostly dropped by")


def _values(report: "Report", rows: Sequence[tuple[str, int, int, str]]) -> list[tuple[Any, ...]]:
    """Return the cells of a table; the fifth column is the mixture that was reached."""
    cells = []
    for value, count, kept, reason in rows:
        of_all = _share(kept, report.kept)
        cells.append((value, f"{count:,}", f"{kept:,}", _share(kept, count), of_all, reason))
    return cells


def markdown(report: "Report") -> str:
    """Return a report's tables as Markdown."""
    lines = [f"# Curation\n\n{report.rows:,} rows, {report.kept:,} kept ({_share(report.kept, report.rows)}).\n"]
    lines += ["## Funnel\n", _markdown_table(FUNNEL, _funnel(report))]
    if report.changes:
        lines += ["\n## Since the selection before\n", _markdown_table(CHANGES, _changes(report))]
    for name, rows in report.tables.items():
        lines += [f"\n## By {plain(name)}\n", _markdown_table(_heads(name), _values(report, rows))]
    return "\n".join(lines) + "\n"


def _markdown_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _text(value: Any) -> str:
    """Return a text that means nothing to HTML."""
    return escape(short(value), quote=True)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "0 %"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    def cell(tag: str, place: int, value: Any) -> str:
        numeric = " class='n'" if place > 0 and heads[place] not in WORDS else ""
        return f"<{tag}{numeric}>{_text(value)}</{tag}>"

    lines = ["<table><tr>" + "".join(cell("th", place, head) for place, head in enumerate(heads)) + "</tr>"]
    for row in rows:
        lines.append("<tr>" + "".join(cell("td", place, value) for place, value in enumerate(row)) + "</tr>")
    return "\n".join([*lines, "</table>"])


def _figure(shown: "ShownRow") -> str:
    picture = "<div class='none'></div>"
    if shown.picture:
        picture = f"<img alt='' src='data:image/jpeg;base64,{base64.b64encode(shown.picture).decode()}'>"
    numbers = [f"{name} {_number(value)}" for name, value in shown.numbers.items()]
    lines = [shown.id, *([shown.note] if shown.note else []), *numbers, *([shown.text] if shown.text else [])]
    return f"<figure>{picture}<figcaption>{'<br>'.join(map(_text, lines))}</figcaption></figure>"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _histogram(one: "Histogram") -> str:
    """Return a histogram as an SVG, by the square root of counts so that rare values are seen, and its bounds."""
    heights = (one.counts / max(1, one.counts.max())) ** 0.5 * _HIGH
    width = _WIDE / len(heights)
    low, high = one.edges[0], one.edges[-1]
    bars = [
        f"<rect x='{place * width:.1f}' y='{_HIGH - height:.1f}' width='{width - 1:.1f}' height='{height:.1f}'"
        " fill='#7a9cc6'/>"
        for place, height in enumerate(heights)
    ]
    for bound in one.bounds:
        place = (bound - low) / (high - low) * _WIDE
        bars.append(f"<line x1='{place:.1f}' x2='{place:.1f}' y1='0' y2='{_HIGH}' stroke='#c0392b' stroke-width='2'/>")
    ends = f"{low:.4g} to {high:.4g}; bound {', '.join(f'{bound:.4g}' for bound in one.bounds)}"
    return (
        f"<div><h3>{_text(one.name)}: {_text(one.column)}</h3>"
        f"<svg width='{_WIDE}' height='{_HIGH}' role='img'>{''.join(bars)}</svg><br><small>{_text(ends)}</small></div>"
    )
