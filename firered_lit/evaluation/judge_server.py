"""The judge of an evaluation: an OpenAI-compatible server, and how it is asked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from firered_lit.config.api_keys import KeyVariable
from firered_lit.errors import UserError
from firered_lit.evaluation.protocols import Asking
from firered_lit.judges.client import Client


@dataclass(frozen=True)
class JudgeServer:
    """A chat model that looks at pictures, behind `POST {url}/chat/completions`.

    Args:
        url: As http://localhost:8000/v1; None where no judge is asked.
        model: The name that the server knows the judge by; "" takes the one of each official script.
        settings: What replaces or joins the official temperature, max_tokens and so on; null leaves one out.
        key_variable: Environment variable that holds the key, where the server wants one; its name ends in _API_KEY.
        attempts: How often an answer that cannot be read is asked for; None: as the official scripts do.
        repeats: How often a part of the items is asked, to see how far the judge moves; 1 asks each once.
        repeated_items: Items of each suite in that part.
        timeout: Seconds that one try may take.
        retries: Tries after the first.
        backoff: Seconds before the second try.
        longest_wait: Seconds, at most, that a `Retry-After` is waited for.
        parallel: Requests under way at once.
        budget: HTTP requests in all; None sets no limit.
    """

    url: str | None = None
    model: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    key_variable: KeyVariable = "OPENAI_API_KEY"
    attempts: int | None = None
    repeats: int = 1
    repeated_items: int = 50
    timeout: float = 120.0
    retries: int = 5
    backoff: float = 0.5
    longest_wait: float = 120.0
    parallel: int = 16
    budget: int | None = None

    @property
    def asking(self) -> Asking:
        """The name and the settings that go into the requests."""
        return Asking(self.model, self.settings)

    def client(self, log: Path) -> Client:
        """Return a client that answers from a log what has been answered there, and adds what is new.

        Raises:
            UserError: No server is named.
        """
        if self.url is None:
            raise UserError("judge.url: name the judge's server, as judge.url=http://localhost:8000/v1")
        return Client(
            self.url,
            key_variable=self.key_variable,
            timeout=self.timeout,
            retries=self.retries,
            backoff=self.backoff,
            longest_wait=self.longest_wait,
            parallel=self.parallel,
            budget=self.budget,
            log=str(log),
            replay=True,
        )
