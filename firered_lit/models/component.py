"""The files of one component of a model folder, looked at before a library reads them.

Whatever is missing, cut, of another kind or of another type is one line that names the file and the keys: libraries
load such files in part, fill the rest with random numbers, or end in words of their own.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config.annotation import fits
from ..errors import UserError
from ..textfiles import open_regular, read_object

DIFFUSERS = "diffusion_pytorch_model.safetensors"
TRANSFORMERS = "model.safetensors"
CONFIG = "config.json"
LFS_POINTER = b"version https://git-lfs"
SCALES = ("scale_weight", "weight_scale", "scale_input", "input_scale", "scaled_fp8", "absmax", "quant_map")
DEPTHS = ("num_layers", "num_hidden_layers", "depth", "num_res_blocks")  # entries that say how much is to be built
DEEPEST = 1000

Shape = tuple[int, ...]


@contextmanager
def loading(folder: Path | str) -> Iterator[None]:
    """Turn whatever a library raises, while it reads a component, into one line that names the folder.

    Raises:
        UserError: Anything was raised but for a lack of memory. A UserError stays as it is.
    """
    import torch

    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        raise UserError(f"{folder}: cannot be loaded: {type(error).__name__}: {message[:300]}") from error


def weight_files(folder: Path) -> dict[str, Path]:
    """Find the weights of a component of diffusers or transformers.

    Returns:
        tensor's name -> the file that holds it. Every file is whole by its own header, and holds what the index says.

    Raises:
        UserError: a file is missing, cut short, a pointer of Git LFS or of another kind.
    """
    for name in (DIFFUSERS, TRANSFORMERS):
        if (folder / f"{name}.index.json").exists():
            return _indexed(folder / f"{name}.index.json")
        if (folder / name).exists():
            return dict.fromkeys(stored_shapes(folder / name), folder / name)
    pickled = [path.name for ending in ("*.bin", "*.pt", "*.ckpt") for path in sorted(folder.glob(ending))]
    if pickled:
        raise UserError(f"{folder}: {pickled[0]} is a pickle, which can run code; convert its weights to safetensors")
    raise UserError(f"{folder}: its weights are missing ({DIFFUSERS} or {TRANSFORMERS}); is the download complete?")


def _indexed(index: Path) -> dict[str, Path]:
    """Find the weights that an index spreads over several files."""
    placed = read_object(index, "weight_map")["weight_map"]
    if not isinstance(placed, dict) or not placed:
        raise UserError(f"{index}: damaged: weight_map does not say which file holds which tensor")
    for name in placed.values():
        is_file_name = isinstance(name, str) and Path(name).name == name
        if not is_file_name:
            raise UserError(f"{index}: damaged: {name!r} is not the name of a file beside it")

    # Every shard is there and whole, and every tensor in it.
    shards = sorted(set(placed.values()))
    absent = [name for name in shards if not (index.parent / name).exists()]
    if absent:
        raise UserError(f"{index.parent}: {_some(absent)} of {len(shards)} shards missing; is the download complete?")
    held = {name: stored_shapes(index.parent / name) for name in shards}
    lost = sorted(key for key, name in placed.items() if key not in held[name])
    if lost:
        raise UserError(f"{index}: {_some(lost)} not in the files that it names")
    return {key: index.parent / name for key, name in placed.items()}


def stored_shapes(file: Path) -> dict[str, Shape]:
    """Read the names and shapes of a safetensors file's tensors.

    Raises:
        UserError: it is not such a file, or its length is not what its header says.
    """
    from safetensors import safe_open

    try:
        with open_regular(file) as opened:
            begin = opened.read(len(LFS_POINTER))
    except OSError as problem:
        raise UserError(f"{file}: cannot be read: {problem.strerror}") from None
    if begin == LFS_POINTER:
        raise UserError(f"{file}: a pointer of Git LFS, not the weights; run `git lfs pull` where it was cloned")
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118
    except Exception as problem:  # whatever the library calls it
        raise UserError(f"{file}: cut short, or not a safetensors file ({' '.join(str(problem).split())})") from None


def shapes_of(files: Mapping[str, Path]) -> dict[str, Shape]:
    """Read the shape of every tensor of a component whose files `weight_files` has found."""
    held = {file: stored_shapes(file) for file in set(files.values())}
    return {key: held[file][key] for key, file in files.items()}


def refuse_other_keys(folder: Path, stored: Mapping[str, Shape], expected: Mapping[str, Shape]) -> None:
    """Refuse weights that are not those of the model which the config describes.

    Args:
        folder: of the component.
        stored: name -> shape of what its files hold.
        expected: name -> shape of what the model has.

    Raises:
        UserError: a tensor is missing, unknown, or of another shape.
    """
    refuse_quantised(folder, stored)
    missing = sorted(expected.keys() - stored.keys())
    unknown = sorted(stored.keys() - expected.keys())
    other = sorted(key for key in expected.keys() & stored.keys() if expected[key] != stored[key])
    parts = []
    if missing:
        parts.append(f"{_some(missing)} missing")
    if unknown:
        parts.append(f"{_some(unknown)} unknown")
    if other:
        key = other[0]
        parts.append(f"{key} is {stored[key]} in the file and {expected[key]} by {CONFIG}")
    if parts:
        raise UserError(f"{folder}: the weights are not those of {CONFIG}: {'; '.join(parts)}")


def refuse_quantised(folder: Path, keys: Collection[str]) -> None:
    """Refuse weights that mean nothing without the scales beside them.

    Raises:
        UserError: the files hold such scales.
    """
    scales = sorted(key for key in keys if key.rpartition(".")[2].startswith(SCALES))
    if scales:
        raise UserError(
            f"{folder}: quantised weights with scales of their own (as scaled fp8): {_some(scales)}; take the model's"
            " bfloat16 weights"
        )


def read_config(folder: Path, kind: type | None = None) -> dict[str, Any]:
    """Read a component's config.json.

    Args:
        folder: of the component.
        kind: the class of diffusers that it configures; each entry is held against the class's own signature.

    Raises:
        UserError: it is missing, or an entry cannot be what the class asks for.
    """
    path = folder / CONFIG
    config = read_object(path)
    for name, value in _entries(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{path}: {name}: expected a finite number, got {value!r}")
        if name in DEPTHS and isinstance(value, int) and not 0 <= value <= DEEPEST:
            raise UserError(f"{path}: {name}: expected at most {DEEPEST}, got {value}")
    if "quantization_config" in config:
        raise UserError(f"{path}: a quantised model; take the bfloat16 one, stage.backbone.quantize makes it small")
    if kind is not None:
        _refuse_other_types(path, config, kind)
    return config


def _refuse_other_types(path: Path, config: Mapping[str, Any], kind: type) -> None:
    """Refuse a config of another class, and entries of another type than the class's signature asks for."""
    import inspect

    named = config.get("_class_name", kind.__name__)
    if named != kind.__name__:
        raise UserError(f"{path}: {named!r} where {kind.__name__} is expected")
    for parameter in inspect.signature(kind).parameters.values():
        if parameter.name not in config:
            continue
        value = config[parameter.name]
        if value is None and parameter.default is None:
            continue
        annotation = inspect.formatannotation(parameter.annotation).replace("typing.", "")
        if not fits(annotation, value):
            raise UserError(f"{path}: {parameter.name}: expected {annotation}, got {value!r}")
        if annotation == "int" and value < 0:
            raise UserError(f"{path}: {parameter.name}: expected a number >= 0, got {value!r}")


def _entries(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every entry of a config that is no mapping, at any depth; the items of a list by the list's name."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _entries(value)
        elif isinstance(value, list):
            for item in value:
                yield name, item
        else:
            yield name, value


def _some(names: Collection[str]) -> str:
    """Return the number of names and the first three."""
    shown = list(names)[:3]
    if len(names) > 3:
        shown.append("...")
    return f"{len(names)} ({', '.join(shown)})"
