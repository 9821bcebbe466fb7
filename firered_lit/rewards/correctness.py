"""Is an edit right? Measured against a target that is known exactly: what should change did, the rest did not.

Pictures are compared by the mean colours of small blocks: fine enough to see a misplaced edge, coarse enough that noise
of 28 dB leaves a right answer right. Faces are found again by their landmarks, words by a reader that is passed in.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.floating]  # (H, W, 3) on [0, 1]
Reader = Callable[[Picture], str]  # what is written on a picture
BLOCK = 4  # pixels
FINE = 2  # pixels, in faces and where a fault is finer than a block
VISIBLE = 0.1  # a block has changed when the mean of a channel moved by more
TOLERANCE = 0.15  # of a block's mean colour, any channel
WINDOW, REACH = 4, 3  # pixels around a landmark that are compared, and how far it is looked for
WANTED = {"edited": 0.9, "kept": 0.97, "restored": 0.5, "landmarks": 0.5, "words": 1.0}  # each term, at least
WHOLE = (
    "adjust",
    "background",
    "compose",
    "extract",
    "style",
    "text",
    "viewpoint",
)  # there `edited` is wanted as `kept`
FACES = ("portrait", "beauty")


@dataclass(frozen=True)
class Correctness:
    """The verdict on an edit, and its terms in [0, 1], all of which must reach `WANTED`."""

    correct: bool
    terms: dict[str, float] = field(default_factory=dict)


def score(
    output: Picture,
    target: Picture,
    sources: Sequence[Picture],
    task: str = "",
    *,
    landmarks: NDArray[np.floating] | None = None,
    target_text: str = "",
    read: Reader | None = None,
) -> Correctness:
    """Decide whether `output` is the edit `target` of `sources`.

    edited, kept: see `edited_and_kept`; in "restore" what is edited is measured by `restored` alone. In "portrait" and
    "beauty", `landmarks` (P, 2), x and y in the target's pixels, must be where they were. With `read` and a
    `target_text`, the words must be read letter by letter.
    """
    source = nearest(target, sources)
    terms = edited_and_kept(output, target, source, FINE if task in FACES else BLOCK)
    if task == "restore" and source is not None:
        terms = {"kept": edited_and_kept(output, target, target)["kept"], "restored": restored(output, target, source)}
    if task in FACES and landmarks is not None and len(landmarks):
        distance = displacement(output, target, landmarks).mean()
        terms["landmarks"] = float(max(0.0, 1 - distance / REACH))
    if target_text and read is not None:
        terms["words"] = float(_letters(read(output)) == _letters(target_text))
    return Correctness(right(terms, task), terms)


def right(terms: Mapping[str, float], task: str = "") -> bool:
    """Return whether every term reaches what a right edit has at least.

    Where an edit is larger than the things it must not lose, nearly all of it has to be right.
    """
    wanted = WANTED | ({"edited": WANTED["kept"]} if task in WHOLE else {})
    return all(value >= wanted[name] for name, value in terms.items())


def nearest(target: Picture, sources: Sequence[Picture]) -> Picture | None:
    """The source that the edit was made of: of those of the target's shape, the one that differs least from it."""
    alike = [source for source in sources if source.shape == target.shape]
    return min(alike, key=lambda source: float(np.abs(source - target).mean())) if alike else None


def edited_and_kept(output: Picture, target: Picture, source: Picture | None, side: int = BLOCK) -> dict[str, float]:
    """`edited`: share of the blocks that should change which became right; `kept`: of the others which are right.

    A block that should change is right when it is nearer to the target than half its change, and within TOLERANCE.
    Without a source all should change.
    """
    error = np.abs(blocks(output, side) - blocks(target, side)).max(-1)
    change = np.ones_like(error) if source is None else np.abs(blocks(source, side) - blocks(target, side)).max(-1)
    changed = change > VISIBLE
    good = error < np.where(changed, np.minimum(TOLERANCE, change / 2), TOLERANCE)
    return {"edited": _share(good, changed), "kept": _share(good, ~changed)}


def restored(output: Picture, target: Picture, source: Picture) -> float:
    """The share of a fault that is gone where it was: 1 - error of the output / fault of the source, root mean squares
    over blocks of 2 pixels in which the fault can be seen."""
    error, fault = (np.abs(blocks(picture, FINE) - blocks(target, FINE)).max(-1) for picture in (output, source))
    seen = fault > VISIBLE / 2
    if not seen.any():
        return 1.0
    return float(np.clip(1 - np.sqrt(np.square(error[seen]).mean() / np.square(fault[seen]).mean()), 0, 1))


def displacement(output: Picture, target: Picture, landmarks: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return how far each landmark (P, 2) moved, in pixels (P,).

    It moved to where the output around it looks most like the target.
    """
    return np.array([_moved(output, target, round(x), round(y)) for x, y in np.asarray(landmarks, float)])


def _moved(output: Picture, target: Picture, x: int, y: int) -> float:
    reach = range(-REACH, REACH + 1)
    height, width = target.shape[:2]
    margin = WINDOW + REACH
    if not (margin <= x < width - margin and margin <= y < height - margin):
        return float(REACH)
    here = np.s_[y - WINDOW : y + WINDOW + 1, x - WINDOW : x + WINDOW + 1]

    def unlike(dx: int, dy: int) -> float:
        there = np.s_[here[0].start + dy : here[0].stop + dy, here[1].start + dx : here[1].stop + dx]
        return float(np.square(output[there] - target[here]).mean())

    return min((unlike(dx, dy), float(np.hypot(dx, dy))) for dx in reach for dy in reach)[1]


def blocks(picture: Picture, side: int = BLOCK) -> Picture:
    """Mean colours (H/side, W/side, 3); what is left over at the edges does not count."""
    height, width = (size // side * side for size in picture.shape[:2])
    cut = np.asarray(picture, np.float64)[:height, :width]
    return cut.reshape(height // side, side, width // side, side, -1).mean((1, 3))


def _share(good: NDArray[np.bool_], where: NDArray[np.bool_]) -> float:
    return float(good[where].mean()) if where.any() else 1.0


def _letters(text: str) -> str:
    return "".join(text.split()).upper()
