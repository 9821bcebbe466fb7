"""Layouts of the words that targets should show, read once by a reader that the recipe brings."""

from typing import Any, Protocol

from PIL import Image

from .crops import Cropped


class ReadsLayouts(Protocol):
    """Protocol of a reader of layouts; `callbacks.ocr.reader.LayoutReader` is one."""

    identity: str  # names the reader and its settings: another one makes another data set

    def __call__(
        self, target: Image.Image | None, source: Image.Image | None, text: str, replaced: str
    ) -> dict[str, Any] | None:
        """Return the layout of words, as JSON holds it.

        Args:
            target: The picture that shows them; None without one.
            source: The picture that the edit starts from; None without one.
            text: The words.
            replaced: Words of the source whose place they take, for where the target does not show them.

        Returns:
            The layout; None when neither picture shows the words.
        """
        ...


def layout_of(cropped: Cropped, reader: ReadsLayouts) -> dict[str, Any] | None:
    """Return the layout of a sample's target text; None without one. The source is its record's first reference."""
    record = cropped.record
    if not record.target_text:
        return None
    source = None
    if cropped.references:
        first = cropped.order.index(1) if cropped.order else 0
        source = cropped.references[first]
    return reader(cropped.crops.get("target"), source, record.target_text, record.replaced_text)
