"""Checkpoint files: written whole or not at all, read without running code, found by name.

A run keeps them as `RUN/checkpoints/step_00000020.ckpt`, and beside them `best.json`, which names the best one. Of a
sharded training they are folders (see sharded.py).
"""

import pickle
import re
import shutil
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from firered_lit.checkpoints import lineage
from firered_lit.checkpoints.integrity import SealedFile, damage_of_file, is_archive, read_manifest
from firered_lit.errors import UserError, first_line
from firered_lit.files import put_in_place, replacing
from firered_lit.textfiles import read_object

if TYPE_CHECKING:
    from firered_lit.checkpoints.background import Background

FOLDER = "checkpoints"
BEST = "best.json"
_NAME = re.compile(r"step_(\d{8,})\.ckpt")
_PLAIN = {type(None), bool, int, float, complex, str, bytes, bytearray, torch.Size, torch.dtype, torch.device}
_TENSORS = {torch.Tensor, nn.Parameter}
_CONTAINERS = {list, tuple, set, dict, OrderedDict, Counter}


def name_of(step: int) -> str:
    """Return the file name of the checkpoint after `step` optimizer steps."""
    return f"step_{step:08d}.ckpt"


def step_of(path: Path) -> int | None:
    """Return the optimizer step in a checkpoint's file name; None for any other name."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def listed(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, oldest step first. Half-written ones carry another name."""
    steps = {}
    for path in folder.glob("step_*.ckpt"):
        step = step_of(path)
        if step is not None:
            steps[path] = step
    return sorted(steps, key=lambda path: (steps[path], path))


def newest(run_dir: Path | str) -> Path | None:
    """Return the checkpoint of the highest step that is whole; None when there is none."""
    return _last_whole(listed(Path(run_dir) / FOLDER))


def _last_whole(paths: Sequence[Path]) -> Path | None:
    """Return the last one of checkpoints that is whole; None when none is."""
    for path in reversed(paths):
        if incomplete(path) is None:
            return path
    return None


def incomplete(path: Path) -> str | None:
    """Return why a checkpoint cannot be whole; None when it looks so. Reads only a few bytes and the files' sizes."""
    if not path.is_dir():
        return None if is_archive(path) else "not a checkpoint file, or cut short"
    try:
        sizes = read_manifest(path)["files"]
    except ValueError as error:
        return str(error)
    for name, size in sizes.items():
        file = path / name
        if not file.exists() or file.stat().st_size != size:
            return f"{name} is missing or cut short"
    return None


def best(run_dir: Path | str) -> Path | None:
    """Return the checkpoint with the best validation score; None when no score was kept."""
    folder = Path(run_dir) / FOLDER
    if not (folder / BEST).exists():
        return None
    name = read_object(folder / BEST, "name")["name"]
    if not isinstance(name, str) or Path(name).name != name:
        raise UserError(f"{folder / BEST}: damaged: name: expected a file beside it, got {name!r}")
    path = folder / name
    return path if path.exists() else None


def resolve(run_dir: Path | str, resume: str | None) -> Path | None:
    """Return the checkpoint that `run.resume` means: null | "last" | "best" | a path (as given, or inside the run).

    "last" in a run without any is None: a job that was stopped before its first checkpoint starts again from scratch.
    Looks at sizes alone; `sound` reads every byte.

    Raises:
        UserError: there is no such checkpoint, or none of those that are there is whole.
    """
    if resume is None:
        return None
    folder = Path(run_dir) / FOLDER
    if resume == "last":
        return _last(folder)
    choices: list[Path | None] = [Path(resume), Path(run_dir) / resume, folder / resume]
    if resume == "best":
        choices = [best(run_dir)]
    found = next((path for path in choices if path is not None and path.exists()), None)
    if found is None:
        names = ", ".join(path.name for path in listed(folder)) or "none"
        raise UserError(f"run.resume={resume}: no such checkpoint; in {folder} there are: {names}")
    if found.is_dir():
        return newest(found) or found  # of a run, or a sharded checkpoint
    return found


def _last(folder: Path) -> Path | None:
    """Return the newest whole checkpoint, and warn of later ones that are not whole."""
    cut: list[str] = []
    for path in reversed(listed(folder)):
        problem = incomplete(path)
        if problem is None:
            if cut:
                rank_zero_warn(f"{'; '.join(cut)}; {path.name} is taken instead")
            return path
        cut.append(f"{path}: {problem}")
    if cut:
        raise UserError(f"{'; '.join(cut)}; no checkpoint of this run is whole: choose another run.dir")
    return None


