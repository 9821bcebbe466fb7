"""The page of a report: one static folder, opened from the disk, that shows every item with all pictures and words.

Nothing that a judge, an instruction or a file's name says is run or read as markup: data lies in a block of JSON whose
`<`, `>` and `&` are escaped, the page's own script writes it as text alone, and the content policy admits that one
script by its hash.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.evaluation.protocols import Benchmark, Item
from firered_lit.evaluation.report.plots import COLORS, Plot
from firered_lit.evaluation.report.results import ItemRow, Results
from firered_lit.evaluation.report.tables import Table
from firered_lit.evaluation.report.thumbnails import Thumbnails, in_threads, read_picture

ASSETS = Path(__file__).with_name("assets")
PICTURES = "pictures"  # folders beside the page
PLOTS = "plots"
_ESCAPES = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026"}


@dataclass(frozen=True)
class Sources:
    """The source pictures of the benchmarks that are reported."""

    benchmarks: Mapping[str, Benchmark]
    items: Mapping[tuple[str, str], Item]

    @classmethod
    def of(cls, benchmarks: Sequence[Benchmark]) -> "Sources":
        """Find the items of all benchmarks."""
        by_suite = {suite: benchmark for benchmark in benchmarks for suite in benchmark.suites()}
        items = {(item.suite, item.id): item for benchmark in benchmarks for item in benchmark.items()}
        return cls(by_suite, items)

    def read(self, row: ItemRow) -> list[bytes]:
        """Return the files of an item's sources.

        Raises:
            UserError: The benchmark has no such item, or a picture cannot be read.
        """
        item = self.items.get((row.suite, row.id))
        if item is None:
            raise UserError("the benchmark has no such item")
        return self.benchmarks[row.suite].sources(item)


def cards(results: Results, sources: Sources, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    """Return what the page shows of each item, and make its thumbnails.

    Args:
        results: The evaluation.
        sources: Those of its benchmarks.
        thumbnails: Where thumbnails go.
    """
    spreads = {suite: _spread(results, suite) for suite in results.scorings}

    def card(row: ItemRow) -> dict[str, Any]:
        gap = row.gap(results.models, results.scorings[row.suite].headline)
        return {
            "suite": row.suite,
            "id": row.id,
            "category": row.category,
            "language": row.language,
            "instruction": row.instruction,
            "gap": gap,
            "share": gap / spreads[row.suite],
            "sources": _source_cells(row, sources, thumbnails),
            "models": [_model_cell(results, row, model, thumbnails) for model in results.models],
        }

    return list(in_threads(card, results.rows))


def _spread(results: Results, suite: str) -> float:
    """Return the span of a suite's scores, by which gaps of suites with other scales can be sorted; 1 without any."""
    dimension = results.scorings[suite].headline
    scores = [row.score(model, "strict", dimension) for row in results.rows_of(suite) for model in results.models]
    known = [score for score in scores if score is not None]
    return (max(known) - min(known) if known else 0.0) or 1.0


def _source_cells(row: ItemRow, sources: Sources, thumbnails: Thumbnails) -> list[dict[str, Any]]:
    try:
        contents = sources.read(row)
    except UserError as problem:
        return [{"problem": str(problem)}]
    return [_picture(content, thumbnails) for content in contents]


def _model_cell(results: Results, row: ItemRow, model: str, thumbnails: Thumbnails) -> dict[str, Any]:
    line = row.lines.get(model)
    if line is None:
        return {"problem": "not drawn", "official": _nothing(), "strict": _nothing(), "answers": []}
    cell = {name: line[name] for name in ("official", "strict")}
    cell["answers"] = line.get("answers") or []
    if line.get("picture") is None:
        return {**cell, "problem": line.get("failed") or "no picture"}
    try:
        content = read_picture(results.out, line["picture"])
    except UserError as problem:
        return {**cell, "problem": str(problem)}
    return {**cell, **_picture(content, thumbnails)}


def _picture(content: bytes, thumbnails: Thumbnails) -> dict[str, Any]:
    thumbnail = thumbnails.of(content)
    if thumbnail is None:
        return {"problem": "not a picture that can be read"}
    return asdict(thumbnail)


def _nothing() -> dict[str, Any]:
    return {"state": "missing", "values": {}}


def pictures_of(contents: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the names of all thumbnails that cards show."""
    cells = [cell for card in contents for cell in (*card["sources"], *card["models"])]
    return {cell["name"] for cell in cells if "name" in cell}


def page(
    results: Results, tables: Sequence[Table], plots: Sequence[Plot], contents: Sequence[Mapping[str, Any]]
) -> str:
    """Return the page.

    Args:
        results: The evaluation.
        tables: Shown above the items.
        plots: Shown below the tables.
        contents: The cards.
    """
    import jinja2
    from markupsafe import Markup

    script = (ASSETS / "page.js").read_text(encoding="utf-8")
    style = (ASSETS / "page.css").read_text(encoding="utf-8")
    data = {
        "models": [{"name": name, "color": COLORS[rank % len(COLORS)]} for rank, name in enumerate(results.models)],
        "suites": {suite: {"headline": scoring.headline} for suite, scoring in results.scorings.items()},
        "items": contents,
    }
    loader = jinja2.FileSystemLoader(ASSETS)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.get_template("index.html.j2").render(
        policy=policy(script, style),
        script=Markup(script),  # noqa: S704 - ours
        style=Markup(style),  # noqa: S704 - ours
        data=Markup(embedded(data)),  # noqa: S704 - escaped by `embedded`
        tables=tables,
        plots=plots,
        folder=PLOTS,
        models=results.models,
    )


def policy(script: str, style: str) -> str:
    """Return the content policy: this script and this style, pictures beside the page, and nothing else."""
    rules = (
        "default-src 'none'",
        f"script-src '{_hash(script)}'",
        f"style-src '{_hash(style)}'",
        "img-src 'self' file:",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return "; ".join(rules)


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def embedded(data: Any) -> str:
    """Return JSON that may stand inside of a `<script type="application/json">`: nothing in it ends the block."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).translate(_ESCAPES)
