"""Prompts that are encoded in the training step, because their references come in an order of the step's own."""

from typing import TYPE_CHECKING

from PIL import Image

from ..batch import Text, Unencoded

if TYPE_CHECKING:
    from .conditioning import Conditioner
    from .words import WordConditioner


def encoded(conditioner: "Conditioner | WordConditioner", text: Unencoded) -> Text:
    """Encode the prompts and pictures that the loader left to the text encoder.

    Args:
        conditioner: the frozen text encoder.
        text: B prompts, each with the pictures that it is shown.

    Returns:
        Embeddings (B, T, D), in the dtype and on the device of `text.embeddings`.
    """
    pictures = []
    for shown in text.pictures:
        pictures.append([Image.fromarray(picture) for picture in shown])

    rows = conditioner.encode(list(text.prompts), pictures, text.condition_area)
    return Text.pad([row.to(text.embeddings) for row in rows])
