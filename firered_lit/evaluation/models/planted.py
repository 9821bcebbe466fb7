"""Models whose worth is known: a copier of the source, a blank picture, a random crop, and the right answers."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from firered_lit.draws import chooser
from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks.exact_rows import ExactRows
from firered_lit.evaluation.models import fingerprints
from firered_lit.evaluation.protocols import Item

if TYPE_CHECKING:
    from PIL import Image


class Copier:
    """Return the first source as it is."""

    parallel = 1

    def fingerprint(self) -> str:
        """Return the same for every copier."""
        return fingerprints.of_settings(kind="copier")

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> "Image.Image":
        """Return the first source."""
        return _first(sources).copy()

    def close(self) -> None:
        """Nothing is open."""


class Blank:
    """Return a grey picture of the first source's size."""

    parallel = 1

    def fingerprint(self) -> str:
        """Return the same for every blank."""
        return fingerprints.of_settings(kind="blank")

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> "Image.Image":
        """Return a grey picture."""
        from PIL import Image

        return Image.new("RGB", _first(sources).size, (128, 128, 128))

    def close(self) -> None:
        """Nothing is open."""


class RandomCrop:
    """Return a random part of the first source, at its size."""

    parallel = 1

    def fingerprint(self) -> str:
        """Return the same for every random crop."""
        return fingerprints.of_settings(kind="random crop")

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> "Image.Image":
        """Return a part of half to nine tenths of each side."""
        source = _first(sources)
        rng = chooser("random crop", seed, item.suite, item.id)
        share = rng.uniform(0.5, 0.9)
        width = round(source.width * share)
        height = round(source.height * share)
        left = rng.randint(0, source.width - width)
        top = rng.randint(0, source.height - height)
        return source.crop((left, top, left + width, top + height)).resize(source.size)

    def close(self) -> None:
        """Nothing is open."""


class RightAnswers:
    """Return the target of every item.

    Args:
        rows: The rows of an exact benchmark.
    """

    parallel = 1

    def __init__(self, rows: ExactRows) -> None:
        self.rows = rows

    def fingerprint(self) -> str:
        """Return what tells these rows' answers from others'."""
        return fingerprints.of_settings(kind="right answers", rows=self.rows.fingerprint())

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> "Image.Image":
        """Return the target."""
        from PIL import Image

        return Image.open(io.BytesIO(self.rows.target(item.id)))

    def close(self) -> None:
        """Nothing is open."""


def _first(sources: "Sequence[Image.Image]") -> "Image.Image":
    if not sources:
        raise UserError("has no source picture")
    return sources[0]
