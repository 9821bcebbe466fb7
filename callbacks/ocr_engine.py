"""PaddleOCR on ONNX Runtime: where each character stands on many images, read together.

The pipeline and its models are PaddleOCR's. What is added is order (the lines of all images are recognised in batches
of like widths, images side by side on threads) and the character's box, from the recogniser's own columns.
"""

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

from callbacks.ocr_models import Model
from firered_lit.rewards.layout_ocr import Char

Picture = NDArray[np.uint8]  # (H, W, 3) RGB
Quad = NDArray[
    np.float64
]  # (4, 2) x, y of a line's corners as it is read: left top, right top, right bottom, left bottom

HEIGHT, MARGIN = 48, 32  # px: a line as recognised, and the grey to its right, without which its end is misread
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
    """What reads images."""

    characters: frozenset[str]  # all that it can read

    def read(self, images: Sequence[Picture]) -> list[list[Char]]: ...


class PaddleEngine:
    """The engine. Not picklable; built where it is used.

    detection, recognition: models, see `ocr_models`. threads: images and batches at work at once, each on `intra`
    cores. batch: lines recognised together. max_side: px of an image's longer side for detection; larger is made
    smaller. least: mean confidence from which a line counts as read.
    """

    def __init__(
        self,
        detection: Model,
        recognition: Model,
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
        self._detector, self._recogniser = self._pipeline.text_det_model, self._pipeline.text_rec_model
        self.characters = frozenset("".join(self._recogniser.post_op.character[1:]))
        self.batch, self.least = batch, least
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="ocr")

    def read(self, images: Sequence[Picture]) -> list[list[Char]]:
        """All characters on each image, in reading order, in its pixels; a line's number in `Char.line`."""
        found = list(self._threads.map(self._detect, images))
        crops = [crop for lines in found for _, crop in lines]
        read = iter(self._recognise_either_way(crops))
        return [self._in_order([(quad, *next(read)) for quad, _ in lines]) for lines in found]

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
        for quad in [_corners(np.asarray(quad)) for quad in quads]:
            crop = _cut(bgr, quad)
            if crop.shape[0] >= UPRIGHT * crop.shape[1]:
                quad, crop = np.roll(quad, -1, axis=0), np.rot90(crop)  # the right side becomes the top
            lines.append((quad, crop))
        return lines

    def _recognise_either_way(self, crops: Sequence[Picture]) -> list[tuple[Line, bool]]:
        """Each line, and whether it was read upside down: the doubtful ones are tried both ways."""
        upright = self._recognise(crops)
        doubtful = [i for i, line in enumerate(upright) if line.confidence < DOUBT]
        turned = dict(zip(doubtful, self._recognise([crops[i][::-1, ::-1] for i in doubtful])))
        return [
            (turned[i], True) if i in turned and turned[i].confidence > line.confidence else (line, False)
            for i, line in enumerate(upright)
        ]

    def _recognise(self, crops: Sequence[Picture]) -> list[Line]:
        """Lines recognised in batches of one width. How one is widened depends on itself alone, not on its company."""
        rows = [_line_input(crop) for crop in crops]
        groups = alike([row.shape[2] for row, _ in rows], self.batch)
        lines: dict[int, Line] = {}
        for group, read in zip(groups, self._threads.map(lambda g: self._batch([rows[i] for i in g]), groups)):
            lines.update(zip(group, read))
        return [lines[i] for i in range(len(crops))]

    def _batch(self, rows: Sequence[tuple[NDArray[np.float32], float]]) -> list[Line]:
        scores = self._recogniser.runner(x=[np.stack([row for row, _ in rows])])[0]
        best, sure = scores.argmax(-1), scores.max(-1)
        return [self._decode(*line) for line in zip(best, sure, [share * best.shape[1] for _, share in rows])]

    def _decode(self, best: NDArray[np.int64], sure: NDArray[np.float32], columns: float) -> Line:
        """CTC: runs of one class are one character, class 0 is none. The character stands in the middle of its run."""
        edges = np.flatnonzero(np.diff(best, prepend=-1, append=-1))
        runs = [(start, stop) for start, stop in pairwise(edges) if best[start] != 0]
        text = "".join(self._recogniser.post_op.character[best[start]] for start, _ in runs)
        centres = tuple(min(float(start + stop) / 2 / columns, 1.0) for start, stop in runs)
        return Line(text, centres, float(np.mean([sure[start] for start, _ in runs])) if runs else 0.0)


def paddle_engine(detection: Sequence[str], recognition: Sequence[str], **options: Any) -> PaddleEngine:
    """`PaddleEngine` from what JSON can hold: models as (name, folder), the folder "" when there is none."""
    models = (Model(name, Path(folder) if folder else None) for name, folder in (detection, recognition))
    return PaddleEngine(*models, **options)


