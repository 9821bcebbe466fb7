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
# Tasks in which nearly all of the edit has to be right: `edited` is wanted as `kept`.
WHOLE = ("adjust", "background", "compose", "extract", "style", "text", "viewpoint")
FACES = ("portrait", "beauty")


@dataclass(frozen=True)
class CorrectnessTerms:
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
) -> CorrectnessTerms:
    """Decide whether `output` is the edit `target` of `sources`.

    The terms are those of `edited_and_kept`; in "restore" what is edited is measured by `restored` alone.

    Args:
        output, target: pictures of one shape.
        sources: pictures, of any shape.
        task: the kind of edit.
        landmarks: (P, 2), x and y in the target's pixels; in "portrait" and "beauty" they must be where they were.
        target_text: words that must be read on the output letter by letter.
        read: the reader; None: words are not looked at.
    """
    source = nearest(target, sources)

    # What should change did, the rest did not.
    if task == "restore" and source is not None:
        terms = {"kept": edited_and_kept(output, target, target)["kept"], "restored": restored(output, target, source)}
    else:
        terms = edited_and_kept(output, target, source, FINE if task in FACES else BLOCK)

    # Faces and words.
    if task in FACES and landmarks is not None and len(landmarks):
        distance = displacement(output, target, landmarks).mean()
        terms["landmarks"] = float(max(0.0, 1 - distance / REACH))
    if target_text and read is not None:
        terms["words"] = float(_letters(read(output)) == _letters(target_text))
    return CorrectnessTerms(right(terms, task), terms)


def right(terms: Mapping[str, float], task: str = "") -> bool:
    """Return whether every term reaches what a right edit has at least.

    Where an edit is larger than the things it must not lose, nearly all of it has to be right.
    """
    wanted = dict(WANTED)
    if task in WHOLE:
        wanted["edited"] = WANTED["kept"]
    return all(value >= wanted[name] for name, value in terms.items())


def nearest(target: Picture, sources: Sequence[Picture]) -> Picture | None:
    """Return the source that the edit was made of: of the target's shape, and with the least difference to it."""
    of_shape = [source for source in sources if source.shape == target.shape]
    if not of_shape:
        return None
    return min(of_shape, key=lambda source: float(np.abs(source - target).mean()))


def edited_and_kept(output: Picture, target: Picture, source: Picture | None, side: int = BLOCK) -> dict[str, float]:
    """Return the shares of right blocks: `edited` of those that should change, `kept` of the others.

    A block that should change is right when it is nearer to the target than half its change, and within TOLERANCE.
    Without a source all should change.

    Args:
        output, target, source: pictures of one shape.
        side: of a block, in pixels.
    """
    wanted = blocks(target, side)
    error = np.abs(blocks(output, side) - wanted).max(-1)
    change = np.ones_like(error)
    if source is not None:
        change = np.abs(blocks(source, side) - wanted).max(-1)
    changed = change > VISIBLE
    good = error < np.where(changed, np.minimum(TOLERANCE, change / 2), TOLERANCE)
    return {"edited": _share(good, changed), "kept": _share(good, ~changed)}


def restored(output: Picture, target: Picture, source: Picture) -> float:
    """Return the share of a fault that is gone: 1 - error of the output / fault of the source.

    Both are root mean squares over blocks of 2 pixels in which the fault can be seen.
    """
    wanted = blocks(target, FINE)
    error = np.abs(blocks(output, FINE) - wanted).max(-1)
    fault = np.abs(blocks(source, FINE) - wanted).max(-1)
    seen = fault > VISIBLE / 2
    if not seen.any():
        return 1.0
    left = np.square(error[seen]).mean() / np.square(fault[seen]).mean()
    return float(np.clip(1 - np.sqrt(left), 0, 1))


def displacement(output: Picture, target: Picture, landmarks: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return how far each landmark (P, 2) moved, in pixels (P,).

    It moved to where the output around it looks most like the target.
    """
    return np.array([_moved(output, target, round(x), round(y)) for x, y in np.asarray(landmarks, float)])


def _moved(output: Picture, target: Picture, x: int, y: int) -> float:
    """Return how far the landmark at (x, y) moved, in pixels; REACH where it is too near to an edge."""
    height, width = target.shape[:2]
    margin = WINDOW + REACH
    if not (margin <= x < width - margin and margin <= y < height - margin):
        return float(REACH)

    def window(picture: Picture, dx: int, dy: int) -> Picture:
        return picture[y + dy - WINDOW : y + dy + WINDOW + 1, x + dx - WINDOW : x + dx + WINDOW + 1]

    # The place that looks most like the target; of equal ones the nearest.
    wanted = window(target, 0, 0)
    places = []
    for dx in range(-REACH, REACH + 1):
        for dy in range(-REACH, REACH + 1):
            difference = float(np.square(window(output, dx, dy) - wanted).mean())
            places.append((difference, float(np.hypot(dx, dy))))
    _, distance = min(places)
    return distance


def blocks(picture: Picture, side: int = BLOCK) -> Picture:
    """Return mean colours (H/side, W/side, 3); pixels left over at the edges do not count."""
    height = picture.shape[0] // side * side
    width = picture.shape[1] // side * side
    cut = np.asarray(picture, np.float64)[:height, :width]
    return cut.reshape(height // side, side, width // side, side, -1).mean((1, 3))


def _share(good: NDArray[np.bool_], where: NDArray[np.bool_]) -> float:
    return float(good[where].mean()) if where.any() else 1.0


def _letters(text: str) -> str:
    return "".join(text.split()).upper()
