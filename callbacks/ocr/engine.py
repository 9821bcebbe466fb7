"""PaddleOCR on ONNX Runtime: where each character stands on many images, read together.

The pipeline and its models are PaddleOCR's. What is added is order (the lines of all images are recognised in batches
of like widths, images side by side on threads) and the character's box, from the recogniser's own columns.
"""

import math
import os
import sys
import types
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from callbacks.ocr.models import OCRModel
from firered_lit.rewards.layout_ocr import Char

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
# (4, 2) x, y of a line's corners as it is read: left top, right top, right bottom, left bottom
Quad = NDArray[np.float64]

HEIGHT = 48  # px of a line as it is recognised
MARGIN = 32  # px of grey to its right, without which its end is misread
WIDTH_STEP = 48  # px between the widths that lines are recognised at
UPRIGHT = 1.5  # taller than this times its width, a crop is turned
DOUBT = 0.85  # mean confidence under which a line is also read upside down


@dataclass(frozen=True)
class Line:
    """A line as recognised: its text, the centre of each character along the line (0 to 1), mean confidence."""

    text: str
    centres: tuple[float, ...]
    confidence: float


class Engine(Protocol):
    """Protocol of an OCR engine."""

    characters: frozenset[str]  # all that it can read

    def read(self, images: Sequence[Picture]) -> list[list[Char]]:
        """Return the characters on each image, in reading order."""
        ...


class PaddleEngine:
    """The engine. It cannot be pickled, and is built where it is used.

    Args:
        detection: Model that finds lines, see `callbacks.ocr.models`.
        recognition: Model that reads them.
        threads: Images and batches at work at once.
        intra: Cores for each of them.
        batch: Lines recognised together.
        max_side: Pixels of an image's longer side for detection; a larger image is made smaller.
        least: Mean confidence, 0 to 1, from which a line counts as read.
    """

    def __init__(
        self,
        detection: OCRModel,
        recognition: OCRModel,
        *,
        threads: int = 1,
        intra: int = 1,
        batch: int = 8,
        max_side: int = 960,
        least: float = 0.3,
    ) -> None:
        self.ocr = paddle(detection, recognition, max_side, intra)
        pipeline = self.ocr.paddlex_pipeline
        self._pipeline = getattr(pipeline, "_pipeline", pipeline)
        self._detector = self._pipeline.text_det_model
        self._recogniser = self._pipeline.text_rec_model
        self.characters = frozenset("".join(self._recogniser.post_op.character[1:]))
        self.batch = batch
        self.least = least
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ocr")

    def read(self, images: Sequence[Picture]) -> list[list[Char]]:
        """Return all characters on each image, in reading order, in its pixels; a line's number is in `Char.line`."""
        # The lines of all images, recognised together.
        detected = list(self._threads.map(self._detect, images))
        crops = [crop for lines in detected for _, crop in lines]
        recognised = iter(self._recognise_either_way(crops))

        # Those of each image, in the order in which they are read.
        characters = []
        for lines in detected:
            read = []
            for quad, _ in lines:
                line, upside_down = next(recognised)
                read.append((quad, line, upside_down))
            characters.append(self._in_order(read))
        return characters

    def _in_order(self, lines: Sequence[tuple[Quad, Line, bool]]) -> list[Char]:
        """Return the characters of all lines of an image, in reading order."""
        turned = [upside_down for _, _, upside_down in lines]
        order = reading_order([quad for quad, _, _ in lines], turned)
        return _characters([lines[i] for i in order], self.least)

    def _detect(self, image: Picture) -> list[tuple[Quad, Picture]]:
        """Return the lines in the detector's order: corners, and the upright crop."""
        bgr = np.ascontiguousarray(image[:, :, ::-1])
        quads = next(iter(self._detector([bgr])))["dt_polys"]
        lines = []
        for box in quads:
            quad = _corners(np.asarray(box))
            crop = _cut(bgr, quad)
            if crop.shape[0] >= UPRIGHT * crop.shape[1]:
                # The right side becomes the top.
                quad = np.roll(quad, -1, axis=0)
                crop = np.rot90(crop)
            lines.append((quad, crop))
        return lines

    def _recognise_either_way(self, crops: Sequence[Picture]) -> list[tuple[Line, bool]]:
        """Return each line, and True when it was read upside down: the doubtful ones are tried both ways."""
        upright = self._recognise(crops)
        doubtful = [i for i, line in enumerate(upright) if line.confidence < DOUBT]
        turned = self._recognise([crops[i][::-1, ::-1] for i in doubtful])

        lines = [(line, False) for line in upright]
        for i, line in zip(doubtful, turned):
            if line.confidence > upright[i].confidence:
                lines[i] = (line, True)
        return lines

    def _recognise(self, crops: Sequence[Picture]) -> list[Line]:
        """Return lines, recognised in batches of one width. A line is widened the same way in any company."""
        rows = [_line_input(crop) for crop in crops]
        groups = alike([row.shape[2] for row, _ in rows], self.batch)
        batches = [[rows[i] for i in group] for group in groups]
        lines: dict[int, Line] = {}
        for group, read in zip(groups, self._threads.map(self._batch, batches)):
            lines.update(zip(group, read))
        return [lines[i] for i in range(len(crops))]

    def _batch(self, rows: Sequence[tuple[NDArray[np.float32], float]]) -> list[Line]:
        """Return the lines of rows of one width, each with its share of that width."""
        scores = self._recogniser.runner(x=[np.stack([row for row, _ in rows])])[0]
        best = scores.argmax(-1)
        sure = scores.max(-1)
        lines = []
        for row, (_, share) in enumerate(rows):
            lines.append(self._decode(best[row], sure[row], share * best.shape[1]))
        return lines

    def _decode(self, best: NDArray[np.int64], sure: NDArray[np.float32], columns: float) -> Line:
        """Return the line that scores spell (CTC): runs of one class are one character, class 0 is none.

        Args:
            best: (columns,) the likeliest class.
            sure: (columns,) its score.
            columns: Columns that the line covers; the rest is grey.
        """
        # A character stands in the middle of its run.
        edges = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
        runs = [(start, stop) for start, stop in pairwise(edges) if best[start] != 0]
        text = "".join(self._recogniser.post_op.character[best[start]] for start, _ in runs)
        centres = tuple(min(float(start + stop) / 2 / columns, 1.0) for start, stop in runs)
        confidence = float(np.mean([sure[start] for start, _ in runs])) if runs else 0.0
        return Line(text, centres, confidence)


