"""Judges that answer over a wire or from a file: any OpenAI-compatible server with log-probabilities, or a record."""

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch.utilities import rank_zero_info

from callbacks.judge.prompt import Question
from firered_lit.config.api_keys import KeyVariable
from firered_lit.draws import seed_of
from firered_lit.errors import UserError
from firered_lit.judges.client import Client
from firered_lit.judges.log import rows
from firered_lit.judges.reply import Kind, Reply
from firered_lit.judges.request import ChatRequest, MessagePicture, user
from firered_lit.rewards.judge import expected_from_logprobs, score_logprobs

log = logging.getLogger(__name__)
FAILED = (Kind.ERROR, Kind.LATE, Kind.LIMITED, Kind.BUDGET, Kind.REFUSED)  # a question has no answer, others may
NEVER = (Kind.KEY, Kind.REJECTED, Kind.REDIRECTED)  # of a server that takes no question at all


class JudgeError(Exception):
    """The judge gave no score for this question; the reward is missing.

    Args:
        reason: The reason why there is none, in one line.
        kind: The kind of its reply.
    """

    def __init__(self, reason: str, kind: Kind = Kind.ERROR) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass(frozen=True)
class Answer:
    """One pass: the words, and the expected score on the prompt's scale."""

    text: str
    score: float


class Judge(Protocol):
    """A judge that answers questions, from several threads.

    One that can be asked without a thread for each question has `submit` as well, with the arguments of `ask`, which
    returns a future. One that keeps something running or loaded has `close`.
    """

    name: str  # kind of judge
    version: str  # the model behind it
    temperature: float
    parallel: int  # questions it may be asked at once

    def ask(self, question: Question, number: int) -> Answer:
        """Return the answer of pass `number`. Raises JudgeError, and UserError when it can never answer."""
        ...


