"""Set before anything heavy is imported: no network, no telemetry, one thread per process."""

import gc
import os
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # else each compiler's worker imports torch first

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "support"))
# A test file may take what another one makes, from whichever room.
sys.path += sorted({str(path.parent) for path in (ROOT / "tests" / "unit").rglob("test_*.py")})


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector the millions of objects of the libraries, which every full collection would visit."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def pytest_unconfigure(config: pytest.Config) -> None:
    gc.unfreeze()


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


@pytest.fixture(scope="session", autouse=True)
def _tables_of_new_stores() -> Iterator[None]:
    """Let MLflow migrate the first store of a session alone, when any test file has imported it."""
    if "mlflow" not in sys.modules:
        yield
        return
    from mlflow.store.db import utils
    from store_template import from_the_first

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_initialize_tables", from_the_first(utils._initialize_tables))
        yield


def serving() -> list[threading.Thread]:
    """Threads that run a server, or answer one of its requests."""
    targets = ((thread, getattr(thread, "_target", None)) for thread in threading.enumerate())
    names = ("serve_forever", "process_request_thread", "_server_entry")
    return [thread for thread, target in targets if getattr(target, "__name__", "") in names]


@pytest.fixture(scope="module", autouse=True)
def _no_server_is_left_behind() -> Iterator[None]:
    """A thread that outlives its test file disturbs the files after it in the same process."""
    before = set(serving())
    yield
    end = time.monotonic() + 10
    while set(serving()) - before and time.monotonic() < end:
        time.sleep(0.02)
    assert not set(serving()) - before, "a server of this file still runs: stop it where it was started"


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """Two nodes of one processor each on this machine, and a head that does not work.

    There is one for all tests: Daft goes on with the cluster of a process that it was connected to first.
    """
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        found.add_node(num_cpus=1)
    os.environ["RAY_ADDRESS"] = found.address
    yield found
    del os.environ["RAY_ADDRESS"]
    ray.shutdown()
    found.shutdown()
