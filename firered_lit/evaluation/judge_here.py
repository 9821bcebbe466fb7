"""The judge of an evaluation without a server: a model of this process, or the answers of another log."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firered_lit.evaluation.protocols import Asking
from firered_lit.judges.local import Answerer, LocalJudge


@dataclass(frozen=True)
class JudgeHere:
    """A judge in this process, asked as a server is.

    Args:
        answerer: `callbacks.judge.local.LocalVLM`, a vision-language model from a folder; or
            `firered_lit.judges.local.ReplayedLog`, the answers of another log to the same requests.
        model: The name of the judge in the requests; "" takes the model's own, for a replay each official script's.
        settings: What replaces or joins the official temperature, max_tokens and so on; null leaves one out.
        attempts: How often an answer that cannot be read is asked for; None: as the official scripts do.
        repeats: How often a part of the items is asked, to see how far the judge moves; 1 asks each once.
        repeated_items: Items of each suite in that part.
    """

    answerer: Answerer
    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    attempts: int | None = None
    repeats: int = 1
    repeated_items: int = 50

    @property
    def url(self) -> str:
        """The kind of the judge, in the place of a server's address."""
        return f"{type(self.answerer).__name__} {self.answerer.version}".strip()

    @property
    def asking(self) -> Asking:
        """The name and the settings that go into the requests."""
        return Asking(self.model or self.answerer.version, self.settings)

    def client(self, log: Path) -> LocalJudge:
        """Return a judge that answers from a log what has been answered there, and adds what is new."""
        return LocalJudge(self.answerer, log=str(log), replay=True)
