"""Scores of a judge's answers on REDEdit-Bench, ImgEdit Basic and GEdit-Bench, as pure functions.

Two modes stand side by side:

- `official` equals the official code to the last digit, with its rounding and with what it drops: an item without a
  number in its answer leaves the mean, and a number outside of the scale counts.
- `strict` takes an answer only if it holds as many numbers as were asked for, each on the scale. An item without such
  an answer counts as the lowest score, so a model that fails on hard items gains nothing. Rounding is that of
  `official`: the modes differ only where an answer is missing or unusable.

Neither mode follows the official code where it throws dice or stops with an error. There the item has no score:

- GEdit-Bench replaces an answer without braces by a random number from the second attempt on.
- GEdit-Bench asks without end for text scores ("7"), lists in place of an object, an object without `score`.
- ImgEdit stops at an item whose request failed; it and REDEdit stop at characters such as "²", a digit to Python but no
  integer.
- REDEdit gives 0 where nothing was scored, GEdit-Bench NaN where a group has no row: no score here.
"""

import json
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from firered_lit.errors import UserError
from firered_lit.evaluation.text_scores import oneig_text_score, weighted_text_score

__all__ = [
    "GEDIT",
    "IMGEDIT",
    "REDEDIT",
    "ItemScore",
    "JudgedItem",
    "Mode",
    "ScoreTable",
    "Scoring",
    "gedit_item",
    "gedit_scores",
    "imgedit_score",
    "judged_items",
    "line_scoring",
    "macro_mean",
    "oneig_text_score",
    "rededit_score",
    "score_item",
    "score_table",
    "score_tables",
    "scores_by_category",
    "weighted_text_score",
]

Mode = Literal["official", "strict"]
State = Literal["scored", "missing", "refused", "unparsed"]
STATES: tuple[State, ...] = get_args(State)
OVERALL = "overall"


# Answers of one line per criterion: REDEdit-Bench and ImgEdit


def rededit_score(answer: object) -> float | None:
    """Return what REDEdit-Bench's parser makes of an answer: the mean of its numbers, to two decimals.

    A number is all that follows the only ": " of a line, in digits; spaces around it do not matter.

    Source: FireRed-Image-Edit, rededit_bench/redbench_eval.py, extract_scores_and_average.
    """
    return _rounded_mean(_line_numbers(answer, strips=True))


def imgedit_score(answer: object) -> float | None:
    """Return what ImgEdit's parser makes of an answer: as `rededit_score`, but a space before the number hides it.

    Source: ImgEdit, Benchmark/Basic/step1_get_avgscore.py.
    """
    return _rounded_mean(_line_numbers(answer, strips=False))


def _line_numbers(answer: object, *, strips: bool) -> list[int]:
    if not isinstance(answer, str):
        return []
    numbers = []
    for line in answer.splitlines():
        pieces = line.strip().split(": ")
        if len(pieces) != 2:
            continue
        digits = pieces[1].strip() if strips else pieces[1]
        if not digits.isdigit():
            continue
        try:
            numbers.append(int(digits))
        except ValueError:  # "²", or more digits than Python reads: here the official code stops
            return []
    return numbers


def _rounded_mean(numbers: Sequence[int]) -> float | None:
    if not numbers:
        return None
    try:
        return round(sum(numbers) / len(numbers), 2)
    except OverflowError:  # an integer beyond all floats: here the official code stops
        return None


# Answers in JSON: GEdit-Bench


def gedit_scores(answer: object) -> list[Any] | None:
    """Return the scores that GEdit-Bench's parser finds in one answer, at its first attempt.

    They stand between two delimiters `||V^=^V||`, else between the first and the last brace, as JSON with a key
    `score`; without braces, `[a, b]` and a bare integer of 0 to 10 are read too. Nothing is checked: scores may lie
    outside of 0 to 10, be text, or be an empty list.

    Returns:
        The list of scores; None where the official code asks again or stops.

    Source: Step1X-Edit, GEdit-Bench/viescore/utils.py, mllm_output_to_dict.
    """
    if not isinstance(answer, str):
        return None
    try:
        parsed = _gedit_object(answer)
        scores = parsed["score"]
    except Exception:  # whatever a judge may write: an answer that cannot be read has no score
        return None
    return scores if isinstance(scores, list) else None


DELIMITER = "||V^=^V||"
ENTRY_END = re.compile("[,}]")


