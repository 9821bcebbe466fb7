"""Judges that answer over a wire or from a file: any OpenAI-compatible server with log-probabilities, or a record."""

import base64
import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from callbacks.judge_prompt import Question
from firered_lit.api_keys import KeyVariable, read_key
from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.rewards.judge import expected_from_logprobs, score_logprobs

MOST_BYTES = 1 << 24  # of one answer
T = TypeVar("T")


class JudgeError(Exception):
    """The judge gave no score for this question; the reward is missing."""


@dataclass(frozen=True)
class Answer:
    """One pass: the words, and the expected score on the prompt's scale."""

    text: str
    score: float


class Judge(Protocol):
    """What answers questions, from several threads."""

    name: str  # kind of judge
    version: str  # the model behind it
    temperature: float
    parallel: int  # questions it may be asked at once

    def ask(self, question: Question, number: int) -> Answer:
        """Pass `number`. Raises JudgeError, and UserError when it can never answer."""
        ...


class Server:
    """A chat model behind `POST {url}/chat/completions` that gives log-probabilities.

    What may pass (no connection, 429, 5xx, an answer that is none) is tried again, `retries` times, after 1, 2, 4 ...
    times `backoff` seconds. A first answer without log-probabilities is a UserError, as is a refusal (4xx).

    Args:
        url: as http://localhost:8000/v1.
        model: the name that the server knows it by.
        temperature: of the rationale. max_tokens: of the whole answer.
        timeout: seconds without a byte until an attempt is over.
        parallel: questions asked at once.
        key_variable: environment variable that holds the key, where the server wants one; its name ends in _API_KEY.
        seed: passes differ by it; servers that take it repeat themselves.
    """

    name = "server"

    def __init__(
        self,
        url: str,
        model: str,
        temperature: float = 0.7,
        max_tokens: int = 512,
        timeout: float = 60.0,
        retries: int = 5,
        backoff: float = 0.5,
        parallel: int = 8,
        key_variable: KeyVariable = "OPENAI_API_KEY",
        seed: int = 0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"judge.url={url}: must begin with http:// or https://")
        self.url, self.version, self.temperature, self.max_tokens = url.rstrip("/"), model, temperature, max_tokens
        self.timeout, self.retries, self.backoff, self.parallel = timeout, retries, backoff, parallel
        self.key, self.seed = read_key(key_variable), seed
        self.proved = threading.Event()  # it has given a score's log-probabilities

    def ask(self, question: Question, number: int) -> Answer:
        seed = seed_of(self.seed, question.sample, question.image, number)
        request = self._request(question.text, question.pictures, seed, {"logprobs": True, "top_logprobs": 20})
        return self._patiently(request, lambda answer: self._score(answer, question))

    def say(self, text: str, pictures: tuple[bytes, ...], *key: object) -> str:
        """The model's words about PNG pictures. Raises JudgeError, and UserError as `ask` does."""
        return self._patiently(self._request(text, pictures, seed_of(self.seed, "say", *key), {}), _words)

    def _patiently(self, request: urllib.request.Request, read: Callable[[Any], T]) -> T:
        """What `read` makes of the answer, tried again where that may help."""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2 ** (attempt - 1))
            try:
                return read(self._post(request))
            except _Again as problem:
                reason = str(problem)
        raise JudgeError(f"{self.url}: {reason}, {self.retries + 1} times")

    def _request(
        self, text: str, pictures: tuple[bytes, ...], seed: int, more: dict[str, Any]
    ) -> urllib.request.Request:
        urls = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
        content: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        body = {
            "model": self.version,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
            "temperature": self.temperature,
            "max_tokens": self.max_tokens,
            "seed": seed % 2**31,
            **more,
        }
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        return urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)  # noqa: S310

    def _post(self, request: urllib.request.Request) -> Any:
        """The answer as JSON. _Again for what may pass, JudgeError or UserError for a refusal."""
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:  # noqa: S310 - http(s) only
                return json.loads(answer.read(MOST_BYTES))
        except urllib.error.HTTPError as problem:
            said = f"HTTP {problem.code} {' '.join(problem.read(200).decode(errors='replace').split())}".strip()
            problem.close()
            if problem.code >= 500 or problem.code in (408, 409, 425, 429):
                raise _Again(said) from problem
            if self.proved.is_set():
                raise JudgeError(f"{self.url}: {said}") from problem
            raise UserError(f"judge {self.url}: {said}; is the model {self.version!r} served there?") from problem
        except TimeoutError as problem:
            raise _Again(f"no answer within {self.timeout:g} s") from problem
        except urllib.error.URLError as problem:
            late = isinstance(problem.reason, TimeoutError)
            raise _Again(f"no answer within {self.timeout:g} s" if late else str(problem.reason)) from problem
        except (OSError, http.client.HTTPException) as problem:
            raise _Again(f"{type(problem).__name__} {problem}".strip()) from problem
        except ValueError as problem:
            raise _Again("an answer that is no JSON") from problem

    def _score(self, answer: Any, question: Question) -> Answer:
        prompt = question.prompt
        try:
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            content = (choice.get("logprobs") or {}).get("content") or []
            if isinstance(text, str) and text and not any(entry.get("top_logprobs") for entry in content):
                self._refuse()
            top = score_logprobs(content, prompt.values, marker=prompt.marker)
            score = None if top is None else expected_from_logprobs(top, prompt.values)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
            raise _Again("an answer of another form") from problem
        if top is None:
            raise JudgeError(f"{self.url}: no score after {prompt.marker!r} in its answer")
        self.proved.set()
        if score is None:
            raise JudgeError(f"{self.url}: its log-probabilities do not settle the score")
        return Answer(text, score)

    def _refuse(self) -> None:
        if self.proved.is_set():
            raise JudgeError(f"{self.url}: an answer without log-probabilities")
        raise UserError(
            f"judge {self.url}: the model {self.version!r} gives no log-probabilities (logprobs, top_logprobs): "
            "a soft score needs them; serve it by vLLM, or choose another judge"
        )


