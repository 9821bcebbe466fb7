"""Where the words that a target should show stand on its crop: asked once of a reader that the recipe brings."""

from typing import Any, Protocol

from PIL import Image

from .crops import Cropped


class Reader(Protocol):
    """What reads a layout; `callbacks.ocr_reader.LayoutReader` does."""

    identity: str  # of what it reads: another one makes another data set

    def __call__(
        self, target: Image.Image | None, source: Image.Image | None, text: str, replaced: str
    ) -> dict[str, Any] | None:
        """The layout of `text` as JSON holds it, on the target, or on the source whose words `replaced` it takes the
        place of; None when neither shows them."""
        ...


def layout_of(cropped: Cropped, reader: Reader) -> dict[str, Any] | None:
    """The layout of a sample's target text; None without one. The source is its record's first reference."""
    record, references = cropped.record, cropped.references
    if not record.target_text:
        return None
    first = cropped.order.index(1) if cropped.order else 0
    source = references[first] if references else None
    return reader(cropped.crops.get("target"), source, record.target_text, record.replaced_text)
