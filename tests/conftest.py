"""Set before anything heavy is imported: no network, no telemetry, one thread per process."""

import os
from pathlib import Path

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos, edits and instructions that are not part of the repository."""
    folder = Path(os.environ.get("FIRERED_LIT_SHARED", ROOT.parent / "shared" / "data"))
    if not (folder / "real_edits" / "edits.jsonl").exists():
        pytest.skip("the real edits are not here: set FIRERED_LIT_SHARED to the folder that holds real_edits/")
    return folder
