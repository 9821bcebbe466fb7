"""Which model is it? Read from the folder's configs, never guessed from its name."""

import hashlib
import json
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from ..places import user_path
from ..textfiles import read_object
from . import component
from .hub import download_configs, download_part, snapshot_of
from .sizes import Sizes

if TYPE_CHECKING:
    import torch

    from .codec import Codec
    from .conditioning import Conditioner
    from .patches import PatchCodec
    from .transformer import Transformer
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
OWN = "firered_lit.json"  # in a model folder: the sizes that it was trained at
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
        """The sizes of this variant's stock pipeline: constants of it, not settings."""
        return Sizes(condition_area=1024 * 1024) if self.variant == Variant.EDIT else Sizes()

    @property
    def at_stock_sizes(self) -> bool:
        """Return whether the stock pipeline would show this model the sizes that it was trained on."""
        stock = self.stock_sizes
        return (self.sizes.reference_area, self.sizes.condition_area) == (stock.reference_area, stock.condition_area)

    @property
    def width(self) -> int:
        """The numbers of a token of text, as the transformer reads them."""
        return int(_read(self.folder / "transformer" / component.CONFIG)["joint_attention_dim"])

    @property
    def scheduler_config(self) -> dict[str, Any]:
        """The schedule that the weights were trained with.

        Raises:
            UserError: an entry is none that a schedule of the Qwen-Image family can have.
        """
        from ..flow.sampler import schedule

        path = self.folder / "scheduler" / "scheduler_config.json"
        config = _read(path)
        with component.loading(path):
            sigmas = schedule(4, 256, config)
        if not bool(((sigmas >= 0) & (sigmas <= 1)).all()):
            raise UserError(f"{path}: its schedule is {sigmas.tolist()}, not of numbers between 1 and 0")
        return config

    def part(self, name: str) -> Path:
        """Return the folder of a component with its weights in it, which are downloaded when they are not.

        Raises:
            UserError: they are neither here, whole, nor to be had from the hub.
        """
        folder = (self.folder / name).resolve()
        if self.has_no_weights(name):
            return folder
        snapshot = snapshot_of(folder.parent)
        if snapshot is not None and not self._is_here(name):
            download_part(snapshot, name)
        component.weight_files(folder)
        return folder

    def origin(self, part: str) -> str | None:
        """Return `owner/name@commit` of a component that came from the hub; None of any other."""
        snapshot = snapshot_of((self.folder / part).resolve().parent)
        return None if snapshot is None else str(snapshot)

    def _is_here(self, part: str) -> bool:
        """Return whether the weights of a component are here, and whole."""
        try:
            component.weight_files(self.folder / part)
        except UserError:
            return False
        return True

    def has_no_weights(self, part: str) -> bool:
        """Return whether a component is a config alone."""
        from . import patches, words

        return self._class_of(part) in (patches.NAME, words.NAME)

    @property
    def precision(self) -> "torch.dtype":
        """The precision in which the transformer is stored: that of its first weight."""
        from safetensors import safe_open

        file = min(component.weight_files(self.part("transformer")).values())
        with safe_open(file, framework="pt") as opened:
            first = next(iter(opened.keys()))
            return opened.get_tensor(first).dtype

    def transformer_folder(self) -> Path:
        """Return the transformer's folder once its config and the names and shapes of its weights are seen to fit.

        Raises:
            UserError: they do not.
        """
        from diffusers import QwenImageTransformer2DModel

        return self._checked("transformer", QwenImageTransformer2DModel)

    def transformer(self, dtype: "torch.dtype | None" = None) -> "Transformer":
        """Load the diffusion transformer, in its stored precision unless `dtype` says otherwise."""
        from diffusers import QwenImageTransformer2DModel

        folder = self.transformer_folder()
        precision = dtype or self.precision
        with component.loading(folder):
            transformer: Any = QwenImageTransformer2DModel.from_pretrained(
                folder, torch_dtype=precision, use_safetensors=True, local_files_only=True
            )
        return transformer

    def vae_folder(self) -> Path:
        """Return the VAE's folder once its config and the names and shapes of its weights are seen to fit.

        Raises:
            UserError: they do not.
        """
        from diffusers import AutoencoderKLQwenImage

        return self._checked("vae", AutoencoderKLQwenImage)

    def _checked(self, part: str, kind: Any) -> Path:
        """Return the folder of a component of a class of diffusers, its weights held against its config."""
        import torch

        config = component.read_config(self.folder / part, kind)
        folder = self.part(part)
        with component.loading(folder / component.CONFIG), torch.device("meta"):
            hollow = kind.from_config(config)
        expected = {name: tuple(value.shape) for name, value in hollow.state_dict().items()}
        component.refuse_other_keys(folder, component.shapes_of(component.weight_files(folder)), expected)
        return folder

    def codec(self, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None) -> "Codec | PatchCodec":
        """Load the VAE.

        Raises:
            UserError: it is damaged, or its latents are not those of the transformer.
        """
        import torch

        from . import patches
        from .codec import Codec

        kind = patches.PatchCodec if self._class_of("vae") == patches.NAME else Codec
        with component.loading(self.folder / "vae"):
            codec = kind(self, device, dtype or torch.float32)
        if not bool(((codec.std > 0) & codec.mean.isfinite()).all()):
            raise UserError(f"{self.folder / 'vae' / component.CONFIG}: latents are divided by numbers above 0 alone")
        self._refuse_width("vae", "channels", 4 * codec.mean.shape[1], "in_channels")
        return codec

    def conditioner(
        self, device: "torch.device | str" = "cpu", dtype: "torch.dtype | None" = None
    ) -> "Conditioner | WordConditioner":
        """Load the text encoder.

        Raises:
            UserError: it is damaged, or its embeddings are not those that the transformer reads.
        """
        import torch

        from . import words
        from .conditioning import Conditioner

        kind = words.WordConditioner if self._class_of("text_encoder") == words.NAME else Conditioner
        with component.loading(self.folder / "text_encoder"):
            conditioner = kind(self, device, dtype or torch.float32)
        self._refuse_width("text_encoder", "embeddings", conditioner.width, "joint_attention_dim")
        return conditioner

    def _refuse_width(self, part: str, what: str, width: int, entry: str) -> None:
        """Refuse a component that makes more or fewer numbers of a token than the transformer reads."""
        read = _read(self.folder / "transformer" / component.CONFIG).get(entry)
        if read != width:
            raise UserError(
                f"{self.folder}: {part} makes {width} {what} of a token, the transformer reads {read} ({entry})"
            )

    def _class_of(self, part: str) -> str:
        return str(_read(self.folder / part / component.CONFIG).get("_class_name", ""))

    @property
    def fingerprints(self) -> dict[str, str]:
        """Return a hash of each frozen component that makes latents and embeddings, by its name."""
        return {part: self.fingerprint(part) for part in ("vae", "text_encoder")}

    def fingerprint(self, part: str) -> str:
        """Return a hash of one component's config and weights, which are downloaded when they are not here."""
        return _fingerprint(self.part(part))

    def identity(self, part: str) -> str:
        """Return the fingerprint of a component whose weights are here, else its commit on the hub.

        Raises:
            UserError: it is neither here nor on the hub.
        """
        origin = self.origin(part)
        if origin is None or self.has_no_weights(part) or self._is_here(part):
            return self.fingerprint(part)
        return origin

    def same_part(self, part: str, other: "Base") -> bool:
        """Return whether another base has the same component; weights of one commit are not downloaded for it."""
        origin = self.origin(part)
        if origin is not None and origin == other.origin(part):
            return True
        return self.fingerprint(part) == other.fingerprint(part)

    def resized(self, sizes: Sizes) -> "Base":
        """The same model at other sizes."""
        return replace(self, sizes=sizes)


