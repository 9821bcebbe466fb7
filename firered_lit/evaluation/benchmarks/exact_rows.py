"""Edits with their right answers, as whoever draws them hands them to `Exact`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class ExactRow:
    """One edit.

    Attributes:
        id: Unique among the rows.
        category: The task.
        language: "en" or "zh".
        instruction: What is asked for.
        sources: How many source pictures it has.
        landmarks: x and y in the target's pixels, of faces that must stay where they are.
        facts: What else is worth showing.
    """

    id: str
    category: str
    language: str
    instruction: str
    sources: int = 1
    landmarks: tuple[tuple[float, float], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


class ExactRows(Protocol):
    """Edits with their targets."""

    @property
    def name(self) -> str:
        """The suite's name."""
        ...

    def rows(self) -> Sequence[ExactRow]:
        """Return all edits, in the order of the report."""
        ...

    def sources(self, name: str) -> list[bytes]:
        """Return the source pictures' files of the edit with an id."""
        ...

    def target(self, name: str) -> bytes:
        """Return the target picture's file of the edit with an id."""
        ...

    def fingerprint(self) -> str:
        """Return what tells these edits from others."""
        ...
