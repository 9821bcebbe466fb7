"""Reading the text on edited pictures: by an OCR engine or by the judge, each picture once, into a table of its own."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tqdm import tqdm

from firered_lit.errors import UserError
from firered_lit.judges.asker import Asker
from firered_lit.judges.log import Log
from firered_lit.judges.reply import Kind
from firered_lit.judges.request import ChatRequest, MessagePicture, user
from firered_lit.places import user_path

from .benchmarks.pictures import file_or_none, opened, png
from .drawing import own_items
from .judging import Health
from .protocols import Asking, Benchmark, EvaluationFolder
from .text_scores import without_reader_phrases
from .text_targets import TextTarget, read_targets, text_target

logger = logging.getLogger(__name__)

CATEGORIES = ("text", "text_change")  # of the benchmarks whose items ask for text
BATCH = 8  # pictures that are read together
PROMPT = """Write down all text that can be read on this picture, exactly as it is written there.
Begin a new line where the picture does. Correct nothing, translate nothing, and say nothing else.
If there is no text, answer: No text recognized."""

Targets = Mapping[tuple[str, str], TextTarget | None]  # (suite, item) -> target; None where the rules find none
Reading = list[str] | str  # lines, or why there are none


class ReadsText(Protocol):
    """A reader of pictures, as `callbacks.ocr.reader.TextReader`."""

    @property
    def identity(self) -> str:
        """The name that tells this reader and its settings from others."""
        ...

    def read(self, pictures: Sequence[bytes]) -> list[Reading]:
        """Return the lines on each picture's file, or why it cannot be read."""
        ...


@dataclass(frozen=True)
class TextReading:
    """The reader, the targets and the weights of the text metrics.

    Args:
        reader: Reads the pictures; the judge does where this is None.
        targets: A table of your own that stands above the targets that are derived: see `read_targets`.
        weights: Of distance, completion and word accuracy in the weighted score.
    """

    reader: ReadsText | None = None
    targets: str | None = None
    weights: Sequence[float] = (1 / 3, 1 / 3, 1 / 3)


class JudgeReader:
    """The judge as a reader of text.

    Args:
        client: The judge.
        model: The name that the server knows it by.
        settings: Everything else of the requests.
    """

    def __init__(self, client: Asker, model: str, settings: Mapping[str, Any]) -> None:
        self.client = client
        self.model = model
        self.settings = {name: value for name, value in settings.items() if value is not None}
        self.health = Health(client)

    @property
    def identity(self) -> str:
        """The judge's name."""
        return f"judge {self.model}"

    def read(self, pictures: Sequence[bytes]) -> list[Reading]:
        """Return the lines that the judge writes down; why not where it does not answer.

        Raises:
            UserError: It answers nothing any more, or its budget is spent.
        """
        requests = []
        for number, data in enumerate(pictures):
            message = user(PROMPT, MessagePicture(png(opened(data, f"picture {number}"))))
            requests.append(ChatRequest(self.model, [message], self.settings, facts={"text": number}))
        readings: dict[int, Reading] = {}
        for request, reply in self.client.ask_all(requests):
            if not reply.replayed:
                self.health.note(reply)
            answered = reply.kind is Kind.ANSWERED and not reply.declines
            lines = without_reader_phrases(reply.words).splitlines()
            readings[request.facts["text"]] = lines if answered else reply.reason or "declined"
        self.health.check_budget()
        return [readings[number] for number in range(len(pictures))]


def targets_of(benchmarks: Sequence[Benchmark], table: str | None = None) -> dict[tuple[str, str], TextTarget | None]:
    """Return the target of every item that asks for text; None where the rules find none.

    Args:
        benchmarks: The benchmarks.
        table: A user's table, which stands above the rules; an id counts for all suites that have it.

    Raises:
        UserError: The table cannot be read, or names an item that is not there.
    """
    own = {} if table is None else read_targets(user_path(table))
    targets: dict[tuple[str, str], TextTarget | None] = {}
    known = set()
    for benchmark in benchmarks:
        for item in benchmark.items():
            if item.id in own:
                known.add(item.id)
                targets[item.suite, item.id] = own[item.id]
            elif item.category in CATEGORIES:
                targets[item.suite, item.id] = text_target(item.instruction)
    unknown = [name for name in own if name not in known]
    if unknown:
        raise UserError(f"{table}: item {unknown[0]!r}: no such item is evaluated")
    return targets


def read_texts(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    reader: ReadsText,
    targets: Targets,
    *,
    shard: int = 0,
    num_shards: int = 1,
) -> int:
    """Read all pictures that have a target and were not read by this reader yet; return how many were read.

    Args:
        folder: The evaluation; its table `texts.jsonl` gets the readings.
        benchmarks: The benchmarks.
        models: Whose pictures are read.
        reader: What reads.
        targets: See `targets_of`.
        shard: This process reads what it has drawn: every num_shards-th item, from this one on.
        num_shards: How many processes share the work.
    """
    table = readings_of(folder)
    begun: set[str] = set()  # pictures; several models may have drawn the same one
    waiting: dict[str, bytes] = {}
    read = 0
    items = [item for _, item in own_items(benchmarks, shard, num_shards)]
    pictures = [
        folder.picture(model, item)
        for model in models
        for item in items
        if targets.get((item.suite, item.id)) is not None
    ]
    for path in tqdm(pictures, unit="picture", desc="read", mininterval=1.0):
        data = file_or_none(path)
        if data is None:
            continue
        digest = hashlib.sha256(data).hexdigest()
        if digest in begun:
            continue
        begun.add(digest)
        if table.find(digest, reader.identity) is None:
            waiting[digest] = data
        if len(waiting) >= BATCH:
            read += _read(table, reader, waiting)
            waiting = {}
    return read + _read(table, reader, waiting)


def readings_of(folder: EvaluationFolder) -> Log:
    """Return the table of readings by picture and reader."""
    return Log(folder.texts, ("picture", "reader"))


def _read(table: Log, reader: ReadsText, pictures: Mapping[str, bytes]) -> int:
    """Read some pictures and write down their lines; what could not be read is tried again in a next run."""
    whole = {}
    for digest, data in pictures.items():
        try:
            opened(data, "picture")
        except UserError:
            continue
        whole[digest] = data
    if not whole:
        return 0
    read = 0
    for digest, reading in zip(whole, reader.read(list(whole.values()))):
        if isinstance(reading, str):
            logger.warning("text of a picture: %s: %s", reader.identity, reading)
            continue
        table.add({"picture": digest, "reader": reader.identity, "lines": reading})
        read += 1
    return read


def reader_of(settings: TextReading, client: Asker | None, asking: Asking) -> ReadsText:
    """Return what reads: the reader of the settings, else the judge.

    Raises:
        UserError: There is neither.
    """
    if settings.reader is not None:
        return settings.reader
    if client is None or not asking.model:
        remedy = "name an OCR engine, as callbacks.ocr.reader.TextReader, or a judge by judge.url and judge.model"
        raise UserError(f"text.reader: nothing reads the pictures; {remedy}")
    return JudgeReader(client, asking.model, asking.settings)
