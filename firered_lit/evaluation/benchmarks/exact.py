"""Edits whose right answer is known exactly: each is right or wrong, and no judge is asked."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks import copies
from firered_lit.evaluation.benchmarks.exact_rows import ExactRow, ExactRows
from firered_lit.evaluation.benchmarks.pictures import opened
from firered_lit.evaluation.protocols import Asking, Item
from firered_lit.evaluation.scores import Scoring, macro_mean
from firered_lit.judges.request import ChatRequest


class Exact:
    """A benchmark with exact answers. Its score is the share of right edits; `near` is how near the others are.

    Args:
        rows: The edits.
    """

    def __init__(self, rows: ExactRows) -> None:
        self.rows = rows

    def suites(self) -> Mapping[str, Scoring]:
        """Return the one suite."""
        return {self.rows.name: exact_scoring(self.rows.name)}

    def fingerprint(self) -> str:
        """Return that of the rows."""
        return self.rows.fingerprint()

    def items(self) -> Sequence[Item]:
        """Return the edits as items."""
        return [_item(self.rows.name, row) for row in self._rows.values()]

    def sources(self, item: Item) -> list[bytes]:
        """Return the source pictures' files."""
        return self.rows.sources(item.id)

    def requests(self, item: Item, edited: bytes, asking: Asking) -> list[ChatRequest]:
        """Return nothing: no judge is asked."""
        return []

    def measure(self, item: Item, edited: bytes) -> Mapping[str, float]:
        """Return `score`, 1 for a right edit and else 0, and `near`, the mean of what it must have.

        Raises:
            UserError: The picture cannot be read, or is of another size than the target.
        """
        import numpy as np

        from firered_lit.rewards import correctness

        row = self._rows[item.id]
        target = _pixels(self.rows.target(item.id), f"target of {item.id}")
        output = _pixels(edited, f"edited picture of {item.id}")
        if output.shape != target.shape:
            sizes = [f"{picture.shape[1]}x{picture.shape[0]}" for picture in (output, target)]
            raise UserError(f"edited picture of {item.id}: {sizes[0]}, its target is {sizes[1]}")
        sources = [_pixels(source, f"source of {item.id}") for source in self.rows.sources(item.id)]
        landmarks = np.array(row.landmarks) if row.landmarks else None
        found = correctness.score(output, target, sources, row.category, landmarks=landmarks)
        return {"near": float(np.mean(list(found.terms.values()))), "score": float(found.correct)}

    @cached_property
    def _rows(self) -> dict[str, ExactRow]:
        rows = self.rows.rows()
        copies.unique((row.id for row in rows), self.rows.name)
        return {row.id: row for row in rows}


def exact_scoring(name: str) -> Scoring:
    """Return the scoring of measured items: nothing is rounded, and there are no answers to read."""
    return Scoring(name, ("near", "score"), 0.0, _no_answer, _no_answer, macro_mean, requests=0)


def _no_answer(answers: Sequence[object]) -> None:
    return None


def _item(suite: str, row: ExactRow) -> Item:
    return Item(
        suite=suite,
        id=row.id,
        category=row.category,
        language=row.language,
        instruction=row.instruction,
        sources=tuple(f"{row.id}-{number}.png" for number in range(row.sources)),
        output=f"{copies.file_name(row.category, suite)}/{copies.file_name(row.id, suite)}.png",
        facts=row.facts,
    )


def _pixels(file: bytes, what: str) -> Any:
    """Return a picture (H, W, 3) on [0, 1]."""
    import numpy as np

    return np.asarray(opened(file, what).convert("RGB"), np.float64) / 255
