"""REDEdit-Bench: 1,542 edits of fifteen tasks, each asked for in English and in Chinese."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks import copies, rededit_requests
from firered_lit.evaluation.benchmarks.judged_copy import PromptedByTask
from firered_lit.evaluation.protocols import Asking, Item
from firered_lit.evaluation.scores import REDEDIT, Scoring
from firered_lit.judges.request import ChatRequest

INDEX = "redbench.jsonl"
SHA256 = "01f13f0cecb5a79ce9f3785a0bb0688c80e31d8ff8d7e9bdf1138cf4f6efa75f"
PUBLISHED = {
    "add": 143, "adjust": 156, "background": 91, "beauty": 79, "color": 99, "compose": 100, "extract": 95,
    "lowlevel": 47, "motion": 78, "portrait": 102, "remove": 147, "replace": 140, "stylize": 92, "text": 123,
    "viewpoint": 50,
}  # fmt: skip
COLUMNS = {"en": "a_to_b_instructions_eng", "cn": "a_to_b_instructions"}
HINT = "the dataset of REDEdit-Bench has redbench.jsonl and redbench/, which lies in REDEdit_Bench.tar"


class REDEdit(PromptedByTask):
    """A copy of REDEdit-Bench.

    Args:
        folder: What holds redbench.jsonl and redbench/.
        languages: "en", "cn" or both: a suite each.
        prompts: The file with the judge's prompts, task -> text; FOLDER/prompts.json when None.
        version: "published" refuses another index than the published one; "any" warns of it.
        each: Only the first so many items of every task; None for all.
    """

    def __init__(
        self,
        folder: str,
        languages: Sequence[str] = ("en", "cn"),
        prompts: str | None = None,
        version: copies.Version = "any",
        each: int | None = None,
    ) -> None:
        super().__init__(folder, prompts, version, each)
        self.languages = copies.chosen_languages(languages, "rededit")

    def suites(self) -> Mapping[str, Scoring]:
        """Return rededit_en and rededit_cn, those that are asked for."""
        return {f"rededit_{language}": REDEDIT for language in self.languages}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the index and, where they are there, of the prompts."""
        return self.fingerprint_with(self._content)

    def items(self) -> Sequence[Item]:
        """Return the rows in each language, in the order of the index.

        Raises:
            UserError: The folder is incomplete, of another version, or damaged.
        """
        return self._items

    def sources(self, item: Item) -> list[bytes]:
        """Return the source picture's file."""
        return [copies.read_file(self.folder / name, HINT) for name in item.sources]

    def requests(self, item: Item, edited: bytes, asking: Asking) -> list[ChatRequest]:
        """Return the one question about an edited picture, as the official script sends it."""
        return rededit_requests.requests(item, self.sources(item), edited, self.prompt(item), asking)

    @cached_property
    def _content(self) -> bytes:
        return copies.read_file(self.folder / INDEX, HINT)

    @cached_property
    def _items(self) -> list[Item]:
        rows = self._rows()
        items = []
        for language in self.languages:
            for row in rows:
                items.append(
                    Item(
                        suite=f"rededit_{language}",
                        id=row["id"],
                        category=row["task"],
                        language=copies.LANGUAGES[language],
                        instruction=row[COLUMNS[language]],
                        sources=(row["source"],),
                        output=f"{row['task']}/{PurePosixPath(row['source']).name}",
                    )
                )
        return copies.first_of_each(items, self.each)

    def _rows(self) -> list[dict[str, str]]:
        """Return the rows of the index, each with all its columns."""
        path = self.folder / INDEX
        rows = []
        try:
            lines = self._content.decode("utf-8").split("\n")  # a text may hold other line ends
        except UnicodeDecodeError as problem:
            raise UserError(f"{path}: not UTF-8 text (byte {problem.start})") from None
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            content = copies.parse_json(line, where)
            row = {name: copies.text_of(content, name, where) for name in ("id", "source", "task", *COLUMNS.values())}
            row["source"] = copies.path_below(row["source"], where)
            row["task"] = copies.file_name(row["task"], where)
            rows.append(row)

        # The whole against the published one.
        digest = hashlib.sha256(self._content).hexdigest()
        tasks = [row["task"] for row in rows]
        copies.check_version(str(path), tasks, PUBLISHED, version=self.version, digest=digest, published_digest=SHA256)
        copies.unique((row["id"] for row in rows), str(path))
        copies.unique((f"{row['task']}/{PurePosixPath(row['source']).name}" for row in rows), str(path))
        copies.check_pictures(self.folder, (row["source"] for row in rows), HINT)
        return rows
