"""The layout-aware OCR reward: from a notebook `score_images`, in a run the callback `OCRReward`.

What is read where is `ocr_engine`'s, the arithmetic `firered_lit.rewards.layout_ocr`'s.
"""

import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from callbacks.image_statistics import image_statistics
from callbacks.ocr_closeup import LOOKS, glyphs, score_where_due
from callbacks.ocr_engine import Engine, PaddleEngine, Picture
from callbacks.ocr_layout import Layout, Layouts, Reading, plainly, read_layouts, reference_layout
from callbacks.ocr_models import model, offline_models
from callbacks.ocr_reader import engine_process
from callbacks.ocr_worker import EngineError, EngineProcess
from callbacks.reward import RewardCallback
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.models.tiny import cache_folder
from firered_lit.rewards.layout_ocr import Char, LayoutOCRScore, fold, layout_ocr_reward
from firered_lit.rewards.protocol import Scores

CASES = ("folded", "kept", "as_asked")
SPEAKS_OF_CASE = re.compile(
    r"\b(?:(?:upper|lower|title)[\s-]?case|all[\s-]caps|capital(?:s|i[sz]e[sd]?|i[sz]ing|\s+letters?))\b|大写|小写",
    re.IGNORECASE,
)
Shown = Image.Image | Tensor | Picture  # PIL, (3, H, W) in [-1, 1], or (H, W, 3) uint8
Reference = Shown | Sequence[Char]  # an image that shows the text as it should be, or the layout itself


def score_images(
    images: Sequence[Shown],
    target_texts: Sequence[str],
    references: Sequence[Reference | None] | None = None,
    *,
    engine: Engine | None = None,
    text_weight: float = 0.5,
    layout_weight: float = 0.5,
    gate: float = 0.5,
    fold_case: bool = True,
    look_again: bool = True,
) -> list[LayoutOCRScore]:
    """Score how well each image shows its text, in [0, 1].

    Args:
        images: (n) images, as PIL, (3, H, W) tensors in [-1, 1] or (H, W, 3) uint8.
        target_texts: (n) what each should show.
        references: (n) for each image one that shows the text as it should stand (the target
            image), or its characters in that image's pixels; None, or an image without that text,
            scores the text alone.
        engine: what reads; the offline one when None.
        text_weight, layout_weight, gate: see `layout_ocr_reward`.
        fold_case: upper and lower case count as one.
        look_again: read an image again, enlarged, where its words are not found.

    Returns:
        (n) scores; `float(score)` is the total, `.text` and `.layout` are its terms.

    Raises:
        UserError: lists of other lengths, an empty text, or a text with characters that the engine
            cannot read.
    """
    references = references if references is not None else [None] * len(images)
    if not len(images) == len(target_texts) == len(references):
        counts = f"{len(images)} images, {len(target_texts)} texts, {len(references)} references"
        raise UserError(f"score_images: one text (and reference) for each image: {counts}")
    engine = engine or default_engine()
    for text in target_texts:
        if reason := refusal(text, engine.characters):
            raise UserError(f"score_images: {reason}")
    shown, drawn = [picture(image) for image in images], (Image.Image, Tensor, np.ndarray)
    pictures = {(id(r), t): picture(r) for r, t in zip(references, target_texts) if isinstance(r, drawn)}
    readings = read_layouts(engine.read, list(pictures.values()), [text for _, text in pictures]) if pictures else []
    known = dict(zip(pictures, readings))  # a reference of several images is read once
    layouts = [
        known.get((id(r), text)) or (Layout(r, image.shape[:2]) if r else None)
        for r, text, image in zip(references, target_texts, shown)
    ]
    weights = {"text_weight": text_weight, "layout_weight": layout_weight, "gate": gate}
    scored = score_where_due(
        engine.read,
        shown,
        target_texts,
        layouts,
        fold_case=[fold_case] * len(images),
        looks=LOOKS if look_again else (),
        **weights,
    )
    return [one.score for one in scored]


def refusal(text: str | None, characters: Collection[str]) -> str | None:
    """Why a text cannot be scored, in one line; None when it can."""
    if not text or not plainly(text):
        return "no target text"
    known = {c for character in characters for c in (character, character.casefold())}
    if lacking := sorted(
        {c for c in fold(text, case=False, space=True) if c not in known and c.casefold() not in known}
    ):
        return f"the OCR model cannot read {''.join(lacking[:8])!r} of {text!r}: choose a model of that language"
    return None


