"""The third step: scores of every item and table, as a function of the log, the pictures and the benchmark alone.

Nothing is asked and nothing is drawn. Items are read, scored and written one by one; of each only its numbers stay.
"""

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, get_args

from firered_lit.errors import UserError
from firered_lit.files import replacing, write_json
from firered_lit.judges.log import Log, rows
from firered_lit.judges.record import is_final
from firered_lit.judges.reply import Kind, Reply

from . import statements
from .answers import AnswersFile, Attempts, check_answers, file_for, read_answers
from .arena import Arena, agreement_statistics, arena_statistics
from .benchmarks.pictures import file_or_none, opened
from .columns import ScoreColumns
from .drawing import drawn_lines
from .protocols import Asking, Benchmark, EvaluationFolder, Item
from .responses import Attempt, Responses, is_about_an_item, question_of, texts_of
from .scores import ItemScore, JudgedItem, Mode, ScoreTable, Scoring, score_item
from .text_metrics import TextColumn
from .text_reading import Targets, TextReading, targets_of

logger = logging.getLogger(__name__)
MODES: tuple[Mode, ...] = get_args(Mode)
INTERSECTION = "intersection"  # the fact of items that GEdit-Bench counts a second time by themselves
Tables = dict[str, dict[str, dict[str, Any]]]


def score(
    folder: EvaluationFolder,
    benchmarks: Sequence[Benchmark],
    models: Sequence[str],
    asking: Asking,
    seed: int,
    answers: AnswersFile | None = None,
    text: TextReading | None = None,
    arena: Arena | None = None,
) -> Tables:
    """Write `items.jsonl` and `scores.json` of every model, `scores.json` of the first, and `statistics.json`.

    Args:
        folder: The evaluation.
        benchmarks: What was drawn and judged.
        models: Names of the models; the first one's scores are those of the evaluation.
        asking: Settings of the judge, as it was asked.
        seed: Of the bootstrap.
        answers: Answers made elsewhere, in place of the log's: a file, or a file per suite or per model and suite.
        text: How the text metrics are made; none are made without it.
        arena: Which pairs of edits the judge was asked about.

    Returns:
        The first model's tables: suite -> mode -> category or "overall" -> score and counts.

    Raises:
        UserError: A file of answers cannot be used, or a benchmark is incomplete.
    """
    scorings: dict[str, Scoring] = {}
    for benchmark in benchmarks:
        scorings.update(benchmark.suites())
    check_answers(answers, models, list(scorings))
    responses = Responses(folder.responses)
    columns = ScoreColumns(scorings)
    texts = None if text is None else _Texts(folder, targets_of(benchmarks, text.targets))
    first: Tables = {}
    for model in models:
        scorer = _ModelScorer(folder, model, asking, responses, answers, columns, texts)
        tables = scorer.score(benchmarks)
        write_json(folder.model_scores(model), tables)
        first = first or tables
    write_json(folder.scores, first)
    statistics = {
        "judge": statements.judge(columns, asking),
        "estimates": statements.estimates(columns, models, seed),
        "comparisons": statements.comparisons(columns, models, seed),
        "noise": statements.noise(columns),
        "arena": None,
        "agreement": None,
        "text": {} if text is None or texts is None else texts.statistics(text.weights),
    }
    if arena is not None:
        seen = arena_statistics(folder, benchmarks, models, asking, responses, arena, seed)
        statistics["arena"] = seen
        statistics["agreement"] = agreement_statistics(asking, responses, arena, seed)
    write_json(folder.statistics, statistics)
    return first


@dataclass(frozen=True)
class _Found:
    """All that is known of one item of one model before it is scored.

    Attributes:
        attempts: The judge's words.
        refused: The judge refused.
        picture: The picture's name below the evaluation's folder; None without one.
        failed: Why there is no picture, or none that can be judged.
        measured: Numbers of a benchmark without a judge.
        judge: Who answered, and when.
        repeats: The words of further judgements of the same picture.
    """

    attempts: Attempts = ()
    refused: bool = False
    picture: str | None = None
    failed: str | None = None
    measured: Mapping[str, float] | None = None
    judge: Mapping[str, str] | None = None
    repeats: tuple[Attempts, ...] = ()


