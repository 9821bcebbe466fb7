"""Make the archive of old work, by hand, in a checkout of the version whose work is to be kept.

    python make.py e4ae416.tar.xz

The commands run in a new folder. Its path is replaced by a mark in all text files, so that the
archive names no machine.
"""

import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

MARK = "@FOLDER@"
RECIPES = Path.cwd() / "recipes" / "tiny"
SMALL = ["data.root=data", "trainer.max_steps=2", "run.validate_every=2", "data.workers=0"]
SMALL += ["data.max_batch=2", "stage.preview=null", "checkpoint.every=2"]
EMA = "callbacks.ema={_target_: callbacks.ema.EMA, decay: 0.9}"
BAND = "{_target_: firered_lit.mine.spread.Band, least_mean: 0, most_low: 1, least_std: 0}"
LEFT_OUT = ["export_full/vae/*.safetensors", "export_full/text_encoder/*.safetensors"]


def run(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(Path.cwd()), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    subprocess.run([sys.executable, "-m", *words], cwd=folder, env=environment, check=True)


def make_base(folder: Path) -> None:
    """Write a base with one narrow transformer block: all its weights fit a small archive."""
    from diffusers import QwenImageTransformer2DModel

    from firered_lit.models.tiny import make_tiny

    make_tiny(folder)
    config = QwenImageTransformer2DModel.load_config(folder / "transformer")
    config |= {"num_layers": 1, "num_attention_heads": 1}
    shutil.rmtree(folder / "transformer")
    QwenImageTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")


def make(folder: Path) -> None:
    """Prepare, train twice, mine and export, in `folder`."""
    firered = ("firered_lit",)
    run(folder, "datamodules.synthetic", "--out", "source", "--count", "6")
    prepare = ["prepare", "--recipe", f"{RECIPES}/prepare.yaml", "source=source", "out=data"]
    run(folder, *firered, *prepare, "keep_images=true", "held_out=0.2")
    lora = ["fit", "--recipe", f"{RECIPES}/sft_lora.yaml", "run.dir=lora"]
    run(folder, *firered, *lora, *SMALL, "stage.backbone.lora.rank=1")
    make_base(folder / "base")
    full = ["fit", "--recipe", f"{RECIPES}/sft.yaml", "run.dir=full"]
    run(folder, *firered, *full, *SMALL, "stage.backbone.name=base", EMA)
    mine = ["mine", "--recipe", f"{RECIPES}/mine_semi_hard.yaml", "task.data.root=data", "out=mined"]
    small = ["task.draws=2", "task.steps=1", "task.data.limit=4", f"task.band={BAND}"]
    run(folder, *firered, *mine, *small)
    run(folder, *firered, "export", "--run", "lora", "--out", "export_lora")
    run(folder, *firered, "export", "--run", "full", "--out", "export_full")


def forget_the_machine(folder: Path) -> None:
    """Replace the folder's path by a mark, the store by its text; leave out what `tiny` has as well."""
    with sqlite3.connect(folder / "mlflow.db") as store:
        (folder / "mlflow.sql").write_text("\n".join(store.iterdump()))
    (folder / "mlflow.db").unlink()
    shutil.rmtree(folder / "base")
    for pattern in LEFT_OUT:
        for path in folder.glob(pattern):
            path.unlink()
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".jsonl", ".yaml", ".txt", ".md", ".sql"):
            text = path.read_text(encoding="utf-8")
            text = text.replace(str(folder), MARK).replace(str(Path.home()), MARK).replace(sys.executable, "python")
            path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    archive = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch).resolve()
        make(made)
        forget_the_machine(made)
        with tarfile.open(archive, "w:xz") as tar:
            for path in sorted(made.iterdir()):
                tar.add(path, path.name)
    print(f"{archive}: {archive.stat().st_size / 2**20:.2f} MiB")
