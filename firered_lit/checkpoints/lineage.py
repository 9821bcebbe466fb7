"""The base that weights were trained over: carried in every checkpoint, and compared wherever one is read.

The facts are the base's name and folder, its revision where it came from the hub, its pipeline class, `zero_cond_t`,
and a fingerprint of each component: its config and a sample of its weights; the commit of one whose weights were not
downloaded. Two bases are the same when class, `zero_cond_t` and fingerprints agree, whatever they are called.
Checkpoints of earlier versions carry none of this; for them the run's own record (run.json) is asked.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeGuard

from lightning.pytorch.utilities import rank_zero_warn

from ..errors import UserError
from ..models.family import BUILT_IN, Base, open_base
from ..models.hub import parse, snapshot_of
from ..places import user_path
from ..run.store import read_record

KEY = "base"  # in a checkpoint
START = "start"  # in a run's folder: the base that was made for it from other weights
PARTS = ("transformer", "vae", "text_encoder")
COMPARED = ("class", "zero_cond_t", *PARTS)
RESUMING = "set stage.backbone.name={name} to go on, or begin a new run with run.start_from"
PUT_BACK = "put the model back that was trained over"
REVISION = "revision"  # in checkpoints and records: the commit of a base that came from the hub

Facts = Mapping[str, Any]


def facts_of(base: Base) -> dict[str, Any]:
    """Return what a checkpoint keeps of the base that it is trained over: plain values by name."""
    return {
        "name": base.name,
        "folder": str(base.folder),
        REVISION: revision_of(base),
        "class": base.variant.value,
        "zero_cond_t": base.zero_cond_t,
        **{part: base.identity(part) for part in PARTS},
    }


def revision_of(base: Base) -> str | None:
    """Return the commit of a base that came from the hub; None of any other."""
    snapshot = snapshot_of(base.folder)
    return None if snapshot is None else snapshot.commit


def at_revision(name: str, revision: str | None) -> str | None:
    """Return `owner/name@commit` for the name that a run's base had and its commit; None where it had none."""
    found = parse(name)
    if found is None or not revision:
        return None
    return f"{found[0]}@{revision}"


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
    differing = differences(saved, facts_of(base))
    if differing:
        trained = f"{name} at {saved['revision'][:12]}" if saved["revision"] else name
        another = f"{base.name} is another model ({', '.join(differing)})"
        raise UserError(f"{where}: trained over {trained}, and {another}; {remedy.format(name=name)}")


def differences(saved: Facts | None, other: Facts | None) -> list[str]:
    """Return in words how two bases differ; nothing where one of them is not known."""
    if not _is_known(saved) or not _is_known(other):
        return []
    same_commit = saved.get(REVISION) is not None and saved.get(REVISION) == other.get(REVISION)
    differing = []
    for fact in COMPARED:
        before, after = saved[fact], other[fact]
        if before == after:
            continue
        if fact in PARTS:
            # A hash says nothing against a commit, nor do two hashes of one commit.
            comparable = _is_commit(before) == _is_commit(after)
            if same_commit or not comparable:
                continue
        differing.append(_difference(fact, before, after))
    return differing


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
    run = (run or run_of(checkpoint)).resolve()
    facts = saved or {}
    record = read_record(run)
    name = facts.get("name") or record.get("base")
    if name is None and other is None:
        raise UserError(f"{checkpoint}: says nothing of the base that it was trained over, and lies in no run")

    # The first of the places where it may be that holds the same weights.
    commit = at_revision(str(name), facts.get(REVISION) or record.get(REVISION))
    places = [str(run / START), facts.get("folder"), record.get("base_folder"), commit, name]
    first = None
    for place in places:
        base = _open_if_there(place, download=other is None)
        if base is not None and not differences(facts, facts_of(base)):
            return replace(base, name=str(name))
        first = first or base
    if other is not None and not differences(facts, facts_of(other)):
        return other

    # There is none.
    first = first or other
    if first is None:
        raise UserError(f"{checkpoint}: trained over {name}, which is not there any more; {PUT_BACK}")
    refuse_other_base(facts, first, checkpoint, PUT_BACK)
    return first


def place_of(run: Path, name: str) -> str | None:
    """Return the folder, or the commit on the hub, that `name` meant when a run began.

    None where neither is known any more, or the run has another base.
    """
    record = read_record(run)
    if record.get("base") != name or name in BUILT_IN:
        return None
    folder = Path(record.get("base_folder", ""))
    if (folder / "model_index.json").is_file():
        return str(folder)
    return at_revision(name, record.get(REVISION))


def run_of(checkpoint: Path) -> Path:
    """Return the folder of the run that a checkpoint lies in, RUN/checkpoints/NAME."""
    return Path(checkpoint).resolve().parent.parent


def _open_if_there(place: str | None, download: bool) -> Base | None:
    """Open a folder, a built-in base or, with `download`, a hub id; None where there is none of that name."""
    if not place:
        return None
    folder = user_path(place)
    on_hub = not folder.is_dir() and parse(place) is not None
    is_here = place in BUILT_IN or (folder / "model_index.json").is_file()
    if is_here or (download and on_hub):
        return open_base(place)
    return None


def _is_known(facts: Facts | None) -> TypeGuard[Facts]:
    """Return whether facts say more than a name."""
    return facts is not None and all(fact in facts for fact in COMPARED)


def _is_commit(identity: str) -> bool:
    """Return whether what is known of a component is its commit, `owner/name@commit`, and not its fingerprint."""
    return "@" in identity


def _difference(fact: str, saved: Any, own: Any) -> str:
    """Return in words how two bases differ in one fact."""
    if fact in PARTS:
        return f"its {fact} differs"
    return f"its {fact} is {own}, not {saved}"
