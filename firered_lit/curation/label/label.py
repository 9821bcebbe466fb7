"""The step `label`: asks a model about the rows that rules keep; its answers are columns for more rules, and texts.

OUT/scores/label/ has a line for each row that was asked about, and OUT/state/answers.jsonl every answer as it came.
What stands there is not asked again. A row without a usable answer has the reason in `failure`.
"""

import asyncio
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from tqdm import tqdm

from firered_lit.curation import scores
from firered_lit.curation.annotator import Annotator, Of
from firered_lit.curation.corpus import STATE, Corpus
from firered_lit.curation.rows import TARGET, RawRow, RawTable, UnusablePictureError, shrunk
from firered_lit.curation.select import ASKED, DECISIONS
from firered_lit.curation.shards import LABEL
from firered_lit.curation.write import read_decisions
from firered_lit.errors import UserError
from firered_lit.evaluation.judge_server import JudgeServer
from firered_lit.judges.client import Client
from firered_lit.judges.reply import FINAL, Kind
from firered_lit.judges.request import ChatRequest, MessagePicture, user
from firered_lit.sharing.crew import Share

from .prompt import LabelPrompt, read_prompt

LOG = "answers.jsonl"
_QUALITY = 90  # of the JPEG files that are sent
_UNANSWERED = "unanswered"  # of a score file that does not count as done: rows that may be answered another time
_FEW = 16  # rows, from which on the share without an answer is looked at
# Where texts of the prompt `describe` go to in a row, if there is nothing yet.
TEXTS = {
    "instruction": "concise_en",
    "instruction_cn": "concise_cn",
    "instructive": "detailed_en",
    "instructive_cn": "detailed_cn",
    "structured": "structured",
    "category": "category",
}


@dataclass(frozen=True)
class _Labelled:
    """The answers about a row, or why there are none, and whether asking again may help."""

    values: Mapping[str, Any]
    failure: str = ""
    passing: bool = False


