"""Scores of the text on a picture beside its target: edit distance (ED), completion (CR) and word accuracy (WAC).

The report names these three and a "weighted normalized score", without weights and without code. They are the three of
OneIG-Bench, whose formula is public; a weighted mean stands beside it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rapidfuzz.distance import Levenshtein

from firered_lit.errors import UserError

Language = Literal["en", "zh"]
TextPair = tuple[str, str | None]

# Source: OneIG-Bench, scripts/text/text_score.py and text_utils.py
LIMITS: dict[Language, int] = {"en": 100, "zh": 50}
LETTERS = "a-zA-Z0-9àâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ"
DROPPED = re.compile(rf"[^\u4e00-\u9fa5\s{LETTERS}]")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
PHRASES_OF_THE_READER = ("addCriterion", "No text recognized.")


@dataclass(frozen=True)
class TextMatch:
    """One target beside what was read, both cleaned.

    Attributes:
        target: The target, as it is compared.
        read: What was read, as it is compared.
        edit_distance: Levenshtein distance in characters.
        matched: Units of the target that were read, in any order; words, or characters in a Chinese target.
        units: Units of the target.
    """

    target: str
    read: str
    edit_distance: int
    matched: int
    units: int

    @property
    def complete(self) -> bool:
        """Return whether the text was read exactly."""
        return self.edit_distance == 0

    @property
    def word_accuracy(self) -> float:
        """The share of the target's units that were read; 0 for a target without any."""
        if self.units == 0:
            return 0.0
        return self.matched / self.units


def without_reader_phrases(read: str) -> str:
    """Delete the phrases that OneIG-Bench's reader writes where there is no text.

    Its prompt asks for "No text recognized" without a full stop; that sentence is not deleted and counts as text.
    """
    for phrase in PHRASES_OF_THE_READER:
        read = read.replace(phrase, "")
    return read


def comparable(text: str) -> str:
    """Keep Chinese, Latin letters, digits and single spaces; no spaces at all where there is Chinese."""
    kept = DROPPED.sub("", text)
    if CHINESE.search(kept):
        return re.sub(r"\s+", "", kept)
    return re.sub(r"\s+", " ", kept).strip()


def match_text(target: str, read: str) -> TextMatch:
    """Compare one target with what was read, as OneIG-Bench does; upper and lower case differ."""
    target = comparable(target)
    read = comparable(without_reader_phrases(read))
    if CHINESE.search(target):
        target_units = Counter(target)
        read_units = Counter(read)
    else:
        target_units = Counter(target.split())
        read_units = Counter(read.split())
    matched = (target_units & read_units).total()
    return TextMatch(target, read, Levenshtein.distance(target, read), matched, target_units.total())


def oneig_formula(edit_distance: float, completion: float, word_accuracy: float, limit: int) -> float:
    """Return OneIG-Bench's text score of the three means: 1 - min(limit, ED) (1 - CR) (1 - WAC) / limit."""
    return 1 - min(limit, edit_distance) * (1 - completion) * (1 - word_accuracy) / limit


def oneig_text_score(
    pairs: Iterable[TextPair], *, language: Language | None = None, strict: bool = False
) -> dict[str, Any]:
    """Return OneIG-Bench's text score of a set of pictures.

    The score is nearly flat close to 1, and WAC does not see extra text: read ED, CR and WAC beside it.

    Args:
        pairs: (target, read); `read` is None where nothing could be read because the picture is missing.
        language: Sets the largest edit distance that counts, 100 for "en" and 50 for "zh". None: "zh" where at least
            half of the targets have Chinese characters.
        strict: Count a missing picture as one without text. Otherwise it is left out, as in the official code.

    Returns:
        ED (mean edit distance), CR (share of exact texts), WAC (matched units / units over all targets), score, and
        the counts expected, scored, missing. A number that does not exist (no pair; no target with a unit, where the
        official code stops with a division by zero) is None.

    Source: OneIG-Bench, scripts/text/text_score.py.
    """
    pairs = _checked(pairs)
    matches = _matches(pairs, strict=strict)
    if language is None:
        language = _language(pairs)
    if language not in LIMITS:
        raise UserError(f"language {language!r}: choose one of {', '.join(LIMITS)}")
    means = _means(matches)
    score = None
    if means["WAC"] is not None:
        score = oneig_formula(means["ED"], means["CR"], means["WAC"], LIMITS[language])
    return {**means, "score": score, **_counts(pairs)}


def weighted_text_score(
    pairs: Iterable[TextPair], *, weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3), strict: bool = False
) -> dict[str, Any]:
    """Return the mean over pictures of a weighted score in [0, 1] that one wrong letter moves visibly.

    Of one picture: w1 (1 - ED / longer text) + w2 [exact] + w3 WAC. The report's weights are not public, so its column
    cannot be matched.

    Args:
        pairs: (target, read); `read` is None where the picture is missing.
        weights: Of distance, completion and word accuracy; at least 0, divided by their sum.
        strict: Count a missing picture as one without text; otherwise it is left out.

    Returns:
        ED, CR, WAC, score and counts as `oneig_text_score`, and `unmeasurable`: targets without a character that the
        cleaning keeps (such as Cyrillic ones); they are left out of `score`.
    """
    total = sum(weights)
    if len(weights) != 3 or min(weights) < 0 or not 0 < total < float("inf"):
        raise UserError(f"weights {list(weights)}: three numbers of at least 0 are needed, one of them above 0")
    pairs = _checked(pairs)
    matches = _matches(pairs, strict=strict)
    measurable = [match for match in matches if match.units]
    scores = [_weighted(match, weights) / total for match in measurable]
    score = sum(scores) / len(scores) if scores else None
    unmeasurable = len(matches) - len(measurable)
    return {**_means(matches), "score": score, **_counts(pairs), "unmeasurable": unmeasurable}


def _weighted(match: TextMatch, weights: Sequence[float]) -> float:
    longer = max(len(match.target), len(match.read), 1)
    nearness = 1 - match.edit_distance / longer
    return weights[0] * nearness + weights[1] * match.complete + weights[2] * match.word_accuracy


def _checked(pairs: Iterable[TextPair]) -> list[TextPair]:
    checked = list(pairs)
    for number, (target, read) in enumerate(checked):
        if not isinstance(target, str):
            raise UserError(f"text pair {number}: the target is {target!r}; a text is needed")
        if read is not None and not isinstance(read, str):
            raise UserError(f"text pair {number}: what was read is {read!r}; a text or None is needed")
    return checked


def _matches(pairs: Sequence[TextPair], *, strict: bool) -> list[TextMatch]:
    matches = []
    for target, read in pairs:
        if read is not None:
            matches.append(match_text(target, read))
        elif strict:
            matches.append(match_text(target, ""))
    return matches


def _language(pairs: Sequence[TextPair]) -> Language:
    chinese = sum(bool(CHINESE.search(comparable(target))) for target, _ in pairs)
    if pairs and 2 * chinese >= len(pairs):
        return "zh"
    return "en"


def _means(matches: Sequence[TextMatch]) -> dict[str, Any]:
    if not matches:
        return {"ED": None, "CR": None, "WAC": None}
    units = sum(match.units for match in matches)
    return {
        "ED": sum(match.edit_distance for match in matches) / len(matches),
        "CR": sum(match.complete for match in matches) / len(matches),
        "WAC": sum(match.matched for match in matches) / units if units else None,
    }


def _counts(pairs: Sequence[TextPair]) -> dict[str, int]:
    missing = sum(read is None for _, read in pairs)
    return {"expected": len(pairs), "scored": len(pairs) - missing, "missing": missing}
