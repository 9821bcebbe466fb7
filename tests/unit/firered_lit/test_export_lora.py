"""The files of a LoRA run: read back and compared, or refused; merged; averaged."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from test_lora import output, stir
from tiny_edits import fit

from callbacks.checkpoint import Checkpoint
from callbacks.ema import EMA
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.errors import UserError
from firered_lit.exporting import load_weights, write_transformer
from firered_lit.models import lora_files
from firered_lit.models.backbone import Backbone
from firered_lit.models.family import open_base
from firered_lit.models.lora import LoRA, factors, merge
from firered_lit.models.lora_files import COMFYUI, DIFFUSERS, hollow, through_comfyui, through_diffusers

LORA = LoRA(4, 6)


def recorded(folder: Path, stage: torch.nn.Module) -> Path:
    """Add what `fit` writes beside a run's checkpoints."""
    sizes = stage.base.sizes.as_dict()
    facts = {"base": "tiny", "stage": "SFT", "sizes": sizes, "data": {"kept": 4}}
    (folder / "run.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return recorded(folder, fit(folder, Backbone("tiny", lora=LORA), 4, [EMA(decay=0.5), Checkpoint(every=2)]))


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    return recorded(folder, fit(folder, Backbone("tiny"), 3, [Checkpoint(every=1)]))


@pytest.fixture(scope="module")
def trained(run: Path) -> torch.nn.Module:
    """The transformer at the end of the run."""
    transformer = Backbone("tiny", lora=LORA).load()
    state = torch.load(newest(run), weights_only=True)["state_dict"]
    transformer.load_state_dict({k.removeprefix("transformer."): v for k, v in state.items()}, strict=False)
    return transformer


def loaded_into_the_base(pairs) -> torch.nn.Module:
    base = open_base("tiny").transformer()
    merge(base, pairs, 1.0)
    return base


def test_both_files_are_the_trained_edit(run, trained, tmp_path, capsys) -> None:
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "a LoRA over tiny after 4 steps" in said
    assert "load_lora_weights" in said
    assert {p.name for p in (tmp_path / "out").iterdir()} == {DIFFUSERS, COMFYUI, "README.md", "firered_lit.json"}
    tensors = load_file(tmp_path / "out" / DIFFUSERS)
    a, b = factors(trained.state_dict())["transformer_blocks.0.img_mod.1"]
    assert torch.equal(tensors["transformer.transformer_blocks.0.img_mod.1.lora_A.weight"], a)
    assert torch.equal(tensors["transformer.transformer_blocks.0.img_mod.1.lora_B.weight"], 1.5 * b)
    assert not any(key.endswith(".alpha") for key in tensors)
    on, plain = output(trained), output(open_base("tiny").transformer())
    config = open_base("tiny").transformer().config
    ways = [
        through_diffusers(tmp_path / "out", hollow(config), "QwenImageEditPlusPipeline"),
        through_comfyui(load_file(tmp_path / "out" / COMFYUI), hollow(config)),
    ]
    for pairs in ways:
        assert torch.allclose(output(loaded_into_the_base(pairs)), on, atol=2e-5)
    assert not torch.allclose(plain, on, atol=1e-2)
    card = (tmp_path / "out" / "README.md").read_text()
    for words in ("rank 4, alpha 6", 'load_lora_weights("THIS_FOLDER")', 'from_pretrained("tiny"', COMFYUI, "lora]"):
        assert words in card


def test_edit_takes_the_files_as_the_merged_model_does(run, tmp_path, capsys) -> None:
    """`edit --lora` on the folder, on ComfyUI's file, and at half strength twice, draws what the merged model draws."""
    for name, more in (("files", ()), ("merged", ("--merge",))):
        assert main(["export", "--run", str(run), "--out", str(tmp_path / name), *more]) == 0
    Image.new("RGB", (64, 64), "red").save(tmp_path / "in.png")

    def drawn(name: str, model: str, *loras: str) -> np.ndarray:
        out = tmp_path / f"{name}.png"
        what = ["--image", str(tmp_path / "in.png"), "--prompt", "Make it blue", "--steps", "3", "--guidance", "1"]
        assert main(["edit", "--model", model, *what, "--out", str(out), *(f"--lora={x}" for x in loras)]) == 0
        return np.asarray(Image.open(out)).astype(int)

    merged, files = drawn("merged", str(tmp_path / "merged")), str(tmp_path / "files")
    assert abs(drawn("plain", "tiny") - merged).mean() > 1e-1
    for name, loras in (("folder", [files]), ("comfy", [f"{files}/{COMFYUI}"]), ("halves", [f"{files}@0.5"] * 2)):
        assert abs(drawn(name, "tiny", *loras) - merged).mean() < 1e-3, name
    strange = load_file(tmp_path / "files" / DIFFUSERS)
    key = next(iter(strange))
    save_file(
        {k.replace("transformer_blocks.0", "blocks.0"): v for k, v in strange.items()}, tmp_path / "a.safetensors"
    )
    save_file(strange | {key: torch.ones(4, 3)}, tmp_path / "b.safetensors")
    (tmp_path / "c.safetensors").write_bytes(b"no")
    capsys.readouterr()
    for lora, words in (
        ("a.safetensors", "fit nothing in this transformer, first transformer.blocks.0"),
        ("b.safetensors", "another architecture"),
        ("c.safetensors", "cannot be read as safetensors"),
        ("none", "no LoRA there"),
        ("files@much", "'much' is no strength"),
    ):
        image = ["--image", str(tmp_path / "in.png"), "--prompt", "x", "--out", str(tmp_path / "o.png")]
        assert main(["edit", "--model", "tiny", *image, "--steps", "1", "--lora", str(tmp_path / lora)]) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]