def _gedit_object(answer: str) -> Any:
    """Return the parsed answer.

    Raises:
        ValueError: The answer holds no such object. The JSON parser raises others.
    """
    if answer.count(DELIMITER) == 2:
        start = answer.find(DELIMITER) + len(DELIMITER)
        end = answer.rfind(DELIMITER)
    else:
        start = answer.find("{")
        end = answer.rfind("}") + 1
        if start == -1 or end == 0:
            return {"score": _bare_scores(answer)}
    text = answer[start:end].strip().replace("\n", "")
    try:
        parsed = json.loads(text)
        if not isinstance(parsed["score"], list):
            parsed["score"] = [parsed["score"]]
    except Exception:
        return json.loads(_repaired(text))
    return parsed


def _bare_scores(answer: str) -> list[int]:
    listed = answer[answer.find("[") : answer.rfind("]") + 1]
    if re.match(r"^\[\d+, ?\d+\]$", listed):
        return list(json.loads(listed))
    number = int(answer)
    if not 0 <= number <= 10:
        raise ValueError(f"{number} is not on the scale")
    return [number]


def _repaired(text: str) -> str:
    """Quote keys and values, and put numbers in brackets: rescues one scalar score without quotes, hardly more.

    Entries are found as the official `(".*?"):(.*?)(,|})` finds them, in one pass however long the text is.
    """
    text = re.sub(r"\b(\w+):", r'"\1":', text)
    pieces = []
    position = 0
    while True:
        key_start = text.find('"', position)
        colon = text.find('":', key_start + 1) + 1
        end = ENTRY_END.search(text, colon + 1)
        if key_start == -1 or colon == 0 or end is None:
            break
        value = _quoted(text[colon + 1 : end.start()].strip())
        pieces.append(f"{text[position:colon]}: {value}{end.group()}")
        position = end.end()
    pieces.append(text[position:])
    return "".join(pieces)


def _quoted(value: str) -> str:
    if re.match(r"^-?\d+(\.\d+)?$", value):
        return f"[{value}]"
    if re.match(r"^(true|false|null)$", value, re.IGNORECASE):
        return value
    return f'"{value}"'


def gedit_item(semantics: Sequence[Any], quality: Sequence[Any]) -> dict[str, float] | None:
    """Return SC, PQ and O of one item from the scores of its two answers.

    SC and PQ are the lowest of their scores, O = sqrt(SC PQ). A table's O is the mean of its items' O.

    Args:
        semantics: Scores of editing success and over-editing, 0 to 10.
        quality: Scores of naturalness and artifacts, 0 to 10.

    Returns:
        SC, PQ, O; None where O is no finite number (no score, text, NaN, one below 0 and one above).

    Source: Step1X-Edit, GEdit-Bench/viescore/__init__.py, VIEScore.evaluate.
    """
    try:
        lowest_semantics = min(semantics)
        lowest_quality = min(quality)
        overall = math.sqrt(lowest_semantics * lowest_quality)
    except (ValueError, TypeError, OverflowError):
        return None
    if not math.isfinite(overall):
        return None
    return {"SC": lowest_semantics, "PQ": lowest_quality, "O": overall}


# Items


@dataclass(frozen=True)
class JudgedItem:
    """One item of a benchmark and what the judge answered.

    Attributes:
        id: Unique within the benchmark and language.
        category: The task by which the benchmark groups its items.
        attempts: One tuple per attempt with the answer to each request, in order: one answer for REDEdit-Bench and
            ImgEdit, SC and PQ for GEdit-Bench. What is no text counts as no answer. Empty: nothing was asked, such as
            for a missing picture.
        refused: The judge refused this item.
    """

    id: str
    category: str
    attempts: tuple[tuple[object, ...], ...] = ()
    refused: bool = False


@dataclass(frozen=True)
class ItemScore:
    """The scores of one item in one mode.

    Attributes:
        id: The item's.
        category: The item's.
        state: "scored", or why it has no score of the judge's.
        values: A number per dimension; empty where the item leaves the mean, the lowest score where it counts as that.
    """

    id: str
    category: str
    state: State
    values: Mapping[str, float] = field(default_factory=dict)


Reader = Callable[[Sequence[object]], "dict[str, float] | None"]
Mean = Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Scoring:
    """The rules by which one benchmark turns answers into tables.

    Attributes:
        name: The benchmark's.
        dimensions: The numbers of an item, the headline last.
        lowest: The lowest score of the scale.
        official: The answers of one attempt -> a number per dimension, as the official code reads them; None without.
        strict: The same, with the number of scores and their range checked.
        mean: How the official code averages.
        digits: Decimals to which a category's mean is rounded; None: not rounded.
        drops_empty: The official macro mean leaves out a category without a scored item; otherwise it does not exist.
        requests: How many answers an attempt has; 0 where no judge is asked.
        order: Categories in the order in which the official code averages them, which decides the last digit; others
            follow in the order in which they come.
    """

    name: str
    dimensions: tuple[str, ...]
    lowest: float
    official: Reader
    strict: Reader
    mean: Mean
    digits: int | None = None
    drops_empty: bool = True
    requests: int = 1
    order: tuple[str, ...] = ()

    @property
    def headline(self) -> str:
        """The dimension that a table calls `score`."""
        return self.dimensions[-1]

    def reader(self, mode: Mode) -> Reader:
        """Return how the answers of one attempt are read in a mode."""
        if mode not in get_args(Mode):
            raise UserError(f"mode {mode!r}: choose one of {', '.join(get_args(Mode))}")
        return self.official if mode == "official" else self.strict