@dataclass(frozen=True)
class _ModelScorer:
    """Scores the pictures of one model.

    Attributes:
        folder: The evaluation.
        model: The model's name.
        asking: Settings of the judge.
        responses: The judge's answers.
        answers: Answers made elsewhere, in their place.
        columns: Gets what the statistics need.
        texts: Gets what was read; None where no text is scored.
    """

    folder: EvaluationFolder
    model: str
    asking: Asking
    responses: Responses
    answers: AnswersFile | None
    columns: ScoreColumns
    texts: "_Texts | None"

    @cached_property
    def failures(self) -> dict[tuple[str, str], str]:
        """(suite, item) -> why it has no picture, as the drawing has written it down last."""
        found = {}
        for key, lines in drawn_lines(self.folder, self.model).items():
            failed = lines[-1].get("failed")
            if failed:
                found[key] = str(failed)
        return found

    def score(self, benchmarks: Sequence[Benchmark]) -> Tables:
        """Write a line per item; return the tables."""
        tables: Tables = {}
        with replacing(self.folder.model_items(self.model)) as file:
            for benchmark in benchmarks:
                suites = benchmark.suites()
                elsewhere = self._answers_elsewhere(benchmark)
                own = {}
                twice = {}
                for suite, scoring in suites.items():
                    order = {name: place for place, name in enumerate(elsewhere[suite])} if suite in elsewhere else None
                    own[suite] = _SuiteTables(scoring, order)
                    twice[suite] = _SuiteTables(scoring, order)
                for item, found in self._items(benchmark, elsewhere):
                    scored = _scored(suites[item.suite], item, found)
                    own[item.suite].add(scored)
                    if item.facts.get(INTERSECTION):
                        twice[item.suite].add(scored)
                    self._keep(suites[item.suite], item, found, scored)
                    line = _line(item, found, scored)
                    if self.texts is not None:
                        line["facts"].update(self.texts.add(self.model, item))
                    file.write(json.dumps(line, ensure_ascii=False) + "\n")
                for suite in suites:
                    tables[suite] = own[suite].tables()
                for suite in suites:
                    if twice[suite].items:
                        tables[f"{suite}_{INTERSECTION}"] = twice[suite].tables()
            _check_judged(self.folder, self.columns, self.asking)
        return tables

    def _keep(self, scoring: Scoring, item: Item, found: _Found, scored: Mapping[Mode, ItemScore]) -> None:
        """Keep what the statistics need of an item."""
        self.columns.add(self.model, item, scored)
        if found.picture is not None and found.failed is None and scoring.requests and not found.attempts:
            self.columns.unjudged += 1
        if found.judge is not None:
            self.columns.add_judge(found.judge)
        if not found.repeats:
            return
        repeated = [scored["official"]]
        for attempts in found.repeats:
            repeated.append(score_item(scoring, JudgedItem(item.id, item.category, attempts), "official"))
        values = [score.values[scoring.headline] for score in repeated if score.values]
        if len(values) > 1:
            self.columns.add_repeats(self.model, item, values)

    def _answers_elsewhere(self, benchmark: Benchmark) -> dict[str, dict[str, Attempts]]:
        """Return suite -> item -> answers, of the suites for which a file is given."""
        elsewhere = {}
        for suite, scoring in benchmark.suites().items():
            path = file_for(self.answers, self.model, suite)
            if path is not None:
                items = [item for item in benchmark.items() if item.suite == suite]
                elsewhere[suite] = read_answers(path, scoring, items)
        return elsewhere

    def _items(
        self, benchmark: Benchmark, elsewhere: Mapping[str, Mapping[str, Attempts]]
    ) -> Iterator[tuple[Item, _Found]]:
        """Yield each item with what is known of it."""
        fingerprint = benchmark.fingerprint()
        suites = benchmark.suites()
        for item in benchmark.items():
            if item.suite in elsewhere:
                yield item, self._from_file(item, elsewhere[item.suite])
            else:
                yield item, self._from_picture(benchmark, fingerprint, suites[item.suite], item)

    def _from_file(self, item: Item, answers: Mapping[str, Attempts]) -> _Found:
        attempts = answers.get(item.id, ())
        declined = any(isinstance(text, str) and _reply(text).declines for attempt in attempts for text in attempt)
        return _Found(attempts, declined, self._picture_name(item), self.failures.get((item.suite, item.id)))

    def _picture_name(self, item: Item) -> str | None:
        path = self.folder.picture(self.model, item)
        return path.relative_to(self.folder.out).as_posix() if path.is_file() else None

    def _from_picture(self, benchmark: Benchmark, fingerprint: str, scoring: Scoring, item: Item) -> _Found:
        path = self.folder.picture(self.model, item)
        data = file_or_none(path)
        if data is None:
            return _Found(failed=self.failures.get((item.suite, item.id), "no picture"))
        name = path.relative_to(self.folder.out).as_posix()

        # A benchmark that needs no judge.
        if not scoring.requests:
            try:
                return _Found(picture=name, measured=benchmark.measure(item, data))
            except UserError as problem:
                return _Found(picture=name, failed=str(problem))

        # What the judge said.
        question = question_of(fingerprint, item, hashlib.sha256(data).hexdigest(), self.asking)
        attempts = self.responses.attempts(question, scoring.requests)
        answered = [response for attempt in attempts for response in attempt if response is not None]
        if not answered:
            return _Found(picture=name, failed=_unreadable(data, name))
        return _Found(
            attempts=_texts(attempts),
            refused=any(response.refused for response in answered),
            picture=name,
            judge={"model": answered[-1].model, "date": answered[-1].date},
            repeats=self._repeats(question, scoring.requests),
        )

    def _repeats(self, question: str, calls: int) -> tuple[Attempts, ...]:
        """Return the words of every further judgement of a picture."""
        repeats: list[Attempts] = []
        while True:
            attempts = self.responses.attempts(question, calls, repeat=len(repeats) + 1)
            if not attempts:
                return tuple(repeats)
            repeats.append(_texts(attempts))