def asks_for_case(text: str, replaced: str | None, instruction: str | None) -> bool:
    """Return whether an edit is about upper and lower case.

    Args:
        text: the words that the edit should show.
        replaced: the words whose place they take, where known.
        instruction: the edit's instruction, where known.
    """
    exact = partial(fold, case=False, space=True)
    if replaced and plainly(text) == plainly(replaced) and exact(text) != exact(replaced):
        return True
    return bool(SPEAKS_OF_CASE.search(instruction or ""))


def picture(image: Shown) -> Picture:
    """Any image as (H, W, 3) uint8."""
    if isinstance(image, Tensor):
        unit = (image.detach().float().clamp(-1, 1) + 1) * 127.5
        return unit.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return np.asarray(image.convert("RGB")) if isinstance(image, Image.Image) else image


def _pictures(images: Tensor) -> list[Picture]:
    """Of a batch; a group repeats one sample, which is converted once."""
    if images.stride(0) == 0:
        return [picture(images[0])] * len(images)
    return [picture(image) for image in images]


@cache
def default_engine() -> PaddleEngine:
    """The offline engine of this process, built once."""
    return PaddleEngine(*offline_models(cache_folder()), threads=_threads())


def _threads(processes: int = 1) -> int:
    return max(1, min(8, (os.cpu_count() or 1) // processes))


class OCRReward(RewardCallback):
    """The layout-aware OCR reward of a run. The engine lives in a process of its own, started when first asked.

    The text is `batch.target_texts`, the layout `batch.layouts` where `prepare` has read it; else what is read on
    `batch.pixels` (the true target) where that shows the text; else, for batches that name `replaced_texts`, the place
    of those words in the first source; else the text alone counts.
    A sample whose engine failed, that has no target text, or whose text the model cannot read has no score.
    Beside `text` and `layout` its terms are `looks`, how many times an image was read again, enlarged, because its
    words were not found, and the statistics that show hacking: `dark`, `edges`, `entropy`, `glyph_height` (the text's
    letters over the image's height) and `glyph_ratio` (over the reference's letters of that text).

    Args:
        name: what it is called in the log and in `stage.weights`.
        text_weight, layout_weight, gate: see `layout_ocr_reward`.
        case: whether upper and lower case count: "folded" (as one), "kept" (as two), or "as_asked": kept where the
            text differs from the replaced words by case alone or the instruction speaks of case, folded elsewhere.
        look_again: read an image again, enlarged, where its words are not found.
        tasks: samples of these tasks must have a target text; all that have one are scored when null.
        detection, recognition: folder or name of a PaddleOCR model; those of the rapidocr wheel when null.
        threads: cores at work in the engine; null takes this process's share, 8 at most.
        batch: lines recognised together. chunk: images read together, and lost together when the engine dies.
        limit: seconds that reading one chunk may take. patience: see `RewardCallback`.
        max_side: px; larger images are made smaller to find their lines.
    """

    def __init__(
        self,
        name: str = "ocr",
        text_weight: float = 0.5,
        layout_weight: float = 0.5,
        gate: float = 0.5,
        case: str = "as_asked",
        look_again: bool = True,
        tasks: Collection[str] | None = None,
        detection: str | None = None,
        recognition: str | None = None,
        threads: int | None = None,
        batch: int = 8,
        chunk: int = 8,
        limit: float = 60.0,
        patience: float = 300.0,
        max_side: int = 960,
    ) -> None:
        super().__init__(name, patience)
        layout_ocr_reward([], "x", text_weight=text_weight, layout_weight=layout_weight, gate=gate)  # refuses early
        if case not in CASES:
            raise UserError(f"case={case!r}: choose one of {', '.join(CASES)}")
        self.case, self.looks = case, LOOKS if look_again else ()
        self.weights = {"text_weight": text_weight, "layout_weight": layout_weight, "gate": gate}
        self.tasks = None if tasks is None else frozenset(tasks)
        self.detection, self.recognition = detection, recognition
        for name in filter(None, (detection, recognition)):
            model(name)  # refuses early
        self.threads, self.batch, self.chunk, self.limit, self.max_side = threads, batch, chunk, limit, max_side
        self.processes = 1
        self.engine: EngineProcess | None = None
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)  # one engine, one user
        self._layouts = Layouts()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.processes = max(1, trainer.num_devices)

    def close(self) -> None:
        """Drop what is not begun and end the engine's process. It is started again when needed."""
        super().close()
        if self.engine is not None:
            self.engine.close()

    def applies(self, batch: EditBatch) -> list[bool]:
        texts = batch.target_texts or [None] * len(batch)
        if self.tasks is None:
            return [bool(text) for text in texts]
        return [task in self.tasks for task in batch.tasks]

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Start scoring images (B, 3, H, W) in [-1, 1]."""
        nothing: list[Any] = [None] * len(images)
        asked = Asked(
            [picture(image) for image in images],
            list(batch.target_texts or nothing),
            nothing if batch.pixels is None else _pictures(batch.pixels),
            list(batch.replaced_texts or nothing),
            nothing if batch.source is None else _pictures(batch.source),
            [plain and Layout.of(plain) for plain in batch.layouts or nothing],
            list(batch.instructions or nothing),
            image_statistics(images),
        )
        return self.opened(self._pool.submit(self._score, asked))

    def _score(self, asked: "Asked") -> Scores:
        """In the pool's thread."""
        engine = self._engine()
        known, refused = self._readable(engine, asked)
        layouts = self._reference_layouts(engine, asked, known)
        images, texts = [asked.images[i] for i in known], [asked.texts[i] or "" for i in known]
        scored = score_where_due(
            partial(self._read, engine),
            images,
            texts,
            layouts,
            fold_case=[self._folds_case(asked, i) for i in known],
            looks=self.looks,
            **self.weights,
        )
        values = [torch.nan] * len(asked.images)
        terms = {name: list(values) for name in ("text", "layout", "looks", "glyph_height", "glyph_ratio")}
        for i, one, layout in zip(known, scored, layouts):
            if isinstance(one, str):
                refused.append(one)
                continue
            values[i], terms["text"][i] = one.score.total, one.score.text
            terms["looks"][i] = float(one.looks)
            terms["layout"][i] = torch.nan if one.score.layout is None else one.score.layout
            terms["glyph_height"][i], terms["glyph_ratio"][i] = glyphs(
                one, asked.images[i].shape[:2], asked.texts[i] or "", layout
            )
        for reason, times in Counter(refused).items():
            self.count(reason, times)
        value = torch.tensor(values)
        given = {name: torch.tensor(numbers) for name, numbers in terms.items()} | asked.statistics
        return Scores(value.nan_to_num(0.0), ~value.isnan(), given)

    def _folds_case(self, asked: "Asked", i: int) -> bool:
        """Return whether upper and lower case count as one for sample `i`."""
        if self.case != "as_asked":
            return self.case == "folded"
        return not asks_for_case(asked.texts[i] or "", asked.replaced[i], asked.instructions[i])

    def _readable(self, engine: EngineProcess, asked: "Asked") -> tuple[list[int], list[str]]:
        """Samples whose text the engine can read, and why the others have no score."""
        try:
            characters = engine.characters()
        except EngineError as fault:
            return [], [f"the OCR engine: {fault}"] * len(asked.images)
        reasons = {i: refusal(text, characters) for i, text in enumerate(asked.texts)}
        return [i for i, reason in reasons.items() if reason is None], [r for r in reasons.values() if r]

    def _read(self, engine: EngineProcess, images: Sequence[Picture]) -> list[Reading]:
        """Readings in chunks; for an image whose engine failed, why."""
        read: list[Reading] = []
        for start in range(0, len(images), self.chunk):
            part = images[start : start + self.chunk]
            try:
                read += engine.read(part)
            except EngineError as fault:
                read += [f"the OCR engine: {fault}"] * len(part)
        return read

    def _reference_layouts(self, engine: EngineProcess, asked: "Asked", known: Iterable[int]) -> list[Layout | None]:
        """Layouts of these samples: as `prepare` has read them, else each picture is read once. A reference that cannot
        be read leaves the text alone."""

        read = partial(self._read, engine)
        return [
            asked.layouts[i]
            or reference_layout(
                self._layouts, read, asked.targets[i], asked.sources[i], asked.texts[i] or "", asked.replaced[i]
            )
            for i in known
        ]

    def _engine(self) -> EngineProcess:
        if self.engine is None:
            threads = self.threads or _threads(self.processes)
            options = {"threads": threads, "batch": self.batch, "max_side": self.max_side}
            self.engine = engine_process(self.detection, self.recognition, options, self.limit)
        return self.engine


@dataclass(frozen=True)
class Asked:
    """One call of `submit`, on the host: pictures and texts by sample."""

    images: list[Picture]
    texts: list[str | None]
    targets: list[Picture | None]
    replaced: list[str | None]
    sources: list[Picture | None]
    layouts: list[Layout | None]
    instructions: list[str | None]
    statistics: dict[str, Tensor]
