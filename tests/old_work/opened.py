"""Unpack the archive of old work where a test can use it."""

import shutil
import sqlite3
import tarfile
from pathlib import Path

HERE = Path(__file__).parent
MARK = "@FOLDER@"
TEXT = (".json", ".jsonl", ".yaml", ".txt", ".md", ".sql")


def unpack(folder: Path) -> Path:
    """Write the old work into `folder`, as if it had been made there, and return the folder.

    Files that are as in `tiny` (the base of the run of all weights but for its transformer, the
    VAE and the text encoder of the full export) are put back from there.
    """
    with tarfile.open(HERE / "e4ae416.tar.xz") as tar:
        tar.extractall(folder, filter="data")

    # The marked paths become this folder's.
    for path in folder.rglob("*"):
        if path.suffix in TEXT:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(MARK, str(folder)), encoding="utf-8")

    # The MLflow store.
    script = folder / "mlflow.sql"
    store = sqlite3.connect(folder / "mlflow.db")
    store.executescript(script.read_text(encoding="utf-8"))
    store.close()
    script.unlink()

    # What is left out of the archive.
    make_base(folder / "base")
    for part in ("vae", "text_encoder"):
        for weights in (folder / "base" / part).glob("*.safetensors"):
            shutil.copyfile(weights, folder / "export_full" / part / weights.name)
    return folder


def make_base(folder: Path) -> None:
    """Write the base of the run of all weights: `tiny` with one narrow transformer block."""
    from diffusers import QwenImageTransformer2DModel

    from firered_lit.models.tiny import cached_tiny

    shutil.copytree(cached_tiny(), folder)
    config = QwenImageTransformer2DModel.load_config(folder / "transformer")
    config |= {"num_layers": 1, "num_attention_heads": 1}
    shutil.rmtree(folder / "transformer")
    QwenImageTransformer2DModel.from_config(config).save_pretrained(folder / "transformer")
