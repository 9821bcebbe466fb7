"""A user's copy of a published benchmark that a judge scores: its folder, and the judge's prompts."""

from collections.abc import Mapping
from functools import cached_property
from typing import get_args

from firered_lit.errors import UserError
from firered_lit.evaluation.benchmarks import copies
from firered_lit.evaluation.protocols import Item
from firered_lit.places import user_path


class JudgedBenchmark:
    """A benchmark of which a judge is asked everything."""

    def measure(self, item: Item, edited: bytes) -> Mapping[str, float] | None:
        """Return None: a judge is asked."""
        return None


class JudgedCopy(JudgedBenchmark):
    """The folder, the prompts' file and the choices that all copies have.

    Args:
        folder: The copy.
        prompts: The file with the judge's prompts; None: `own_prompts` in the folder.
        version: "published" refuses another version than the published one; "any" warns of it.
        each: Only the first so many items of every category; None for all.

    Raises:
        UserError: There is no such choice of a version.

    Attributes:
        own_prompts: The name of the prompts' file in a folder.
        hint: Where the prompts come from.
    """

    own_prompts = "prompts.json"
    hint = "it lies beside the official scoring script; name it by `prompts` in the recipe's benchmark"

    def __init__(
        self,
        folder: str,
        prompts: str | None = None,
        version: copies.Version = "any",
        each: int | None = None,
    ) -> None:
        if version not in get_args(copies.Version):
            raise UserError(f"version={version}: choose one of {', '.join(get_args(copies.Version))}")
        self.folder = user_path(folder)
        self.prompts_file = self.folder / self.own_prompts if prompts is None else user_path(prompts)
        self.version = version
        self.each = each

    def fingerprint_with(self, *index: bytes) -> str:
        """Return the SHA-256 of the index and, where they are there, of the prompts."""
        return copies.sha256(*index, self._prompts_content if self.prompts_file.is_file() else b"")

    @cached_property
    def _prompts_content(self) -> bytes:
        return copies.read_file(self.prompts_file, self.hint)


class PromptedByTask(JudgedCopy):
    """A copy whose prompts are a JSON object, category -> text."""

    def prompt(self, item: Item) -> str:
        """Return the judge's prompt for an item's category, without the instruction.

        Raises:
            UserError: There is none.
        """
        return copies.text_of(self._prompts, item.category, str(self.prompts_file))

    @cached_property
    def _prompts(self) -> Mapping[str, object]:
        return copies.parse_json(self._prompts_content, str(self.prompts_file))
