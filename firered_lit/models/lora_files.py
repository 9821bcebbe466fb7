"""A trained LoRA as the files that others load, each read back the way they read it.

The scale is baked into B and there is no `.alpha`: on keys with `transformer.` diffusers raises when there is one. Keys
without a prefix or with `base_model.model.` it loads as nothing at all, and says so in a warning only.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..errors import UserError
from ..textfiles import read_object
from .lora import delta, merge

Factors = Mapping[str, tuple[Tensor, Tensor]]  # module -> (A, B)
FILES = {"pytorch_lora_weights.safetensors": "transformer.", "comfyui_lora.safetensors": "diffusion_model."}
DIFFUSERS, COMFYUI = FILES


def write_lora(trained: Factors, scale: float, folder: Path, config: Mapping[str, Any], pipeline: str) -> None:
    """Write both files into `folder`, read them back through diffusers and through ComfyUI's key map, and compare.

    config: the transformer's; pipeline: the diffusers class that will load the LoRA. Raises UserError when a reload
    changes a weight.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, prefix in FILES.items():
        tensors = {}
        for module, (a, b) in trained.items():
            tensors[f"{prefix}{module}.lora_A.weight"] = a.detach().float().cpu().contiguous()
            tensors[f"{prefix}{module}.lora_B.weight"] = (scale * b.detach().float()).cpu().contiguous()
        save_file(tensors, folder / name, metadata={"format": "pt"})
    compare(trained, scale, through_diffusers(folder, hollow(config), pipeline), DIFFUSERS)
    compare(trained, scale, through_comfyui(load_file(folder / COMFYUI), hollow(config)), COMFYUI)


def compare(trained: Factors, scale: float, loaded: Factors, file: str, tolerance: float = 1e-5) -> None:
    """Refuse factors that add something else to a weight than the trained ones: module by module, relative to it."""
    missing, foreign = sorted(trained.keys() - loaded.keys()), sorted(loaded.keys() - trained.keys())
    if missing or foreign:
        first = [*missing, *foreign][0]
        raise UserError(f"{file}: on reload {len(missing)} adapters are lost and {len(foreign)} new, first {first}")
    for module, (a, b) in trained.items():
        want = delta(a, b, scale)
        far = (delta(*loaded[module]) - want).abs().max()
        if not far <= tolerance * want.abs().max():
            raise UserError(f"{file}: {module} changes on reload, by {far:.1e} of {want.abs().max():.1e}")


def hollow(config: Mapping[str, Any]) -> nn.Module:
    """Build a transformer of the right names and shapes whose weights are one shared zero each, without memory."""
    from diffusers import QwenImageTransformer2DModel

    with torch.device("meta"):
        transformer = QwenImageTransformer2DModel.from_config(dict(config))
    for name, parameter in list(transformer.named_parameters()):
        parent, _, leaf = name.rpartition(".")
        empty = nn.Parameter(torch.zeros(()).expand(parameter.shape), requires_grad=False)
        transformer.get_submodule(parent).register_parameter(leaf, empty)
    return transformer


def through_diffusers(source: Path | dict[str, Tensor], transformer: nn.Module, pipeline: str) -> Factors:
    """Read a LoRA by the installed diffusers' `load_lora_weights`; its scale is put into B."""
    import diffusers

    kind = getattr(diffusers, pipeline)
    others = kind._get_signature_types().keys() - {"transformer"}
    pipe = kind(transformer=transformer, **dict.fromkeys(others))
    name = {} if isinstance(source, dict) else {"weight_name": DIFFUSERS}
    pipe.load_lora_weights(source, adapter_name="reloaded", **name)

    found = {}
    layer: Any
    for module, layer in transformer.named_modules():
        if "reloaded" in getattr(layer, "lora_A", {}):
            a = layer.lora_A["reloaded"].weight.detach()
            b = layer.lora_B["reloaded"].weight.detach()
            found[module] = (a, layer.scaling["reloaded"] * b)
    return found


