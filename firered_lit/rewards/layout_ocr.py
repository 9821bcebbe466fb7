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
    """A character as read, with its box: left, top, width, height, in pixels. A word counts as equal cells."""

    text: str
    x: float
    y: float
    w: float
    h: float
    line: int | None = None  # the reader's line, where it has one; else lines are found by their boxes

    def __post_init__(self) -> None:
        is_finite = all(map(math.isfinite, (self.x, self.y, self.w, self.h)))
        if not is_finite or self.w < 0 or self.h <= 0:
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

    Args:
        predicted: all that was read, in reading order, its boxes already `scale`d to the reference's image.
        target: the text to show.
        reference: the target's layout, from `cells` or from all that was read on the target image (whose other words
            then do not count where they stand). None, or one that does not hold the target: text alone is scored.
        text_weight, layout_weight: of the two terms; at least 0, together at most 1.
        gate: R_text in [0, 1) at and under which layout earns nothing; from there a linear ramp to 1.
        elsewhere: worth of right text where it does not belong; it earns nothing under `gate`.
        fold_case, fold_space: compare without case, without white space.

    Raises:
        ValueError: weights or gate lie outside of their range.
    """
    bad_weights = min(text_weight, layout_weight) < 0 or text_weight + layout_weight > 1 + 1e-9
    if bad_weights or not 0 <= gate < 1:
        raise ValueError(f"layout_ocr_reward: weights {text_weight}, {layout_weight} or gate {gate} out of range")

    # Text alone, where the target's layout is not known.
    wanted = fold(target, case=fold_case, space=fold_space)
    read = characters(predicted, case=fold_case, space=fold_space)
    layout = characters(reference or (), case=fold_case, space=fold_space)
    places = locate(layout, wanted)
    if not any(places):
        text = text_score(joined(nearest_run(lines(read), wanted)), wanted)
        return LayoutOCRScore(text, text, None)

    # The best of the readings in place and elsewhere.
    def score(chars: Chars, text: float) -> LayoutOCRScore:
        placed = layout_score(chars, wanted, places)
        return LayoutOCRScore(text_weight * text + layout_weight * ramp(text, gate) * placed, text, placed)

    others = [c for c in layout if c not in places]
    inside, outside = readings(read, [c for c in places if c], others, wanted)
    scores = [score(chars, text_score(joined(chars), wanted)) for chars in inside]
    scores.append(score(outside, elsewhere * ramp(text_score(joined(outside), wanted), gate)))
    return max(scores, key=float)


def text_score(read: str, wanted: str) -> float:
    """Compute R_text = max(0, 1 - lev / max(|wanted|, 1))."""
    return max(0.0, 1 - Levenshtein.distance(read, wanted) / max(len(wanted), 1))


def layout_score(chars: Chars, wanted: str, places: Sequence[Char | None]) -> float:
    """Compute R_layout = sum_i exp(-d_i) exp(-delta_i) / max(|read|, |wanted|, 1), over matched characters.

    d is the distance of the centres over the reference's height; delta = max(0, log(h / h_ref)), so that only
    overscaling costs.

    Args:
        chars: as read; they are matched to the wanted ones by edit distance.
        wanted: the text to show.
        places: (|wanted|,) the reference of each wanted character, where known.
    """
    total = 0.0
    for i, j in matches(joined(chars), wanted, equal_only=True):
        char, place = chars[i], places[j]
        if place is None:
            continue
        distance = math.dist(char.centre, place.centre) / place.h
        overscaled = max(1.0, char.h / place.h)
        total += math.exp(-distance) / overscaled
    return total / max(len(chars), len(wanted), 1)


def ramp(text: float, gate: float) -> float:
    """Return 0 up to `gate`, then a line to 1 at 1."""
    return max(0.0, (text - gate) / (1 - gate))


def matches(read: str, wanted: str, *, equal_only: bool) -> list[tuple[int, int]]:
    """Return the pairs (i, j) of a least-edit alignment: equal characters, and replaced ones unless `equal_only`."""
    kinds = ("equal",) if equal_only else ("equal", "replace")
    pairs: list[tuple[int, int]] = []
    for op in Levenshtein.opcodes(read, wanted):
        if op.tag in kinds:
            pairs += zip(range(op.src_start, op.src_end), range(op.dest_start, op.dest_end))
    return pairs


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

    In place are the characters inside the reference boxes, grown, save those nearer to other words of the reference;
    and, where those belong to lines that cover the place (as oversized text does), these lines whole. Elsewhere is
    every line that has no such character, or does not cover the place.

    Args:
        read: all that was read.
        places: the reference's characters of the wanted text.
        others: the reference's other characters.
        wanted: the text.
    """
    boxes = grow(places)
    in_place: list[Char] = []  # characters
    whole: list[Char] = []  # their lines
    outside: list[list[Char]] = []
    for line in lines(read):
        own = [char for char in line if within(char, boxes) and nearer(char, places, others)]
        in_place += own
        if own:
            whole += line
        if not own or covered(places, line) < COVERS:
            outside.append(line)

    inside: list[Chars] = [in_place]
    if covered(places, whole) >= COVERS:
        inside.append(whole)
    return inside, nearest_run(outside, wanted)


