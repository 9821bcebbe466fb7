"""The judge's reward: a vision-language model's expected score, after a rationale of its own, over several passes."""

import io
import logging
import statistics
import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.judge.prompt import JudgePrompt, Question, read_prompt
from callbacks.judge.server import Answer, Judge, JudgeError
from callbacks.rewards.base import RewardCallback
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.judges.log import Log
from firered_lit.judges.reply import Kind
from firered_lit.models.codec import to_image
from firered_lit.rewards.judge import mean_of_passes
from firered_lit.rewards.protocol import Scores

log = logging.getLogger(__name__)


class JudgeReward(RewardCallback):
    """The mean over passes of the judge's expected score, laid on [0, 1]. FireRed (2602.13344), eq. 4.

    A pass without a score is left out; a sample of which fewer than `least` passes gave one has no score. Terms:
    `spread`, the standard deviation between passes, on [0, 1], and `passes`, how many gave a score.

    Args:
        judge: `callbacks.judge.server.Server`, `callbacks.judge.local.LocalVLM` or `callbacks.judge.server.Replay`.
        prompt: One of ours (edit, edit_direct), or a text file, see `read_prompt`.
        passes: Times that each edit is judged.
        least: Passes that must give a score.
        record: A file to which every answer is added, with judge, version, temperature and the prompt's hash.
        name: Name in the log and in `stage.weights`.
        patience: Seconds that validation waits for the scores, see `RewardCallback`.
    """

    def __init__(
        self,
        judge: Judge,
        prompt: str = "edit",
        passes: int = 1,
        least: int = 1,
        record: str | None = None,
        name: str = "judge",
        patience: float = 300.0,
    ) -> None:
        super().__init__(name, patience)
        if not 1 <= least <= passes:
            raise UserError(f"{name}: least={least} must lie between 1 and passes={passes}")
        if record is not None and not record.endswith(".jsonl"):  # lines are added, so never to another kind of file
            raise UserError(f"{name}: record={record}: the record's name ends in .jsonl")
        self.judge = judge
        self.prompt = read_prompt(prompt)
        self.passes = passes
        self.least = least
        self.record = None if record is None else Log(record, ("sample", "image", "pass"))
        self.kinds: Counter[str] = Counter()  # of the passes that ended
        self._pool: ThreadPoolExecutor | None = None
        self._lock_of_passes = threading.Lock()
        self._problem: UserError | None = None  # why answers cannot be recorded
        if passes > 1 and not self.prompt.rationale:
            log.warning("reward %s: the prompt %s asks for no words, so its %d passes agree", name, prompt, passes)
        self._warned_of_copies = passes == 1 or not self.prompt.rationale

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Load a judge of this process onto the process's own device, and see that it can give the prompt's scores."""
        load = getattr(self.judge, "load", None)
        if load is not None:
            load(trainer.strategy.root_device)
        score_tokens = getattr(self.judge, "score_tokens", None)
        if score_tokens is not None:
            score_tokens(self.prompt)

    def close(self) -> None:
        """Drop what is asked, and end the threads. A later question begins anew."""
        getattr(self.judge, "close", lambda: None)()
        super().close()
        with self._lock_of_passes:
            pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        if self.kinds.total() > self.kinds["answered"]:
            counts = ", ".join(f"{count} {kind}" for kind, count in self.kinds.most_common())
            log.warning("reward %s: %d passes: %s", self.name, self.kinds.total(), counts)

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Start judging images (B, 3, H, W) in [-1, 1]. Once cancelled, passes that are not asked yet never are."""
        if not any(facts.instruction for facts in batch.facts):
            raise UserError(f"reward {self.name}: the batch has no instructions, which the judge is asked about")
        asked = [
            [self._begin(question, number) for number in range(self.passes)]
            for question in questions(self.prompt, images, batch)
        ]
        return self.opened(self._together(asked))

    def _begin(self, question: Question, number: int) -> "Future[Answer]":
        """Ask one pass, and have its answer recorded when it comes."""
        asked: Future[Answer]
        if hasattr(self.judge, "submit"):
            asked = self.judge.submit(question, number)
        else:
            asked = self._threads().submit(self.judge.ask, question, number)
        asked.add_done_callback(partial(self._note, question, number))
        return asked

    def _threads(self) -> ThreadPoolExecutor:
        """Return the threads for a judge that is asked by one thread for each question under way."""
        with self._lock_of_passes:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.judge.parallel, thread_name_prefix=self.name)
            return self._pool

    def _together(self, asked: "Sequence[Sequence[Future[Answer]]]") -> "Future[Scores]":
        """Return the scores, made by the thread that ends the last pass."""
        scores: Future[Scores] = Future()
        passes = [future for one in asked for future in one]
        left = len(passes)

        def ended(_: "Future[Answer]") -> None:
            nonlocal left
            with self._lock_of_passes:
                left -= 1
                last = not left
            if last and any(future.cancelled() for future in passes):
                scores.cancel()
            elif last and scores.set_running_or_notify_cancel():
                try:
                    scores.set_result(self._scores(asked))
                except BaseException as problem:  # for the one who waits
                    scores.set_exception(problem)

        def dropped(whole: "Future[Scores]") -> None:
            if whole.cancelled():
                for future in reversed(passes):  # what is not begun first, so that it does not begin now
                    future.cancel()

        scores.add_done_callback(dropped)
        for future in passes:
            future.add_done_callback(ended)
        return scores

    def _scores(self, asked: "Sequence[Sequence[Future[Answer]]]") -> Scores:
        """Return the scores of the ended passes.

        Raises:
            UserError: the judge can never answer, or its answers cannot be recorded.
        """
        if self._problem is not None:
            raise self._problem
        values = self.prompt.values
        span = max(values.values()) - min(values.values())
        rewards, spreads, counts = [], [], []
        every: list[list[float]] = []
        for passes in asked:
            results = [self._result(future) for future in passes]
            given = [result for result in results if not isinstance(result, str)]
            reward = mean_of_passes(given, values, least=self.least)
            if reward is None:
                self.count(next(result for result in results if isinstance(result, str)))
            rewards.append(torch.nan if reward is None else reward)
            spreads.append(statistics.pstdev(given) / span if given else torch.nan)
            counts.append(float(len(given)))
            every.append(given)
        self._warn_of_copies(every)
        value = torch.tensor(rewards)
        terms = {"spread": torch.tensor(spreads), "passes": torch.tensor(counts)}
        return Scores(value.nan_to_num(0.0), ~value.isnan(), terms)

    def _result(self, future: "Future[Answer]") -> float | str:
        """Return the expected score of one pass on the prompt's scale, or the reason why there is none."""
        try:
            score = future.result().score
        except UserError:
            raise
        except JudgeError as problem:
            self.kinds[problem.kind] += 1
            return str(problem)
        except Exception as problem:  # a judge may fail in any way
            self.kinds[Kind.ERROR] += 1
            return " ".join(f"{type(problem).__name__}: {problem}".split())
        self.kinds[Kind.ANSWERED] += 1
        return score

    def _warn_of_copies(self, every: Sequence[Sequence[float]]) -> None:
        """Warn once that all passes of all edits agree to the last digit, though words are drawn at random."""
        several = [given for given in every if len(given) > 1]
        if self._warned_of_copies or not several or not self.judge.temperature > 0:
            return
        if any(len(set(given)) > 1 for given in several):
            return
        self._warned_of_copies = True
        log.warning(
            "reward %s: all %d passes agree to the last digit at temperature %g, so they tell no more than one: the "
            "server may draw greedily (top_k=1, top_p or seed in its own settings)",
            self.name,
            self.passes,
            self.judge.temperature,
        )

    def _note(self, question: Question, number: int, answer: "Future[Answer]") -> None:
        """Record an answer as it comes; one that cannot be recorded ends the run when its scores are due."""
        if self.record is None or answer.cancelled() or answer.exception() is not None:
            return
        row: dict[str, Any] = {"sample": question.sample, "image": question.image, "pass": number}
        row |= {"judge": self.judge.name, "version": self.judge.version, "temperature": self.judge.temperature}
        row |= {"prompt": question.prompt.name, "prompt_version": question.prompt.version}
        row |= {"prompt_hash": question.prompt.digest, "score": answer.result().score, "text": answer.result().text}
        try:
            self.record.add(row)
        except UserError as problem:
            self._problem = problem


def questions(prompt: JudgePrompt, images: Tensor, batch: EditBatch) -> list[Question]:
    """Return a question for each edit, with its sources and its requirement. A repeated picture is encoded once."""
    sources = [_pngs(source, len(images)) for source in batch.sources]
    rows = zip(*sources, _pngs(images, len(images)))
    asked = []
    for facts, pictures in zip(batch.facts, rows):
        text = f"{facts.instruction}\n{facts.requirement}" if facts.requirement else facts.instruction
        asked.append(Question(prompt, text, pictures, facts.id))
    return asked


def _pngs(images: Tensor, count: int) -> list[bytes]:
    """Return images (B, 3, H, W) in [-1, 1] as PNG files."""
    if images.stride(0) == 0:
        return [_png(images[0])] * count
    return [_png(image) for image in images]


def _png(image: Tensor) -> bytes:
    file = io.BytesIO()
    to_image(image.detach().float().cpu()).save(file, "PNG", compress_level=1)
    return file.getvalue()