def through_comfyui(tensors: Mapping[str, Tensor], transformer: nn.Module) -> Factors:
    """Read a file as ComfyUI does, by its key map for Qwen-Image; `alpha / rank` is put into B.

    ComfyUI's model has diffusers' names under `diffusion_model.`. A weight's LoRA may be called by that whole name, by
    the name without it, with `transformer.`, or as `lora_unet_` or `lycoris_` with underscores.
    """
    found = {}
    for key, _ in transformer.named_parameters():
        module = key.removesuffix(".weight")
        if module == key:
            continue
        flat = module.replace(".", "_")
        dotted = (f"diffusion_model.{module}", module, f"transformer.{module}")
        for name in (*dotted, f"lora_unet_{flat}", f"lycoris_{flat}"):
            pair = _comfyui_pair(tensors, name)
            if pair is not None:
                found[module] = pair
    return found


def _comfyui_pair(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor] | None:
    """Return the factors stored under one of a module's names, in any of the spellings that ComfyUI knows."""
    spellings = (
        ("lora_down.weight", "lora_up.weight"),
        ("lora_A.weight", "lora_B.weight"),
        ("lora.down.weight", "lora.up.weight"),
        ("lora_A", "lora_B"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
        ("lora_A.default.weight", "lora_B.default.weight"),
    )
    for down, up in spellings:
        if f"{name}.{up}" not in tensors:
            continue
        a = tensors[f"{name}.{down}"]
        b = tensors[f"{name}.{up}"]
        alpha = tensors.get(f"{name}.alpha")
        scale = 1.0 if alpha is None else alpha.item() / a.shape[0]
        return a, b.float() * scale
    return None


def find_lora(path: Path) -> Path:
    """Return the file of a LoRA: itself, or the one for diffusers in an export's folder.

    Raises:
        UserError: there is none.
    """
    file = path / DIFFUSERS if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"{path}: no LoRA there; name a .safetensors file, or a folder with {DIFFUSERS}")
    return file


def merge_file(transformer: nn.Module, file: Path, strength: float = 1.0) -> int:
    """Add a LoRA file to a plain transformer's weights, see `read_lora`.

    Args:
        transformer: its weights are changed.
        file: a safetensors file.
        strength: of the LoRA.

    Returns:
        The number of weights that were changed.
    """
    found = read_lora(transformer, file)
    merge(transformer, found, strength)
    return len(found)


def read_lora(transformer: nn.Module, file: Path) -> Factors:
    """Read a LoRA file, in any of the spellings that ComfyUI knows, for a plain transformer.

    Raises:
        UserError: The file cannot be read, or a tensor of it fits nothing: it would be lost without a word elsewhere.
    """
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as problem:
        raise UserError(f"{file}: cannot be read as safetensors ({problem})") from None

    # Every pair of factors must have the shape of its weight.
    found = through_comfyui(tensors, transformer)
    weights = dict(transformer.named_parameters())
    for module, (a, b) in found.items():
        shape = (b.shape[0], a.shape[1])
        if shape != tuple(weights[f"{module}.weight"].shape) or a.shape[0] != b.shape[1]:
            raise UserError(f"{file}: made for another architecture: {module}.weight has another shape")

    # Every tensor of the file must belong to one of them.
    endings = tuple(module.replace(".", "_") for module in found)
    stems = {key: key.removesuffix(".alpha").partition(".lora")[0].replace(".", "_") for key in sorted(tensors)}
    lost = [key for key, stem in stems.items() if not stem.endswith(endings)]
    if lost or not found:
        first = f", first {lost[0]}" if lost else ""
        raise UserError(f"{file}: {len(lost)} of its {len(tensors)} tensors fit nothing in this transformer{first}")
    return found


def pipeline_of(folder: Path) -> str:
    """Return the pipeline class that a diffusers folder names."""
    return read_object(folder / "model_index.json")["_class_name"]