def damage(path: Path, rank: int = 0, world: int = 1) -> str | None:
    """Read a checkpoint's bytes and return what is wrong with them; None when they are those that were written.

    Args:
        path: a file or a sharded checkpoint's folder.
        rank, world: each of `world` processes reads its share of a folder.
    """
    problem = incomplete(path)
    if problem:
        return problem
    try:
        if path.is_dir():
            from .sharded import damage_of_folder

            return damage_of_folder(path, rank, world)
        return damage_of_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"


def sound(path: Path, fall_back: bool = False) -> Path:
    """Return the checkpoint to read once all its bytes are checked. The processes of a training call it together.

    Args:
        path: the checkpoint that is meant.
        fall_back: take the one before it in its folder where it is damaged, and say so.

    Raises:
        UserError: it is damaged, and there is no other to take.
    """
    rank, world = _rank_and_world()
    while True:
        problem = _first_of_all(damage(path, rank, world))
        if problem is None:
            return path
        earlier = _before(path) if fall_back else None
        if earlier is None:
            raise UserError(f"{path}: the checkpoint is damaged ({problem}); choose another, or a copy of it")
        rank_zero_warn(f"{path}: the checkpoint is damaged ({problem}); {earlier.name} is taken instead")
        path = earlier


def _before(path: Path) -> Path | None:
    """Return the newest whole checkpoint of the same folder with fewer steps; the same on every process."""
    step = step_of(path)
    older = []
    if step is not None:
        older = [other for other in listed(path.parent) if (step_of(other) or 0) < step]
    found = [_last_whole(older)]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(found)
    return found[0]