class Server:
    """A chat model behind `POST {url}/chat/completions` that gives log-probabilities.

    How it is asked, what is tried again and how long is waited: see `firered_lit.judges.client.Client`. A first answer
    without log-probabilities is a UserError, as is a first refusal of the request (4xx) and any redirect. What the
    model's own generation config says of sampling does not count: all of it is sent.

    Args:
        url: Address, such as http://localhost:8000/v1.
        model: Name of the model on the server.
        temperature: Temperature of the rationale.
        max_tokens: Tokens of the whole answer, at most.
        timeout: Seconds that one try may take, to the end of the answer.
        retries: Tries after the first.
        backoff: Seconds before the second try.
        parallel: Questions asked at once.
        key_variable: Environment variable that holds the key, where the server wants one; its name ends in _API_KEY.
        seed: Seed that is sent, another one for each pass; servers that take it repeat themselves.
        top_p: Top-p of the rationale; null leaves it to the server, as with the three below.
        top_k: Top-k of the rationale; -1 is all tokens. A server that does not know it is asked without.
        min_p: Min-p of the rationale; 0 is off. A server that does not know it is asked without.
        repetition_penalty: 1 is off. A server that does not know it is asked without.
        budget: HTTP requests in all, tries included; null sets no limit.
        log: A file to which a line is added for each request, with the server's whole answer.
        longest_wait: Seconds, at most, that a `Retry-After` is waited for.
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
        top_p: float | None = 1.0,
        top_k: int | None = -1,
        min_p: float | None = 0.0,
        repetition_penalty: float | None = 1.0,
        budget: int | None = None,
        log: str | None = None,
        longest_wait: float = 120.0,
    ) -> None:
        self.client = Client(
            url,
            key_variable=key_variable,
            timeout=timeout,
            retries=retries,
            backoff=backoff,
            longest_wait=longest_wait,
            parallel=parallel,
            budget=budget,
            log=log,
            seed=seed,
        )
        self.url = self.client.address.url
        self.version = model
        self.temperature = temperature
        self.max_tokens = max_tokens
        self.parallel = parallel
        self.seed = seed
        self.top_p = top_p
        self.beyond_openai = {"top_k": top_k, "min_p": min_p, "repetition_penalty": repetition_penalty}
        self.unknown: set[str] = set()  # settings that the server has refused
        self.proved = threading.Event()  # it has given a score's log-probabilities
        self.cut = False  # an answer was, and that is said
        self.announced = False  # how the rationale is sampled

    def submit(self, question: Question, number: int) -> "Future[Answer]":
        """Begin pass `number`. The future raises as `ask` does."""
        return self.client.spawn(self._judged(question, number))

    def ask(self, question: Question, number: int) -> Answer:
        """Wait for pass `number`. Raises JudgeError, and UserError when the server can never answer."""
        return self.submit(question, number).result()

    def say(self, text: str, pictures: tuple[bytes, ...], *key: object) -> str:
        """Return the model's words about PNG pictures. Raises JudgeError, and UserError as `ask` does."""
        return self.client.spawn(self._said(text, pictures, *key)).result()

    def close(self) -> None:
        """End requests that are under way. A later question begins anew."""
        self.client.close()

    async def _judged(self, question: Question, number: int) -> Answer:
        seed = seed_of(self.seed, question.sample, question.image, number)
        facts = {"sample": question.sample, "pass": number, "prompt": question.prompt.name}
        settings = {"logprobs": True, "top_logprobs": 20}
        request = self._request(question.text, question.pictures, seed, settings, facts)
        return self._score(await self._reply(request), question)

    async def _said(self, text: str, pictures: tuple[bytes, ...], *key: object) -> str:
        request = self._request(text, pictures, seed_of(self.seed, "say", *key), {}, {})
        return self._words(await self._reply(request))

    async def _reply(self, request: ChatRequest) -> Reply:
        """Return the reply to a request, asked again without a setting that the server does not know."""
        reply = await self.client.complete(request)
        fewer = self._without_unknown(request, reply)
        return reply if fewer is None else await self._reply(fewer)

    def _without_unknown(self, request: ChatRequest, reply: Reply) -> ChatRequest | None:
        """Return the request without the settings that a refusal names; None when it names none of them."""
        if reply.kind is not Kind.REJECTED:
            return None
        named = {name for name in self.beyond_openai if name in request.settings and name in reply.reason}
        if not named:
            return None
        for name in sorted(named - self.unknown):
            log.warning("judge %s: does not know %s, and is asked without it", self.url, name)
        self.unknown |= named
        return replace(request, settings={k: v for k, v in request.settings.items() if k not in self.unknown})

    def _request(
        self, text: str, pictures: tuple[bytes, ...], seed: int, more: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> ChatRequest:
        """Return a request of pictures and then words, with everything that a server's defaults could change."""
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": seed % 2**31}
        sampling = {"top_p": self.top_p, **self.beyond_openai}
        for name, value in sampling.items():
            if value is not None and name not in self.unknown:
                settings[name] = value
        if not self.announced:
            self.announced = True
            sent = ", ".join(f"{name} {settings[name]:g}" for name in ("temperature", *sampling) if name in settings)
            rank_zero_info(f"judge {self.url}: words are sampled with {sent}, whatever the server's own config says")
        message = user(*[MessagePicture(picture) for picture in pictures], text)
        return ChatRequest(self.version, [message], {**settings, **more}, facts=facts)

    def _usable(self, reply: Reply) -> Reply:
        """Return a reply in which the model says something. Raises JudgeError or UserError for any other."""
        if reply.kind in FAILED:
            raise JudgeError(f"{self.url}: {reply.reason}", reply.kind)
        if reply.kind in NEVER:
            if self.proved.is_set() and reply.kind is not Kind.REDIRECTED:
                raise JudgeError(f"{self.url}: {reply.reason}", reply.kind)
            hint = f"; is the model {self.version!r} served there?" if reply.kind is Kind.REJECTED else ""
            raise UserError(f"judge {self.url}: {reply.reason}{hint}")
        return reply

    def _score(self, reply: Reply, question: Question) -> Answer:
        """Return the expected score after the last marker of the answer, thoughts apart."""
        prompt = question.prompt
        reply = self._usable(reply)
        content = reply.logprobs
        if reply.words.strip() and not any(entry.get("top_logprobs") for entry in content):
            self._refuse()
        whole = reply.kind is not Kind.CUT
        try:
            top = score_logprobs(content, prompt.values, marker=prompt.marker, words=reply.words, ended=whole)
            score = None if top is None else expected_from_logprobs(top, prompt.values)
        except (KeyError, TypeError, ValueError, AttributeError) as problem:
            raise JudgeError(f"{self.url}: log-probabilities of another form", Kind.ERROR) from problem
        if top is None:
            raise self._no_score(reply, prompt.marker)
        self.proved.set()
        if score is None:
            raise JudgeError(f"{self.url}: its log-probabilities do not settle the score", Kind.UNPARSED)
        return Answer(reply.text, score)

    def _no_score(self, reply: Reply, marker: str) -> JudgeError:
        """Return why there is no score in what the model says."""
        if reply.kind is Kind.CUT:
            reason = f"cut at max_tokens={self.max_tokens} before its score; raise judge.max_tokens"
            return JudgeError(f"{self.url}: {reason}", Kind.CUT)
        if reply.declines:
            return JudgeError(f"{self.url}: the model declines to judge", Kind.REFUSED)
        if reply.kind is Kind.UNPARSED:
            return JudgeError(f"{self.url}: {reply.reason}", Kind.UNPARSED)
        return JudgeError(f"{self.url}: no score after {marker!r} in its answer", Kind.UNPARSED)

    def _words(self, reply: Reply) -> str:
        """Return the model's words, thoughts apart."""
        reply = self._usable(reply)
        if not reply.words.strip():
            raise JudgeError(f"{self.url}: {reply.reason or 'an answer without words'}", reply.kind)
        if reply.kind is Kind.CUT and not self.cut:
            self.cut = True
            log.warning("judge %s: an answer was cut at max_tokens=%d; raise it", self.url, self.max_tokens)
        return reply.words

    def _refuse(self) -> None:
        if self.proved.is_set():
            raise JudgeError(f"{self.url}: an answer without log-probabilities")
        raise UserError(
            f"judge {self.url}: the model {self.version!r} gives no log-probabilities (logprobs, top_logprobs): "
            "a soft score needs them; serve it by vLLM, or choose another judge"
        )


class Replay:
    """A judge that gives the answers of a record which `JudgeReward` wrote.

    Args:
        path: The record, JSON lines.
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
            lines = list(rows(Path(path)))
            for row in lines:
                self.answers.setdefault(self._key(row), []).append(Answer(str(row["text"]), float(row["score"])))
            self.version = str(lines[0]["version"])
            self.temperature = float(lines[0]["temperature"])
            self.prompts = {row["prompt_hash"] for row in lines}
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
