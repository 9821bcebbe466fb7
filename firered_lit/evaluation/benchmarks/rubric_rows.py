"""A user's own edits, as whoever reads them hands them to `Rubric`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RubricRow:
    """One edit to be asked for.

    Attributes:
        id: Unique among the rows.
        category: The task.
        instructions: Language, "en" or "cn" -> what is asked for.
        sources: Names of the source pictures.
    """

    id: str
    category: str
    instructions: Mapping[str, str]
    sources: tuple[str, ...]


class RubricRows(Protocol):
    """Edits to be asked for."""

    def rows(self) -> Sequence[RubricRow]:
        """Return all edits, in the order of the report.

        Raises:
            UserError: They cannot be read.
        """
        ...

    def sources(self, name: str) -> list[bytes]:
        """Return the source pictures' files of the edit with an id.

        Raises:
            UserError: One cannot be read.
        """
        ...

    def fingerprint(self) -> str:
        """Return what tells these edits from others."""
        ...
