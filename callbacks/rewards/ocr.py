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
from typing import TypeVar

import lightning as L
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from callbacks.ocr.closeup import LOOKS, ScoredImage, glyphs, score_where_due
from callbacks.ocr.engine import Engine, PaddleEngine, Picture
from callbacks.ocr.layout import Layout, Layouts, Reading, plainly, read_layouts, reference_layout
from callbacks.ocr.models import model, offline_models
from callbacks.ocr.reader import engine_process
from callbacks.ocr.worker import EngineError, EngineProcess
from callbacks.rewards.base import RewardCallback
from callbacks.rewards.image_statistics import image_statistics
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.facts import Facts
from firered_lit.models.cache import cache_folder
from firered_lit.rewards.layout_ocr import Char, LayoutOCRScore, fold, layout_ocr_reward
from firered_lit.rewards.protocol import Scores

T = TypeVar("T", Layout, ScoredImage)
CASES = ("folded", "kept", "as_asked")
TERMS = ("text", "layout", "looks", "glyph_height", "glyph_ratio")
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
        target_texts: (n) the text that each should show.
        references: (n) for each image one that shows the text as it should stand (the target image), or its characters
            in that image's pixels; None, or an image without that text, scores the text alone.
        engine: The engine that reads; the offline one when None.
        text_weight: See `layout_ocr_reward`.
        layout_weight: See `layout_ocr_reward`.
        gate: See `layout_ocr_reward`.
        fold_case: Count upper and lower case as one.
        look_again: Read an image again, enlarged, where its words are not found.

    Returns:
        (n) scores; `float(score)` is the total, `.text` and `.layout` are its terms.

    Raises:
        UserError: The lists have different lengths, a text is empty, has characters that the engine cannot read, or an
            image cannot be read.
    """
    if references is None:
        references = [None] * len(images)
    if not len(images) == len(target_texts) == len(references):
        counts = f"{len(images)} images, {len(target_texts)} texts, {len(references)} references"
        raise UserError(f"score_images: one text (and reference) for each image: {counts}")
    engine = engine or default_engine()
    for text in target_texts:
        reason = refusal(text, engine.characters)
        if reason:
            raise UserError(f"score_images: {reason}")

    # The layouts of the references; one that several images share is read once.
    shown = [picture(image) for image in images]
    pictures: dict[tuple[int, str], Picture] = {}
    for reference, text in zip(references, target_texts):
        if isinstance(reference, Image.Image | Tensor | np.ndarray):
            pictures[id(reference), text] = picture(reference)
    known: dict[tuple[int, str], Layout | str] = {}
    if pictures:
        readings = read_layouts(engine.read, list(pictures.values()), [text for _, text in pictures])
        known = dict(zip(pictures, readings))
    layouts: list[Layout | None] = []
    for reference, text, image in zip(references, target_texts, shown):
        if isinstance(reference, Image.Image | Tensor | np.ndarray):
            layouts.append(_required(known[id(reference), text]))
        elif reference:
            layouts.append(Layout(reference, (image.shape[0], image.shape[1])))
        else:
            layouts.append(None)

    # The scores.
    scored = score_where_due(
        engine.read,
        shown,
        target_texts,
        layouts,
        fold_case=[fold_case] * len(images),
        looks=LOOKS if look_again else (),
        text_weight=text_weight,
        layout_weight=layout_weight,
        gate=gate,
    )
    return [_required(one).score for one in scored]


def _required(outcome: T | str) -> T:
    """Return a layout or a score. Raises UserError for the reason why a picture could not be read."""
    if isinstance(outcome, str):
        raise UserError(f"score_images: a picture cannot be read: {outcome}")
    return outcome


def refusal(text: str | None, characters: Collection[str]) -> str | None:
    """Return the reason why a text cannot be scored, in one line; None when it can.

    Args:
        text: The text.
        characters: Characters that the engine can read.
    """
    if not text or not plainly(text):
        return "no target text"
    known = set(characters) | {character.casefold() for character in characters}
    lacking = set()
    for character in fold(text, case=False, space=True):
        if character not in known and character.casefold() not in known:
            lacking.add(character)
    if not lacking:
        return None
    first = "".join(sorted(lacking)[:8])
    return f"the OCR model cannot read {first!r} of {text!r}: choose a model of that language"


def asks_for_case(text: str, replaced: str | None, instruction: str | None) -> bool:
    """Return whether an edit is about upper and lower case.

    Args:
        text: The words that the edit should show.
        replaced: The words whose place they take, where known.
        instruction: The edit's instruction, where known.
    """
    exact = partial(fold, case=False, space=True)
    if replaced and plainly(text) == plainly(replaced) and exact(text) != exact(replaced):
        return True
    return bool(SPEAKS_OF_CASE.search(instruction or ""))


def picture(image: Shown) -> Picture:
    """Return any image as (H, W, 3) uint8."""
    if isinstance(image, Tensor):
        unit = (image.detach().float().clamp(-1, 1) + 1) * 127.5
        return unit.round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    return image


def _pictures(images: Tensor) -> list[Picture]:
    """Return the pictures of a batch; a group repeats one sample, which is converted once."""
    if images.stride(0) == 0:
        return [picture(images[0])] * len(images)
    return [picture(image) for image in images]


@cache
def default_engine() -> PaddleEngine:
    """Return the offline engine of this process, built once."""
    return PaddleEngine(*offline_models(cache_folder()), threads=_threads())


def _threads(processes: int = 1) -> int:
    """Return this process's share of the cores, 8 at most, where so many processes share the machine."""
    return max(1, min(8, (os.cpu_count() or 1) // processes))


class OCRReward(RewardCallback):
    """The layout-aware OCR reward of a run. The engine lives in a process of its own, started when first asked.

    The text is a sample's `target_text`, the layout its `layout` where `prepare` has read it; else what is read on
    `batch.pixels` (the true target) where that shows the text; else, for a sample that has a `replaced_text`, the place
    of those words in the first source; else the text alone counts.
    A sample whose engine failed, that has no target text, or whose text the model cannot read has no score.
    Beside `text` and `layout` its terms are `looks`, how many times an image was read again, enlarged, because its
    words were not found, and the statistics that show hacking: `dark`, `edges`, `entropy`, `glyph_height` (the text's
    letters over the image's height) and `glyph_ratio` (over the reference's letters of that text).

    Args:
        name: Name in the log and in `stage.weights`.
        text_weight: See `layout_ocr_reward`.
        layout_weight: See `layout_ocr_reward`.
        gate: See `layout_ocr_reward`.
        case: Count upper and lower case as one ("folded"), as two ("kept"), or "as_asked": kept where the text differs
            from the replaced words by case alone or the instruction speaks of case, folded elsewhere.
        look_again: Read an image again, enlarged, where its words are not found.
        tasks: Tasks whose samples must have a target text; all samples that have one are scored when null.
        detection: Folder or name of a PaddleOCR model; that of the rapidocr wheel when null.
        recognition: The same of the model that recognises lines.
        threads: Cores at work in the engine; null takes this process's share, 8 at most.
        batch: Lines recognised together.
        chunk: Images read together, and lost together when the engine dies.
        limit: Seconds that reading one chunk may take.
        patience: Seconds that validation waits for the scores, see `RewardCallback`.
        max_side: Pixels of the longer side; larger images are made smaller to find their lines.
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
        self.text_weight = text_weight
        self.layout_weight = layout_weight
        self.gate = gate
        self.case = case
        self.looks = LOOKS if look_again else ()
        self.tasks = None if tasks is None else frozenset(tasks)
        self.detection = detection
        self.recognition = recognition
        for model_name in (detection, recognition):
            if model_name:
                model(model_name)  # refuses early
        self.threads = threads
        self.batch = batch
        self.chunk = chunk
        self.limit = limit
        self.max_side = max_side
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
        if self.tasks is None:
            return [bool(facts.target_text) for facts in batch.facts]
        return [task in self.tasks for task in batch.tasks]

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Start scoring images (B, 3, H, W) in [-1, 1], made for the samples of `batch`."""
        targets: list[Picture | None] = [None] * len(images)
        if batch.pixels is not None:
            targets = [*_pictures(batch.pixels)]
        sources: list[Picture | None] = [None] * len(images)
        if batch.source is not None:
            sources = [*_pictures(batch.source)]
        asked = OCRRequest(
            images=[picture(image) for image in images],
            facts=batch.facts,
            targets=targets,
            sources=sources,
            statistics=image_statistics(images),
        )
        return self.opened(self._pool.submit(self._score, asked))

    def _score(self, asked: "OCRRequest") -> Scores:
        """Return the scores of a batch; runs in the pool's thread."""
        # The samples whose text can be read.
        engine = self._engine()
        known, refused = self._readable(engine, asked)
        layouts = self._reference_layouts(engine, asked, known)
        texts = [asked.facts[i].target_text for i in known]
        scored = score_where_due(
            partial(self._read, engine),
            [asked.images[i] for i in known],
            texts,
            layouts,
            fold_case=[self._folds_case(asked, i) for i in known],
            looks=self.looks,
            text_weight=self.text_weight,
            layout_weight=self.layout_weight,
            gate=self.gate,
        )

        # Their scores and terms; NaN for the others.
        values = [torch.nan] * len(asked.images)
        terms = {name: list(values) for name in TERMS}
        for i, one, text, layout in zip(known, scored, texts, layouts):
            if isinstance(one, str):
                refused.append(one)
                continue
            size = (asked.images[i].shape[0], asked.images[i].shape[1])
            height, ratio = glyphs(one, size, text, layout)
            values[i] = one.score.total
            terms["text"][i] = one.score.text
            terms["layout"][i] = torch.nan if one.score.layout is None else one.score.layout
            terms["looks"][i] = float(one.looks)
            terms["glyph_height"][i] = height
            terms["glyph_ratio"][i] = ratio
        for reason, times in Counter(refused).items():
            self.count(reason, times)

        value = torch.tensor(values)
        columns = {name: torch.tensor(numbers) for name, numbers in terms.items()}
        return Scores(value.nan_to_num(0.0), ~value.isnan(), columns | asked.statistics)

    def _folds_case(self, asked: "OCRRequest", i: int) -> bool:
        """Return whether upper and lower case count as one for sample `i`."""
        if self.case != "as_asked":
            return self.case == "folded"
        facts = asked.facts[i]
        return not asks_for_case(facts.target_text, facts.replaced_text, facts.instruction)

    def _readable(self, engine: EngineProcess, asked: "OCRRequest") -> tuple[list[int], list[str]]:
        """Return the samples whose text the engine can read, and the reasons why the others have no score."""
        try:
            characters = engine.characters()
        except EngineError as fault:
            return [], [f"the OCR engine: {fault}"] * len(asked.images)
        known = []
        reasons = []
        for i, facts in enumerate(asked.facts):
            reason = refusal(facts.target_text, characters)
            if reason is None:
                known.append(i)
            else:
                reasons.append(reason)
        return known, reasons

    def _read(self, engine: EngineProcess, images: Sequence[Picture]) -> list[Reading]:
        """Return the readings of images, in chunks; for an image whose engine failed, the reason."""
        read: list[Reading] = []
        for start in range(0, len(images), self.chunk):
            part = images[start : start + self.chunk]
            try:
                read += engine.read(part)
            except EngineError as fault:
                read += [f"the OCR engine: {fault}"] * len(part)
        return read

    def _reference_layouts(
        self, engine: EngineProcess, asked: "OCRRequest", known: Iterable[int]
    ) -> list[Layout | None]:
        """Return the layouts of these samples: as `prepare` has read them, else each picture is read once.

        A reference that cannot be read leaves the text alone: its layout is None.
        """
        read = partial(self._read, engine)
        layouts: list[Layout | None] = []
        for i in known:
            facts = asked.facts[i]
            if facts.layout:
                layouts.append(Layout.of(facts.layout))
                continue
            target = asked.targets[i]
            source = asked.sources[i]
            text = facts.target_text
            layouts.append(reference_layout(self._layouts, read, target, source, text, facts.replaced_text))
        return layouts

    def _engine(self) -> EngineProcess:
        """Return the engine, whose process is started when it is first asked."""
        if self.engine is None:
            threads = self.threads or _threads(self.processes)
            options = {"threads": threads, "batch": self.batch, "max_side": self.max_side}
            self.engine = engine_process(self.detection, self.recognition, options, self.limit)
        return self.engine


@dataclass(frozen=True)
class OCRRequest:
    """The arguments of one `submit`, on the host: facts and pictures of each sample."""

    images: list[Picture]
    facts: tuple[Facts, ...]
    targets: list[Picture | None]
    sources: list[Picture | None]
    statistics: dict[str, Tensor]
