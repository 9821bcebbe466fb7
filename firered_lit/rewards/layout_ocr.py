"""Layout-aware OCR: is the text right, and does it stand where and as large as it should? FireRed (2602.13344), eq. 5.

R = text_weight R_text + layout_weight gate(R_text) R_layout, all in [0, 1]. A plain OCR score pays for text that is
huge; this one counts a character less the further it stands from its place and the more it is overscaled.
The reader is elsewhere: characters come as `Char`s in reading order, boxes in the pixels of one image.
"""

import math
import re
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from rapidfuzz.distance import Levenshtein


@dataclass(frozen=True)
class Char:
    """A character as read, with its box: left, top, width, height, in pixels. A word is also taken: equal cells."""

    text: str
    x: float
    y: float
    w: float
    h: float
    line: int | None = None  # the reader's line, where it has one; else lines are told apart by their boxes

    def __post_init__(self) -> None:
        if not all(map(math.isfinite, (self.x, self.y, self.w, self.h))) or self.w < 0 or self.h <= 0:
            raise ValueError(f"Char {self.text!r}: no box: {(self.x, self.y, self.w, self.h)}")

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.w / 2, self.y + self.h / 2


Chars = Sequence[Char]
Box = tuple[float, float, float, float]  # left, top, right, bottom

_WIDE = "\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef"  # scripts that break anywhere
_WORDS = re.compile(rf"(?:[{_WIDE}]|[^\s{_WIDE}]+)\s*")
COVERS = 0.9  # share of the place under a line that stands there: all for enlarged text, less for text moved aside


@dataclass(frozen=True)
class LayoutOCRScore:
    """The score of one image. `float(score)` is its total."""

    total: float
    text: float
    layout: float | None  # None: no reference layout, and total = text

    def __float__(self) -> float:
        return self.total


def layout_ocr_reward(
    predicted: Chars,
    target: str,
    reference: Chars | None = None,
    *,
    text_weight: float = 0.5,
    layout_weight: float = 0.5,
    gate: float = 0.5,
    elsewhere: float = 0.5,
    fold_case: bool = True,
    fold_space: bool = True,
) -> LayoutOCRScore:
    """Score what was read on an image against the text it should show and, where known, that text's layout.

    predicted: all that was read, in reading order, its boxes already `scale`d to the reference's image.
    target: the text to show. reference: its layout, from `cells` or from all that was read on the target image (whose
    other words then do not count where they stand); None, or one that does not hold the target: text alone.
    gate: R_text at and under which layout earns nothing; from there a linear ramp to 1.
    elsewhere: what right text is worth where it does not belong; it earns nothing under `gate`.
    Raises ValueError for weights that are negative or add to more than 1, and for `gate` outside [0, 1).
    """
    if min(text_weight, layout_weight) < 0 or text_weight + layout_weight > 1 + 1e-9 or not 0 <= gate < 1:
        raise ValueError(f"layout_ocr_reward: weights {text_weight}, {layout_weight} or gate {gate} out of range")
    wanted = fold(target, case=fold_case, space=fold_space)
    read = characters(predicted, case=fold_case, space=fold_space)
    layout = characters(reference or (), case=fold_case, space=fold_space)
    places = locate(layout, wanted)
    if not any(places):
        text = text_score(joined(nearest_run(lines(read), wanted)), wanted)
        return LayoutOCRScore(text, text, None)

    def score(chars: Chars, text: float) -> LayoutOCRScore:
        placed = layout_score(chars, wanted, places)
        return LayoutOCRScore(text_weight * text + layout_weight * ramp(text, gate) * placed, text, placed)

    others = [c for c in layout if c not in places]
    inside, outside = readings(read, [c for c in places if c], others, wanted)
    scores = [score(chars, text_score(joined(chars), wanted)) for chars in inside]
    scores.append(score(outside, elsewhere * ramp(text_score(joined(outside), wanted), gate)))
    return max(scores, key=float)


