"""A model folder is whole and right, or one line says what is wrong with it, before anything is trained or drawn."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from firered_lit.errors import UserError
from firered_lit.models.backbone import Backbone
from firered_lit.models.component import DIFFUSERS, LFS_POINTER, TRANSFORMERS, weight_files
from firered_lit.models.family import Base, open_base
from firered_lit.models.tiny import cached_tiny

TRANSFORMER, VAE, TEXT = f"transformer/{DIFFUSERS}", f"vae/{DIFFUSERS}", f"text_encoder/{TRANSFORMERS}"
Damage = Callable[[Path], None]


def cut(name: str, keep: float = 0.7) -> Damage:
    """Keep the first part of a file, as a download that was stopped does."""

    def damage(folder: Path) -> None:
        os.truncate(folder / name, int((folder / name).stat().st_size * keep))

    return damage


def written(name: str, content: bytes) -> Damage:
    """Put something else in the place of a file."""
    return lambda folder: (folder / name).write_bytes(content) and None


def removed(*names: str) -> Damage:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def fifo(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return damage


def renamed(name: str, other: str) -> Damage:
    return lambda folder: (folder / name).rename(folder / other) and None


def tensors(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """Change what a file of weights holds."""

    def damage(folder: Path) -> None:
        held = load_file(folder / name)
        change(held)
        save_file(held, folder / name, metadata={"format": "pt"})

    return damage


def entries(name: str, **values: object) -> Damage:
    """Set entries of a JSON file; None removes one."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return damage


def sharded(change: Callable[[Path, dict], object]) -> Damage:
    """Spread the transformer's weights over three files, and then change them or their index."""

    def damage(folder: Path) -> None:
        part = folder / "transformer"
        held = load_file(part / DIFFUSERS)
        (part / DIFFUSERS).unlink()
        names = sorted(held)
        placed = {}
        for number in range(3):
            file = f"diffusion_pytorch_model-{number + 1:05}-of-00003.safetensors"
            own = {name: held[name] for name in names[number::3]}
            save_file(own, part / file, metadata={"format": "pt"})
            placed |= dict.fromkeys(own, file)
        index = {"metadata": {"total_size": 1}, "weight_map": placed}
        change(part, index)
        (part / f"{DIFFUSERS}.index.json").write_text(json.dumps(index))

    return damage


SHARD = "diffusion_pytorch_model-00002-of-00003.safetensors"
POINTER = LFS_POINTER + b"/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4967215360\n"