def _words(answer: Any) -> str:
    """What a server's model said."""
    try:
        words = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError) as problem:
        raise _Again("an answer of another form") from problem
    if not isinstance(words, str) or not words.strip():
        raise _Again("an answer without words")
    return words


class _Again(Exception):  # noqa: N818 - caught at once
    """May pass; try again."""


class Replay:
    """A judge that gives the answers of a record which `JudgeReward` wrote.

    Args:
        path: the record, JSON lines.
        match: "image" finds an answer by the sample, the edit's pixels and the pass. "sample" gives any picture one of
            the sample's answers of that pass, chosen by the pixels: for rehearsing a run, not for judging.
    """

    name = "replay"
    parallel = 1

    def __init__(self, path: str, match: str = "image") -> None:
        if match not in ("image", "sample"):
            raise UserError(f'judge.match={match}: "image" or "sample"')
        self.match, self.path = match, path
        self.answers: dict[tuple[Any, ...], list[Answer]] = {}
        try:
            rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
            for row in rows:
                self.answers.setdefault(self._key(row), []).append(Answer(str(row["text"]), float(row["score"])))
            first: Mapping[str, Any] = rows[0]
            self.version, self.temperature = str(first["version"]), float(first["temperature"])
            self.prompts = {row["prompt_hash"] for row in rows}
        except OSError as problem:
            raise UserError(f"judge record {path}: {problem.strerror}") from problem
        except (ValueError, KeyError, IndexError, TypeError) as problem:
            raise UserError(f"judge record {path}: not a record of answers ({problem!r})") from problem

    def ask(self, question: Question, number: int) -> Answer:
        if question.prompt.digest not in self.prompts:
            raise UserError(f"judge record {self.path}: made with another prompt than {question.prompt.name}")
        row = {"sample": question.sample, "image": question.image, "pass": number}
        known = self.answers.get(self._key(row | {"prompt_hash": question.prompt.digest}))
        if not known:
            raise JudgeError("no such answer in the record")
        return known[0 if self.match == "image" else int(question.image, 16) % len(known)]

    def _key(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        named = ("sample", "prompt_hash", "pass") + (("image",) if self.match == "image" else ())
        return tuple(row[name] for name in named)
