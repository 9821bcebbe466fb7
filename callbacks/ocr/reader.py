"""Readers of text by an OCR engine: layouts for `prepare`, lines for an evaluation."""

import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from callbacks.ocr.engine import Picture
from callbacks.ocr.layout import Layouts, Reading, reference_layout
from callbacks.ocr.models import chosen_models
from callbacks.ocr.worker import EngineError, EngineProcess
from firered_lit.rewards.layout_ocr import Char, lines

log = logging.getLogger(__name__)


def engine_process(
    detection: str | None, recognition: str | None, options: Mapping[str, Any], limit: float
) -> EngineProcess:
    """Return an OCR engine in a process of its own.

    Args:
        detection: Folder or name of a PaddleOCR model; that of the rapidocr wheel when None.
        recognition: The same of the model that recognises lines.
        options: Further arguments of `PaddleEngine`.
        limit: Seconds that one reading may take.
    """
    detector, recogniser = chosen_models(detection, recognition)
    arguments = {
        **options,
        "detection": (detector.name, str(detector.folder or "")),
        "recognition": (recogniser.name, str(recogniser.folder or "")),
    }
    return EngineProcess(arguments, limit=limit)


def identity_of(detection: str | None, recognition: str | None, max_side: int) -> str:
    """Return the words by which readings of equal models at an equal size are known to be the same."""
    return f"{detection or 'offline'} {recognition or 'offline'} {max_side}"


def _pixels(image: Image.Image) -> Picture:
    """Return an image as (H, W, 3) uint8."""
    return np.asarray(image.convert("RGB"))


class LayoutReader:
    """Reads reference layouts for `OCRReward`, which then never reads a reference again.

    Args:
        detection: Folder or name of a PaddleOCR model; that of the rapidocr wheel when None.
        recognition: The same of the model that recognises lines.
        threads: Pictures at work at once.
        max_side: Pixels of a picture's longer side; a larger one is made smaller.
        limit: Seconds that one reading may take.
    """

    def __init__(
        self,
        detection: str | None = None,
        recognition: str | None = None,
        threads: int = 1,
        max_side: int = 960,
        limit: float = 60.0,
    ) -> None:
        self.identity = identity_of(detection, recognition, max_side)
        self.engine = engine_process(detection, recognition, {"threads": threads, "max_side": max_side}, limit)
        self.layouts = Layouts(most=1)

    def __call__(
        self, target: Image.Image | None, source: Image.Image | None, text: str, replaced: str
    ) -> dict[str, Any] | None:
        """Return the layout of words as JSON holds it.

        Args:
            target: The picture that shows them; None without one.
            source: The picture that the edit starts from; None without one.
            text: The words.
            replaced: The words of the source that they take the place of.

        Returns:
            The layout in the pixels of the target, or of the source where the target does not show the words. None
            where neither does, and, with a warning, where the engine fails.
        """
        shown = None if target is None else _pixels(target)
        edited = None if source is None else _pixels(source)
        layout = reference_layout(self.layouts, self._read, shown, edited, text, replaced)
        if layout is None or not layout.shows(text):
            return None
        return layout.plain()

    def _read(self, images: Sequence[Picture]) -> Sequence[Reading]:
        """Return the readings of images; where the engine fails, the reason for each."""
        try:
            return self.engine.read(images)
        except EngineError as fault:
            log.warning("no layout of a target's words: the OCR engine: %s", fault)
            return [str(fault)] * len(images)


class TextReader:
    """Reads the lines on pictures, for the text metrics of an evaluation.

    Args:
        detection: Folder or name of a PaddleOCR model; that of the rapidocr wheel when None.
        recognition: The same of the model that recognises lines.
        threads: Pictures at work at once.
        max_side: Pixels of a picture's longer side; a larger one is made smaller.
        limit: Seconds that one reading may take.
    """

    def __init__(
        self,
        detection: str | None = None,
        recognition: str | None = None,
        threads: int = 1,
        max_side: int = 960,
        limit: float = 60.0,
    ) -> None:
        self.identity = f"PaddleOCR {identity_of(detection, recognition, max_side)}"
        self._engine = engine_process(detection, recognition, {"threads": threads, "max_side": max_side}, limit)

    def read(self, pictures: Sequence[bytes]) -> list[list[str] | str]:
        """Return the lines on each picture, in reading order, or the reason why it cannot be read.

        Args:
            pictures: Image files.
        """
        images = [_pixels(Image.open(io.BytesIO(file))) for file in pictures]
        try:
            readings = self._engine.read(images)
        except EngineError as fault:
            return [str(fault)] * len(images)

        answers: list[list[str] | str] = []
        for reading in readings:
            answers.append(reading if isinstance(reading, str) else lines_of(reading))
        return answers

    def close(self) -> None:
        """End the engine's process; a later reading starts another."""
        self._engine.close()


def lines_of(characters: Sequence[Char]) -> list[str]:
    """Return characters in reading order as the lines that the engine found; empty ones are left out."""
    texts = []
    for line in lines(characters):
        text = "".join(character.text for character in line).strip()
        if text:
            texts.append(text)
    return texts
