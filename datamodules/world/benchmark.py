"""The learning world as a benchmark: held-out edits of every family, whose right answers are known exactly."""

import hashlib
from collections.abc import Sequence
from typing import Literal

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.exact_rows import ExactRow
from firered_lit.evaluation.benchmarks.pictures import png

from .families import FAMILIES, WorldEdit
from .sample import edit
from .scene import SIDE, draw
from .write import regions

LANGUAGES = {"en": "en", "cn": "zh"}


class WorldRows:
    """Held-out edits: combinations of what is asked for that training has never seen.

    Args:
        each: Edits of each family.
        seed: Seed of the edits.
        families: Families of the edits; all fifteen when None.
        language: In which they are asked for.
        side: Pixels of a picture's side.
    """

    name = "world"

    def __init__(
        self,
        each: int = 20,
        seed: int = 0,
        families: Sequence[str] | None = None,
        language: Literal["en", "cn"] = "en",
        side: int = SIDE,
    ) -> None:
        self.families = tuple(families or FAMILIES)
        for family in self.families:
            if family not in FAMILIES:
                raise UserError(f"families: no family {family}; there are {', '.join(FAMILIES)}")
        self.each = each
        self.seed = seed
        self.language = language
        self.side = side
        self._edits = {f"{family}-{i}": (family, i) for family in self.families for i in range(each)}

    def rows(self) -> Sequence[ExactRow]:
        """Return all edits, family by family."""
        return [self._row(name) for name in self._edits]

    def sources(self, name: str) -> list[bytes]:
        """Return the source pictures' files of an edit."""
        return [png(draw(scene, self.side)) for scene in self._edit(name).sources]

    def target(self, name: str) -> bytes:
        """Return the target picture's file of an edit."""
        return png(draw(self._edit(name).target, self.side))

    def fingerprint(self) -> str:
        """Return a hash of all edits."""
        edits = [(name, self._edit(name)) for name in self._edits]
        return hashlib.sha256(repr((self.side, self.language, edits)).encode()).hexdigest()

    def _edit(self, name: str) -> WorldEdit:
        family, number = self._edits[name]
        return edit(self.seed, number, "held_out", (family,))

    def _row(self, name: str) -> ExactRow:
        found = self._edit(name)
        landmarks: list[tuple[float, float]] = []
        for region in regions(found.target, self.side):
            for x, y in region.get("points", []):
                landmarks.append((x + 0.5, y + 0.5))
        return ExactRow(
            id=name,
            category=found.task,
            language=LANGUAGES[self.language],
            instruction=found.texts[f"original/{self.language}"],
            sources=len(found.sources),
            landmarks=tuple(landmarks),
            facts={"target_text": found.target_text} if found.target_text else {},
        )