def _rank_and_world() -> tuple[int, int]:
    """Return this process's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _first_of_all(problem: str | None) -> str | None:
    """Return the first problem that any process has found."""
    if not (dist.is_available() and dist.is_initialized()):
        return problem
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    return next((found for found in problems if found is not None), None)


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's reading and writing of checkpoint files, made safe. Local files only.

    Args:
        fall_back: in place of a damaged checkpoint, read the one before it.

    Attributes:
        background: writes a copy beside the training, where the host has the memory for it; None: at once.
    """

    background: "Background | None" = None

    def __init__(self, fall_back: bool = False) -> None:
        super().__init__()
        self.fall_back = fall_back

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Path | str, storage_options: Any = None) -> None:
        """Write, sync, rename. A full disk is one `UserError`; what was there before stays as it was."""
        refuse_objects(checkpoint)
        if self.background is not None:
            from .background import fits_on_host, on_host

            if fits_on_host(checkpoint):
                copy = on_host(checkpoint)
                self.background.submit(lambda: self._write(copy, path))
                return
        self._write(checkpoint, path)

    def _write(self, checkpoint: dict[str, Any], path: Path | str) -> None:
        sink: SealedFile | None = None
        try:
            with replacing(path, "wb") as file:
                sink = SealedFile(file)
                torch.save(checkpoint, sink)  # type: ignore[arg-type]
                sink.seal()
        except (OSError, RuntimeError) as error:
            cause = error if isinstance(error, OSError) else None
            if cause is None and sink is not None:
                cause = sink.error
            if cause is None:
                raise
            raise UserError(
                f"{path}: the checkpoint could not be written ({cause.strerror or cause}); earlier ones are untouched:"
                " free some space or lower checkpoint.keep, then continue with run.resume=last"
            ) from error

    def load_checkpoint(
        self, path: Path | str, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read tensors and plain values; a file that holds code, is damaged or is something else is refused.

        A sharded checkpoint is read whole, so that one process goes on from what many have written.
        """
        if not Path(path).exists():
            raise UserError(f"{path}: no such checkpoint file")
        path = sound(Path(path), self.fall_back)
        if path.is_dir():
            from .sharded import read

            checkpoint = read(path)
        else:
            checkpoint = _read_file(path, map_location)
        checkpoint.setdefault(lineage.KEY, lineage.recorded(path))
        return checkpoint

    def remove_checkpoint(self, path: Path | str) -> None:
        remove(Path(path))


def read_weights(path: Path, also: Sequence[str] = ()) -> dict[str, Any]:
    """Read a checkpoint, file or folder, without its optimizer's state.

    Args:
        path: one whose bytes are checked, see `sound`.
        also: further keys that may hold tensors.
    """
    if path.is_dir():
        from .sharded import read

        return read(path, ["state_dict", *also])
    return {key: value for key, value in _read_file(path).items() if key != "optimizer_states"}


def read_facts(path: Path) -> dict[str, Any] | None:
    """Return the recorded facts of a checkpoint's base, from the checkpoint or from its run's record."""
    if path.is_dir():
        from .sharded import read_meta

        content = read_meta(path)
    else:
        content = _read_file(path)
    return content.get(lineage.KEY) or lineage.recorded(path)


def _read_file(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a training checkpoint in one file."""
    checkpoint = read_safely(path, map_location)
    if "state_dict" not in checkpoint:
        raise UserError(f"{path}: not a training checkpoint: it has no `state_dict`")
    return checkpoint


def read_safely(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a file of tensors and plain values, as torch.save writes it; nothing in it can run."""
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    if not is_archive(path):
        raise UserError(f"{path}: not a checkpoint, or cut short: choose another with run.resume=PATH")
    try:  # mapped, so that the ranks of one machine share the pages that they read
        content = _mapped(path, map_location)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: refused, it holds Python objects (code could run): {_named(error)}") from error
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: the checkpoint is damaged ({first_line(error)})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a training checkpoint: it has no `state_dict`")
    return content


def _mapped(path: Path, map_location: Any) -> Any:
    """Read a file of tensors and plain values; torchao, once imported, makes its 8-bit moments safe ones."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        if "torchao.optim" not in str(error) or find_spec("torchao") is None:
            raise
    import torchao.optim  # noqa: F401

    return torch.load(path, map_location=map_location, weights_only=True, mmap=True)


def remove(path: Path) -> None:
    """Remove a checkpoint; a folder under another name first, so that half of it is never taken for one."""
    if path.is_dir():
        leaving = path if path.name.startswith(".") else path.with_name(f".{path.name}.old.part")
        put_in_place(path, leaving)
        shutil.rmtree(leaving)
    else:
        path.unlink(missing_ok=True)


def refuse_objects(checkpoint: Mapping[str, Any]) -> None:
    """Refuse at saving time what could not be read back without running code, naming its key.

    Raises:
        UserError: a value is neither a tensor, a plain value, nor a list, tuple, set or dict of them.
    """
    safe = {kind for kind in torch.serialization.get_safe_globals() if isinstance(kind, type)}
    for key, value in _leaves(checkpoint, ""):
        if type(value) not in _PLAIN | _TENSORS | safe:
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise UserError(f"checkpoint key {key}: a {kind} cannot be saved; keep tensors and plain values in states")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield every value that is no container, with its path, dict keys too."""
    if type(value) not in _CONTAINERS:
        yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            if type(name) is not str:
                yield from _leaves(name, f"{key}[{name!r}]")
            yield from _leaves(item, f"{key}.{name}" if key else str(name))
    else:
        for index, item in enumerate(value):
            yield from _leaves(item, f"{key}[{index}]")


def check_architecture(module: nn.Module | Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Refuse weights of another architecture, naming the first keys that differ, before anything is loaded.

    Args:
        module: what the weights are meant for, or the part of its state dict that they are to fill.
        state: its state dict as read from a checkpoint (key -> tensor).
    """
    own = module.state_dict() if isinstance(module, nn.Module) else module
    missing, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    shapes = [k for k in own.keys() & state.keys() if torch.is_tensor(own[k]) and own[k].shape != state[k].shape]
    if not (missing or foreign or shapes):
        return
    parts = [f"{len(missing)} missing ({_some(missing)})"] if missing else []
    parts += [f"{len(foreign)} unknown ({_some(foreign)})"] if foreign else []
    parts += [f"{k} is {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in sorted(shapes)[:3]]
    raise UserError(f"the checkpoint is of another architecture: {'; '.join(parts)}")


def _some(keys: Sequence[str]) -> str:
    """The first keys of a sorted list."""
    return ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")


def _named(error: BaseException) -> str:
    """The object that the safe reader refused."""
    found = re.search(r"(?:GLOBAL|global|class) `?([\w.]+)`?", str(error))
    return found[1] if found else first_line(error)