class Label(Annotator):
    """Asks a vision-language model about rows. Its columns are the answers that its prompts name.

    Args:
        server: Where the model is, as evaluation has it.
        prompts: Ours, describe and check, or text files of your own; they are asked in this order. A row without words
            is checked by those that a prompt before gave it.
        side: px of the longer side of the pictures that are sent.
        max_tokens: Of an answer.
        attempts: How often an answer that cannot be read is asked for.
        max_failed: Share of rows that may have no answer before the command ends.

    Raises:
        UserError: A prompt is none, or two of them name one answer.
    """

    of: ClassVar[Of] = "row"

    def __init__(
        self,
        server: JudgeServer,
        prompts: Sequence[str] = ("describe", "check"),
        side: int = 768,
        max_tokens: int = 1024,
        attempts: int = 2,
        max_failed: float = 0.1,
    ) -> None:
        self.server = server
        self.prompts = [read_prompt(name) for name in prompts]
        self.side = side
        self.max_tokens = max_tokens
        self.attempts = attempts
        self.max_failed = max_failed
        columns: dict[str, str] = {}
        for prompt in self.prompts:
            for name, answer in prompt.answers.items():
                if name in columns or name in (*scores.KEYS, scores.FAILURE):
                    raise UserError(f"label.prompts: {prompt.name}: the name {name!r} is taken; choose another one")
                columns[name] = answer.kind
        self.columns = columns  # type: ignore[misc]

    def is_there(self, corpus: Corpus) -> bool:
        """Return whether the step was run."""
        return all(scores.path_of(corpus.folder, LABEL, shard).is_file() for shard in range(corpus.shards))

    def run(self, corpus: Corpus, table: RawTable, share: Share) -> list[str]:
        """Ask about the kept rows that have no answer yet, and write the score files.

        Args:
            corpus: Its score files, with the choice of the rows to ask about.
            table: The raw rows.
            share: Which shards are this command's.

        Returns:
            What to print.

        Raises:
            UserError: There are no decisions, or too many rows have no answer.
        """
        asked = _asked(corpus)
        own = share.of(range(corpus.shards))
        made_by = {shard: self._made_by(asked[shard]) for shard in own}
        todo = {
            shard for shard in own if not scores.is_done(scores.path_of(corpus.folder, LABEL, shard), made_by[shard])
        }
        counts: Counter[str] = Counter()
        total = sum(len(asked[shard]) for shard in todo)
        rows = table.rows(
            lambda number: number // corpus.shard_rows in todo and number in asked[number // corpus.shard_rows]
        )
        waiting = next(rows, None)
        with (
            self.server.client(corpus.folder / STATE / LOG) as client,
            tqdm(total=total, unit="row", desc="label", smoothing=0.05, disable=not total) as bar,
        ):
            for shard in sorted(todo):
                some: list[RawRow] = []
                while waiting is not None and waiting.number // corpus.shard_rows == shard:
                    some.append(waiting)
                    waiting = next(rows, None)
                found = list(self._labels(client, table, some, counts, bar))
                self._write(corpus, shard, some, found, made_by[shard])
        lines = [f"labelled   {counts['labelled']:>8} rows, answers in {corpus.folder / STATE / LOG}"]
        failures = {reason: count for reason, count in sorted(counts.items()) if reason != "labelled"}
        return lines + [f"no label   {count:>8} {reason}" for reason, count in failures.items()]

    def left(self, corpus: Corpus, share: Share) -> int:
        """Return how many shards other commands still have to ask about."""
        left = 0
        asked = _asked(corpus)
        others = set(range(corpus.shards)).difference(share.of(range(corpus.shards)))
        for shard in others:
            noted = scores.made_by(scores.path_of(corpus.folder, LABEL, shard))
            noted.pop(_UNANSWERED, None)
            left += noted != self._made_by(asked[shard])
        return left

    def _labels(
        self, client: Client, table: RawTable, rows: Sequence[RawRow], counts: Counter[str], bar: Any
    ) -> Iterator[_Labelled]:
        """Yield what came of rows, in their order; as many are under way as the client sends at once."""
        under_way: list[Future[_Labelled]] = []
        ahead = iter(rows)
        try:
            while True:
                while len(under_way) < 2 * client.parallel and (row := next(ahead, None)) is not None:
                    under_way.append(client.spawn(self._label(client, row, self._pictures(table, row))))
                if not under_way:
                    return
                found = under_way.pop(0).result()
                counts[found.failure.partition(": ")[0] or "labelled"] += 1
                failed = counts.total() - counts["labelled"]
                if counts.total() >= _FEW and failed > self.max_failed * counts.total():
                    raise UserError(
                        f"label: {failed} of {counts.total()} rows have no answer, more than max_failed ="
                        f" {self.max_failed:g}: {found.failure or 'see the log'}; what was answered is in the log"
                    )
                bar.update(1)
                yield found
        finally:
            for future in under_way:
                future.cancel()

    async def _label(
        self, client: Client, row: RawRow, pictures: Sequence[MessagePicture] | UnusablePictureError
    ) -> _Labelled:
        """Ask all prompts about a row."""
        if isinstance(pictures, UnusablePictureError):
            return _Labelled({}, f"{pictures.reason}: {pictures.detail}")
        values: dict[str, Any] = {}
        for prompt in self.prompts:
            instruction = row.instruction or values.get("concise_en", "")
            found = await self._answer(client, prompt, prompt.ask(instruction), row, pictures)
            if found.failure:
                return found
            values |= found.values
        return _Labelled(values)

    async def _answer(
        self, client: Client, prompt: LabelPrompt, words: str, row: RawRow, pictures: Sequence[MessagePicture]
    ) -> _Labelled:
        failure = ""
        for repeat in range(self.attempts):
            settings = {"temperature": 0.0, "max_tokens": self.max_tokens, **self.server.settings}
            facts = {"row": row.id, "prompt": prompt.name, "version": prompt.version, "file": prompt.digest}
            request = ChatRequest(self.server.model, [user(*pictures, words)], settings, repeat, facts)
            reply = await client.complete(request)
            await asyncio.sleep(0)
            if reply.kind is not Kind.ANSWERED:
                return _Labelled({}, f"{reply.kind}: {prompt.name}: {reply.reason}", reply.kind not in FINAL)
            try:
                return _Labelled(prompt.read(reply.words))
            except ValueError as problem:
                failure = f"{Kind.UNPARSED}: {prompt.name}: {problem}"
        return _Labelled({}, failure)

    def _pictures(self, table: RawTable, row: RawRow) -> list[MessagePicture] | UnusablePictureError:
        """Return the pictures of a row as they are sent: the sources, then the target."""
        ordered = [*row.pictures[1:], *row.pictures[:1]] if row.kind != "prompt" else list(row.pictures)
        try:
            return [self._sent(table, role, path) for role, path in ordered if role in (TARGET, "source")]
        except UnusablePictureError as problem:
            return problem

    def _sent(self, table: RawTable, role: str, path: str) -> MessagePicture:
        file = io.BytesIO()
        Image.fromarray(shrunk(table.open(path, role).pixels, self.side)).save(file, "JPEG", quality=_QUALITY)
        return MessagePicture(file.getvalue(), "image/jpeg")

    def _made_by(self, numbers: Sequence[int]) -> dict[str, Any]:
        """Return what decides a score file: who is asked what, and about which rows."""
        asked = hashlib.blake2b(json.dumps(numbers).encode(), digest_size=12).hexdigest()
        return {
            "class": LABEL,
            "model": self.server.model,
            "settings": json.loads(json.dumps(dict(self.server.settings))),
            "prompts": {prompt.name: prompt.digest for prompt in self.prompts},
            "side": self.side,
            "max_tokens": self.max_tokens,
            "attempts": self.attempts,
            "asked": asked,
        }

    def _write(
        self,
        corpus: Corpus,
        shard: int,
        rows: Sequence[RawRow],
        found: Sequence[_Labelled],
        made_by: Mapping[str, Any],
    ) -> None:
        """Write a score file. One with rows that may be answered another time does not count as done."""
        values: dict[str, list[Any]] = {
            "row": [row.number for row in rows],
            "picture": [0] * len(rows),
            scores.FAILURE: [one.failure or None for one in found],
        }
        for name in self.columns:
            values[name] = [one.values.get(name) for one in found]
        passing = sum(one.passing for one in found)
        noted = {**made_by, _UNANSWERED: passing} if passing else made_by
        scores.write(scores.path_of(corpus.folder, LABEL, shard), self.columns, values, noted)


