"""The layouts that users have: which columns name what. A row's layout is recognised by its columns, never guessed.

A text whose language its column does not say is Chinese when Chinese is written in it.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from firered_lit.errors import UserError

from .refusals import Refuse

SOURCE, TARGETS = "source_image", ("target_image", "edit_image")
LANGUAGES = (("", "en"), ("_cn", "cn"))  # ending of a column's name, what it is written in
INSTRUCTIONS = {"instruction": "original/en", "instruction_cn": "original/cn"}
KINDS = {f"{kind}{end}": f"{kind}/{language}" for kind in ("structured", "instructive") for end, language in LANGUAGES}
INVERSE = {"inverse_instruction": "original/en", "inverse_instruction_cn": "original/cn"}


@dataclass(frozen=True)
class Columns:
    """The columns in which a layout keeps each thing of a record.

    source, target: columns. `source` "control_path" also stands for control_path_0, control_path_1, ... An empty
    target: prompts for reinforcement learning have none. texts: column -> "kind/language", or "kind" where the writing
    says the language. wanted: columns that must be there besides source, target and one text. group: whose rows are
    held out together, when not those of one source image.
    """

    source: str
    target: str
    loser: str = ""
    texts: Mapping[str, str] = field(default_factory=lambda: INSTRUCTIONS)
    name: str = "firered"
    polarity: str = "`source_image` is the source, `target_image` or `edit_image` the target"
    wanted: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    task: str = "task"
    group: str = ""
    mask: str = "mask"
    id: str = "id"
    listed: str = ""  # the column, target or loser, that is a list: each of its images makes a record of its own
    scores: tuple[str, str] = ("", "")  # what judges gave the winner and the loser; a tie is no preference
    inverse: Mapping[str, str] = field(default_factory=dict)

    @property
    def images(self) -> tuple[str, ...]:
        return tuple(name for name in (self.source, self.target, self.loser) if name)

    def there(self, row: Collection[str], sourceless: bool = False) -> bool:
        """Return whether a row has the layout's columns; `sourceless`: by name, when the source may be left out."""
        if not any(name in row for name in self.texts):
            return False
        if sourceless:
            return all(name in row for name in self.images[1:] or self.images)
        return self.share(row) == 1 and not any(name in row for name in self.other)

    def share(self, row: Collection[str]) -> float:
        """Return the share of the layout's columns that are there."""
        there = [name in row or f"{name}_0" in row for name in (*self.images, *self.wanted)]
        there.append(any(name in row for name in self.texts))
        return sum(there) / len(there)

    def expected(self) -> str:
        return ", ".join([*self.images, *self.wanted, " and/or ".join(self.texts)])


PROMPT = {"prompt": "original"}
PICO = {"text": "original", "summarized_text": "instructive"}
EDITS = Columns(SOURCE, TARGETS[0], inverse=INVERSE)
CODED = Columns(SOURCE, TARGETS[1], inverse=INVERSE)
PAIRS = (
    Columns(
        SOURCE, "chosen_image", "rejected_image", INSTRUCTIONS, "preferences",
        "`chosen_image` is the winner, `rejected_image` the loser, for DPO",
    ),
    Columns(
        "path_src", "path1", "path2", PROMPT, "editreward", "`path1` is preferred to `path2`, for DPO",
        scores=("model1_overall_score", "model2_overall_score"),
    ),
    Columns(
        "ref_img_path", "img_path_win", "img_path_lose", PROMPT, "longcat-dpo",
        "`img_path_win` is the winner, `img_path_lose` the loser, for DPO",
    ),
    Columns(
        "local_input_image", "output_image", "rejected_images", PICO, "pico-banana-dpo",
        "`output_image` is preferred to each of `rejected_images`, for DPO", task="edit_type", listed="rejected_images",
    ),
)  # fmt: skip
LAYOUTS = (
    EDITS,
    CODED,
    *PAIRS,
    Columns("edit_image", "image", "", PROMPT, "diffsynth", "`image` is the target there, `edit_image` the source"),
    Columns("image", "", "", PROMPT, "edit-r1", "`image` is the source there, there is no target", ("requirement",)),
    Columns(
        "control_path", "image_path", "", {"caption": "original"}, "musubi",
        "`image_path` is the target there, `control_path` the source",
    ),
    Columns("control", "target", "", {"caption": "original"}, "ai-toolkit", "folders `target` and `control`"),
    Columns(
        "ref_img_path", "img_path", "", PROMPT, "longcat", "`img_path` is the target there, `ref_img_path` the source"
    ),
    Columns(
        "input_images", "output_images", "", PROMPT, "imgedit",
        "`input_images` are the sources, each of `output_images` a target", listed="output_images",
    ),
    Columns(
        "src_img", "edited_img", "", {"edited_prompt_list": "original"}, "omniedit",
        "`src_img` is the source, `edited_img` the target", id="omni_edit_id",
    ),
    Columns(
        "src_image", "edit_image", "", {"prompt_en": "original/en", "prompt_cn": "original/cn"}, "unicedit",
        "`src_image` is the source, `edit_image` the target", task="edit_task",
    ),
    Columns(
        "local_input_image", "output_image", "", PICO, "pico-banana",
        "`local_input_image` is the source, `output_image` the target", task="edit_type", other=("rejected_images",),
    ),
    Columns(
        "source_img", "target_img", "", {"instruction": "original"}, "magicbrush",
        "`source_img` is the source, `target_img` the target", group="img_id", mask="mask_img",
    ),
)  # fmt: skip
IMAGES = frozenset(
    name for columns in LAYOUTS for name in (*columns.images, columns.mask)
)  # columns that hold an image, or a list of them, in some layout
SCORES = frozenset(name for columns in LAYOUTS for name in columns.scores if name)
NUMBERED = re.compile(r"(.+)_\d+")
NAMES = tuple(dict.fromkeys(columns.name for columns in LAYOUTS))