def paddle_engine(detection: Sequence[str], recognition: Sequence[str], **options: Any) -> PaddleEngine:
    """Return a `PaddleEngine` from values that JSON can hold.

    Args:
        detection: (name, folder) of the model, the folder "" when there is none.
        recognition: The same of the model that reads.
        options: Further arguments of `PaddleEngine`.
    """
    return PaddleEngine(_model(*detection), _model(*recognition), **options)


def _model(name: str, folder: str) -> OCRModel:
    """Return a model from its name and its folder, "" when there is none."""
    return OCRModel(name, Path(folder) if folder else None)


def alike(widths: Sequence[int], most: int) -> list[list[int]]:
    """Return indices in groups of one width, at most `most` in each."""
    order = sorted(range(len(widths)), key=lambda i: widths[i])
    groups = []
    for _, of_width in groupby(order, key=lambda i: widths[i]):
        indices = list(of_width)
        for start in range(0, len(indices), most):
            groups.append(indices[start : start + most])
    return groups


def reading_order(quads: Sequence[Quad], turned: Sequence[bool] | None = None) -> list[int]:
    """Return the lines' indices in the order in which a person reads them.

    Rows are read from top to bottom, and along a row from left to right, in the direction that most
    of the lines run. Two lines are in one row when their middles differ by less than half of the
    lower one's height. Columns beside each other are one block, which stands among the rows by its
    top: columns that run downwards are read from right to left, as Chinese is, and columns that run
    upwards, on a page that lies on its side, from left to right.

    Args:
        quads: (n) corners of each line, as it was cut out.
        turned: (n) True for a line that was read upside down; none was when None.

    Returns:
        A permutation of 0 to n - 1.
    """
    turned = turned or [False] * len(quads)
    upright = [i for i, quad in enumerate(quads) if not _is_column(quad)]
    columns = [i for i, quad in enumerate(quads) if _is_column(quad)]
    along, across = _along_and_across(quads, upright)
    if sum(turned[i] for i in upright) > len(upright) / 2:
        # The page stands on its head.
        along = [-x for x in along]
        across = [-y for y in across]

    # Rows, each with its place down the page.
    height = [float(np.hypot(*(quad[3] - quad[0]))) for quad in quads]
    blocks: list[tuple[float, list[int]]] = []
    for i in sorted(upright, key=lambda i: across[i]):
        last = blocks[-1][1][-1] if blocks else i
        if blocks and across[i] - across[last] < min(height[i], height[last]) / 2:
            blocks[-1][1].append(i)
        else:
            blocks.append((across[i], [i]))
    blocks = [(place, sorted(row, key=lambda i: along[i])) for place, row in blocks]

    # Blocks of columns.
    for block in _side_by_side(columns, quads):
        upwards = sum(turned[i] for i in block) > len(block) / 2
        top = min(float(quads[i][:, 1].min()) for i in block)
        blocks.append((top, sorted(block, key=lambda i: quads[i][:, 0].mean(), reverse=not upwards)))
    return [i for _, block in sorted(blocks, key=lambda block: block[0]) for i in block]