class Texts:
    """The texts that labels give to rows, a shard in memory at a time."""

    def __init__(self, corpus: Corpus, label: Label) -> None:
        self.corpus = corpus
        self.names = [name for name in TEXTS.values() if name in label.columns]
        self.shard = -1
        self.rows: dict[int, dict[str, Any]] = {}

    def fill(self, number: int, line: dict[str, Any]) -> None:
        """Put texts into the columns of a row that have none."""
        shard = number // self.corpus.shard_rows
        if shard != self.shard:
            path = scores.path_of(self.corpus.folder, LABEL, shard)
            read = scores.read(path, ["row", *self.names], "label").to_pylist()
            self.shard = shard
            self.rows = {labels["row"]: labels for labels in read}
        labels = self.rows.get(number, {})
        for column, name in TEXTS.items():
            value = labels.get(name)
            if value is not None and not line.get(column) and not (name == "category" and value == "none"):
                line[column] = value


def _asked(corpus: Corpus) -> list[list[int]]:
    """Return the numbers of the rows to ask about, of every shard."""
    path: Path = corpus.folder / ASKED
    if not path.exists():
        path = corpus.folder / DECISIONS
    numbers: list[list[int]] = [[] for _ in range(corpus.shards)]
    for number, decision in enumerate(read_decisions(path)):
        if decision["kept"]:
            numbers[number // corpus.shard_rows].append(number)
    return numbers