def names_image(column: str) -> bool:
    """Return whether a column of this name is an image in some layout."""
    numbered = NUMBERED.fullmatch(column)
    return column in IMAGES or (numbered is not None and numbered[1] in IMAGES)


def named(layout: str) -> tuple[Columns, ...]:
    """Return the layouts of a name, more than one where a column has two names. UserError when there is none."""
    found = tuple(columns for columns in LAYOUTS if columns.name == layout)
    if not found:
        near = get_close_matches(layout, NAMES, 1)
        hint = f"is {near[0]} meant? " if near else ""
        raise UserError(f"layout={layout}: {hint}one of {', '.join(NAMES)}")
    return found


def columns_of(row: Mapping[str, Any], layout: str = "") -> Columns:
    """Return the columns of the row's layout. Which image is the target is never guessed.

    Args:
        row: By the names of its columns.
        layout: Its name, when the columns do not tell; then a row may lack its source, and is text-to-image.

    Raises:
        Refuse: No layout has these columns, or several have.
    """
    return _columns_of(tuple(row), layout)


@lru_cache(1024)
def _columns_of(row: tuple[str, ...], layout: str) -> Columns:
    meant = named(layout) if layout else ()
    if layout:
        found = [columns for columns in meant if columns.there(row, sourceless=True)]
    else:
        found = [columns for columns in LAYOUTS if columns.there(row)]
    if not found:
        raise _unknown(row, meant)
    if len(found) == 1:
        return found[0]

    # Several fit.
    targets = [columns.target or columns.source for columns in found]
    if len({columns.name for columns in found}) == 1:
        detail = f"{' and '.join(targets)} both name a target; keep one"
    else:
        detail = f"{_described(found, ' and ')} both fit the columns; keep one layout's, or say {_say(found)}"
    raise Refuse(targets[0], "several targets", detail)


def _unknown(row: tuple[str, ...], meant: tuple[Columns, ...]) -> Refuse:
    """Return the refusal of a row that has no layout's columns; it names the layout that it is nearest to."""
    if meant:
        return Refuse("columns", "wrong columns", f"not of layout={meant[0].name}: expected {meant[0].expected()}")
    most = max(columns.share(row) for columns in LAYOUTS)
    best = [columns for columns in LAYOUTS if columns.share(row) == most]
    if most < 0.5 or EDITS in best or CODED in best:
        return _unlike(row)
    if len(best) > 1:
        ask = f"say {_say(best)}"
    else:
        ask = f"expected {best[0].expected()}"
        if best[0].there(row, sourceless=True):
            ask += f"; write null for text-to-image, or say {_say(best)}"
    return Refuse("columns", "wrong columns", f"this looks like {_described(best, ' or ')}; {ask}")


def _unlike(row: tuple[str, ...]) -> Refuse:
    """Return the refusal of a row by the first of FireRed's columns that it lacks."""
    wanted = {SOURCE: (SOURCE,), TARGETS[0]: TARGETS, "instruction": tuple(INSTRUCTIONS)}
    missing = next(name for name, names in wanted.items() if not any(name in row for name in names))
    near = get_close_matches(missing, set(row) - {SOURCE, *TARGETS}, 1, 0.75)
    hint = ""
    if near:
        hint = f"; is {near[0]!r} meant?"
    elif missing == SOURCE:
        hint = "; write null for text-to-image"
    expected = f"{SOURCE}, {' or '.join(TARGETS)}, {' and/or '.join(INSTRUCTIONS)}"
    detail = f"no {missing}{hint} (expected {expected}, or those of {', '.join(NAMES[1:])})"
    return Refuse(missing, "wrong columns", detail)


def _described(layouts: Sequence[Columns], word: str) -> str:
    return word.join(f"{columns.name} ({columns.polarity})" for columns in layouts)


def _say(layouts: Sequence[Columns]) -> str:
    return " or ".join(f"layout={columns.name}" for columns in layouts)
