"""Prompts that are encoded in the training step, because their references come in an order of the step's own."""

from typing import TYPE_CHECKING

from PIL import Image

from ..batch import Text, Unencoded

if TYPE_CHECKING:
    from .conditioning import Conditioner
    from .words import WordConditioner


def encoded(conditioner: "Conditioner | WordConditioner", text: Unencoded) -> Text:
    """Encode the prompts and pictures that the loader left to the text encoder: (B, T, D) on its device."""
    pictures = [[Image.fromarray(picture) for picture in own] for own in text.pictures]
    rows = conditioner.encode(list(text.prompts), pictures, text.condition_area)
    return Text.pad([row.to(text.embeddings) for row in rows])
