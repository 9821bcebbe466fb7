"""The data card of a curation: what its tables hold, by which rules, measured by what."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from firered_lit.cards.data_card import CARD, cards_of, digest
from firered_lit.files import write_json
from firered_lit.textfiles import read_object

from .annotator import identity
from .corpus import STATE, Corpus, connection, quoted
from .fit import Clusters, Duplicates
from .label.label import Label
from .losers import LOSERS
from .make.maker import MADE
from .rules import Rule, Threshold
from .select import DECISIONS, DUPLICATE, SELECTION, Quota
from .shards import ROW
from .write import SELECTED

VALUES = ("source", "license", "kind", "task")
MOST_VALUES = 100  # of each of these; the rest is counted together
OTHERS, NONE = "(others)", "(none)"


def write_card(
    corpus: Corpus,
    source: Path,
    rules: Mapping[str, Rule],
    duplicates: Duplicates | None,
    clusters: Clusters | None,
    quotas: Sequence[Quota],
    label: Label | None,
    seed: int,
) -> dict[str, Any]:
    """Write OUT/data_card.json, and return what it holds.

    Args:
        corpus: The score files.
        source: Where the rows are from; a table that has a card of its own hands it on.
        rules: By name, in their order.
        duplicates: How near duplicates were settled.
        clusters: How rows were weighed.
        quotas: What was kept of each kind.
        label: What was asked of a model.
        seed: Of what was chosen at random.

    Raises:
        UserError: There are no decisions.
    """
    state = read_object(corpus.folder / STATE / SELECTION, "rows", "kept", "reasons")
    bounds = state.get("bounds", {})
    said = {name: describe(rule, bounds.get(name, {})) for name, rule in rules.items()}
    if duplicates is not None:
        said[DUPLICATE] = f"{_nearness(duplicates)}; kept: {_best(duplicates.best)}"
    card: dict[str, Any] = {
        "made_by": f"firered_lit {version('firered-lit')}",
        "rows": state["rows"],
        "kept": state["kept"],
        "values": _values(corpus),
        "rules": said,
        "reasons": state["reasons"],
        "quotas": [asdict(quota) for quota in quotas],
        "clusters": None if clusters is None else asdict(clusters),
        "seed": seed,
        "annotators": {name: identity(one) for name, one in corpus.annotators.items()},
        "tables": _tables(corpus.folder),
    }
    if label is not None:
        prompts = {prompt.name: {"version": prompt.version, "hash": prompt.digest} for prompt in label.prompts}
        card["labels"] = {"model": label.server.model, "prompts": prompts}
    earlier, _ = cards_of([source] if source.is_file() else [])
    if earlier:
        card["from"] = earlier
    card = json.loads(json.dumps(card, default=str))
    write_json(corpus.folder / CARD, card)
    return card


def describe(rule: Rule, bounds: Mapping[str, float] | None = None) -> str:
    """Return in words what a rule drops.

    Args:
        rule: The rule.
        bounds: What its quantiles are in numbers, by "below" and "above".
    """
    if not isinstance(rule, Threshold):
        kind = type(rule)
        settings = [f"{name}={value!r}" for name, value in vars(rule).items() if name != "columns"]
        return f"{kind.__module__}.{kind.__qualname__}({', '.join(settings)}) of {', '.join(rule.columns)}"
    words = [rule.column]
    for field in fields(rule):
        value = getattr(rule, field.name)
        if field.name == "column" or field.default is MISSING or value == field.default:
            continue
        words.append(f"{field.name.replace('_', ' ')} {_short(value)}")
        side = field.name.removesuffix("_quantile")
        if side != field.name and side in (bounds or {}):
            words[-1] += f" = {bounds[side]:.4g}"  # type: ignore[index]
    return f"{words[0]} {', '.join(words[1:])}"


def _short(value: Any) -> str:
    if value is None:
        return "no bound"
    if isinstance(value, tuple | list):
        return " or ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_short(item)}" for name, item in value.items())
    return str(value)


def _nearness(duplicates: Duplicates) -> str:
    """Return in words when pictures are near duplicates."""
    ways = []
    if duplicates.column is not None:
        ways.append(f"{duplicates.column} within {duplicates.distance} bits")
    if duplicates.vectors is not None:
        ways.append(f"{duplicates.vectors} with a cosine of at least {duplicates.cosine:g}")
    return " or ".join(ways)


def _best(best: Mapping[str, str]) -> str:
    return ", ".join(f"{column} {direction}" for column, direction in best.items()) or "the first"


def _values(corpus: Corpus) -> dict[str, dict[str, dict[str, int]]]:
    """Return how many rows there are and how many are kept, by source, licence, kind and task."""
    decisions = quoted(corpus.folder / DECISIONS)
    rows = f"SELECT file_row_number AS row, source, kept FROM read_parquet({decisions}, file_row_number = true)"  # noqa: S608
    found: dict[str, dict[str, dict[str, int]]] = {}
    with connection(corpus.folder) as database:
        for name in VALUES:
            value = "decided.source" if name == "source" else f'facts."{name}"'
            counted = database.execute(
                f"SELECT coalesce(nullif({value}::VARCHAR, ''), '{NONE}'), count(*), count(*) FILTER (WHERE kept)"  # noqa: S608
                f" FROM ({rows}) decided JOIN {corpus.queried(ROW)} facts USING (row) GROUP BY 1 ORDER BY 3 DESC, 1"
            ).fetchall()
            some = {str(value): {"rows": count, "kept": kept} for value, count, kept in counted[:MOST_VALUES]}
            rest = counted[MOST_VALUES:]
            if rest:
                some[OTHERS] = {"rows": sum(count for _, count, _ in rest), "kept": sum(kept for *_, kept in rest)}
            found["licence" if name == "license" else name] = some
    return found


def _tables(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows and the hash of every table that a curation wrote; no hash of one of an earlier selection."""
    tables = {}
    selected = (folder / DECISIONS).stat().st_mtime_ns
    for name in (SELECTED, LOSERS, MADE):
        path = folder / name
        if path.is_file():
            with path.open("rb") as file:
                rows = sum(bool(line.strip()) for line in file)
            is_current = path.stat().st_mtime_ns >= selected
            tables[name] = {"rows": rows, "sha256": digest(path) if is_current else ""}
    return tables
