"""Sharded checkpoints: a folder that every process writes its part of, whole or not at all, read without running code.

`step_00000020.ckpt/` holds the files of torch.distributed.checkpoint (`.metadata`, `*.distcp`), `meta.pt` with all that
is no sharded tensor, and `complete.json`, written last, with the size and the CRC-32 of every file. All processes must
see the same folder.
"""

import os
import pickle
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from ..errors import UserError, first_line
from ..files import put_in_place, replacing, write_text
from .background import Background, fits_on_host, on_host
from .checkpoint import incomplete, read_safely, refuse_objects, remove
from .integrity import COMPLETE, crc_of, damage_of_file, damage_of_slice, manifest, read_manifest

META, WEIGHTS, OPTIMIZER = "meta.pt", "state_dict", "optimizer_"
Place = Callable[[str, TensorStorageMetadata], Tensor]


def save(checkpoint: dict[str, Any], path: Path, background: Background | None = None, group: Any = None) -> None:
    """Write a checkpoint as a folder; its sharded tensors by the processes that hold them. All processes call it.

    The folder is filled under another name and renamed when every byte is on the disk. Raises UserError on all of them
    when one could not write; what was there before stays as it was.
    background: writes a copy beside the training, where every host has the memory for it; the processes then meet in
    `group`, which is theirs alone and works on the host.
    """
    # Sharded tensors and the optimizers' states, apart from the rest.
    tensors = {f"{OPTIMIZER}{i}": state for i, state in enumerate(checkpoint.pop("optimizer_states", []))}
    for key in list(checkpoint):
        if _is_sharded(checkpoint[key]):
            tensors[key] = checkpoint.pop(key)
    refuse_objects(checkpoint)

    # Now, or beside the training.
    if background is None or not _all(fits_on_host((tensors, checkpoint), _neighbours()), group):
        _write(tensors, checkpoint, path, group)
        return
    tensors = on_host(tensors)
    rest = on_host(checkpoint)
    background.submit(lambda: _write(tensors, rest, path, group))


def _make_empty(folder: Path) -> None:
    """Make a folder, without anything that a killed process left in it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _write(tensors: dict[str, Any], rest: Mapping[str, Any], path: Path, group: Any) -> None:
    staged = path.with_name(f".{path.name}.part")
    try:
        _on_first(lambda: _make_empty(staged), group)
        alone = not dist.is_initialized()
        with warnings.catch_warnings() if alone else nullcontext():
            if alone:
                warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.save(tensors, storage_writer=dcp.FileSystemWriter(staged), process_group=group)
        sums = _sums(staged, group)
        _on_first(lambda: _finish(rest, staged, path, sums), group)
    except (OSError, RuntimeError, CheckpointException) as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise UserError(
            f"{path}: the checkpoint could not be written ({_cause(error)}); earlier ones are untouched: free some"
            " space or lower checkpoint.keep, then continue with run.resume=last"
        ) from error


def _sums(staged: Path, group: Any) -> dict[str, int]:
    """Return the CRC-32 of every file of sharded tensors, each summed by the process that has written it."""
    rank = dist.get_rank(group) if dist.is_initialized() else 0
    try:
        own: dict[str, int] | OSError = {path.name: crc_of(path) for path in staged.glob(f"__{rank}_*.distcp")}
    except OSError as error:
        own = error
    everyone = [own]
    if dist.is_initialized():
        everyone *= dist.get_world_size(group)
        dist.all_gather_object(everyone, own, group=group)
    sums: dict[str, int] = {}
    for part in everyone:
        if isinstance(part, OSError):
            raise part
        sums |= part
    return sums


def _finish(rest: Mapping[str, Any], staged: Path, path: Path, sums: dict[str, int]) -> None:
    with replacing(staged / META, "wb") as file:
        torch.save(dict(rest), file)
    processes = dist.get_world_size() if dist.is_initialized() else 1
    others = {file.name: crc_of(file) for file in staged.iterdir() if file.name not in sums}
    write_text(staged / COMPLETE, manifest(staged, processes, sums | others))
    remove(path)
    put_in_place(staged, path)


def _on_first(action: Callable[[], object], group: Any) -> None:
    """Run on the first process; all wait for it, and fail when it does."""
    failed: list[str | None] = [None]
    if not dist.is_initialized() or dist.get_rank() == 0:
        try:
            action()
        except OSError as error:
            failed = [error.strerror or str(error)]
    if dist.is_initialized():
        dist.broadcast_object_list(failed, group=group)
    if failed[0] is not None:
        raise OSError(None, failed[0])


def _all(here: bool, group: Any) -> bool:
    """Return whether a condition holds on every process."""
    if not dist.is_initialized():
        return here
    flag = torch.tensor(int(here))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=group)
    return bool(flag)


def _neighbours() -> int:
    """Return how many processes of this run are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", torch.cuda.device_count() or 1))


