"""Several edits at once, and the same taken apart again."""

from random import Random

from firered_lit.curation.rows import Pixels

from .edit import MadeEdit, Mask, changed
from .phrases import SEVERAL
from .templates import FORWARD, LOCAL, WHOLE

_TRIES = 4  # draws of a step, before the edit goes without it


def compound(picture: Pixels, draw: Random) -> MadeEdit | None:
    """Make two or three edits one after the other: at most one of the whole picture, then some that do not overlap."""
    names = [draw.choice(WHOLE)] if draw.random() < 0.6 else []
    names += draw.sample(LOCAL, draw.choice((1, 2)) if names else 2)
    steps: list[MadeEdit] = []
    taken: list[Mask] = []
    for name in names:
        step = _step(name, steps[-1].target if steps else picture, taken, draw)
        if step is None:
            continue
        steps.append(step)
        if name in LOCAL:
            taken.append(step.mask)
    if len(steps) < 2:
        return None
    target = steps[-1].target
    mask = changed(picture, target)
    for step in steps:
        mask = mask | step.mask
    return MadeEdit(SEVERAL, (picture,), target, mask, steps=tuple(steps))


def split(edit: MadeEdit) -> tuple[MadeEdit, ...]:
    """Return the atomic edits that a compound one is made of; of an atomic one, nothing."""
    return edit.steps


def _step(name: str, picture: Pixels, taken: list[Mask], draw: Random) -> MadeEdit | None:
    """Return a step that leaves alone what the local ones before it did."""
    for _ in range(_TRIES):
        step = FORWARD[name](picture, draw)
        if step is None:
            continue
        if name not in LOCAL or not any((step.mask & other).any() for other in taken):
            return step
    return None