def _is_column(quad: Quad) -> bool:
    """Return whether a line runs down or up rather than across."""
    x, y = quad[1] - quad[0]
    return bool(abs(y) > abs(x))


def _along_and_across(quads: Sequence[Quad], upright: Sequence[int]) -> tuple[list[float], list[float]]:
    """Return the lines' middles (n,) along and across the direction that most upright lines run."""
    if not quads:
        return [], []
    directions = [quads[i][1] - quads[i][0] for i in upright]
    tilt = float(np.median([np.arctan2(y, x) for x, y in directions])) if directions else 0.0
    middle = np.stack([quad.mean(0) for quad in quads])
    along = middle @ np.array([np.cos(tilt), np.sin(tilt)])
    across = middle @ np.array([-np.sin(tilt), np.cos(tilt)])
    return along.tolist(), across.tolist()


def _side_by_side(columns: Sequence[int], quads: Sequence[Quad]) -> list[list[int]]:
    """Group columns that share at least half of the shorter one's height with one of their group."""
    groups: list[list[int]] = []
    for i in sorted(columns, key=lambda i: float(quads[i][:, 1].min())):
        beside = [group for group in groups if any(_share_height(quads[i], quads[k]) for k in group)]
        groups = [group for group in groups if group not in beside]
        groups.append([i, *(k for group in beside for k in group)])
    return groups


def _share_height(one: Quad, other: Quad) -> bool:
    """Return whether two columns share at least half of the shorter one's height."""
    low = max(one[:, 1].min(), other[:, 1].min())
    high = min(one[:, 1].max(), other[:, 1].max())
    return bool(high - low >= min(np.ptp(one[:, 1]), np.ptp(other[:, 1])) / 2)


def _characters(lines: Sequence[tuple[Quad, Line, bool]], least: float) -> list[Char]:
    """Return all characters with their boxes: the cell between its neighbours along the line, as high as the line.

    The box is centred on the character and measured along and across its own line, so that a turned line's characters
    keep their height.
    """
    chars = []
    for number, (quad, line, turned) in enumerate(lines):
        if line.confidence < least:
            continue
        corners = np.roll(quad, -2, axis=0) if turned else quad
        along = corners[1] - corners[0]
        down = corners[3] - corners[0]
        length = float(np.hypot(*along))
        height = max(float(np.hypot(*down)), 1.0)
        for text, (left, right) in zip(line.text, cells_between(line.centres)):
            x, y = (corners[0] + along * (left + right) / 2 + down / 2).tolist()
            width = (right - left) * length
            chars.append(Char(text, x - width / 2, y - height / 2, width, height, number))
    return chars


