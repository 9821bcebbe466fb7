"""The consistency recipe from end to end: what it logs, what it refuses before the first step."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch

from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main

FIT = ["fit", "--recipe", "recipes/tiny/sft_consistency.yaml"]
QUIET = ["callbacks.progress=null", "callbacks.grid=null", "data.workers=0", "data.held_out_max=1"]


def test_the_consistency_recipe_trains_and_logs(world: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    table = f"logger={{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: {tmp_path}, version: 0}}"
    arguments = [*FIT, *QUIET, f"data.root={world}", f"run.dir={run}", table, "run.validate_first=false"]
    assert main([*arguments, "trainer.max_steps=3", "run.validate_every=3"]) == 0
    with (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {name: [float(row[name]) for row in rows if row.get(name)] for name in rows[0]}
    assert any(value > 0 for value in logged["train/regions"])
    assert all(0 <= value <= 1 for value in logged["train/compared"])
    assert all(0 < value < 2 for value in logged["train/identity"])
    assert len(logged["train/identity"]) == sum(value > 0 for value in logged["train/compared"]) > 0
    assert 0 <= logged["reward/identity"][-1] <= 1
    saved = torch.load(newest(run), weights_only=True)
    assert not any("phi" in name or "vae" in name for name in saved["state_dict"])


@pytest.mark.parametrize(("change", "line"), [("encoder", "no encoder"), ("regions", "no sample of data.root=")])
def test_it_refuses_in_one_line_before_the_first_step(world, tmp_path, capsys, change, line) -> None:
    data = tmp_path / "data"
    shutil.copytree(world, data)
    more = []
    if change == "regions":
        content = json.loads((data / "data.json").read_text())
        (data / "data.json").write_text(json.dumps(content | {"regions": 0}))
    else:
        more = [f"stage.consistency.encoder={tmp_path / 'nowhere'}", "callbacks.identity=null"]
    assert main([*FIT, *QUIET, f"data.root={data}", f"run.dir={tmp_path / 'run'}", "logger=null", *more]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert line in said
    assert not list((tmp_path / "run").glob("checkpoints/*.ckpt"))
