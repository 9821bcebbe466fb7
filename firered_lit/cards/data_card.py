"""The data card of a table of rows that `curate` wrote: sources, licences, rules, and what each of them dropped.

`curate` writes the card beside its tables. `prepare` copies it into data.json, a training into run.json, and an export
shows it in its README.md.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from firered_lit.errors import UserError
from firered_lit.textfiles import read_object

CARD = "data_card.json"  # in the folder of the tables
CARDS = "cards"  # the entry of data.json
ENTRIES = ("rows", "kept", "values", "rules", "reasons", "annotators", "tables")
SHOWN = 12  # values of a kind that a page lists
_LONGEST = 160  # characters of a text on a page
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|<>~&])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")

Card = Mapping[str, Any]


def digest(table: Path) -> str:
    """Return the hash by which a card knows a table."""
    with table.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cards_of(tables: Iterable[Path]) -> tuple[list[Card], list[str]]:
    """Return the cards of tables, each once, and a line about every card that is not of the table beside it.

    Args:
        tables: Files, of which some may lie beside a card.
    """
    cards: list[Card] = []
    remarks: list[str] = []
    for table in tables:
        path = table.parent / CARD
        if not path.is_file() or not table.is_file():
            continue
        try:
            card = read_object(path, *ENTRIES)
            known = card["tables"].get(table.name)
            is_known = isinstance(known, Mapping) and known.get("sha256") == digest(table)
        except (UserError, AttributeError) as problem:
            remarks.append(f"{path}: no data card ({problem}); it is left out")
            continue
        if known is None:
            continue
        if not is_known:
            remarks.append(f"{path}: is not of {table.name} as it is now; run curate's steps write and report again")
        elif card not in cards:
            cards.append(card)
    return cards, remarks


def markdown(cards: Sequence[Card]) -> str:
    """Return cards as Markdown."""
    return "\n".join(line for card in cards for line in _lines(card))


def plain(value: Any) -> str:
    """Return a text in one line that means nothing to Markdown or HTML."""
    text = _SPECIAL.sub(r"\\\1", short(value))
    return text.replace("\\<", "&lt;").replace("\\>", "&gt;").replace("\\&", "&amp;")


def short(value: Any) -> str:
    """Return a text in one line of at most 160 characters."""
    text = _CONTROL.sub(" ", str(value).encode("utf-8", "replace").decode("utf-8"))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _lines(card: Card) -> Iterator[str]:
    """Yield the lines of one card."""
    share = 100 * card["kept"] / card["rows"] if card["rows"] else 0.0
    kept = f"{card['kept']:,} ({share:.1f} %)"
    yield f"{card['rows']:,} rows, of which {kept} were kept. Made by {plain(card['made_by'])}."
    yield ""

    # Where the kept rows are from, and what they are.
    for name, counts in card["values"].items():
        there = {value: some["kept"] for value, some in counts.items() if some["kept"]}
        listed = [f"{plain(value)} {count:,}" for value, count in list(there.items())[:SHOWN]]
        if len(there) > SHOWN:
            listed.append(f"{len(there) - SHOWN} others")
        yield f"- {name}: {', '.join(listed) or 'none'}"
    yield ""

    # What was dropped, in the order in which it was.
    yield "| dropped by | rule | rows |"
    yield "|---|---|---|"
    for name, rule in card["rules"].items():
        yield f"| {plain(name)} | {plain(rule)} | {card['reasons'].get(name, 0):,} |"
    for name, count in card["reasons"].items():
        if name not in card["rules"]:
            yield f"| {plain(name)} | | {count:,} |"
    yield ""

    # By what it was measured.
    measured = [f"{plain(name)} (version {plain(one['version'])})" for name, one in card["annotators"].items()]
    yield f"Measured by {', '.join(measured) or 'nothing'}."
    labels = card.get("labels")
    if labels:
        prompts = [f"{plain(name)} (version {plain(one['version'])})" for name, one in labels["prompts"].items()]
        yield f"Labelled by {plain(labels['model'])}, asked by {', '.join(prompts)}."
    for name, table in card["tables"].items():
        if name == "made.jsonl":
            yield f"{table['rows']:,} edits were made of kept pictures by templates, without a model."
    yield ""
    for earlier in card.get("from", []):
        yield "Its source was curated before:"
        yield ""
        yield from _lines(earlier)
