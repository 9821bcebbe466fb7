"""For `prepare`: where the words that a target should show stand, read once and kept with the sample."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from callbacks.ocr_engine import Picture
from callbacks.ocr_layout import Layouts, Reading, reference_layout
from callbacks.ocr_models import model, offline_models
from callbacks.ocr_worker import EngineError, EngineProcess
from firered_lit.models.tiny import cache_folder

log = logging.getLogger(__name__)


def engine_process(
    detection: str | None, recognition: str | None, options: Mapping[str, Any], limit: float
) -> EngineProcess:
    """An OCR engine in a process of its own. detection, recognition: folder or name of a PaddleOCR model; those of the
    rapidocr wheel when None. options: see `PaddleEngine`. limit: seconds that one reading may take."""
    named = (detection, recognition)
    offline = offline_models(cache_folder()) if None in named else (None, None)
    models = [model(name) if name else own for name, own in zip(named, offline)]
    plain = {key: (m.name, str(m.folder or "")) for key, m in zip(("detection", "recognition"), models) if m}
    return EngineProcess({**options, **plain}, limit=limit)


class LayoutReader:
    """Reads reference layouts for `OCRReward`, which then never reads a reference again.

    Args:
        detection, recognition, max_side, limit: as of `OCRReward`. threads: cores at work in the engine.
    """

    def __init__(
        self,
        detection: str | None = None,
        recognition: str | None = None,
        threads: int = 1,
        max_side: int = 960,
        limit: float = 60.0,
    ) -> None:
        self.identity = f"{detection or 'offline'} {recognition or 'offline'} {max_side}"  # of what it reads
        self.engine = engine_process(detection, recognition, {"threads": threads, "max_side": max_side}, limit)
        self.layouts = Layouts(most=1)

    def __call__(
        self, target: Image.Image | None, source: Image.Image | None, text: str, replaced: str
    ) -> dict[str, Any] | None:
        """The layout of `text` as JSON holds it, in the pixels of the target, or of the source whose words `replaced`
        it takes the place of. None when neither shows them; when the engine fails, with a warning."""
        pictures = [None if image is None else np.asarray(image.convert("RGB")) for image in (target, source)]
        found = reference_layout(self.layouts, self._read, *pictures, text, replaced)
        return found.plain() if found and found.shows(text) else None

    def _read(self, images: Sequence[Picture]) -> Sequence[Reading]:
        try:
            return self.engine.read(images)
        except EngineError as fault:
            log.warning("no layout of a target's words: the OCR engine: %s", fault)
            return [str(fault)] * len(images)