def _is_sharded(value: Any) -> bool:
    """Return whether a value holds a sharded tensor at any depth."""
    if isinstance(value, Mapping):
        return any(_is_sharded(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_is_sharded(item) for item in value)
    return isinstance(value, DTensor)


class IndexReader(dcp.FileSystemReader):
    """A reader of the index, which is a pickle, by an unpickler that knows nothing but the index's own classes."""

    def __init__(self, path: Path) -> None:
        problem = incomplete(path)
        if problem:
            raise UserError(f"{path}: not a whole checkpoint ({problem}): choose another with run.resume=PATH")
        super().__init__(path)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        path = Path(self.path) / ".metadata"
        with path.open("rb") as file:
            try:
                metadata = _Unpickler(file).load()
            except (pickle.UnpicklingError, EOFError, AttributeError, TypeError, ValueError, IndexError) as error:
                raise UserError(f"{path}: the checkpoint's index is damaged, or holds code ({error})") from None
        if not isinstance(metadata, Metadata) or metadata.storage_data is None:
            raise UserError(f"{path}: not the index of a checkpoint")
        for stored in metadata.storage_data.values():
            if PurePosixPath(stored.relative_path).name != stored.relative_path:
                raise UserError(f"{path}: refused, it names a file outside its folder: {stored.relative_path}")
        return metadata


class _Unpickler(pickle.Unpickler):
    """An unpickler of torch.distributed.checkpoint's index, sizes and dtypes alone; paths become pure ones."""

    CLASSES = (
        *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("Metadata", "MetadataIndex", "StorageMeta")),
        *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("TensorStorageMetadata", "TensorProperties")),
        *(f"torch.distributed.checkpoint.metadata.{name}" for name in ("ChunkStorageMetadata", "BytesStorageMetadata")),
        "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING",
        "torch.distributed.checkpoint.filesystem._StorageInfo",
        "torch.serialization._get_layout",
        "torch.Size",
    )

    def find_class(self, module: str, name: str) -> Any:
        if module in ("pathlib", "pathlib._local"):
            return PurePosixPath
        if module == "torch":
            value = getattr(torch, name, None)
            if isinstance(value, torch.dtype):
                return value
        if f"{module}.{name}" not in self.CLASSES:
            raise pickle.UnpicklingError(f"{module}.{name} is no part of an index")
        return super().find_class(module, name)


class _Planner(DefaultLoadPlanner):
    """A planner that reads values that are no tensors, which are pickles too, with weights_only."""

    def load_bytes(self, read_item: Any, value: Any) -> None:
        plain = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], plain)


