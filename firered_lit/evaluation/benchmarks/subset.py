"""A fixed part of a benchmark, small enough to be scored again and again."""

from collections.abc import Mapping, Sequence
from functools import cached_property

from firered_lit.draws import chooser
from firered_lit.evaluation.protocols import Asking, Benchmark, Item
from firered_lit.evaluation.scores import Scoring
from firered_lit.judges.request import ChatRequest


class Subset:
    """So many items of each category of each suite, the same in every process and run.

    Args:
        whole: The benchmark.
        each: Items of each category; a smaller category is taken whole.
        seed: Which items.
    """

    def __init__(self, whole: Benchmark, each: int, seed: int = 0) -> None:
        self.whole = whole
        self.each = each
        self.seed = seed

    def suites(self) -> Mapping[str, Scoring]:
        """Return those of the benchmark."""
        return self.whole.suites()

    def fingerprint(self) -> str:
        """Return that of the benchmark: an answer about an item holds in both."""
        return self.whole.fingerprint()

    def items(self) -> Sequence[Item]:
        """Return the chosen items, in the benchmark's order."""
        return self._items

    def sources(self, item: Item) -> list[bytes]:
        """Return the source pictures' files."""
        return self.whole.sources(item)

    def requests(self, item: Item, edited: bytes, asking: Asking) -> list[ChatRequest]:
        """Return the questions of one attempt."""
        return self.whole.requests(item, edited, asking)

    def measure(self, item: Item, edited: bytes) -> Mapping[str, float] | None:
        """Return a number per dimension, where no judge is needed."""
        return self.whole.measure(item, edited)

    @cached_property
    def _items(self) -> list[Item]:
        groups: dict[tuple[str, str], list[Item]] = {}
        for item in self.whole.items():
            groups.setdefault((item.suite, item.category), []).append(item)
        chosen: set[tuple[str, str]] = set()
        for (suite, category), members in groups.items():
            names = [item.id for item in members]
            chooser("subset", self.seed, suite, category).shuffle(names)
            chosen.update((suite, name) for name in names[: self.each])
        return [item for item in self.whole.items() if (item.suite, item.id) in chosen]
