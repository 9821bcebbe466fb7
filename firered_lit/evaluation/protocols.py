"""Benchmarks, models and the folder of an evaluation: what the steps draw, judge, score and report share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..judges.request import ChatRequest
from .scores import Scoring

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Item:
    """One task of a benchmark: pictures and an instruction.

    Attributes:
        suite: What the item is scored with, such as "rededit_en": a benchmark in one language.
        id: Unique within the suite.
        category: The task by which the suite groups its items.
        language: "en" or "zh".
        instruction: What the model is asked to do.
        sources: Names of the source pictures, for messages; `Benchmark.sources` opens them.
        output: Where the official scripts put the edited picture, below the folder of model and suite.
        facts: What the benchmark wants to find again, such as the texts that must be on the picture.
    """

    suite: str
    id: str
    category: str
    language: str
    instruction: str
    sources: tuple[str, ...]
    output: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asking:
    """Settings of the judge that a benchmark puts into its requests.

    Attributes:
        model: The name that the server knows the judge by; "" takes the one of the official script.
        settings: What replaces or joins the official temperature, max_tokens and so on.
    """

    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


class Benchmark(Protocol):
    """A user's copy of a benchmark."""

    def suites(self) -> Mapping[str, Scoring]:
        """Return suite -> how its answers are scored, in the order of the report."""
        ...

    def fingerprint(self) -> str:
        """Return the SHA-256 of the index and of what the judge is asked."""
        ...

    def items(self) -> Sequence[Item]:
        """Return all items in the order of the index.

        Raises:
            UserError: The folder is incomplete, of another version, or damaged.
        """
        ...

    def sources(self, item: Item) -> list[bytes]:
        """Return the source pictures' files, as they are.

        Raises:
            UserError: One is missing or no picture.
        """
        ...

    def requests(self, item: Item, edited: bytes, asking: Asking) -> list[ChatRequest]:
        """Return the questions of one attempt, as the official script sends them; empty without a judge.

        Args:
            item: The item.
            edited: The edited picture's file.
            asking: Settings of the judge.

        Raises:
            UserError: A picture cannot be read.
        """
        ...

    def measure(self, item: Item, edited: bytes) -> Mapping[str, float] | None:
        """Return a number per dimension of a benchmark that needs no judge; None where the judge is asked."""
        ...


class Model(Protocol):
    """A model that draws: a run, an export, a pipeline, a server or a folder of pictures made elsewhere.

    Attributes:
        parallel: How many items it draws at once, each in a thread of its own.
    """

    @property
    def parallel(self) -> int: ...

    def fingerprint(self) -> str:
        """Return what tells this model, its LoRAs and its settings from any other."""
        ...

    def draw(self, item: Item, sources: "Sequence[Image.Image]", seed: int) -> "Image.Image | bytes":
        """Return the edited picture, or its file as it is. All randomness comes from `seed`.

        Raises:
            UserError: This item cannot be drawn; the others may.
        """
        ...

    def close(self) -> None:
        """Free what was opened."""
        ...


@dataclass(frozen=True)
class EvaluationFolder:
    """Names below the folder `out` of an evaluation.

    Attributes:
        out: The folder.
    """

    out: Path

    def picture(self, model: str, item: Item) -> Path:
        """Return where a model's picture of an item lies."""
        return self.out / "pictures" / model / item.suite / item.output

    def drawings(self, model: str) -> Path:
        """Return the folder of `*.jsonl`, a line per item drawn or failed; see `drawing.py`."""
        return self.out / "pictures" / model / "drawn"

    @property
    def responses(self) -> Path:
        """The log of all questions and answers."""
        return self.out / "responses.jsonl"

    @property
    def texts(self) -> Path:
        """The text that was read on pictures."""
        return self.out / "texts.jsonl"

    @property
    def scores(self) -> Path:
        """Scores of the first model: suite -> mode -> category -> score and counts."""
        return self.out / "scores.json"

    def model_scores(self, model: str) -> Path:
        """Return the scores of one of several models."""
        return self.out / "models" / model / "scores.json"

    def model_items(self, model: str) -> Path:
        """Return a table with a line per item: see `docs/evaluation.md`."""
        return self.out / "models" / model / "items.jsonl"

    @property
    def statistics(self) -> Path:
        """Intervals, comparisons, the judge's noise, the arena: all that is said beside the scores."""
        return self.out / "statistics.json"

    @property
    def report(self) -> Path:
        """The folder of the page."""
        return self.out / "report"