def load_into(state: dict[str, Any], reader: IndexReader, alone: bool = False) -> None:
    """Fill the tensors of `state` from a checkpoint of any number of processes.

    Args:
        state: nested as the checkpoint; each process fills its own shards.
        reader: of the checkpoint.
        alone: no other process takes part.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            dcp.load(state, storage_reader=reader, planner=_Planner(), no_dist=alone)
    except (RuntimeError, CheckpointException, pickle.UnpicklingError) as error:
        raise UserError(f"{reader.path}: {_cause(error)}") from error


def blank(metadata: Metadata, parts: Sequence[str] | None, place: Place) -> dict[str, Any]:
    """Return a checkpoint's content, nested as it was saved, with empty tensors made by `place(key, facts)`.

    Args:
        metadata: the checkpoint's index.
        parts: the top-level keys that are wanted; None: all.
        place: makes an empty tensor of a key and its facts; values that are no tensors are None.
    """
    content: dict[str, Any] = {}
    for key, facts in metadata.state_dict_metadata.items():
        path = metadata.planner_data[key]
        if parts is not None and path[0] not in parts:
            continue
        value = None
        if isinstance(facts, TensorStorageMetadata):
            value = place(str(path[-1]), facts)
        set_element(content, path, value)
    return content


def top_level(metadata: Metadata) -> set[str]:
    """Return the top-level keys of a checkpoint's sharded content."""
    return {at[0] for at in metadata.planner_data.values()}


def read_meta(path: Path) -> dict[str, Any]:
    """Read everything of a checkpoint that is no sharded tensor."""
    return read_safely(path / META)


def read(path: Path, parts: Sequence[str] | None = None) -> dict[str, Any]:
    """Read a sharded checkpoint in one process, in the layout of a single file, whole tensors on the host.

    Args:
        path: the checkpoint's folder.
        parts: only these of its sharded keys, as ["state_dict"]; None: all of them, optimizer and averages too.
    """
    reader = IndexReader(path)
    if parts is None and find_spec("torchao"):
        import torchao.optim  # noqa: F401  its 8-bit moments may be there: it tells torch that they are safe to read
    state = blank(reader.read_metadata(), parts, lambda _, facts: torch.empty(facts.size, dtype=facts.properties.dtype))
    load_into(state, reader, alone=True)

    # The optimizers' states as a list, in the order of their numbers.
    names = [name for name in state if name.startswith(OPTIMIZER)]
    names.sort(key=lambda name: int(name.removeprefix(OPTIMIZER)))
    states = [_numbered(state.pop(name)) for name in names]
    content = {**read_meta(path), **state}
    if states:
        content["optimizer_states"] = states
    return content


def damage_of_folder(path: Path, rank: int = 0, world: int = 1) -> str | None:
    """Read a whole checkpoint's files and return what is wrong with one of them; None when nothing is.

    Args:
        path: the checkpoint's folder.
        rank, world: each of `world` processes reads its share of the files.
    """
    content = read_manifest(path)
    if "crc32" not in content:
        return _damage_of_items(path) if rank == 0 else None
    sizes = content["files"]
    largest_first = sorted(sizes, key=lambda name: (-sizes[name], name))
    for name in largest_first[rank::world]:
        if crc_of(path / name) != content["crc32"][name]:
            return f"the checksum of {name} is wrong"
    return None


def _damage_of_items(path: Path) -> str | None:
    """Return the damage of an earlier version's folder: an archive per tensor, inside a file."""
    problem = damage_of_file(path / META)
    if problem:
        return f"{META}: {problem}"
    try:
        stored = IndexReader(path).read_metadata().storage_data.values()
    except UserError as error:
        return str(error)
    for item in sorted(stored, key=lambda item: (item.relative_path, item.offset)):
        with (path / item.relative_path).open("rb") as file:
            problem = damage_of_slice(file, item.offset, item.length)
            if problem:
                return f"{item.relative_path}: {problem}"
    return None


def _numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state by the parameters' numbers, as it knows them, instead of their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    groups = [{**group, "params": [number[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {number[name]: value for name, value in state["state"].items()}, "param_groups": groups}


def named(state: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return an optimizer's state by the parameters' names, given in the optimizer's order."""
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: value for i, value in state["state"].items()}, "param_groups": groups}


def _cause(error: BaseException) -> str:
    """Return in one line the first failure that torch.distributed.checkpoint collected from the processes."""
    inner: Any = error
    if isinstance(error, CheckpointException):
        inner = next(iter(error.failures.values()))
    if isinstance(inner, tuple):
        inner = inner[0]
    if isinstance(inner, OSError) and inner.strerror:
        return inner.strerror
    return first_line(inner)
