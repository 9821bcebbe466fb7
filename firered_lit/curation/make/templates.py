"""All templates, what undoes what, and the task that each belongs to."""

from collections.abc import Callable, Sequence
from random import Random

from firered_lit.curation.rows import Pixels

from . import damage, frames, lettering, recolour, stickers, tone
from .edit import MadeEdit, Template

FORWARD: dict[str, Template] = {
    "brighten": tone.brighten,
    "darken": tone.darken,
    "raise_contrast": tone.raise_contrast,
    "lower_contrast": tone.lower_contrast,
    "saturate": tone.saturate,
    "desaturate": tone.desaturate,
    "warm": tone.warm,
    "cool": tone.cool,
    "drain": tone.drain,
    "recolour": recolour.recolour,
    "blur": damage.blur,
    "grain": damage.grain,
    "compress": damage.compress,
    "shrink": damage.shrink,
    "add_text": lettering.add_text,
    "replace_text": lettering.replace_text,
    "add_sticker": stickers.add_sticker,
    "replace_sticker": stickers.replace_sticker,
    "crop": frames.crop,
}
# Templates of several pictures. What one lays together, the other takes apart, but not the same pictures: no inverses.
TOGETHER: dict[str, Callable[[Sequence[Pixels], Random], MadeEdit | None]] = {
    "compose": frames.compose,
    "extract": frames.extract,
}
# Each undoes the other: source and target change places, and the words are the other's. No one asks for compression
# blocks or for lost detail, so these two are undone and not done.
INVERSES = {
    "brighten": "darken",
    "raise_contrast": "lower_contrast",
    "saturate": "desaturate",
    "warm": "cool",
    "drain": "colourise",
    "recolour": "recolour",
    "blur": "sharpen",
    "grain": "denoise",
    "compress": "decompress",
    "shrink": "upscale",
    "add_text": "remove_text",
    "replace_text": "replace_text",
    "add_sticker": "remove_sticker",
    "replace_sticker": "replace_sticker",
    "crop": "extend",
}
BACK = {back: name for name, back in INVERSES.items() if back not in FORWARD}
UNDONE_ALONE = ("compress", "shrink")

# The benchmark's names of tasks.
CATEGORIES = {
    **dict.fromkeys(("brighten", "darken", "raise_contrast", "lower_contrast"), "adjust"),
    **dict.fromkeys(("saturate", "desaturate", "warm", "cool", "drain", "colourise", "recolour"), "color"),
    **dict.fromkeys(("blur", "sharpen", "grain", "denoise", "decompress", "upscale"), "lowlevel"),
    **dict.fromkeys(("add_text", "remove_text", "replace_text"), "text"),
    "add_sticker": "add",
    "remove_sticker": "remove",
    "replace_sticker": "replace",
    **dict.fromkeys(("crop", "extend"), "viewpoint"),
    "compose": "compose",
    "extract": "extract",
}
TEMPLATES = tuple(CATEGORIES)
TASKS = tuple(dict.fromkeys(CATEGORIES.values()))

# What can be one of several edits at once: first what changes the whole picture, then what is put onto it.
WHOLE = ("brighten", "darken", "raise_contrast", "saturate", "desaturate", "warm", "cool")
LOCAL = ("recolour", "add_text", "add_sticker")


def inverse_of(template: str) -> str | None:
    """Return the name of what undoes a template; None where nothing does."""
    if template in INVERSES:
        return INVERSES[template]
    return next((name for name, back in INVERSES.items() if back == template), None)


def invert(edit: MadeEdit) -> MadeEdit | None:
    """Return the edit from the target back to the source; None where nobody would ask for that.

    Of a compound edit, the steps are undone from the last to the first.
    """
    if edit.steps:
        backs = [invert(step) for step in reversed(edit.steps)]
        steps = tuple(back for back in backs if back is not None)
        if len(steps) < len(backs):
            return None
        return MadeEdit(edit.template, (edit.target,), edit.source, edit.mask, steps=steps)
    template = inverse_of(edit.template)
    if template is None or template in UNDONE_ALONE:
        return None
    if edit.template == "crop":
        return frames.extended(edit)
    if edit.template == "extend":
        return frames.cropped(edit)
    slots = dict(edit.slots)
    if "old" in slots:
        slots["old"], slots["new"] = slots["new"], slots["old"]
    return MadeEdit(template, (edit.target,), edit.source, edit.mask, slots)


def make(template: str, pictures: Sequence[Pixels], draw: Random) -> MadeEdit | None:
    """Make an edit by its name.

    Args:
        template: One of TEMPLATES.
        pictures: The picture; templates of several take the others too.
        draw: All that is chosen.

    Returns:
        The edit; None where the picture does not suit it.
    """
    if template in TOGETHER:
        return TOGETHER[template](pictures, draw)
    forward = FORWARD[BACK.get(template, template)](pictures[0], draw)
    if forward is None or template == forward.template:
        return forward
    return invert(forward)