def nearest_run(split: Sequence[Chars], wanted: str) -> list[Char]:
    """Return the contiguous run of lines, at least one where there are any, with the least edit distance to `wanted`.

    Of equally near ones it is the first and shortest.
    """
    best: list[Char] = []
    least = math.inf
    for start in range(len(split)):
        run: list[Char] = []
        for line in split[start:]:
            run = [*run, *line]
            if len(run) - len(wanted) >= least:
                break
            distance = Levenshtein.distance(joined(run), wanted)
            if distance < least:
                best = run
                least = distance
    return best


def lines(chars: Chars) -> list[list[Char]]:
    """Split characters in reading order into lines: as the reader says, else where the next is not beside the last."""
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
    on_one_height = shared >= min(last.h, char.h) / 2
    is_near = -last.w <= gap <= 2 * max(last.h, char.h)
    return on_one_height and is_near


def grow(chars: Chars) -> list[Box]:
    """Return each character's box, grown by its own height on every side."""
    return [(c.x - c.h, c.y - c.h, c.x + c.w + c.h, c.y + 2 * c.h) for c in chars]


def within(char: Char, boxes: Sequence[Box]) -> bool:
    """Return whether the character's centre lies in one of the boxes."""
    x, y = char.centre
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in boxes)


def nearer(char: Char, one: Chars, other: Chars) -> bool:
    """Return whether the character's centre is at least as near to a centre of `one` as to all of `other`."""
    return _nearest_centre(char, one) <= _nearest_centre(char, other)


def _nearest_centre(char: Char, others: Chars) -> float:
    """Return the distance of a character's centre to the nearest one of others; infinite when there is none."""
    return min((math.dist(char.centre, other.centre) for other in others), default=math.inf)


def bounds(chars: Chars) -> Box:
    """Return the box around all characters."""
    left = min(char.x for char in chars)
    top = min(char.y for char in chars)
    right = max(char.x + char.w for char in chars)
    bottom = max(char.y + char.h for char in chars)
    return left, top, right, bottom


def covered(chars: Chars, by: Chars) -> float:
    """Return the share in [0, 1] of the box around `chars` that the box around `by` covers; 0 by nothing."""
    if not by:
        return 0.0
    left, top, right, bottom = bounds(chars)
    by_left, by_top, by_right, by_bottom = bounds(by)
    width = min(right, by_right) - max(left, by_left)
    height = min(bottom, by_bottom) - max(top, by_top)
    area = (right - left) * (bottom - top)
    return max(0.0, width) * max(0.0, height) / max(area, 1e-9)


def scale(chars: Chars, size: tuple[int, int], to: tuple[int, int]) -> list[Char]:
    """Return boxes read on an image of `size` (height, width) in the pixels of an image of size `to`."""
    y = to[0] / size[0]
    x = to[1] / size[1]
    return [replace(c, x=c.x * x, y=c.y * y, w=c.w * x, h=c.h * y) for c in chars]


def cells(box: tuple[float, float, float, float], text: str) -> list[Char]:
    """Divide a line's box into equal cells, one for each code point of `text` after NFKC.

    It is the reference layout where only the source's replaced line is known.

    Args:
        box: left, top, width, height.
        text: of the line.
    """
    x, y, w, h = box
    text = unicodedata.normalize("NFKC", text)
    count = len(text)
    return [Char(char, x + i * w / count, y, w / count, h, line=0) for i, char in enumerate(text)]


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
    """Return the length of a line, from the outer edges of its first and last character."""
    return math.dist(row[0].centre, row[-1].centre) + (row[0].w + row[-1].w) / 2


def _middle(row: Chars) -> tuple[float, float]:
    """Return the middle of the box around a line."""
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
    """Return one `Char` per code point of the folded text; words, and what NFKC makes several of, as equal cells."""
    single: list[Char] = []
    for char in chars:
        for cell in cells((char.x, char.y, char.w, char.h), char.text):
            folded = fold(cell.text, case=case, space=space)
            for part in cells((cell.x, cell.y, cell.w, cell.h), folded):
                single.append(replace(part, line=char.line))
    return single


def joined(chars: Chars) -> str:
    """Return the text of single characters."""
    return "".join(c.text for c in chars)