def text_score(read: str, wanted: str) -> float:
    """R_text = max(0, 1 - lev / max(|wanted|, 1))."""
    return max(0.0, 1 - Levenshtein.distance(read, wanted) / max(len(wanted), 1))


def layout_score(chars: Chars, wanted: str, places: Sequence[Char | None]) -> float:
    """R_layout = sum_i exp(-d_i) exp(-delta_i) / max(|read|, |wanted|, 1), over characters matched by edit distance.

    places[j]: the reference character of wanted[j], if known. d: distance of the centres over the reference's height;
    delta = max(0, log(h / h_ref)), so only overscaling costs.
    """
    total = 0.0
    for i, j in matches(joined(chars), wanted, equal_only=True):
        char, place = chars[i], places[j]
        if place is not None:
            total += math.exp(-math.dist(char.centre, place.centre) / place.h) / max(1.0, char.h / place.h)
    return total / max(len(chars), len(wanted), 1)


def ramp(text: float, gate: float) -> float:
    """0 up to `gate`, then linear to 1 at 1."""
    return max(0.0, (text - gate) / (1 - gate))


def matches(read: str, wanted: str, *, equal_only: bool) -> list[tuple[int, int]]:
    """Pairs (i, j) of a least-edit alignment: equal characters, and replaced ones unless `equal_only`."""
    kinds = ("equal",) if equal_only else ("equal", "replace")
    blocks = [op for op in Levenshtein.opcodes(read, wanted) if op.tag in kinds]
    return [pair for op in blocks for pair in zip(range(op.src_start, op.src_end), range(op.dest_start, op.dest_end))]


def locate(reference: Chars, wanted: str) -> list[Char | None]:
    """Return where each character of `wanted` stands, (|wanted|,), in a reading with other words.

    All None when the nearest run of lines is not even half right. A misread character keeps its place.
    """
    places: list[Char | None] = [None] * len(wanted)
    run = nearest_run(lines(reference), wanted)
    if text_score(joined(run), wanted) < 0.5:
        return places
    for i, j in matches(joined(run), wanted, equal_only=False):
        places[j] = run[i]
    return places


def readings(read: Chars, places: Chars, others: Chars, wanted: str) -> tuple[list[Chars], Chars]:
    """Return the text in the wanted place, read in one or two ways, and the nearest text elsewhere.

    In place: the characters inside the reference boxes, grown, save those nearer to other words of the reference; and,
    where those are only parts of lines that cover the place (as oversized text does), these lines whole.
    Elsewhere: every line that has no such character, or does not cover the place.
    """
    boxes, split = grow(places), lines(read)
    parts = [[c for c in line if within(c, boxes) and nearer(c, places, others)] for line in split]
    inside: list[Chars] = [[c for part in parts for c in part]]
    whole = [c for line, part in zip(split, parts) if part for c in line]
    if covered(places, whole) >= COVERS:
        inside.append(whole)
    outside = [line for line, part in zip(split, parts) if not part or covered(places, line) < COVERS]
    return inside, nearest_run(outside, wanted)


def nearest_run(split: Sequence[Chars], wanted: str) -> list[Char]:
    """The contiguous run of lines, at least one where there are any, with the least edit distance to `wanted`.

    Of equal ones, the first and shortest.
    """
    best: list[Char] = []
    least = math.inf
    for start in range(len(split)):
        run: list[Char] = []
        for line in split[start:]:
            run = [*run, *line]
            if len(run) - len(wanted) >= least:
                break
            if (distance := Levenshtein.distance(joined(run), wanted)) < least:
                best, least = run, distance
    return best


def lines(chars: Chars) -> list[list[Char]]:
    """Characters in reading order, split where the reader says so, else where the next one is not beside the last."""
    split = [[c] for c in chars[:1]]
    for last, char in pairwise(chars):
        if _follows(last, char):
            split[-1].append(char)
        else:
            split.append([char])
    return split


