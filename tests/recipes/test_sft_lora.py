"""The LoRA recipe from end to end: fit, resume, both files, the merged model."""

from pathlib import Path

import pytest
import torch

from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.models.family import open_base
from firered_lit.models.lora_files import COMFYUI, DIFFUSERS

FIT = ["fit", "--recipe", "recipes/tiny/sft_lora.yaml"]
QUIET = ["run.validate_every=null", "logger=null", "callbacks.progress=null"]


@pytest.mark.parametrize("quantize", ["null", "4bit"])
def test_the_lora_recipe_goes_all_the_way(world: Path, tmp_path: Path, quantize: str) -> None:
    run = tmp_path / "run"
    arguments = [*FIT, *QUIET, f"data.root={world}", f"run.dir={run}", f"stage.backbone.quantize={quantize}"]
    assert main([*arguments, "trainer.max_steps=4"]) == 0
    assert main([*arguments, "trainer.max_steps=6", "run.resume=last"]) == 0
    saved = torch.load(newest(run), weights_only=True)
    assert saved["global_step"] == 6
    assert all(".lora_" in key for key in saved["state_dict"])
    assert saved["ema"]["updates"] == 6
    files, merged = tmp_path / "files", tmp_path / "merged"
    assert main(["export", "--run", str(run), "--out", str(files)]) == 0
    assert {DIFFUSERS, COMFYUI} < {path.name for path in files.iterdir()}
    assert main(["export", "--run", str(run), "--out", str(merged), "--merge", "--ema"]) == 0
    assert open_base(str(merged)).transformer().dtype == open_base("tiny").transformer().dtype
