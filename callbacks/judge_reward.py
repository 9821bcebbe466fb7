"""The judge's reward: a vision-language model's expected score, after a rationale of its own, over several passes."""

import io
import json
import statistics
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from callbacks.judge_prompt import Prompt, Question, read_prompt
from callbacks.judge_server import Answer, Judge, JudgeError
from callbacks.reward import RewardCallback
from firered_lit.batch import EditBatch
from firered_lit.errors import UserError
from firered_lit.models.codec import to_image
from firered_lit.rewards.judge import mean_of_passes
from firered_lit.rewards.protocol import Scores


class JudgeReward(RewardCallback):
    """The mean over passes of the judge's expected score, laid on [0, 1]. FireRed (2602.13344), eq. 4.

    A pass without a score is left out; a sample of which fewer than `least` passes gave one has no score. Terms:
    `spread`, the standard deviation between passes, on [0, 1], and `passes`, how many gave a score.

    Args:
        judge: `callbacks.judge_server.Server`, `callbacks.judge_local.LocalVLM` or `callbacks.judge_server.Replay`.
        prompt: the name of one of ours (edit, edit_direct) or a text file, see `read_prompt`.
        passes: how often each edit is judged. least: of them that must give a score.
        record: a file to which every answer is added, with judge, version, temperature and the prompt's hash.
        name: what it is called in the log and in `stage.weights`. patience: see `RewardCallback`.
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
        self.judge, self.prompt, self.passes, self.least = judge, read_prompt(prompt), passes, least
        self.record = Path(record) if record else None
        self._pool = ThreadPoolExecutor(judge.parallel, thread_name_prefix=name)
        self._lock_of_passes, self._writing = threading.Lock(), threading.Lock()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.record:
            self.record.parent.mkdir(parents=True, exist_ok=True)

    def submit(self, images: Tensor, batch: EditBatch) -> "Future[Scores]":
        """Start judging images (B, 3, H, W) in [-1, 1]. Cancelled, what is not asked yet is never asked."""
        if not batch.instructions:
            raise UserError(f"reward {self.name}: the batch has no instructions, which the judge is asked about")
        asked = [
            [self._pool.submit(self._ask, question, number) for number in range(self.passes)]
            for question in questions(self.prompt, images, batch)
        ]
        return self.opened(self._together(asked))

    def _together(self, asked: "Sequence[Sequence[Future[float | str]]]") -> "Future[Scores]":
        """The scores, made by the thread that ends the last pass."""
        scores: Future[Scores] = Future()
        passes = [future for one in asked for future in one]
        left = len(passes)

        def ended(_: "Future[float | str]") -> None:
            nonlocal left
            with self._lock_of_passes:
                left -= 1
                last = not left
            if last and scores.set_running_or_notify_cancel():
                try:
                    scores.set_result(self._scores(asked))
                except BaseException as problem:  # for the one who waits
                    scores.set_exception(problem)

        def dropped(whole: "Future[Scores]") -> None:
            if whole.cancelled():
                for future in passes:
                    future.cancel()

        scores.add_done_callback(dropped)
        for future in passes:
            future.add_done_callback(ended)
        return scores

    def _ask(self, question: Question, number: int) -> float | str:
        """One pass: the expected score on the prompt's scale, or why there is none."""
        try:
            answer = self.judge.ask(question, number)
        except JudgeError as problem:
            return str(problem)
        self._write(question, number, answer)
        return answer.score

    def _scores(self, asked: Sequence[Sequence["Future[float | str]"]]) -> Scores:
        """Of the ended passes. UserError when the judge can never answer."""
        values = self.prompt.values
        span = max(values.values()) - min(values.values())
        rewards, spreads, counts = [], [], []
        for passes in asked:
            results = [self._result(future) for future in passes]
            given = [result for result in results if not isinstance(result, str)]
            reward = mean_of_passes(given, values, least=self.least)
            if reward is None:
                self.count(next(result for result in results if isinstance(result, str)))
            rewards.append(torch.nan if reward is None else reward)
            spreads.append(statistics.pstdev(given) / span if given else torch.nan)
            counts.append(float(len(given)))
        value = torch.tensor(rewards)
        terms = {"spread": torch.tensor(spreads), "passes": torch.tensor(counts)}
        return Scores(value.nan_to_num(0.0), ~value.isnan(), terms)

    def _result(self, future: "Future[float | str]") -> float | str:
        try:
            return future.result()
        except UserError:
            raise
        except Exception as problem:  # a judge may fail in any way
            return " ".join(f"{type(problem).__name__}: {problem}".split())

    def _write(self, question: Question, number: int, answer: Answer) -> None:
        if self.record is None:
            return
        row: dict[str, Any] = {"sample": question.sample, "image": question.image, "pass": number}
        row |= {"judge": self.judge.name, "version": self.judge.version, "temperature": self.judge.temperature}
        row |= {"prompt": question.prompt.name, "prompt_version": question.prompt.version}
        row |= {"prompt_hash": question.prompt.digest, "score": answer.score, "text": answer.text}
        with self._writing, self.record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def questions(prompt: Prompt, images: Tensor, batch: EditBatch) -> list[Question]:
    """A question for each edit, with its sources and what its sample requires. A repeated picture is encoded once."""
    sources = [_pngs(source, len(images)) for source in batch.sources]
    rows = zip(*sources, _pngs(images, len(images)))
    required = batch.requirements or [None] * len(images)
    asked = [f"{text}\n{more}" if more else text for text, more in zip(batch.instructions, required)]
    return list(map(partial(Question, prompt), asked, rows, batch.ids))


def _pngs(images: Tensor, count: int) -> list[bytes]:
    """images (B, 3, H, W) in [-1, 1] as PNG files."""
    if images.stride(0) == 0:
        return [_png(images[0])] * count
    return [_png(image) for image in images]


def _png(image: Tensor) -> bytes:
    file = io.BytesIO()
    to_image(image.detach().float().cpu()).save(file, "PNG", compress_level=1)
    return file.getvalue()
