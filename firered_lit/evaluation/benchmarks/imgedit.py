"""ImgEdit Basic: 737 edits of nine types, asked for in English; as JSON beside pictures, or repacked as parquet."""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks import copies, imgedit_requests
from firered_lit.evaluation.benchmarks.judged_copy import PromptedByTask
from firered_lit.evaluation.benchmarks.picture_table import PictureTable, parquet_files
from firered_lit.evaluation.protocols import Asking, Item
from firered_lit.evaluation.scores import IMGEDIT, Scoring
from firered_lit.judges.request import ChatRequest

SUITE = "imgedit"
INDEX = "basic_edit.json"
SHA256 = "cba0865b"  # the beginning
PUBLISHED = {
    "extract": 117, "style": 100, "add": 95, "adjust": 94, "background": 94, "replace": 92, "remove": 86,
    "action": 36, "compose": 23,
}  # fmt: skip
FOLDERS = ("singleturn", "Benchmark/singleturn")
HINT = "ImgEdit Basic has basic_edit.json and the folder singleturn/ of Benchmark.tar, or parquet files"
COLUMNS = ("key", "prompt", "edit_type")


class ImgEdit(PromptedByTask):
    """A copy of ImgEdit Basic.

    Args:
        folder: What holds basic_edit.json and singleturn/ (or Benchmark/singleturn/), or parquet files with the columns
            key, image, prompt and edit_type, there or in data/.
        prompts: The file with the judge's prompts, type -> text; FOLDER/prompts.json when None.
        version: "published" refuses another index than the published one; "any" warns of it.
        each: Only the first so many items of every type; None for all.
    """

    def suites(self) -> Mapping[str, Scoring]:
        """Return the one suite."""
        return {SUITE: IMGEDIT}

    def fingerprint(self) -> str:
        """Return the SHA-256 of the index and, where they are there, of the prompts."""
        index = [repr((item.id, item.category, item.instruction)).encode() for item in self._all_items]
        return self.fingerprint_with(*index)

    def items(self) -> Sequence[Item]:
        """Return the rows in the order of the index.

        Raises:
            UserError: The folder is incomplete, of another version, or damaged.
        """
        return copies.first_of_each(self._all_items, self.each)

    def sources(self, item: Item) -> list[bytes]:
        """Return the source picture's file."""
        if self._table is not None:
            return [self._table.picture(item.facts["row"])]
        return [copies.read_file(self.folder / name, HINT) for name in item.sources]

    def requests(self, item: Item, edited: bytes, asking: Asking) -> list[ChatRequest]:
        """Return the one question about an edited picture, as the official script sends it."""
        return imgedit_requests.requests(item, self.sources(item), edited, self.prompt(item), asking)

    @cached_property
    def _table(self) -> PictureTable | None:
        """The parquet files, where there is no JSON index."""
        if (self.folder / INDEX).is_file():
            return None
        files = parquet_files(self.folder)
        if not files:
            raise UserError(f"{self.folder}: neither {INDEX} nor parquet files; {HINT}")
        return PictureTable(files, COLUMNS, "image")

    @cached_property
    def _all_items(self) -> list[Item]:
        if self._table is not None:
            return self._from_table(self._table)
        return self._from_json()

    def _from_json(self) -> list[Item]:
        path = self.folder / INDEX
        content = copies.read_file(path, HINT)
        pictures = next((name for name in FOLDERS if (self.folder / name).is_dir()), FOLDERS[0])
        items = []
        for key, row in copies.parse_json(content, str(path)).items():
            where = f"{path}: {key}"
            if not isinstance(row, dict):
                raise UserError(f"{where}: expected a JSON object, not a {type(row).__name__}")
            name = copies.path_below(copies.text_of(row, "id", where), where)
            items.append(_item(key, row, (f"{pictures}/{name}",), {}, where))

        # The whole against the published one.
        digest = hashlib.sha256(content).hexdigest()
        types = [item.category for item in items]
        copies.check_version(str(path), types, PUBLISHED, version=self.version, digest=digest, published_digest=SHA256)
        copies.check_pictures(self.folder, (name for item in items for name in item.sources), HINT)
        return items

    def _from_table(self, table: PictureTable) -> list[Item]:
        items = []
        for number, row in enumerate(table.rows):
            name = table.name(number)
            items.append(_item(str(row["key"]), row, (name,), {"row": number}, f"{self.folder}/{name}"))
        copies.check_version(str(self.folder), (item.category for item in items), PUBLISHED, version=self.version)
        copies.unique((item.id for item in items), str(self.folder))
        return items


def _item(
    key: str, row: Mapping[str, object], sources: tuple[str, ...], facts: Mapping[str, object], where: str
) -> Item:
    return Item(
        suite=SUITE,
        id=key,
        category=copies.text_of(row, "edit_type", where),
        language="en",
        instruction=copies.text_of(row, "prompt", where),
        sources=sources,
        output=f"{copies.file_name(key, where)}.png",
        facts=facts,
    )
