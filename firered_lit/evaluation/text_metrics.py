"""Metrics of the text on edited pictures: each text that must be there beside the nearest part of the reading.

A picture shows more text than an edit is about, so a target is not held against all that was read but against the run
of words (of characters in Chinese) that comes nearest to it. Texts that must be gone are counted apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rapidfuzz.distance import Levenshtein

from .text_scores import CHINESE, TextPair, comparable, oneig_text_score, weighted_text_score
from .text_targets import TextTarget

SLACK = 3  # units by which a run may be shorter or longer than its target


@dataclass
class TextColumn:
    """Targets and readings of one suite and model.

    Attributes:
        pairs: (target, nearest part of the reading), one per text that must be there; None where nothing was read.
        gone: Texts that must be gone and are.
        to_be_gone: Texts that must be gone, on pictures that were read.
        items: Items with a target.
        read: Items whose picture was read.
        without_target: Items of which the rules find no target.
        readers: What read them.
    """

    pairs: list[TextPair] = field(default_factory=list)
    gone: int = 0
    to_be_gone: int = 0
    items: int = 0
    read: int = 0
    without_target: int = 0
    readers: set[str] = field(default_factory=set)

    def add(self, target: TextTarget | None, lines: Sequence[str] | None, reader: str = "") -> None:
        """Add an item.

        Args:
            target: What must be read; None where no target is known.
            lines: What was read; None where nothing was.
            reader: What read it.
        """
        if target is None:
            self.without_target += 1
            return
        self.items += 1
        if lines is None:
            self.pairs.extend((text, None) for text in target.must_contain)
            return
        self.read += 1
        self.readers.add(reader)
        self.pairs.extend((text, nearest(text, lines)) for text in target.must_contain)
        self.to_be_gone += len(target.must_not_contain)
        self.gone += sum(not shows(text, lines) for text in target.must_not_contain)

    def statistics(self, weights: Sequence[float]) -> dict[str, Any]:
        """Return ED, CR, WAC, the OneIG `score`, the `weighted` one, both of them strict, and what they rest on."""
        official = oneig_text_score(self.pairs)
        strict = oneig_text_score(self.pairs, strict=True)
        weighted = weighted_text_score(self.pairs, weights=weights)
        strict_weighted = weighted_text_score(self.pairs, weights=weights, strict=True)
        return {
            **{name: official[name] for name in ("ED", "CR", "WAC", "score")},
            "weighted": weighted["score"],
            "strict_score": strict["score"],
            "strict_weighted": strict_weighted["score"],
            "texts": official["expected"],
            "texts_read": official["scored"],
            "unmeasurable": weighted["unmeasurable"],
            "gone": self.gone / self.to_be_gone if self.to_be_gone else None,
            "to_be_gone": self.to_be_gone,
            "items": self.items,
            "items_read": self.read,
            "without_target": self.without_target,
            "readers": sorted(self.readers),
        }


def nearest(target: str, lines: Sequence[str]) -> str:
    """Return the run of words, or of characters in Chinese, that comes nearest to a target; the first of equals."""
    wanted = comparable(target)
    best = ""
    distance = len(wanted) + 1
    for run in _runs(wanted, lines):
        found = Levenshtein.distance(wanted, run, score_cutoff=distance)
        if found < distance:
            best, distance = run, found
    return best


def shows(text: str, lines: Sequence[str]) -> bool:
    """Return whether a text was read somewhere, as words of its own."""
    wanted = comparable(text)
    return bool(wanted) and any(run == wanted for run in _runs(wanted, lines))


def _runs(wanted: str, lines: Sequence[str]) -> Iterator[str]:
    """Yield what was read in runs of about as many units as a target has, those of its own length first."""
    if CHINESE.search(wanted):
        units = list(comparable(" ".join([*lines, "中"]))[:-1])  # the ideograph makes it be cleaned as Chinese
        between = ""
        count = len(wanted)
    else:
        units = comparable(" ".join(lines)).split()
        if any(CHINESE.search(unit) for unit in units):
            units = _latin_words(lines)
        between = " "
        count = len(wanted.split())
    lengths = range(max(1, count - SLACK), count + SLACK + 1)
    for length in sorted(lengths, key=lambda length: abs(length - count)):
        for start in range(len(units) - length + 1):
            yield between.join(units[start : start + length])


def _latin_words(lines: Sequence[str]) -> list[str]:
    """Return the words of lines among which some are Chinese, whose cleaning deletes all spaces."""
    text = CHINESE.sub(" ", " ".join(lines))
    return comparable(text).split()