def _follows(last: Char, char: Char) -> bool:
    """Return whether `char` continues the line of `last`.

    It does when it shares half of the lower one's height and is near to its right.
    """
    if last.line is not None and char.line is not None:
        return last.line == char.line
    shared = min(last.y + last.h, char.y + char.h) - max(last.y, char.y)
    gap = char.x - (last.x + last.w)
    return shared >= min(last.h, char.h) / 2 and -last.w <= gap <= 2 * max(last.h, char.h)


def grow(chars: Chars) -> list[Box]:
    """Each character's box, grown by its own height on every side."""
    return [(c.x - c.h, c.y - c.h, c.x + c.w + c.h, c.y + 2 * c.h) for c in chars]


def within(char: Char, boxes: Sequence[Box]) -> bool:
    """Return whether the character's centre lies in one of the boxes."""
    x, y = char.centre
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def nearer(char: Char, one: Chars, other: Chars) -> bool:
    """Return whether the character's centre is at least as near to a centre of `one` as to all of `other`."""
    to_one, to_other = ([math.dist(char.centre, c.centre) for c in chars] for chars in (one, other))
    return min(to_one, default=math.inf) <= min(to_other, default=math.inf)


def bounds(chars: Chars) -> Box:
    """The box around all characters."""
    return (
        min(c.x for c in chars),
        min(c.y for c in chars),
        max(c.x + c.w for c in chars),
        max(c.y + c.h for c in chars),
    )


