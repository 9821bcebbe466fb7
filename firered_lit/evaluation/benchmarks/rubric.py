"""A user's own edits, judged by a rubric of their own."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks import copies
from firered_lit.evaluation.benchmarks.judged_copy import JudgedBenchmark
from firered_lit.evaluation.benchmarks.pictures import opened
from firered_lit.evaluation.benchmarks.rubric_rows import RubricRow, RubricRows
from firered_lit.evaluation.protocols import Asking, Item
from firered_lit.evaluation.scores import Scoring, line_scoring
from firered_lit.judges.request import ChatRequest, MessagePicture, Part, user
from firered_lit.places import user_path

SLOT = "<edit_prompt>"  # stands for the instruction in a rubric
EVERY_TASK = "*"  # stands for all tasks that a rubric does not name


class Rubric(JudgedBenchmark):
    """Rows of a user's own. The judge answers a line "Name: number" per criterion.

    Args:
        rows: The edits.
        rubric: A file with what the judge is asked: one text, or a JSON object with a text per task, "*" for all
            others. `<edit_prompt>` stands for the instruction. The source pictures follow, then the edited one.
        name: Of the suites, NAME_en and NAME_cn; those whose instructions the rows have.
        languages: "en", "cn" or both.
        lowest: The lowest number of a criterion.
        highest: The highest number of a criterion.
        criteria: How many numbers an answer holds; None: at least one.
    """

    def __init__(
        self,
        rows: RubricRows,
        rubric: str,
        name: str = "folder",
        languages: Sequence[str] = ("en", "cn"),
        lowest: int = 1,
        highest: int = 5,
        criteria: int | None = None,
    ) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
            raise UserError(f"name={name}: a suite's name is made of letters, digits, '_' and '-'")
        if lowest >= highest:
            raise UserError(f"{name}.lowest={lowest}: must be below highest={highest}")
        self.rows = rows
        self.file = user_path(rubric)
        self.name = name
        self.languages = copies.chosen_languages(languages, name)
        self.lowest = lowest
        self.highest = highest
        self.criteria = criteria

    def suites(self) -> Mapping[str, Scoring]:
        """Return the suites of the languages that the rows have."""
        names = dict.fromkeys(item.suite for item in self._items)
        return {name: self._scoring(name) for name in names}

    def fingerprint(self) -> str:
        """Return a hash of the rows and the rubric."""
        return copies.sha256(self.rows.fingerprint().encode(), self._rubric)

    def items(self) -> Sequence[Item]:
        """Return the rows in each language that they have."""
        return self._items

    def sources(self, item: Item) -> list[bytes]:
        """Return the source pictures' files."""
        return self.rows.sources(item.facts["row"])

    def requests(self, item: Item, edited: bytes, asking: Asking) -> list[ChatRequest]:
        """Return the one question: the rubric, the sources, the edited picture.

        Raises:
            UserError: The judge has no name, the rubric says nothing of this task, or a picture cannot be read.
        """
        if not asking.model:
            raise UserError(f"judge.model: name the judge of {self.name}, as its server calls it")
        files = [*self.sources(item), edited]
        parts: list[Part] = [self.prompt(item).replace(SLOT, item.instruction)]
        for name, file in zip((*item.sources, item.output), files, strict=True):
            parts.append(_shown(file, name))
        return [ChatRequest(asking.model, [user(*parts)], {"temperature": 0.0, **asking.settings})]

    def prompt(self, item: Item) -> str:
        """Return what the judge is asked about an item's task, without the instruction.

        Raises:
            UserError: The rubric says nothing of it, or does not say where the instruction goes.
        """
        name = item.category if item.category in self._prompts else EVERY_TASK
        if name not in self._prompts:
            raise UserError(f"{self.file}: no text for {item.category!r}, and none for all others ({EVERY_TASK!r})")
        text = copies.text_of(self._prompts, name, str(self.file))
        if SLOT not in text:
            raise UserError(f"{self.file}: {name}: {SLOT} must stand where the instruction goes")
        return text

    def _scoring(self, name: str) -> Scoring:
        return line_scoring(name, lowest=self.lowest, highest=self.highest, criteria=self.criteria)

    @cached_property
    def _rubric(self) -> bytes:
        return copies.read_file(self.file, "a text or a JSON file of what the judge is asked")

    @cached_property
    def _prompts(self) -> Mapping[str, object]:
        if self.file.suffix.lower() == ".json":
            return copies.parse_json(self._rubric, str(self.file))
        try:
            return {EVERY_TASK: self._rubric.decode("utf-8")}
        except UnicodeDecodeError as problem:
            raise UserError(f"{self.file}: not UTF-8 text (byte {problem.start})") from None

    @cached_property
    def _items(self) -> list[Item]:
        rows = self.rows.rows()
        items = []
        for language in self.languages:
            for row in rows:
                if language in row.instructions:
                    items.append(self._item(row, language))
        if not items:
            raise UserError(f"{self.name}: no row has an instruction in {' or '.join(self.languages)}")
        return items

    def _item(self, row: RubricRow, language: str) -> Item:
        return Item(
            suite=f"{self.name}_{language}",
            id=row.id,
            category=row.category,
            language=copies.LANGUAGES[language],
            instruction=row.instructions[language],
            sources=row.sources,
            output=f"{plain_name(row.category)}/{plain_name(row.id)}.png",
            facts={"row": row.id},
        )


def plain_name(text: str) -> str:
    """Return a file's name for a text; one that cannot be a name ends in a hash that tells it from others."""
    plain = re.sub(r"[^\w.-]+", "_", text).strip(".")[:50]
    if plain and plain == text:
        return plain
    return f"{plain}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:8]}"


def _shown(file: bytes, name: str) -> MessagePicture:
    """Return a picture as the judge gets it: its file as it is."""
    kind = opened(file, name).format or "PNG"
    return MessagePicture(file, f"image/{kind.lower()}")
