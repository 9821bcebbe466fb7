"""Which base weights were trained over: carried in every checkpoint, and compared wherever one is read.

The facts are the base's name and folder, its revision where it came from the hub, its pipeline class, `zero_cond_t`,
and a fingerprint of each component: its config and a sample of its weights. Two bases are the same when class,
`zero_cond_t` and fingerprints agree, whatever they are called. Checkpoints of earlier versions carry none of this; for
them the run's own record (run.json) is asked.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from lightning.pytorch.utilities import rank_zero_warn

from .errors import UserError
from .models.family import BUILT_IN, Base, open_base
from .store import read_record

KEY = "base"  # in a checkpoint
START = "start"  # in a run's folder: the base that was made for it from other weights
PARTS = ("transformer", "vae", "text_encoder")
COMPARED = ("class", "zero_cond_t", *PARTS)
RESUMING = "set stage.backbone.name={name} to go on, or begin a new run with run.start_from"
PUT_BACK = "put the model back that was trained over"
_COMMIT = re.compile(r"[0-9a-f]{40}")

Facts = Mapping[str, Any]


def facts_of(base: Base) -> dict[str, Any]:
    """Return what a checkpoint keeps of the base that it is trained over: plain values by name."""
    folder = base.folder
    from_hub = folder.parent.name == "snapshots" and _COMMIT.fullmatch(folder.name)
    return {
        "name": base.name,
        "folder": str(folder),
        "revision": folder.name if from_hub else None,
        "class": base.variant.value,
        "zero_cond_t": base.zero_cond_t,
        **{part: base.fingerprint(part) for part in PARTS},
    }


def refuse_other_base(saved: Facts | None, base: Base, where: Path | str, remedy: str = RESUMING) -> None:
    """Refuse to read a checkpoint over another base than that which it was trained over.

    Args:
        saved: the facts in the checkpoint. Where only a name is known, another name is worth a warning.
        base: the base that is to be used.
        where: the checkpoint, for the message.
        remedy: what to do; `{name}` stands for the name of the base that is wanted.

    Raises:
        UserError: pipeline class, `zero_cond_t`, a config or the weights differ.
    """
    if not saved:
        return
    name = str(saved["name"])
    if not _is_known(saved):
        if name != base.name:
            rank_zero_warn(f"{where}: trained over {name}, which is not there to be compared with {base.name}")
        return
    if differing := differences(saved, facts_of(base)):
        trained = f"{name} at {saved['revision'][:12]}" if saved["revision"] else name
        another = f"{base.name} is another model ({', '.join(differing)})"
        raise UserError(f"{where}: trained over {trained}, and {another}; {remedy.format(name=name)}")


def differences(saved: Facts | None, other: Facts | None) -> list[str]:
    """Return in words how two bases differ; nothing where one of them is not known."""
    if not _is_known(saved) or not _is_known(other):
        return []
    return [_difference(fact, saved[fact], other[fact]) for fact in COMPARED if saved[fact] != other[fact]]


def recorded(checkpoint: Path) -> dict[str, Any] | None:
    """Return the facts about the base of a checkpoint that carries none: of the base that its run's record names.

    Only the name where that base is not there any more; None where the checkpoint lies in no run.
    """
    run = run_of(checkpoint)
    record = read_record(run)
    if "base" not in record:
        return None
    known = {"name": record["base"], "folder": record.get("base_folder", "")}
    for place in (str(run / START), record.get("base_folder"), record["base"]):
        base = _open_if_there(place, download=False)
        if base is not None:
            return facts_of(base) | known
    return known


def base_of(checkpoint: Path, saved: Facts | None, run: Path | None = None, other: Base | None = None) -> Base:
    """Open the base that a checkpoint was trained over, from whatever folder the command is called.

    Args:
        checkpoint: the checkpoint's path.
        saved: the facts in the checkpoint.
        run: the run whose record is asked as well; that in which the checkpoint lies when None.
        other: taken where nothing names a base that is there.

    Raises:
        UserError: the base is not there any more, or it is another one by now.
    """
    run, facts = (run or run_of(checkpoint)).resolve(), saved or {}
    record = read_record(run)
    name = facts.get("name") or record.get("base")
    if name is None and other is None:
        raise UserError(f"{checkpoint}: says nothing of the base that it was trained over, and lies in no run")

    # The first of the places where it may be that holds the same weights.
    places = [str(run / START), facts.get("folder"), record.get("base_folder"), name]
    there = [base for base in (_open_if_there(place, download=other is None) for place in places) if base is not None]
    there += [other] if other is not None else []
    for base in there:
        if not differences(facts, facts_of(base)):
            return base if base is other else replace(base, name=name)
    if not there:
        raise UserError(f"{checkpoint}: trained over {name}, which is not there any more; {PUT_BACK}")
    refuse_other_base(facts, there[0], checkpoint, PUT_BACK)
    return there[0]


def folder_of(run: Path, name: str) -> Path | None:
    """Return the folder that `name` meant when a run began; None where it is gone, or the run has another base."""
    record = read_record(run)
    folder = Path(record.get("base_folder", ""))
    same = record.get("base") == name and name not in BUILT_IN
    return folder if same and (folder / "model_index.json").is_file() else None


def run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint lies in, RUN/checkpoints/NAME."""
    return Path(checkpoint).resolve().parent.parent


def _open_if_there(place: str | None, download: bool) -> Base | None:
    """Open a folder, a built-in base or, with `download`, a hub id; None where there is none of that name."""
    if not place:
        return None
    folder = Path(place).expanduser()
    may_be_hub_id = not folder.is_absolute() and folder.parts[0] not in (".", "..") and place.count("/") == 1
    if place in BUILT_IN or (folder / "model_index.json").is_file() or (download and may_be_hub_id):
        return open_base(place)
    return None


def _is_known(facts: Facts | None) -> TypeGuard[Facts]:
    """Return whether facts say more than a name."""
    return facts is not None and all(fact in facts for fact in COMPARED)


def _difference(fact: str, saved: Any, own: Any) -> str:
    """Return in words how two bases differ in one fact."""
    return f"its {fact} differs" if fact in PARTS else f"its {fact} is {own}, not {saved}"