def covered(chars: Chars, by: Chars) -> float:
    """Share of the box around `chars` that the box around `by` covers. 0 to 1; 0 by nothing."""
    if not by:
        return 0.0
    a, b = bounds(chars), bounds(by)
    width, height = (min(a[k + 2], b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    return max(0.0, width) * max(0.0, height) / max((a[2] - a[0]) * (a[3] - a[1]), 1e-9)


def scale(chars: Chars, size: tuple[int, int], to: tuple[int, int]) -> list[Char]:
    """Boxes read on an image of `size` (height, width), in the pixels of an image of size `to`."""
    y, x = to[0] / size[0], to[1] / size[1]
    return [replace(c, x=c.x * x, y=c.y * y, w=c.w * x, h=c.h * y) for c in chars]


def cells(box: tuple[float, float, float, float], text: str) -> list[Char]:
    """A line's box (left, top, width, height) divided into equal cells, one for each code point of `text` after NFKC.

    The reference layout where only the source's replaced line is known.
    """
    x, y, w, h = box
    text = unicodedata.normalize("NFKC", text)
    return [Char(c, x + i * w / len(text), y, w / len(text), h, line=0) for i, c in enumerate(text)]


# One form for each mark that fonts draw and readers read in several; bullets are ornaments, and
# no part of the words.
_ONE_FORM = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\u00b4`", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u201f\u2033", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212", "-"),
        **dict.fromkeys("\u2044\u2215", "/"),
        **dict.fromkeys("\u2022\u2023\u25e6\u2219\u22c5\u00b7\u30fb\u25cf\u25cb\u25aa\u25a0\u25a1", ""),
    }
)


def fold(text: str, *, case: bool, space: bool) -> str:
    """Return `text` in the form that is compared.

    Args:
        text: any text.
        case: fold upper and lower case into one.
        space: take out white space.

    Returns:
        The text after NFKC, with one form for each of quotes, dashes and fraction slashes, and
        without bullets.
    """
    text = unicodedata.normalize("NFKC", text).translate(_ONE_FORM)
    if case:
        text = unicodedata.normalize("NFKC", text.casefold())
    if space:
        text = "".join(text.split())
    return text


def laid_along(row: Chars, text: str) -> list[Char]:
    """Divide the line of `row` into equal cells, one for each code point of `text` after NFKC.

    The cells follow the line's own direction, so a turned line and a column keep theirs.

    Args:
        row: the characters of one line, in reading order, at least one.
        text: what takes their place.

    Returns:
        As many cells as `text` has code points, as high as the line's characters.
    """
    first, last = row[0], row[-1]
    gap = math.dist(first.centre, last.centre)
    step = (1.0, 0.0)
    if gap > 0:
        step = ((last.centre[0] - first.centre[0]) / gap, (last.centre[1] - first.centre[1]) / gap)
    length = _length(row)
    height = statistics.median(char.h for char in row)

    text = unicodedata.normalize("NFKC", text)
    width = length / max(len(text), 1)
    placed = []
    for i, char in enumerate(text):
        along = (i + 0.5) * width - first.w / 2
        x = first.centre[0] + along * step[0]
        y = first.centre[1] + along * step[1]
        placed.append(Char(char, x - width / 2, y - height / 2, width, height, row[0].line))
    return placed


def in_place_of(rows: Sequence[Chars], text: str) -> list[Char]:
    """Lay `text` out in place of lines of other words.

    Args:
        rows: the lines whose place it takes, each with at least one character.
        text: the new words.

    Returns:
        Cells on as many lines as before; a text of fewer words stands in the middle of them.
    """
    pieces = divided(text, [_length(row) for row in rows])
    above = (len(rows) - len(pieces)) / 2
    placed: list[Char] = []
    for number, piece in enumerate(pieces):
        row = rows[math.floor(number + above)]
        cells_of_line = laid_along(row, piece)
        if above % 1:
            # Between two lines.
            below = rows[math.floor(number + above) + 1]
            x = (_middle(below)[0] - _middle(row)[0]) / 2
            y = (_middle(below)[1] - _middle(row)[1]) / 2
            cells_of_line = [replace(c, x=c.x + x, y=c.y + y) for c in cells_of_line]
        placed += [replace(c, line=number) for c in cells_of_line]
    return placed


def _length(row: Chars) -> float:
    return math.dist(row[0].centre, row[-1].centre) + (row[0].w + row[-1].w) / 2


def _middle(row: Chars) -> tuple[float, float]:
    left, top, right, bottom = bounds(row)
    return (left + right) / 2, (top + bottom) / 2


def divided(text: str, widths: Sequence[float]) -> list[str]:
    """Break `text` into lines whose lengths go as `widths`.

    Lines break at white space, and anywhere beside a Chinese, Japanese or Korean character.

    Args:
        text: one line, or lines of its own choice.
        widths: (n,) of the lines to fill, in any unit.

    Returns:
        At most n lines, fewer when the text has fewer words; the text's own lines where it has
        several and they are no more than n.
    """
    own = [line.strip() for line in text.splitlines() if line.strip()]
    if 1 < len(own) <= len(widths):
        return own
    words = _WORDS.findall(text)
    count = min(len(widths), len(words))
    if count < 2:
        return ["".join(words).strip()]

    # least[k][j]: how full the fullest of k lines is that hold the first j words.
    least = [[0.0 if j == 0 else math.inf for j in range(len(words) + 1)]]
    start = [[0] * (len(words) + 1)]
    for k in range(1, count + 1):
        least.append([math.inf] * (len(words) + 1))
        start.append([0] * (len(words) + 1))
        for j in range(k, len(words) + 1):
            for i in range(k - 1, j):
                fullness = len("".join(words[i:j]).strip()) / widths[k - 1]
                fullest = max(least[k - 1][i], fullness)
                if fullest < least[k][j]:
                    least[k][j] = fullest
                    start[k][j] = i

    # The lines, last one first.
    rows = []
    end = len(words)
    for k in range(count, 0, -1):
        rows.append("".join(words[start[k][end] : end]).strip())
        end = start[k][end]
    return rows[::-1]


def characters(chars: Chars, *, case: bool, space: bool) -> list[Char]:
    """One `Char` per code point of the folded text: a word, or what NFKC makes several of, becomes equal cells."""
    single: list[Char] = []
    for char in chars:
        for cell in cells((char.x, char.y, char.w, char.h), char.text):
            folded = fold(cell.text, case=case, space=space)
            single += [replace(part, line=char.line) for part in cells((cell.x, cell.y, cell.w, cell.h), folded)]
    return single


def joined(chars: Chars) -> str:
    """The text of single characters."""
    return "".join(c.text for c in chars)