# damage -> what the line says
TRANSFORMERS_DAMAGE: dict[str, tuple[Damage, str]] = {
    "cut": (cut(TRANSFORMER), "cut short"),
    "empty": (written(TRANSFORMER, b""), "cut short"),
    "a pointer of LFS": (written(TRANSFORMER, POINTER), "a pointer of Git LFS, not the weights"),
    "a page of HTML": (written(TRANSFORMER, b"<!DOCTYPE html><html>not found</html>"), "not a safetensors file"),
    "missing": (removed(TRANSFORMER), "its weights are missing"),
    "a FIFO": (fifo(TRANSFORMER), "not a regular file"),
    "pickled": (renamed(TRANSFORMER, "transformer/diffusion_pytorch_model.bin"), "is a pickle, which can run code"),
    "a key missing": (tensors(TRANSFORMER, lambda held: held.pop("proj_out.bias")), r"1 \(proj_out\.bias\) missing"),
    "a key unknown": (
        tensors(TRANSFORMER, lambda held: held.update(other=torch.zeros(3))),
        r"1 \(other\) unknown",
    ),
    "another shape": (
        tensors(TRANSFORMER, lambda held: held.update({"proj_out.bias": torch.zeros(3)})),
        r"proj_out\.bias is \(3,\) in the file and \(64,\) by config\.json",
    ),
    "scaled fp8": (
        tensors(
            TRANSFORMER,
            lambda held: held.update({"scaled_fp8": torch.zeros(2), "proj_out.scale_weight": torch.ones(1)}),
        ),
        r"scaled fp8\): 2 \(proj_out\.scale_weight, scaled_fp8\)",
    ),
    "a shard cut": (sharded(lambda part, _: cut(SHARD)(part)), f"{SHARD}: cut short"),
    "a shard missing": (sharded(lambda part, _: removed(SHARD)(part)), f"1 \\({SHARD}\\) of 3 shards missing"),
    "a shard that is a pointer": (sharded(lambda part, _: written(SHARD, POINTER)(part)), f"{SHARD}: a pointer of Git"),
    "a shard without a tensor": (
        sharded(lambda part, _: tensors(SHARD, lambda held: held.pop(sorted(held)[0]))(part)),
        "not in the files that it names",
    ),
    "an index of nothing": (sharded(lambda _, index: index.update(weight_map=[])), "weight_map does not say"),
    "an index without its map": (sharded(lambda _, index: index.pop("weight_map")), "'weight_map' is missing"),
    "an index that leads elsewhere": (
        sharded(lambda _, index: index["weight_map"].update({"proj_out.bias": "../vae/x.safetensors"})),
        "is not the name of a file beside it",
    ),
    "an index without a key": (
        sharded(lambda _, index: index["weight_map"].pop("proj_out.bias")),
        r"1 \(proj_out\.bias\) missing",
    ),
    "its config missing": (removed("transformer/config.json"), r"transformer/config\.json: missing"),
    "its config cut": (cut("transformer/config.json"), r"transformer/config\.json: not valid JSON"),
    "its config a list": (written("transformer/config.json", b"[1, 2]"), "expected a JSON object, not a list"),
    "its config a FIFO": (fifo("transformer/config.json"), "not a regular file"),
    "another class": (entries("transformer/config.json", _class_name="FluxTransformer2DModel"), "'FluxTransformer2D"),
    "text for a number": (entries("transformer/config.json", num_layers="2"), "num_layers: expected int, got '2'"),
    "a number for a list": (entries("transformer/config.json", axes_dims_rope=3), "axes_dims_rope: expected tuple"),
    "a list that is too short": (entries("transformer/config.json", axes_dims_rope=[8, 12]), "axes_dims_rope: exp"),
    "text for a switch": (entries("transformer/config.json", zero_cond_t="false"), "zero_cond_t: expected true or"),
    "a layer more": (entries("transformer/config.json", num_layers=3), r"\(transformer_blocks\.2\..* missing"),
    "a layer less": (entries("transformer/config.json", num_layers=1), r"\(transformer_blocks\.1\..* unknown"),
    "layers without end": (entries("transformer/config.json", num_layers=10**9), "num_layers: expected at most 1000"),
    "less than no layers": (entries("transformer/config.json", num_layers=-1), "num_layers: expected at most 1000"),
    "half of a head": (entries("transformer/config.json", attention_head_dim=16), "in the file and"),
    "no heads": (entries("transformer/config.json", num_attention_heads=0), "transformer"),
    "an odd rope": (entries("transformer/config.json", axes_dims_rope=[9, 12, 11]), "transformer"),
    "quantised": (entries("transformer/config.json", quantization_config={"load_in_4bit": True}), "a quantised model"),
}
OTHERS: dict[str, tuple[Damage, str]] = {
    "no class": (entries("model_index.json", _class_name=None), "not of the Qwen-Image family"),
    "a class that is a list": (entries("model_index.json", _class_name=["a"]), "not of the Qwen-Image family"),
    "own sizes without sizes": (written("firered_lit.json", b"{}"), r"firered_lit\.json: .*'sizes' is missing"),
    "own sizes of another type": (written("firered_lit.json", b'{"sizes": 3}'), r"firered_lit\.json: sizes: expected"),
    "an own size as text": (written("firered_lit.json", b'{"sizes": {"target_area": "big"}}'), "sizes.target_area: ex"),
    "an own size of nothing": (written("firered_lit.json", b'{"sizes": {"target_area": 0}}'), "target_area: expected"),
    "an own size that is none": (written("firered_lit.json", b'{"sizes": {"area": 9}}'), "no size is called 'area'"),
    "an own size without end": (
        written("firered_lit.json", b'{"sizes": {"max_upscale": Infinity}}'),
        "max_upscale: expected a number",
    ),
    "a scheduler of text": (entries("scheduler/scheduler_config.json", base_shift="x"), r"scheduler_config\.json: "),
    "a scheduler of lists": (entries("scheduler/scheduler_config.json", shift_terminal=[1]), r"scheduler_config\.json"),
    "another scheduler": (entries("scheduler/scheduler_config.json", use_karras_sigmas=True), "not of the Qwen-Image"),
    "a scheduler that does not fall": (
        entries("scheduler/scheduler_config.json", base_shift=float("nan")),
        "not of numbers between 1 and 0",
    ),
    "a scheduler of one length": (
        entries("scheduler/scheduler_config.json", max_image_seq_len=256),
        r"scheduler_config\.json",
    ),
    "the VAE cut": (cut(VAE), "cut short"),
    "the VAE pickled": (renamed(VAE, "vae/diffusion_pytorch_model.bin"), "is a pickle"),
    "the VAE without a key": (tensors(VAE, lambda held: held.pop(sorted(held)[0])), "1 .* missing"),
    "the VAE of another class": (entries("vae/config.json", _class_name="AutoencoderKL"), "'AutoencoderKL' where"),
    "the VAE without means": (entries("vae/config.json", latents_mean=[]), "latents_mean: expected z_dim=16 numbers"),
    "the VAE of text": (entries("vae/config.json", latents_std=["1"] * 16), "latents_std: expected list"),
    "the VAE divided by nothing": (entries("vae/config.json", latents_std=[0.0] * 16), "by numbers above 0 alone"),
    "the VAE of endless numbers": (entries("vae/config.json", latents_mean=[float("inf")] * 16), "a finite number"),
    "the text encoder missing": (removed(TEXT), "text_encoder: its weights are missing"),
    "the text encoder cut": (cut(TEXT), "cut short"),
    "the text encoder a pointer": (written(TEXT, POINTER), "a pointer of Git LFS"),
    "the text encoder pickled": (renamed(TEXT, "text_encoder/pytorch_model.bin"), "is a pickle"),
    "the text encoder without a key": (
        tensors(TEXT, lambda held: held.pop(sorted(held)[-1])),
        "text_encoder: 1 weights are missing",
    ),
    "the text encoder in scaled fp8": (
        tensors(TEXT, lambda held: held.update({"model.x.scale_weight": torch.ones(1)})),
        "scaled fp8",
    ),
    "the text encoder of text": (
        entries("text_encoder/config.json", text_config="x"),
        "text_encoder: cannot be loaded",
    ),
    "the text encoder without end": (entries("text_encoder/config.json", depth=10**9), "depth: expected at most 1000"),
    "the text encoder's config a FIFO": (fifo("text_encoder/config.json"), "not a regular file"),
    "the processor cut": (cut("processor/tokenizer.json"), "processor: cannot be loaded"),
    "the processor of nothing": (written("processor/tokenizer.json", b"{}"), "processor: cannot be loaded"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A model folder that may be damaged."""
    return shutil.copytree(cached_tiny(), tmp_path / "model")


def everything(base: Base) -> None:
    """Load all that any verb loads."""
    base.scheduler_config  # noqa: B018
    base.transformer()
    base.codec()
    base.conditioner()
    base.fingerprints  # noqa: B018


def line_of(folder: Path, work: Callable[[Base], object]) -> str:
    """The one line that a folder is refused with."""
    with pytest.raises(UserError) as caught:
        work(open_base(str(folder)))
    line = str(caught.value)
    assert "\n" not in line
    assert str(folder) in line, "the line names the place"
    return line


def test_a_whole_folder_is_opened_by_every_part(copy: Path) -> None:
    everything(open_base(str(copy)))
    sharded(lambda part, index: None)(copy)
    everything(open_base(str(copy)))
    assert len(set(weight_files(copy / "transformer").values())) == 3


@pytest.mark.parametrize("what", [*TRANSFORMERS_DAMAGE, *OTHERS])
def test_a_damaged_folder_is_one_line_that_names_the_file_and_the_key(what: str, copy: Path) -> None:
    damage, said = (TRANSFORMERS_DAMAGE | OTHERS)[what]
    damage(copy)
    line = line_of(copy, everything)
    assert re.search(said, line), line


@pytest.mark.parametrize("what", ["cut", "a key missing", "a shard missing", "scaled fp8", "text for a number"])
def test_a_backbone_refuses_a_damaged_folder(what: str, copy: Path) -> None:
    damage, said = TRANSFORMERS_DAMAGE[what]
    damage(copy)
    with pytest.raises(UserError, match=said):
        Backbone(str(copy)).load()


def test_components_of_another_width_than_the_transformers_are_refused(copy: Path) -> None:
    """As when the VAE or the text encoder of another model was put into the folder."""
    entries("transformer/config.json", in_channels=32, joint_attention_dim=63)(copy)
    assert "vae makes 64 channels of a token, the transformer reads 32" in line_of(copy, lambda base: base.codec())
    said = "text_encoder makes 64 embeddings of a token, the transformer reads 63"
    assert said in line_of(copy, lambda base: base.conditioner())


def test_a_text_encoder_that_cannot_encode_is_refused_when_it_is_first_asked(copy: Path) -> None:
    """Its config fits its weights, and no token stands for a picture."""
    entries("text_encoder/config.json", image_token_id=-1)(copy)
    picture = Image.new("RGB", (96, 96))
    said = line_of(copy, lambda base: base.conditioner().encode(["x"], [[picture]], 96 * 96))
    assert "text_encoder: cannot be loaded: " in said


def test_missing_weights_of_the_text_encoder_are_said_to_be_missing(copy: Path) -> None:
    """Not that the data was encoded by another one."""
    removed(TEXT)(copy)
    assert "text_encoder: its weights are missing" in line_of(copy, lambda base: base.fingerprints)


def test_a_home_that_nobody_has_is_a_folder_that_is_not_there() -> None:
    with pytest.raises(UserError, match="no such folder"):
        open_base("~nobody-has-this-name/model")
