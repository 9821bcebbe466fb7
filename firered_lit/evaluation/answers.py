"""Answers made elsewhere: the official scripts' own files, and a plain table of one's own."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from firered_lit.errors import UserError
from firered_lit.judges.log import rows
from firered_lit.places import user_path
from firered_lit.textfiles import read_object, read_text

from .protocols import Item
from .scores import Scoring

AnswersFile = str | Mapping[str, Any]  # one file, or a file per suite, or per model and suite
Attempts = tuple[tuple[object, ...], ...]
GEDIT_COLUMNS = ("edited_image", "sementics_score", "quality_score", "instruction_language")
GEDIT_LANGUAGES = {"en": "en", "cn": "zh"}
COPY = re.compile(r"-\d+$")  # of the second of two rows with one key, whose picture has a name of its own


def file_for(answers: AnswersFile | None, model: str, suite: str) -> Path | None:
    """Return the file that holds the answers about a model's pictures of a suite; None without one."""
    chosen: Any = answers
    for name in (model, suite):
        if isinstance(chosen, Mapping):
            chosen = chosen.get(name, chosen if name == model else None)
    if chosen is None:
        return None
    if not isinstance(chosen, str | Path):
        raise UserError(f"answers of {model}, {suite}: {chosen!r} is no file; name one file per suite")
    return user_path(chosen)


def check_answers(answers: AnswersFile | None, models: Sequence[str], suites: Sequence[str]) -> None:
    """Refuse one file for several suites or models, and names that are none of them.

    Raises:
        UserError: One of these.
    """
    if answers is None:
        return
    if not isinstance(answers, Mapping):
        if len(models) * len(suites) > 1:
            raise UserError(
                f"answers={answers}: one file for {len(models)} models and {len(suites)} suites; say whose they are: "
                f"answers.SUITE=FILE, or answers.MODEL.SUITE=FILE, with SUITE of {', '.join(suites)}"
            )
        return
    names = {*models, *suites}
    unknown = [name for name in answers if name not in names]
    if unknown:
        raise UserError(f"answers.{unknown[0]}: neither a model nor a suite; there are {', '.join([*models, *suites])}")


def read_answers(path: Path, scoring: Scoring, items: Sequence[Item]) -> dict[str, Attempts]:
    """Return item -> attempts out of a file. Items without an answer are missing.

    Which files are read:

    - REDEdit-Bench's `evaluation_details.json`: line of the index, from 0 -> answer.
    - ImgEdit's `result.json`, and such a table of any benchmark with one answer per item: id -> answer.
    - GEdit-Bench's CSV files, one or a folder of them.
    - `*.jsonl`: rows with `id` and `answer`, or `answers` where an item has several requests.

    Args:
        path: The file or folder.
        scoring: The rules of the benchmark.
        items: All items of the suite in the order of the index.

    Raises:
        UserError: The file cannot be read, has another form, or answers about an item that is not there.
    """
    if path.is_dir() or path.suffix == ".csv":
        return _from_csv(path, items)
    if path.suffix == ".jsonl":
        return _from_rows(path, scoring, items)
    table = read_object(path)
    if scoring.requests != 1:
        raise UserError(
            f"{path}: {scoring.name} has {scoring.requests} answers per item; give its CSV files, or *.jsonl"
        )
    if scoring.name == "rededit":
        names = {str(line): item.id for line, item in enumerate(items)}
    else:
        names = {item.id: item.id for item in items}
    attempts: dict[str, Attempts] = {}
    for key, answer in table.items():
        if key not in names:
            raise UserError(
                f"{path}: answer {key!r}: no such item is evaluated; is it another version, or a part of it?"
            )
        attempts[names[key]] = ((answer,),)
    return attempts


def _from_rows(path: Path, scoring: Scoring, items: Sequence[Item]) -> dict[str, Attempts]:
    known = {item.id for item in items}
    attempts: dict[str, Attempts] = {}
    try:
        for row in rows(path):
            name = str(row.get("id"))
            if name not in known:
                raise UserError(f"{path}: answer {name!r}: no such item is evaluated")
            given = row["answers"] if "answers" in row else [row.get("answer")]
            if not isinstance(given, list) or len(given) != scoring.requests:
                raise UserError(f"{path}: answer {name!r}: {scoring.requests} answers are needed, in a list `answers`")
            attempts[name] = (*attempts.get(name, ()), tuple(given))
    except OSError as problem:
        raise UserError(f"{path}: cannot be read: {problem.strerror}") from None
    return attempts


# GEdit-Bench's tables


def _from_csv(path: Path, items: Sequence[Item]) -> dict[str, Attempts]:
    """Return the scores of tables as answers. A row that stands twice, as after a crash, counts once."""
    places: dict[tuple[str, str, str], list[Item]] = {}
    for item in items:
        key = COPY.sub("", PurePosixPath(item.output).stem)
        places.setdefault((item.category, item.language, key), []).append(item)

    attempts: dict[str, Attempts] = {}
    languages = {item.language for item in items}
    for file in _tables(path):
        for number, row in enumerate(_csv_rows(file), start=2):
            language = GEDIT_LANGUAGES.get(row["instruction_language"], "")
            if language not in languages:
                continue
            edited = PurePosixPath(row["edited_image"].replace("\\", "/"))
            place = (edited.parent.parent.name, language, edited.stem)
            if place not in places:
                raise UserError(f"{file}: line {number}: {edited}: no such item is evaluated")
            free = [item for item in places[place] if item.id not in attempts]
            free.sort(key=lambda item: item.instruction != row.get("instruction"))
            if free:
                scores = (_score_answer(row["sementics_score"]), _score_answer(row["quality_score"]))
                attempts[free[0].id] = (scores,)
    return attempts


def _score_answer(value: str) -> str:
    """Return a judge's answer whose lowest score is a cell's value."""
    return f'{{"score": [{value}, {value}]}}'


def _tables(path: Path) -> list[Path]:
    """Return the tables of all groups; one that combines them is left out, as their rows stand in it again."""
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*_gpt_score.csv"))
    groups = [file for file in files if not file.name.endswith("_combined_gpt_score.csv")]
    if not files:
        raise UserError(f"{path}: no table of GEdit-Bench (*_gpt_score.csv)")
    return groups or files


def _csv_rows(file: Path) -> list[dict[str, str]]:
    try:
        text = read_text(file)
        reader = csv.DictReader(io.StringIO(text))
        table = [{name: value or "" for name, value in row.items() if name} for row in reader]
    except OSError as problem:
        raise UserError(f"{file}: cannot be read: {problem.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as problem:
        raise UserError(f"{file}: no table: {problem}") from None
    missing = [name for name in GEDIT_COLUMNS if name not in (reader.fieldnames or [])]
    if missing:
        raise UserError(f"{file}: the column {missing[0]!r} is missing")
    for number, row in enumerate(table, start=2):
        for name in ("sementics_score", "quality_score"):
            if not _is_number(row.get(name, "")):
                raise UserError(f"{file}: line {number}: {name} is {row.get(name)!r}; a number is needed")
    return table


def _is_number(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