def open_base(name: str) -> Base:
    """A base by name: one of `BUILT_IN`, a diffusers folder, or a hub id, `owner/name` or `owner/name@revision`.

    Of a model of the hub the configs are downloaded here, and the weights of a component when it is asked for.

    Raises:
        UserError: there is no such folder or repository, it holds another kind of model, or a config is damaged.
    """
    folder = _folder(name)
    index = _read(folder / "model_index.json")
    kind = index.get("_class_name")
    if not isinstance(kind, str) or kind not in PIPELINES:
        raise UserError(f"{folder}/model_index.json: {kind} is not of the Qwen-Image family ({', '.join(PIPELINES)})")
    missing = [part for part in COMPONENTS if not (folder / part).is_dir()]
    if missing:
        raise UserError(f"{folder}: incomplete model folder, missing {', '.join(missing)}")
    variant = PIPELINES[kind]
    config = folder / "transformer" / component.CONFIG
    zero_cond_t = _read(config).get("zero_cond_t", False)
    if not isinstance(zero_cond_t, bool):
        raise UserError(f"{config}: zero_cond_t: expected true or false, got {zero_cond_t!r}")
    base = Base(str(name), folder, variant, zero_cond_t, Sizes())
    own = folder / OWN
    return base.resized(read_sizes(own) if own.exists() else base.stock_sizes)


def read_sizes(path: Path) -> Sizes:
    """Read the sizes that a model was trained at, in the file beside it.

    Raises:
        UserError: it holds none, or others than a size can be.
    """
    return Sizes.read(read_object(path, "sizes")["sizes"], f"{path}: sizes")


def transformer_config(name: str) -> dict[str, Any]:
    """The transformer's config of a base, without loading or downloading: of a hub id, the family's full size."""
    if name not in BUILT_IN and not user_path(name).is_dir():
        return dict(FULL_SIZE)
    return component.read_config(_folder(name) / "transformer")


def _folder(name: str) -> Path:
    if name == "tiny":
        from .tiny import cached_tiny

        return cached_tiny()
    if name in BUILT_IN:
        from .world import cached_world

        return cached_world(trained=name == "world")
    folder = user_path(name)
    if folder.is_dir():
        if not (folder / "model_index.json").exists():
            raise UserError(f"{folder}: not a diffusers folder (no model_index.json)")
        return folder.resolve()
    return download_configs(name)


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
