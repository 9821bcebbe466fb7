"""The layouts that users have: the columns that each thing of a record stands in.

A row's layout is recognised by its columns, never guessed. A text whose language its column does not say is Chinese
when it holds a Chinese character.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import lru_cache
from typing import Any

from firered_lit.errors import UserError

from .refusals import Refuse

SOURCE, TARGETS = "source_image", ("target_image", "edit_image")
INSTRUCTIONS = {"instruction": "original/en", "instruction_cn": "original/cn"}
KINDS = {
    "structured": "structured/en",
    "structured_cn": "structured/cn",
    "instructive": "instructive/en",
    "instructive_cn": "instructive/cn",
}
INVERSE = {"inverse_instruction": "original/en", "inverse_instruction_cn": "original/cn"}


@dataclass(frozen=True)
class Columns:
    """The columns in which a layout keeps each thing of a record.

    Args:
        source: Column of the source images. "control_path" also stands for control_path_0, control_path_1, ...
        target: Column of the target; "" for prompts of reinforcement learning, which have none.
        loser: Column of a preference pair's loser, whose winner is the target; "" where there are no pairs.
        texts: Key by column: "kind/language", or "kind" where the writing shows the language.
        name: The layout's name, for `layout=`.
        polarity: Words that say which column is the source and which the target, for messages.
        wanted: Columns that a row must have besides source, target and one text.
        other: Columns that a row must not have, because they are another layout's.
        task: Column of the task.
        group: Column whose equal values are held out together; "" for those of one source image.
        mask: Column of the mask.
        id: Column of the id.
        listed: The column, target or loser, that is a list: each of its images makes a record of its own.
        scores: Columns of the scores that judges gave the winner and the loser; a tie is no preference.
        inverse: Key by column, as in `texts`, of instructions for the edit back.
        more: Columns of further sources, in order.
        named: The user named the columns one by one: a row must have each of them.
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
    listed: str = ""
    scores: tuple[str, str] = ("", "")
    inverse: Mapping[str, str] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    named: bool = False

    @property
    def images(self) -> tuple[str, ...]:
        """Columns of the sources, the target and the loser, as far as the layout has them."""
        return tuple(name for name in (self.source, *self.more, self.target, self.loser) if name)

    @property
    def edited(self) -> tuple[str, ...]:
        """Columns of the target and the loser, as far as the layout has them."""
        return tuple(name for name in (self.target, self.loser) if name)

    def matches(self, row: Collection[str]) -> bool:
        """Return whether a row with these columns is of this layout."""
        return self.share(row) == 1 and not any(name in row for name in self.other)

    def matches_without_source(self, row: Collection[str]) -> bool:
        """Return whether a row has the columns that it needs where its layout is named: it may lack the source."""
        needed = self.edited or self.images
        return self._has_text(row) and all(name in row for name in needed)

    def share(self, row: Collection[str]) -> float:
        """Return the share, 0 to 1, of the layout's columns that a row has."""
        present = [name in row or f"{name}_0" in row for name in (*self.images, *self.wanted)]
        present.append(self._has_text(row))
        return sum(present) / len(present)

    def _has_text(self, row: Collection[str]) -> bool:
        return any(name in row for name in self.texts)

    def expected(self) -> str:
        """Return the columns that a row should have, for messages."""
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
    Columns(
        "control", "target", "", {"caption": "original"}, "ai-toolkit",
        "the pictures of folder `target` are the targets, those of `control` their sources",
    ),
    Columns(
        "ref_img_path", "img_path", "", PROMPT, "longcat", "`img_path` is the target there, `ref_img_path` the source"
    ),
    Columns(
        "input_images", "output_images", "", PROMPT, "imgedit",
        "`input_images` are the sources, each of `output_images` a target", listed="output_images",
    ),
    Columns(
        "input_images", "output_image", "", {"instruction": "original"}, "omnigen2",
        "`input_images` are the sources, `output_image` the target", task="task_type",
    ),
    Columns(
        "input_image", "edited_image", "", {"edit_prompt": "original"}, "instruct-pix2pix",
        "`input_image` is the source, `edited_image` the target",
    ),
    Columns(
        "input_image", "output_image", "", {"edit": "original"}, "hq-edit",
        "`input_image` is the source, `output_image` the target", inverse={"inverse_edit": "original"},
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
# Columns that hold an image, or a list of them, in some layout.
IMAGES = frozenset(name for columns in LAYOUTS for name in (*columns.images, columns.mask))
SCORES = frozenset(name for columns in LAYOUTS for name in columns.scores if name)
NUMBERED = re.compile(r"(.+)_\d+")
SOURCES = "source"
COLUMNS = (SOURCES, "target", "loser", "instruction", "instruction_cn", "task", "id", "mask")  # that users may name
SHOWN = 8  # columns that a refusal lists
TEXTS = ("caption", "prompt", "text", "edit_prompt")  # usual names of an instruction
NAMES = tuple(dict.fromkeys(columns.name for columns in LAYOUTS))


def names_image(column: str, others: Collection[str] = ()) -> bool:
    """Return whether a column of this name is an image in some layout, or is one of `others`."""
    numbered = NUMBERED.fullmatch(column)
    names = (column,) if numbered is None else (column, numbered[1])
    return any(name in IMAGES or name in others for name in names)


def named(layout: str) -> tuple[Columns, ...]:
    """Return the layouts of a name, several where a column may have two names.

    Raises:
        UserError: No layout has this name.
    """
    layouts = tuple(columns for columns in LAYOUTS if columns.name == layout)
    if not layouts:
        near = get_close_matches(layout, NAMES, 1)
        hint = f"is {near[0]} meant? " if near else ""
        raise UserError(f"layout={layout}: {hint}one of {', '.join(NAMES)}")
    return layouts


def renamed(layout: str, names: Mapping[str, str | Sequence[str]]) -> tuple[Columns, ...]:
    """Return a layout with columns that the user names.

    Args:
        layout: Its name; the layout of this project when empty.
        names: The user's column by each name of COLUMNS; for "source" also a list of columns, in the order in which
            the instruction counts them.

    Returns:
        The layout in each way that it may be: where no instruction is named, with each of the usual names of one.

    Raises:
        UserError: A column is no text, or is for a name that is not in COLUMNS.
    """
    for name, column in names.items():
        if name not in COLUMNS:
            near = get_close_matches(name, COLUMNS, 1)
            hint = f"is {near[0]} meant? " if near else ""
            raise UserError(f"columns.{name}={column}: {hint}one of {', '.join(COLUMNS)}")
        listed: list[Any] = [column]
        if name == SOURCES and isinstance(column, list | tuple):
            listed = list(column)
        if not listed or not all(isinstance(text, str) and text for text in listed):
            raise UserError(f"columns.{name}={column}: expected the name of a column")

    # The columns that change.
    changes: dict[str, Any] = {}
    for name in ("target", "loser", "task", "id", "mask"):
        if name in names:
            changes[name] = names[name]
    if SOURCES in names:
        sources = [names[SOURCES]] if isinstance(names[SOURCES], str) else list(names[SOURCES])
        changes["source"] = sources[0]
        changes["more"] = tuple(sources[1:])

    # Each way once: the layout of this project has two names for the target.
    ways: dict[Any, Columns] = {}
    for columns in named(layout) if layout else (EDITS, CODED):
        for texts in _texts(columns, names, bool(layout)):
            changed = replace(columns, **changes, texts=texts, name=layout or "columns", named=True)
            changed = replace(changed, polarity=_polarity(changed))
            ways[changed.images, tuple(texts)] = changed
    return tuple(ways.values())


def _texts(columns: Columns, names: Mapping[str, Any], is_layout: bool) -> list[Mapping[str, str]]:
    """Return the columns in which instructions may be: those that are named, else a layout's, else the usual ones."""
    english, chinese = names.get("instruction"), names.get("instruction_cn")
    if english and chinese:
        return [{english: "original/en", chinese: "original/cn"}]
    if english:
        return [{english: "original"}]
    if chinese:
        return [{chinese: "original/cn"}]
    if is_layout:
        return [columns.texts]
    return [columns.texts, *({name: "original"} for name in TEXTS)]


def _polarity(columns: Columns) -> str:
    """Return the words that say which of the user's columns is the source and which the target."""
    sources = " and ".join(f"`{name}`" for name in (columns.source, *columns.more))
    sources += " are the sources" if columns.more else " is the source"
    if not columns.target:
        return f"{sources}, there is no target"
    loser = f", `{columns.loser}` the loser" if columns.loser else ""
    return f"{sources}, `{columns.target}` the target{loser}"


def own_names(row: Mapping[str, Any], columns: Columns) -> dict[str, Any]:
    """Return a row whose columns the user named with the names of a layout, so that it is understood by itself."""
    if not columns.named:
        return dict(row)

    # The sources: in numbered columns, in several, or in one.
    numbered = [name for name in row if NUMBERED.fullmatch(name) and name.rpartition("_")[0] == columns.source]
    several = numbered or columns.more
    listed = numbered or [columns.source, *columns.more]
    sources = [row[name] for name in listed if row.get(name) is not None]
    renamed_row: dict[str, Any] = {SOURCE: sources if several else next(iter(sources), None)}

    # The other columns, by their names in the layout.
    names = {columns.target: TARGETS[0], columns.task: "task", columns.id: "id", columns.mask: "mask"}
    if columns.loser:
        names[columns.target] = PAIRS[0].target
        names[columns.loser] = PAIRS[0].loser
    for name, key in columns.texts.items():
        names[name] = "instruction_cn" if key.endswith("/cn") else "instruction"
    source_columns = {columns.source, *columns.more, *numbered}
    for name, value in row.items():
        if name not in source_columns:
            renamed_row[names.get(name, name)] = value
    return renamed_row


def columns_of(row: Mapping[str, Any], layout: str | tuple[Columns, ...] = "") -> Columns:
    """Return the columns of the row's layout. Which image is the target is never guessed.

    Args:
        row: Values by column; only the columns' names are looked at.
        layout: The layout's name, when the columns do not tell; then a row may lack its source, and is text-to-image.
            Or the layouts that `renamed` returns.

    Raises:
        Refuse: No layout has these columns, or several have.
    """
    if isinstance(layout, str):
        return _columns_of(tuple(row), layout)
    names = tuple(row)
    fitting = [columns for columns in layout if columns.matches(names)]
    # Beside an instruction by the name that this project uses, other texts are none.
    own = [columns for columns in fitting if columns.texts is INSTRUCTIONS]
    return _the_one(names, own or fitting, layout)


@lru_cache(1024)
def _columns_of(row: tuple[str, ...], layout: str) -> Columns:
    if layout:
        meant = named(layout)
        return _the_one(row, [columns for columns in meant if columns.matches_without_source(row)], meant)
    return _the_one(row, [columns for columns in LAYOUTS if columns.matches(row)], ())


def _the_one(row: tuple[str, ...], fitting: Sequence[Columns], meant: Sequence[Columns]) -> Columns:
    """Return the one layout that fits a row.

    Args:
        row: Names of the row's columns.
        fitting: Layouts that fit it.
        meant: Layouts that the user named; none where the columns tell.

    Raises:
        Refuse: None fits, or several do.
    """
    if not fitting:
        raise _unknown(row, meant)
    if len(fitting) == 1:
        return fitting[0]

    # Several fit.
    targets = [columns.target or columns.source for columns in fitting]
    if len({columns.images for columns in fitting}) == 1:
        texts = [name for columns in fitting for name in columns.texts if name in row]
        detail = f"{' and '.join(texts)} may each be the instruction; say columns.instruction={texts[0]}"
        raise Refuse(texts[0], "wrong columns", detail)
    if len({columns.name for columns in fitting}) == 1:
        detail = f"{' and '.join(targets)} both name a target; keep one"
    else:
        detail = f"{_described(fitting, ' and ')} both fit the columns; keep one layout's, or say {_setting(fitting)}"
    raise Refuse(targets[0], "several targets", detail)


def _unknown(row: tuple[str, ...], meant: Sequence[Columns]) -> Refuse:
    """Return the refusal of a row that has no layout's columns; it names the layout that it is nearest to."""
    if meant and meant[0].named:
        return _unnamed(row, meant[0])
    if meant:
        return Refuse("columns", "wrong columns", f"not of layout={meant[0].name}: expected {meant[0].expected()}")
    shares = [columns.share(row) for columns in LAYOUTS]
    largest = max(shares)
    nearest = [columns for columns, share in zip(LAYOUTS, shares) if share == largest]
    if largest < 0.5 or EDITS in nearest or CODED in nearest:
        return _unlike_firered(row)

    # One layout is nearest, or several are as near.
    if len(nearest) > 1:
        advice = f"say {_setting(nearest)}"
    else:
        advice = f"expected {nearest[0].expected()}"
        if nearest[0].matches_without_source(row):
            advice += f"; write null for text-to-image, or say {_setting(nearest)}"
    return Refuse("columns", "wrong columns", f"this looks like {_described(nearest, ' or ')}; {advice}")


def _unnamed(row: tuple[str, ...], meant: Columns) -> Refuse:
    """Return the refusal of a row that lacks a column that the user named, or any text."""
    absent = [name for name in meant.images if name not in row and f"{name}_0" not in row]
    if not absent and meant.texts is INSTRUCTIONS:
        texts = ", ".join([*INSTRUCTIONS, *TEXTS])
        detail = f"none of {texts} is there; name the instruction, columns.instruction=NAME (the row has {_shown(row)})"
        return Refuse("columns", "wrong columns", detail)
    absent += meant.texts
    near = get_close_matches(absent[0], row, 1)
    hint = f"is {near[0]!r} meant? " if near else ""
    return Refuse("columns", "wrong columns", f"no column {absent[0]!r}; {hint}the row has {_shown(row)}")


def _shown(row: tuple[str, ...]) -> str:
    """Return the names of a row's columns, the first ones of many."""
    return ", ".join(row[:SHOWN]) + (", ..." if len(row) > SHOWN else "")


def _unlike_firered(row: tuple[str, ...]) -> Refuse:
    """Return the refusal of a row by the first of FireRed's columns that it lacks."""
    if SOURCE not in row:
        missing = SOURCE
    elif not any(name in row for name in TARGETS):
        missing = TARGETS[0]
    else:
        missing = "instruction"

    # A column that may be a slip for it.
    near = get_close_matches(missing, set(row) - {SOURCE, *TARGETS}, 1, 0.75)
    hint = ""
    if near:
        hint = f"; is {near[0]!r} meant?"
    elif missing == SOURCE:
        hint = "; write null for text-to-image"
    expected = f"{SOURCE}, {' or '.join(TARGETS)}, {' and/or '.join(INSTRUCTIONS)}"
    say = "columns.source=, columns.target= and columns.instruction="
    detail = f"no {missing}{hint} (expected {expected}); the row has {_shown(row)}; where these name the same: {say}"
    return Refuse(missing, "wrong columns", detail)


def _described(layouts: Sequence[Columns], word: str) -> str:
    """Return layouts with their polarity, a word between them."""
    return word.join(f"{columns.name} ({columns.polarity})" for columns in layouts)


def _setting(layouts: Sequence[Columns]) -> str:
    """Return the settings that choose one of the layouts."""
    return " or ".join(f"layout={columns.name}" for columns in layouts)