def test_a_run_of_no_training_exports_no_change(tmp_path) -> None:
    config = dict(open_base("tiny").transformer().config)
    fresh = factors(Backbone("tiny", lora=LORA).load().state_dict())
    lora_files.write_lora(fresh, LORA.scale, tmp_path, config, "QwenImagePipeline")
    assert all(v.abs().max() == 0 for k, v in load_file(tmp_path / DIFFUSERS).items() if ".lora_B." in k)


@pytest.mark.parametrize("how", ["scale", "lost", "foreign"])
@pytest.mark.parametrize("file", [DIFFUSERS, COMFYUI])
def test_a_reload_that_changes_a_weight_is_refused(run, tmp_path, monkeypatch, how, file, capsys) -> None:
    """The same files with one adapter off by a thousandth, one lost, or one called otherwise."""
    save = lora_files.save_file

    def spoiled(tensors, path, **options):
        if path.name == file:
            key = next(k for k in tensors if ".to_k.lora_B." in k)
            if how == "scale":
                tensors = tensors | {key: tensors[key] * 1.001}
            else:
                tensors = {k: v for k, v in tensors.items() if ".attn.to_k." not in k}
            if how == "foreign":
                prefix = key.split(".")[0]
                tensors |= {
                    f"{prefix}.transformer_blocks.0.img_mlp.net.0.proj.lora_{x}.weight": torch.ones(shape)
                    for x, shape in (("A", (4, 128)), ("B", (512, 4)))
                }
        save(tensors, path, **options)

    monkeypatch.setattr(lora_files, "save_file", spoiled)
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: {file}: ")
    assert ("changes on reload" if how == "scale" else "lost") in error
    assert list(tmp_path.iterdir()) == []


def test_merged_it_is_a_whole_model(run, trained, tmp_path) -> None:
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "out"), "--merge"]) == 0
    whole = open_base(str(tmp_path / "out"))
    assert torch.allclose(output(whole.transformer()), output(trained), atol=2e-5)
    assert whole.fingerprints == open_base("tiny").fingerprints
    a, b = whole.transformer().state_dict(), open_base("tiny").transformer().state_dict()
    changed = {k for k in a if not torch.equal(a[k], b[k])}
    assert changed == {f"{name}.weight" for name in factors(trained.state_dict())}