def cells_between(centres: Sequence[float]) -> list[tuple[float, float]]:
    """Return cells (left, right) in [0, 1] around centres: borders midway, the outer ones as far as the inner ones."""
    if not centres:
        return []
    inner = [(a + b) / 2 for a, b in pairwise(centres)]
    first = 2 * centres[0] - inner[0] if inner else 0.0
    last = 2 * centres[-1] - inner[-1] if inner else 1.0
    borders = [max(0.0, first), *inner, min(1.0, max(last, centres[-1]))]
    return list(pairwise(borders))


def _corners(quad: NDArray[Any]) -> Quad:
    """Return the corners of the least rectangle around a detected box, as PaddleOCR crops it."""
    import cv2

    points = sorted(cv2.boxPoints(cv2.minAreaRect(quad.astype(np.int32))).tolist())
    left = sorted(points[:2], key=lambda point: point[1])
    right = sorted(points[2:], key=lambda point: point[1])
    return np.array([left[0], right[0], right[1], left[1]], np.float64)


def _cut(image: Picture, quad: Quad) -> Picture:
    """Return the part of an image between four corners, upright."""
    import cv2

    width = _longest(quad[0] - quad[1], quad[2] - quad[3])
    height = _longest(quad[0] - quad[3], quad[1] - quad[2])
    goal = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    transform = cv2.getPerspectiveTransform(quad.astype(np.float32), goal)
    crop = cv2.warpPerspective(
        image, transform, (width, height), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC
    )
    return np.asarray(crop, np.uint8)


def _longest(*sides: NDArray[np.float64]) -> int:
    """Return the length of the longest of some sides (x, y), in whole pixels, at least 1."""
    return max(int(max(np.hypot(*side) for side in sides)), 1)


def _line_input(crop: Picture, most: int = 3200) -> tuple[NDArray[np.float32], float]:
    """Return a crop as the recogniser sees it.

    Args:
        crop: (H, W, 3) BGR.
        most: Pixels of its width, at most.

    Returns:
        (3, 48, W') in [-1, 1], and the share of W' that the crop covers; the rest is grey.
    """
    import cv2

    width = math.ceil(HEIGHT * crop.shape[1] / crop.shape[0])
    width = min(max(width, 1), most)
    step = WIDTH_STEP if width < 8 * WIDTH_STEP else 2 * WIDTH_STEP
    padded = math.ceil((width + MARGIN) / step) * step
    row = np.zeros((3, HEIGHT, padded), np.float32)
    scaled = cv2.resize(np.ascontiguousarray(crop), (width, HEIGHT)).astype(np.float32)
    row[:, :, :width] = (scaled / 127.5 - 1).transpose(2, 0, 1)
    return row, width / padded


def paddle(detection: OCRModel, recognition: OCRModel, max_side: int, intra: int) -> Any:
    """Return PaddleOCR on `intra` cores, which does not look at the network when both models are folders."""
    os.environ.setdefault("PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK", "True")
    if detection.folder and recognition.folder and "modelscope" not in sys.modules:
        # it would only download, and its import loads torch and transformers: 10 s and 600 MB in a worker process
        sys.modules["modelscope"] = types.ModuleType("modelscope")
        try:
            import paddleocr
        finally:
            del sys.modules["modelscope"]
    import paddleocr

    return paddleocr.PaddleOCR(
        text_detection_model_name=detection.name,
        text_detection_model_dir=detection.folder and str(detection.folder),
        text_recognition_model_name=recognition.name,
        text_recognition_model_dir=recognition.folder and str(recognition.folder),
        text_det_limit_side_len=max_side,
        text_det_limit_type="max",
        use_doc_orientation_classify=False,
        use_doc_unwarping=False,
        use_textline_orientation=False,
        return_word_box=True,
        engine="onnxruntime",
        engine_config={"intra_op_num_threads": intra, "inter_op_num_threads": 1},
        device="cpu",
    )
