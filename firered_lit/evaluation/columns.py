"""Headline scores of all models in columns: some bytes an item, paired by the items' places."""

from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from math import isnan, nan

from .protocols import Item
from .scores import ItemScore, Mode, Scoring


class ScoreColumns:
    """Numbers of every suite, model and mode, in the order in which the items come.

    Args:
        scorings: Suite -> its rules.

    Attributes:
        judges: Judge -> items that it answered about.
        unjudged: Pictures that no answer is about.
        dates: The first and the last date of an answer.
    """

    def __init__(self, scorings: Mapping[str, Scoring]) -> None:
        self.scorings = scorings
        self._values: dict[tuple[str, str, Mode, str], array[float]] = {}
        self._ids: dict[tuple[str, str], list[str]] = {}
        self._repeats: dict[str, dict[str, list[float]]] = {}
        self._first: str | None = None
        self.judges: Counter[str] = Counter()
        self.unjudged = 0
        self.dates: list[str] = []

    def add(self, model: str, item: Item, scored: Mapping[Mode, ItemScore]) -> None:
        """Add an item of a model. The items of all models come in the same order."""
        self._first = self._first or model
        if model == self._first:
            self._ids.setdefault((item.suite, item.category), []).append(item.id)
        headline = self.scorings[item.suite].headline
        for mode, score in scored.items():
            key = (item.suite, model, mode, item.category)
            self._values.setdefault(key, array("d")).append(score.values.get(headline, nan))

    @property
    def suites(self) -> list[str]:
        """The suites that have an item."""
        return list(dict.fromkeys(suite for suite, _ in self._ids))

    def categories(self, suite: str) -> list[str]:
        """Return the categories of a suite in the official order."""
        present = [category for own, category in self._ids if own == suite]
        order: Sequence[str] = self.scorings[suite].order
        return [*(category for category in order if category in present), *(c for c in present if c not in order)]

    def size(self, suite: str, category: str) -> int:
        """Return how many items a category has."""
        return len(self._ids[suite, category])

    def add_judge(self, judge: Mapping[str, str]) -> None:
        """Count one item's judge, and keep the first and the last date."""
        self.judges[judge["model"]] += 1
        date = judge["date"]
        if date:
            self.dates = sorted({*self.dates, date})
            self.dates = [self.dates[0], self.dates[-1]]

    def add_repeats(self, model: str, item: Item, values: Sequence[float]) -> None:
        """Add an item's headline scores from several judgements of the same picture."""
        self._repeats.setdefault(item.suite, {})[f"{model} {item.id}"] = list(values)

    def repeats(self, suite: str) -> Mapping[str, Sequence[float]]:
        """Return picture -> its headline scores, of pictures that were judged several times."""
        return self._repeats.get(suite, {})

    def scores(self, suite: str, model: str, mode: Mode) -> dict[str, dict[str, float]]:
        """Return category -> item -> headline score, without items that left the mean."""
        table = {}
        for category in self.categories(suite):
            values = self._values.get((suite, model, mode, category), array("d"))
            pairs = zip(self._ids[suite, category], values)
            table[category] = {name: value for name, value in pairs if not isnan(value)}
        return table