class _Texts:
    """The texts that were read on the pictures of all models, beside those that were to be read.

    Args:
        folder: The evaluation.
        targets: See `targets_of`.
    """

    def __init__(self, folder: EvaluationFolder, targets: Targets) -> None:
        self._folder = folder
        self._targets = targets
        self._readings = Log(folder.texts, ("picture",))
        self._columns: dict[tuple[str, str], TextColumn] = {}

    def add(self, model: str, item: Item) -> dict[str, Any]:
        """Count an item of a model; return what its line says of it."""
        if (item.suite, item.id) not in self._targets:
            return {}
        target = self._targets[item.suite, item.id]
        data = None if target is None else file_or_none(self._folder.picture(model, item))
        reading = None if data is None else self._readings.find(hashlib.sha256(data).hexdigest())
        lines = None if reading is None else [str(line) for line in reading["lines"]]
        reader = "" if reading is None else str(reading["reader"])
        self._columns.setdefault((item.suite, model), TextColumn()).add(target, lines, reader)
        if target is None:
            return {"text": None}
        return {"text": {**target.plain(), "read": lines}}

    def statistics(self, weights: Sequence[float]) -> dict[str, Any]:
        """Return suite -> model -> the text metrics."""
        told: dict[str, Any] = {}
        for (suite, model), column in self._columns.items():
            told.setdefault(suite, {})[model] = column.statistics(weights)
        return told


