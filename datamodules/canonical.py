"""References in a canonical order of shapes, so that edits of the same shapes in another order share a bucket.

FireRed-Image-Edit (2602.13344), section 3.2: the prompt is re-indexed once accordingly.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from .crops import Cropped
from .instruction import keeps_order, reindex

T = TypeVar("T")


def canonical(cropped: Cropped) -> Cropped:
    """Return the same edit with its references sorted by (height, width), those of one shape as they are.

    `order` tells which of the record's own references, counted from 1, stands at each place; () when all are at theirs,
    as they are where a prompt may name one in words that are not understood.
    """
    n = len(cropped.references)
    if keeps_order(cropped.record.instructions.values(), n):
        return cropped
    shapes = [(crop.height, crop.width) for crop in cropped.references]
    order = tuple(sorted(range(1, n + 1), key=lambda number: shapes[number - 1]))
    if order == tuple(range(1, n + 1)):
        return cropped
    record = cropped.record
    moved = replace(
        record,
        references=tuple(record.references[number - 1] for number in order),
        instructions={key: reindex(text, order, n=n) for key, text in record.instructions.items()},
        captions=tuple(record.captions[number - 1] for number in order) if record.captions else (),
    )
    crops, pictures = _renamed(cropped.crops, order), _renamed(cropped.pictures, order)
    return replace(cropped, record=moved, crops=crops, pictures=pictures, order=order)


def as_in_the_row(meta: Mapping[str, Any]) -> tuple[list[int], dict[str, str]]:
    """The places, from 0, of a stored sample's references in its record's own order, and the instructions for that."""
    count, texts = len(meta["references"]), meta["instructions"]
    order = list(meta.get("order") or range(1, count + 1))
    back = [order.index(number) + 1 for number in range(1, count + 1)]
    return [place - 1 for place in back], {key: reindex(text, back, n=count) for key, text in texts.items()}


def _renamed(images: Mapping[str, T], order: tuple[int, ...]) -> dict[str, T]:
    """The references among images by name in the new order, where there are any; the others as they are."""
    if "reference.0" not in images:
        return dict(images)
    moved = {f"reference.{place}": images[f"reference.{number - 1}"] for place, number in enumerate(order)}
    return {**images, **moved}
