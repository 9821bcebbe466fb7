"""Which model is it? Read from the folder's configs, never guessed from its name."""

import hashlib
import json
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..textfiles import read_object
from .sizes import Sizes

if TYPE_CHECKING:
    import torch
    from diffusers import QwenImageTransformer2DModel

    from .codec import Codec
    from .conditioning import Conditioner
    from .patches import PatchCodec
    from .words import WordConditioner


class Variant(StrEnum):
    """Kinds of the Qwen-Image family; they differ in prompt template and in what the references look like."""

    EDIT_PLUS = "edit_plus"  # Qwen-Image-Edit 2509 and 2511, FireRed-Image-Edit: several references, "Picture N:"
    EDIT = "edit"  # the original Qwen-Image-Edit: one reference, which the VL model sees at the VAE's size
    TEXT = "text"  # plain text-to-image; edits are conditioned as in EDIT_PLUS


PIPELINES = {
    "QwenImageEditPlusPipeline": Variant.EDIT_PLUS,
    "QwenImageEditPipeline": Variant.EDIT,
    "QwenImagePipeline": Variant.TEXT,
}
FULL_SIZE = {  # the transformer of Qwen-Image, Qwen-Image-Edit (2509, 2511) and FireRed-Image-Edit: 20.4e9 parameters
    "_class_name": "QwenImageTransformer2DModel",
    "num_layers": 60,
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "joint_attention_dim": 3584,
    "in_channels": 64,
    "out_channels": 16,
    "patch_size": 2,
    "axes_dims_rope": [16, 56, 56],
    "guidance_embeds": False,
}
BUILT_IN = ("tiny", "world", "world-untrained")  # built on first use
COMPONENTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class Base:
    """A model folder, read but not loaded."""

    name: str  # as the user wrote it
    folder: Path
    variant: Variant
    zero_cond_t: bool  # 2511: references are modulated at timestep 0. The weights do not tell, only the config does
    sizes: Sizes

    @property
    def stock_sizes(self) -> Sizes:
        """What the stock pipeline of this variant does; its constants, not settings."""
        return Sizes(condition_area=1024 * 1024) if self.variant == Variant.EDIT else Sizes()

    @property
    def at_stock_sizes(self) -> bool:
        """Whether the stock pipeline would show this model what it was trained on."""
        stock = self.stock_sizes
        return (self.sizes.reference_area, self.sizes.condition_area) == (stock.reference_area, stock.condition_area)

    @property
    def scheduler_config(self) -> dict[str, Any]:
        return _read(self.folder / "scheduler" / "scheduler_config.json")

    @property
    def precision(self) -> "torch.dtype":
        """The precision in which the transformer is stored: that of its first weight."""
        import torch
        from safetensors import safe_open

        files = sorted((self.folder / "transformer").glob("*.safetensors"))
        if not files:
            return torch.float32
        with safe_open(files[0], framework="pt") as opened:
            first = next(iter(opened.keys()))
            return opened.get_tensor(first).dtype

    def transformer(self, dtype: "torch.dtype | None" = None) -> "QwenImageTransformer2DModel":
        """Load the diffusion transformer, in its stored precision unless `dtype` says otherwise."""
        from diffusers import QwenImageTransformer2DModel

        folder = self.folder / "transformer"
        return QwenImageTransformer2DModel.from_pretrained(folder, torch_dtype=dtype or self.precision)

    def codec(self, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None) -> "Codec | PatchCodec":
        import torch

        from . import patches
        from .codec import Codec

        kind = patches.PatchCodec if self._class_of("vae") == patches.NAME else Codec
        return kind(self, device, dtype or torch.float32)

    def conditioner(
        self, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
    ) -> "Conditioner | WordConditioner":
        import torch

        from . import words
        from .conditioning import Conditioner

        kind = words.WordConditioner if self._class_of("text_encoder") == words.NAME else Conditioner
        return kind(self, device, dtype or torch.float32)

    def _class_of(self, part: str) -> str:
        return str(_read(self.folder / part / "config.json").get("_class_name", ""))

    @property
    def fingerprints(self) -> dict[str, str]:
        """What made the cached latents and embeddings: a hash of each frozen component's config and weights."""
        return {part: self.fingerprint(part) for part in ("vae", "text_encoder")}

    def fingerprint(self, part: str) -> str:
        """Return a hash of one component's config and weights."""
        return _fingerprint(self.folder / part)

    def resized(self, sizes: Sizes) -> "Base":
        """The same model at other sizes."""
        return replace(self, sizes=sizes)


def open_base(name: str) -> Base:
    """A base by name: one of `BUILT_IN`, a diffusers folder, or a hub id.

    Raises UserError when there is no such folder or repository, or when it holds another kind of model.
    """
    folder = _folder(name)
    index = _read(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise UserError(f"{folder}/model_index.json: {kind} is not of the Qwen-Image family ({', '.join(PIPELINES)})")
    missing = [part for part in COMPONENTS if not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{folder}: incomplete model folder, missing {', '.join(missing)}")
    variant = PIPELINES[kind]
    zero_cond_t = bool(_read(folder / "transformer" / "config.json").get("zero_cond_t", False))
    base = Base(str(name), folder, variant, zero_cond_t, Sizes())
    own = folder / "firered_lit.json"
    return base.resized(Sizes(**_read(own)["sizes"]) if own.exists() else base.stock_sizes)


def transformer_config(name: str) -> dict[str, Any]:
    """The transformer's config of a base, without loading or downloading: of a hub id, the family's full size."""
    if name not in BUILT_IN and not Path(name).expanduser().is_dir():
        return dict(FULL_SIZE)
    return _read(_folder(name) / "transformer" / "config.json")


def _folder(name: str) -> Path:
    if name == "tiny":
        from .tiny import cached_tiny

        return cached_tiny()
    if name in BUILT_IN:
        from .world import cached_world

        return cached_world(trained=name == "world")
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "model_index.json").exists():
            raise UserError(f"{folder}: not a diffusers folder (no model_index.json)")
        return folder.resolve()
    if folder.is_absolute() or name.count("/") != 1:
        raise UserError(f"{name}: no such folder, and not a hub id (owner/name)")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.json", "*.txt", "*.jinja", *(f"{part}/*" for part in (*COMPONENTS, "processor"))]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, ignore_patterns=["*.bin", "*.pt", "*.ckpt"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as problem:
        reason = str(problem).strip().splitlines()[0]
        raise UserError(f"{name}: no folder of that name here, and the hub does not give it: {reason}") from problem


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"{path}: missing; is this a complete diffusers folder?")
    return read_object(path)


def _fingerprint(folder: Path, whole: int = 1 << 26, window: int = 1 << 16) -> str:
    """Hash of a component's configs and weights. A file over `whole` bytes is sampled: its header, its size and 64
    windows, so that 16 GB of weights cost seconds."""
    digest = hashlib.blake2b(digest_size=12)
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            config = {k: v for k, v in _read(path).items() if not k.startswith("_") and k != "transformers_version"}
            digest.update(json.dumps(config, sort_keys=True).encode())
        elif path.suffix == ".safetensors":
            size = path.stat().st_size
            digest.update(f"{path.name} {size}".encode())
            with path.open("rb") as file:
                for offset in range(0, size, window if size <= whole else max(window, size // 64)):
                    file.seek(offset)
                    digest.update(file.read(window))
    return digest.hexdigest()