def macro_mean(values: Sequence[float]) -> float:
    """Return the unweighted mean of category scores, not rounded.

    Added from left to right, as Python did before 3.12, so that every version gives the same last digit.
    """
    total = 0.0
    for value in values:
        total += value
    return total / len(values)


def line_scoring(
    name: str, *, strips: bool = True, lowest: int = 1, highest: int = 5, criteria: int | None = 3
) -> Scoring:
    """Build the scoring of a benchmark whose judge answers one line "Name: number" per criterion.

    Args:
        name: The benchmark's.
        strips: Whether spaces around a number are ignored: yes in REDEdit-Bench, no in ImgEdit.
        lowest: The lowest score of a criterion.
        highest: The highest score of a criterion.
        criteria: How many numbers a strict answer holds; None: at least one.
    """

    def official(answers: Sequence[object]) -> dict[str, float] | None:
        score = _rounded_mean(_line_numbers(answers[0], strips=strips))
        return None if score is None else {"score": score}

    def strict(answers: Sequence[object]) -> dict[str, float] | None:
        numbers = _line_numbers(answers[0], strips=strips)
        if criteria is not None and len(numbers) != criteria:
            return None
        if not all(lowest <= number <= highest for number in numbers):
            return None
        return official(answers)

    return Scoring(name, ("score",), float(lowest), official, strict, macro_mean, digits=2)


def _gedit_official(answers: Sequence[object]) -> dict[str, float] | None:
    semantics, quality = (gedit_scores(answer) for answer in answers)
    if semantics is None or quality is None:
        return None
    return gedit_item(semantics, quality)


def _gedit_strict(answers: Sequence[object]) -> dict[str, float] | None:
    for answer in answers:
        scores = gedit_scores(answer) or []
        if len(scores) != 2 or not all(_on_gedit_scale(score) for score in scores):
            return None
    return _gedit_official(answers)


def _on_gedit_scale(score: object) -> bool:
    if isinstance(score, bool) or not isinstance(score, int | float):
        return False
    return 0 <= score <= 10


def _numpy_mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


REDEDIT = line_scoring("rededit", strips=True)
IMGEDIT = line_scoring("imgedit", strips=False)
GEDIT_GROUPS = (
    "background_change",
    "color_alter",
    "material_alter",
    "motion_change",
    "ps_human",
    "style_change",
    "subject-add",
    "subject-remove",
    "subject-replace",
    "text_change",
    "tone_transfer",
)
GEDIT = Scoring(
    name="gedit",
    dimensions=("SC", "PQ", "O"),
    lowest=0.0,
    official=_gedit_official,
    strict=_gedit_strict,
    mean=_numpy_mean,
    drops_empty=False,
    requests=2,
    order=GEDIT_GROUPS,
)


def judged_items(categories: Mapping[str, str], answers: Mapping[str, object]) -> list[JudgedItem]:
    """Put a table of answers beside the index of a benchmark with one request per item.

    Args:
        categories: Item -> category, in the order of the index.
        answers: Item -> answer, as the official scripts write them; items without one are missing.

    Raises:
        UserError: An answer belongs to no item.
    """
    unknown = [item for item in answers if item not in categories]
    if unknown:
        raise UserError(f"answer of item {unknown[0]!r}: the benchmark has no such item ({len(unknown)} such answers)")
    items = []
    for item, category in categories.items():
        attempts = ((answers[item],),) if item in answers else ()
        items.append(JudgedItem(item, category, attempts))
    return items


def score_item(scoring: Scoring, item: JudgedItem, mode: Mode) -> ItemScore:
    """Score one item by its first attempt that has a score in this mode.

    Raises:
        UserError: There is no such mode, or an attempt has not one answer per request of the benchmark.
    """
    read = scoring.reader(mode)
    for answers in item.attempts:
        if len(answers) != scoring.requests:
            wrong = f"{len(answers)} answers in an attempt, where {scoring.requests} belong"
            raise UserError(f"item {item.id} of {scoring.name}: {wrong}")
    answered = [answers for answers in item.attempts if all(isinstance(answer, str) for answer in answers)]
    for answers in answered:
        values = read(answers)
        if values is not None:
            return ItemScore(item.id, item.category, "scored", values)

    # No score: say why, and let it count as the lowest in strict mode.
    state: State = "unparsed" if answered else "missing"
    if item.refused:
        state = "refused"
    lowest = dict.fromkeys(scoring.dimensions, scoring.lowest) if mode == "strict" else {}
    return ItemScore(item.id, item.category, state, lowest)


