"""The layouts that users have: which columns name what. A row's layout is recognised by its columns, never guessed."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

SOURCE, TARGETS = "source_image", ("target_image", "edit_image")
INSTRUCTIONS = {"instruction": "original/en", "instruction_cn": "original/cn"}
INVERSE = {"inverse_instruction": "original/en", "inverse_instruction_cn": "original/cn"}


@dataclass(frozen=True)
class Columns:
    """Where a layout keeps the parts of a record. `prompt` is English or Chinese, by what is written in it."""

    source: str
    target: str
    loser: str = ""
    prompt: str = ""


EDITS = Columns(SOURCE, TARGETS[0])
PAIRS = (
    Columns(SOURCE, "chosen_image", "rejected_image"),
    Columns("path_src", "path1", "path2", "prompt"),
    Columns("ref_img_path", "img_path_win", "img_path_lose", "prompt"),
)

LAYOUTS: tuple[tuple[str, frozenset[str], str], ...] = tuple(
    (name, frozenset(columns.split()), polarity)
    for name, columns, polarity in [
        ("preference pairs", "chosen_image rejected_image", "a winner and a loser each, for DPO"),
        ("LongCat's preference pairs", "img_path_win img_path_lose", "a winner and a loser each, for DPO"),
        ("EditReward's preference pairs", "path_src path1 path2", "`path1` is preferred to `path2`, for DPO"),
        ("LongCat", "img_path prompt", "`img_path` is the target there, `ref_img_path` the source"),
        ("Edit-R1", "image prompt requirement", "`image` is the source there, and there is no target"),
        ("DiffSynth", "image prompt edit_image", "`image` is the target there, `edit_image` the source"),
        ("DiffSynth or Edit-R1", "image prompt", "`image` is the target in the one and the source in the other"),
        ("musubi", "image_path caption", "`image_path` is the target there, `control_path` the source"),
        ("ImgEdit", "input_images output_images", "`input_images` are the sources, `output_images` the targets"),
        ("OmniEdit", "src_img edited_img", "`src_img` is the source, `edited_img` the target"),
        ("UnicEdit", "src_image edit_image", "`src_image` is the source, `edit_image` the target"),
        (
            "Pico-Banana",
            "local_input_image output_image",
            "`local_input_image` is the source, `output_image` the target",
        ),
        ("MagicBrush", "source_img target_img", "`source_img` is the source, `target_img` the target"),
    ]
)


class Refuse(Exception):  # noqa: N818, it carries a refusal, it is no fault
    """A row that cannot be used: its field, the category for counting, and a line for the person who mends it."""

    def __init__(self, field: str, reason: str, detail: str) -> None:
        self.args = (field, reason, detail)


def columns_of(row: dict[str, Any]) -> Columns:
    """The columns of the row's layout, or a refusal. Which image is the target is never guessed."""
    targets = [name for name in TARGETS if name in row]
    pairs = [pair for pair in PAIRS if {pair.source, pair.target, pair.loser} <= row.keys()]
    targets += [pair.target for pair in pairs]
    if len(targets) > 1 and (SOURCE in row or pairs):
        raise Refuse(targets[0], "several targets", f"{' and '.join(targets)} both name a target; keep one")
    if pairs and any(name in row for name in ([pairs[0].prompt] if pairs[0].prompt else INSTRUCTIONS)):
        return pairs[0]
    if SOURCE in row and targets and not pairs and any(name in row for name in INSTRUCTIONS):
        return Columns(SOURCE, targets[0])
    for layout, columns, polarity in LAYOUTS:
        if columns <= row.keys():
            wanted = next((_pair(pair) for pair in PAIRS if {pair.target, pair.loser} <= columns), _expected())
            raise Refuse("columns", "wrong columns", f"this looks like {layout} ({polarity}), expected {wanted}")
    there = {SOURCE: SOURCE in row, TARGETS[0]: bool(targets), "instruction": any(name in row for name in INSTRUCTIONS)}
    missing = next(name for name, present in there.items() if not present)
    near = get_close_matches(missing, row.keys() - {SOURCE, *TARGETS}, 1, 0.75)
    hint = f"; is {near[0]!r} meant?" if near else "; write null for text-to-image" if missing == SOURCE else ""
    raise Refuse(missing, "wrong columns", f"no {missing}{hint} (expected {_expected()})")


def _expected() -> str:
    return f"{SOURCE}, {' or '.join(TARGETS)}, {' and/or '.join(INSTRUCTIONS)}"


def _pair(pair: Columns) -> str:
    return ", ".join([pair.source, pair.target, pair.loser, pair.prompt or " and/or ".join(INSTRUCTIONS)])