def alike(widths: Sequence[int], most: int) -> list[list[int]]:
    """Indices in groups of one width, at most `most` in each."""
    order = sorted(range(len(widths)), key=lambda i: widths[i])
    same = [list(group) for _, group in groupby(order, key=lambda i: widths[i])]
    return [group[start : start + most] for group in same for start in range(0, len(group), most)]


def reading_order(quads: Sequence[Quad], turned: Sequence[bool] | None = None) -> list[int]:
    """Return the lines' indices in the order in which a person reads them.

    Rows are read from top to bottom, and along a row from left to right, in the direction that most
    of the lines run. Two lines are in one row when their middles differ by less than half of the
    lower one's height. Columns beside each other are one block, which stands among the rows by its
    top: columns that run downwards are read from right to left, as Chinese is, and columns that run
    upwards, on a page that lies on its side, from left to right.

    Args:
        quads: (n) corners of each line, as it was cut out.
        turned: (n) whether the line was read upside down; none when None.

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
    low = max(one[:, 1].min(), other[:, 1].min())
    high = min(one[:, 1].max(), other[:, 1].max())
    return bool(high - low >= min(np.ptp(one[:, 1]), np.ptp(other[:, 1])) / 2)


def _characters(lines: Sequence[tuple[Quad, Line, bool]], least: float) -> list[Char]:
    """Boxes of all characters: the cell between its neighbours along the line, as high as the line.

    The box is centred on the character and measured along and across its own line, so that a turned line's characters
    keep their height.
    """
    chars = []
    for number, (quad, line, turned) in enumerate(lines):
        if line.confidence < least:
            continue
        corners = np.roll(quad, -2, axis=0) if turned else quad
        along, down = corners[1] - corners[0], corners[3] - corners[0]
        length, height = float(np.hypot(*along)), max(float(np.hypot(*down)), 1.0)
        for text, (left, right) in zip(line.text, cells_between(line.centres)):
            x, y = (corners[0] + along * (left + right) / 2 + down / 2).tolist()
            width = (right - left) * length
            chars.append(Char(text, x - width / 2, y - height / 2, width, height, number))
    return chars


def cells_between(centres: Sequence[float]) -> list[tuple[float, float]]:
    """Cells (left, right) in [0, 1] around centres: borders midway, the outer ones as far as the inner ones."""
    if not centres:
        return []
    inner = [(a + b) / 2 for a, b in pairwise(centres)]
    first = 2 * centres[0] - inner[0] if inner else 0.0
    last = 2 * centres[-1] - inner[-1] if inner else 1.0
    borders = [max(0.0, first), *inner, min(1.0, max(last, centres[-1]))]
    return list(pairwise(borders))


def _corners(quad: NDArray[Any]) -> Quad:
    """The corners of the least rectangle around a detected box, as PaddleOCR crops it."""
    import cv2

    points = sorted(cv2.boxPoints(cv2.minAreaRect(quad.astype(np.int32))).tolist())
    left, right = sorted(points[:2], key=lambda p: p[1]), sorted(points[2:], key=lambda p: p[1])
    return np.array([left[0], right[0], right[1], left[1]], np.float64)


def _cut(image: Picture, quad: Quad) -> Picture:
    import cv2

    width = max(int(max(np.hypot(*(quad[0] - quad[1])), np.hypot(*(quad[2] - quad[3])))), 1)
    height = max(int(max(np.hypot(*(quad[0] - quad[3])), np.hypot(*(quad[1] - quad[2])))), 1)
    goal = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    warp = cv2.getPerspectiveTransform(quad.astype(np.float32), goal)
    size = (width, height)
    return cv2.warpPerspective(image, warp, size, borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC)


def _line_input(crop: Picture, most: int = 3200) -> tuple[NDArray[np.float32], float]:
    """A crop (H, W, 3) BGR as the recogniser sees it, (3, 48, W') in [-1, 1], and its share of W'; the rest is grey."""
    import cv2

    width = min(max(int(np.ceil(HEIGHT * crop.shape[1] / crop.shape[0])), 1), most)
    step = WIDTH_STEP if width < 8 * WIDTH_STEP else 2 * WIDTH_STEP
    row = np.zeros((3, HEIGHT, -(-(width + MARGIN) // step) * step), np.float32)
    scaled = cv2.resize(np.ascontiguousarray(crop), (width, HEIGHT)).astype(np.float32)
    row[:, :, :width] = (scaled / 127.5 - 1).transpose(2, 0, 1)
    return row, width / row.shape[2]


def paddle(detection: Model, recognition: Model, max_side: int, intra: int) -> Any:
    """PaddleOCR on `intra` cores, with no look at the network when both models are folders."""
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