class _SuiteTables:
    """The tables of one suite and model, in both modes.

    Args:
        scoring: The suite's.
        order: Item -> its place in a file of answers: the official code adds in that order, which decides the last
            digit. None adds as items come.
    """

    def __init__(self, scoring: Scoring, order: Mapping[str, int] | None = None) -> None:
        self._tables = {mode: ScoreTable(scoring) for mode in MODES}
        self._order = order
        self._waiting: list[Mapping[Mode, ItemScore]] = []
        self.items = 0

    def add(self, scored: Mapping[Mode, ItemScore]) -> None:
        """Count an item."""
        self.items += 1
        if self._order is not None:
            self._waiting.append(scored)
            return
        for mode, table in self._tables.items():
            table.add(scored[mode])

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return mode -> category -> score and counts."""
        order = self._order
        if order is not None:
            last = len(order)
            self._order = None
            for scored in sorted(self._waiting, key=lambda scored: order.get(scored["official"].id, last)):
                self.add(scored)
            self._waiting = []
        return {mode: table.rows() for mode, table in self._tables.items()}


def _check_judged(folder: EvaluationFolder, columns: ScoreColumns, asking: Asking) -> None:
    """Refuse scores out of a log that holds the answers of another judge alone.

    Raises:
        UserError: There are pictures, the log has answers, and none is about them.
    """
    if columns.judges.total() or not columns.unjudged or not folder.responses.is_file():
        return
    answers = (row for row in rows(folder.responses) if is_final(row) and is_about_an_item(row))
    models = Counter(str(row.get("model")) for row in answers)
    if models:
        named = ", ".join(f"{count} of {model}" for model, count in models.most_common(3))
        asked = f"judge {asking.model or 'of the official scripts'} with settings {dict(asking.settings)}"
        raise UserError(
            f"{folder.responses}: holds no answer of {asked} about these pictures, but {named}; "
            "name the judge and its settings as they were, or judge again"
        )


# Items


def _texts(attempts: Sequence[Attempt]) -> Attempts:
    return tuple(texts_of(attempt) for attempt in attempts)


def _scored(scoring: Scoring, item: Item, found: _Found) -> dict[Mode, ItemScore]:
    """Return an item's score in each mode."""
    if found.measured is not None:
        values = {dimension: float(found.measured[dimension]) for dimension in scoring.dimensions}
        return {mode: ItemScore(item.id, item.category, "scored", values) for mode in MODES}
    judged = JudgedItem(item.id, item.category, found.attempts, found.refused)
    worded = JudgedItem(item.id, item.category, _without_thoughts(found.attempts), found.refused)
    return {"official": score_item(scoring, judged, "official"), "strict": score_item(scoring, worded, "strict")}


def _without_thoughts(attempts: Attempts) -> Attempts:
    """Return the answers without thoughts before them, which the official code reads as part of the answer."""
    return tuple(
        tuple(_reply(text).words if isinstance(text, str) else text for text in attempt) for attempt in attempts
    )


def _reply(text: str) -> Reply:
    return Reply(Kind.ANSWERED, text)


def _line(item: Item, found: _Found, scored: Mapping[Mode, ItemScore]) -> dict[str, Any]:
    """Return the line of `items.jsonl`."""
    line: dict[str, Any] = {
        "suite": item.suite,
        "id": item.id,
        "category": item.category,
        "language": item.language,
        "instruction": item.instruction,
        "sources": list(item.sources),
        "picture": found.picture,
        "failed": found.failed,
    }
    for mode, score in scored.items():
        line[mode] = {"state": score.state, "values": dict(score.values)}
    line["answers"] = [[text if isinstance(text, str) else None for text in attempt] for attempt in found.attempts]
    line["judge"] = None if found.judge is None else dict(found.judge)
    line["facts"] = dict(item.facts)
    return line


def _unreadable(data: bytes, name: str) -> str | None:
    """Return why a picture without answers cannot be judged; None where it merely was not."""
    try:
        opened(data, name)
    except UserError as problem:
        return str(problem)
    return None
