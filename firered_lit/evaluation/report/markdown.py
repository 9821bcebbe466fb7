"""A report in Markdown. What judges, instructions and names say stays text: nothing of it is markup."""

import re
from collections.abc import Iterable

from firered_lit.evaluation.report.tables import Table

MARKUP = re.compile(r"([\\`*_{}\[\]<>#|~&!$])")


def escaped(text: str) -> str:
    """Return a text in one line, of which Markdown shows every letter and takes none for markup."""
    return MARKUP.sub(r"\\\1", " ".join(text.split()))


def document(tables: Iterable[Table], plots: Iterable[str]) -> str:
    """Return the report.

    Args:
        tables: In their order.
        plots: Addresses of the plots, relative to the report.
    """
    blocks = ["# Evaluation"]
    for table in tables:
        blocks.append(f"## {escaped(table.title)}")
        blocks += [escaped(note) for note in table.notes]
        blocks += [f"**Warning**: {escaped(warning)}" for warning in table.warnings]
        blocks.append(_table(table))
    blocks += [f"![]({address})" for address in plots]
    return "\n\n".join(blocks) + "\n"


def _table(table: Table) -> str:
    head = ["<br>".join(escaped(line) for line in lines) for lines in table.head]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    lines += [_row([escaped(cell) for cell in row]) for row in table.rows]
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