def test_the_average_is_exported_where_there_is_one(run, full, tmp_path, capsys) -> None:
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "ema"), "--ema"]) == 0
    saved = torch.load(newest(run), weights_only=True)["ema"]["weights"]
    key = "transformer.transformer_blocks.0.attn.to_q.lora_{}.weight"
    exported = load_file(tmp_path / "ema" / DIFFUSERS)
    for x, scale in (("A", 1.0), ("B", 1.5)):
        assert torch.equal(exported[key.format(x)], scale * saved[key.format(x).replace(".weight", ".default.weight")])
    capsys.readouterr()
    assert main(["export", "--run", str(full), "--out", str(tmp_path / "none"), "--ema"]) == 2
    error = capsys.readouterr().err.strip()
    assert "kept no average" in error
    assert "\n" not in error
    assert main(["export", "--run", str(full), "--out", str(tmp_path / "none"), "--log"]) == 2
    assert "no MLflow record" in capsys.readouterr().err
    assert main(["export", "--run", str(full), "--out", str(tmp_path / "none"), "--merge"]) == 2
    assert "trained no LoRA" in capsys.readouterr().err


def test_the_mean_of_the_last_checkpoints(full, tmp_path, capsys) -> None:
    out = tmp_path / "mean.ckpt"
    assert main(["average", "--run", str(full), "--last", "3", "--out", str(out)]) == 0
    paths = sorted((full / "checkpoints").glob("step_*.ckpt"))
    states = [torch.load(path, weights_only=True)["state_dict"] for path in paths]
    mean = torch.load(out, weights_only=True)
    assert mean["averaged"] == ["step_00000001.ckpt", "step_00000002.ckpt", "step_00000003.ckpt"]
    assert mean["state_dict"].keys() == states[0].keys()
    for name, tensor in mean["state_dict"].items():
        assert tensor.dtype == states[0][name].dtype
        assert torch.allclose(tensor, torch.stack([s[name] for s in states]).mean(0), atol=1e-7)
    two = tmp_path / "two.ckpt"
    assert main(["average", "--run", str(full), "--last", "2", "--out", str(two)]) == 0
    assert torch.load(two, weights_only=True)["averaged"] == ["step_00000002.ckpt", "step_00000003.ckpt"]
    assert main(["export", "--run", str(full), "--checkpoint", str(out), "--out", str(tmp_path / "model")]) == 0
    exported = open_base(str(tmp_path / "model")).transformer().state_dict()
    assert all(torch.equal(v, mean["state_dict"][f"transformer.{k}"]) for k, v in exported.items())
    for arguments, words in (
        (["--last", "4", "--out", str(tmp_path / "four.ckpt")], "has 3 checkpoints, not 4"),
        (["--out", str(out)], "exists"),
        (["--out", str(tmp_path / "folder")], "NAME.ckpt"),
    ):
        capsys.readouterr()
        assert main(["average", "--run", str(full), *arguments]) == 2
        assert words in capsys.readouterr().err


def test_checkpoints_that_differ_are_not_averaged(tmp_path, run, full, capsys) -> None:
    folder = tmp_path / "mixed" / "checkpoints"
    folder.mkdir(parents=True)
    for i, source in enumerate((full, run)):
        (folder / f"step_0000000{i}.ckpt").symlink_to(newest(source))
    assert main(["average", "--run", str(tmp_path / "mixed"), "--last", "2", "--out", str(tmp_path / "m.ckpt")]) == 2
    assert "differ in names or shapes" in capsys.readouterr().err


def test_a_lora_of_another_base_is_not_merged(run, tmp_path) -> None:
    saved = load_weights(newest(run))
    spoiled = {k.replace("transformer_blocks.1", "transformer_blocks.7"): v for k, v in saved.weights.items()}
    with pytest.raises(UserError, match=r"another architecture than tiny: transformer_blocks\.7"):
        write_transformer(open_base("tiny"), replace(saved, weights=spoiled), tmp_path / "t", "5GB")


def test_stirred_adapters_survive_a_merge_in_bfloat16() -> None:
    """Merged into bfloat16 weights, the output is as near as their rounding."""
    adapted = stir(Backbone("tiny", dtype="bfloat16", lora=LORA).load(seed=1))
    on = output(adapted)
    merged = Backbone("tiny", dtype="bfloat16").load()
    merge(merged, factors(adapted.state_dict()), LORA.scale)
    assert ((output(merged) - on).norm() / on.norm()).item() < 0.02