# Tables


class ScoreTable:
    """Scores and counts of every category and of all, gathered item by item: some bytes an item.

    Args:
        scoring: The rules of the benchmark.
    """

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring
        self._categories: dict[str, _Column] = {}

    def add(self, score: ItemScore) -> None:
        """Count an item.

        Raises:
            UserError: Its category is called "overall".
        """
        if score.category == OVERALL:
            raise UserError(f"category {OVERALL!r}: this name is taken by the row of all categories; rename it")
        column = self._categories.get(score.category)
        if column is None:
            column = _Column(Counter(), {dimension: array("d") for dimension in self.scoring.dimensions})
            self._categories[score.category] = column
        column.states[score.state] += 1
        if score.values:
            for dimension, values in column.values.items():
                values.append(score.values[dimension])

    def rows(self) -> dict[str, dict[str, Any]]:
        """Return the table; see `score_table`."""
        scoring = self.scoring
        first = [category for category in scoring.order if category in self._categories]
        categories = [*first, *(category for category in self._categories if category not in first)]
        table = {category: self._row(self._categories[category]) for category in categories}
        overall: dict[str, Any] = {}
        for name in _columns(scoring).values():
            overall[name] = _macro(scoring, [row[name] for row in table.values()])
        overall["macro"] = overall["score"]
        headlines = array("d")
        states: Counter[str] = Counter()
        for category in categories:
            column = self._categories[category]
            headlines.extend(column.values[scoring.headline])
            states.update(column.states)
        overall["micro"] = scoring.mean(headlines) if headlines else None
        table[OVERALL] = {**overall, **_counts(states)}
        return table

    def _row(self, column: "_Column") -> dict[str, Any]:
        row: dict[str, Any] = {}
        for dimension, name in _columns(self.scoring).items():
            values = column.values[dimension]
            mean = self.scoring.mean(values) if values else None
            if mean is not None and self.scoring.digits is not None:
                mean = round(mean, self.scoring.digits)
            row[name] = mean
        return {**row, **_counts(column.states)}


@dataclass(frozen=True)
class _Column:
    """The items of one category: how many are in each state, and the numbers of each dimension."""

    states: Counter[str]
    values: dict[str, "array[float]"]


def score_table(scoring: Scoring, scores: Iterable[ItemScore]) -> dict[str, dict[str, Any]]:
    """Return scores and counts of every category and of all.

    Returns:
        Category -> `score`, further dimensions by their names, `expected`, `scored`, `missing`, `refused`, `unparsed`.
        "overall" has the same and `macro` (the mean of the category scores, which is its `score`) and `micro` (the
        mean over items). A score that does not exist is None.

    Raises:
        UserError: A category is called "overall".
    """
    table = ScoreTable(scoring)
    for score in scores:
        table.add(score)
    return table.rows()


def score_tables(scoring: Scoring, items: Iterable[JudgedItem]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return mode -> `score_table`, both modes over the same items."""
    items = list(items)
    tables = {}
    for mode in get_args(Mode):
        tables[mode] = score_table(scoring, [score_item(scoring, item, mode) for item in items])
    return tables


def scores_by_category(scores: Iterable[ItemScore], dimension: str = "score") -> dict[str, dict[str, float]]:
    """Return category -> item -> number, without items that left the mean: what `statistics` works on.

    Raises:
        UserError: Two items of a category have the same id, so that models cannot be paired by it.
    """
    table: dict[str, dict[str, float]] = {}
    for score in scores:
        if dimension not in score.values:
            continue
        rows = table.setdefault(score.category, {})
        if score.id in rows:
            raise UserError(f"item {score.id!r} of {score.category}: the id stands twice; ids must be unique")
        rows[score.id] = score.values[dimension]
    return table


def _columns(scoring: Scoring) -> dict[str, str]:
    """Return dimension -> its name in a table."""
    columns = {dimension: dimension for dimension in scoring.dimensions}
    columns[scoring.headline] = "score"
    return columns


def _macro(scoring: Scoring, means: Sequence[float | None]) -> float | None:
    known = [mean for mean in means if mean is not None]
    if not known or (len(known) < len(means) and not scoring.drops_empty):
        return None
    return scoring.mean(known)


def _counts(states: Counter[str]) -> dict[str, int]:
    return {"expected": states.total(), **{state: states[state] for state in STATES}}
