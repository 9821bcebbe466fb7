"""GEdit-Bench: 606 edits of eleven groups in English and 606 in Chinese, as parquet files."""

import ast
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks import copies, gedit_requests
from firered_lit.evaluation.benchmarks.judged_copy import JudgedCopy
from firered_lit.evaluation.benchmarks.picture_table import PictureTable, parquet_files
from firered_lit.evaluation.protocols import Asking, Item
from firered_lit.evaluation.scores import GEDIT, Scoring
from firered_lit.judges.request import ChatRequest

PUBLISHED = {
    "background_change": 40, "color_alter": 40, "material_alter": 40, "motion_change": 40, "ps_human": 70,
    "style_change": 60, "subject-add": 60, "subject-remove": 57, "subject-replace": 60, "text_change": 99,
    "tone_transfer": 40,
}  # of each language  # fmt: skip
COLUMNS = ("task_type", "key", "instruction", "instruction_language", "Intersection_exist")
PICTURES = "input_image"
HINT = "GEdit-Bench is a folder of parquet files, there or in data/"


class GEdit(JudgedCopy):
    """A copy of GEdit-Bench.

    Args:
        folder: What holds the parquet files, there or in data/.
        languages: "en", "cn" or both: a suite each.
        prompts: VIEScore's vie_prompts.py, which is read as text and never run; FOLDER/vie_prompts.py when None.
        version: "published" refuses another number of rows than the published one; "any" warns of it.
        each: Only the first so many items of every group; None for all.
    """

    own_prompts = "vie_prompts.py"
    hint = "it is part of VIEScore; name it by `prompts` in the recipe's benchmark"

    def __init__(
        self,
        folder: str,
        languages: Sequence[str] = ("en", "cn"),
        prompts: str | None = None,
        version: copies.Version = "any",
        each: int | None = None,
    ) -> None:
        super().__init__(folder, prompts, version, each)
        self.languages = copies.chosen_languages(languages, "gedit")

    def suites(self) -> Mapping[str, Scoring]:
        """Return gedit_en and gedit_cn, those that are asked for."""
        return {f"gedit_{language}": GEDIT for language in self.languages}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the rows and, where they are there, of the prompts."""
        rows = [repr((item.suite, item.id, item.category, item.instruction)).encode() for item in self._all_items]
        return self.fingerprint_with(*rows)

    def items(self) -> Sequence[Item]:
        """Return the rows of each language, in the order of the table.

        Raises:
            UserError: The folder is incomplete, of another version, or damaged.
        """
        return copies.first_of_each(self._all_items, self.each)

    def sources(self, item: Item) -> list[bytes]:
        """Return the source picture's file."""
        return [self._table.picture(item.facts["row"])]

    def requests(self, item: Item, edited: bytes, asking: Asking) -> list[ChatRequest]:
        """Return the two questions about an edited picture, SC and PQ, as the official script sends them."""
        return gedit_requests.requests(item, self.sources(item), edited, self.prompts, asking)

    @cached_property
    def prompts(self) -> Mapping[str, str]:
        """The text constants of vie_prompts.py, by name.

        Raises:
            UserError: It is missing, no Python, or lacks a constant that the judge is asked with.
        """
        path = self.prompts_file
        try:
            tree = ast.parse(self._prompts_content)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
            raise UserError(f"{path}: cannot be read as Python ({problem})") from None
        found = {}
        for statement in tree.body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Constant):
                continue
            value = statement.value.value
            for target in statement.targets:
                if isinstance(target, ast.Name) and isinstance(value, str):
                    found[target.id] = value
        for name in gedit_requests.NEEDED_PROMPTS:
            if name not in found:
                raise UserError(f"{path}: the text {name} is missing; {self.hint}")
        return found

    @cached_property
    def _table(self) -> PictureTable:
        files = parquet_files(self.folder)
        if not files:
            raise UserError(f"{self.folder}: no parquet files; {HINT}")
        return PictureTable(files, COLUMNS, PICTURES)

    @cached_property
    def _all_items(self) -> list[Item]:
        items = []
        for language in self.languages:
            of_language = self._of_language(language)
            copies.check_version(
                f"{self.folder} ({language})",
                (item.category for item in of_language),
                PUBLISHED,
                version=self.version,
            )
            items += of_language
        return items

    def _of_language(self, language: str) -> list[Item]:
        """Return the items of one language. A key may stand there twice: the second one's picture has another name."""
        items = []
        seen: Counter[tuple[str, str]] = Counter()
        for number, row in enumerate(self._table.rows):
            if row["instruction_language"] != language:
                continue
            where = f"{self.folder}/{self._table.name(number)}"
            group = copies.file_name(copies.text_of(row, "task_type", where), where)
            key = copies.file_name(copies.text_of(row, "key", where), where)
            seen[group, key] += 1
            if seen[group, key] > 1:
                key = f"{key}-{seen[group, key]}"
            items.append(
                Item(
                    suite=f"gedit_{language}",
                    id=f"{group}/{key}",
                    category=group,
                    language=copies.LANGUAGES[language],
                    instruction=copies.text_of(row, "instruction", where),
                    sources=(self._table.name(number),),
                    output=f"fullset/{group}/{language}/{key}.png",
                    facts={"row": number, "intersection": bool(row["Intersection_exist"])},
                )
            )
        return items
