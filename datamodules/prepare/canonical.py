"""References in a canonical order of shapes, so that edits of the same shapes in another order share a bucket.

Source:
    FireRed-Image-Edit (2602.13344), section 3.2, where the prompt is re-indexed once accordingly.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from ..references.instruction import keeps_order, reindex
from .crops import Cropped

T = TypeVar("T")


def canonical(cropped: Cropped) -> Cropped:
    """Return the same edit with its references sorted by (height, width), those of one shape in the order they have.

    The edit's `order` then holds, for each place, the number from 1 of the record's reference that stands there. It is
    () when none moved: they are sorted already, or a prompt may name one in words that are not understood.
    """
    n = len(cropped.references)
    if keeps_order(cropped.record.instructions.values(), n):
        return cropped
    shapes = [(crop.height, crop.width) for crop in cropped.references]
    order = tuple(sorted(range(1, n + 1), key=lambda number: shapes[number - 1]))
    if order == tuple(range(1, n + 1)):
        return cropped

    # The record, its texts included, and the crops.
    record = cropped.record
    captions = tuple(record.captions[number - 1] for number in order) if record.captions else ()
    moved = replace(
        record,
        references=tuple(record.references[number - 1] for number in order),
        instructions={key: reindex(text, order, n=n) for key, text in record.instructions.items()},
        captions=captions,
    )
    return replace(
        cropped,
        record=moved,
        crops=_renamed(cropped.crops, order),
        pictures=_renamed(cropped.pictures, order),
        order=order,
    )


def _renamed(images: Mapping[str, T], order: tuple[int, ...]) -> dict[str, T]:
    """Return images by name with the references in the new order; the others, and all without references, as before."""
    renamed = dict(images)
    if "reference.0" in images:
        for place, number in enumerate(order):
            renamed[f"reference.{place}"] = images[f"reference.{number - 1}"]
    return renamed
