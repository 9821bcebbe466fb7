"""Two real processes on gloo: no rank waits for one that has failed, and a signal to one stops both."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image
from warm import Started, script

from firered_lit.checkpoints.checkpoint import newest
from firered_lit.run.store import read_record, store_uri

SCRIPT = Path(__file__).with_name("two_ranks.py")


def start(folder, what, rank):
    folder.mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")}
    environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    said = folder / "said"
    said.unlink(missing_ok=True)
    process = Started(script, SCRIPT, str(folder), what, str(rank), log=said, environment=environment)
    try:
        return process.wait(timeout=120), said.read_text()
    finally:
        process.kill()


def left_over(folder):
    """Processes that the first one has started and that are still there, the watchdog aside."""
    found = subprocess.run(["pgrep", "-f", f"two_ranks.py {folder}"], capture_output=True, text=True)
    return found.stdout.split()


def status_of(folder):
    client = MlflowClient(store_uri(None, folder.parent))
    return client.get_run(read_record(folder)["mlflow_run_id"]).info.status


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


SLOW = pytest.mark.slow
CULPRITS = [
    pytest.param("raise", 1),
    pytest.param("raise", 0, marks=SLOW),
    pytest.param("raise-in-validation", 1, marks=SLOW),
    pytest.param("die", 1, marks=SLOW),
]


@pytest.mark.parametrize(("what", "rank"), CULPRITS)
def test_an_error_on_one_rank_ends_all(place, what, rank):
    folder = place / f"{what}-{rank}"
    code, said = start(folder, what, rank)
    assert code != 0
    if what != "die":
        assert f"ArithmeticError: planted on rank {rank}" in said
    assert wait_until(lambda: not left_over(folder)), "a rank is still waiting"
    assert time.time() - (folder / "culprit").stat().st_mtime < 20
    assert wait_until(lambda: status_of(folder) == "FAILED"), status_of(folder)


def test_a_signal_to_one_rank_saves_and_stops_both_and_the_run_goes_on(place):
    folder = place / "signal"
    code, said = start(folder, "signal", 1)
    assert code == 75, said
    assert "rank 0: 4 steps, code 75, stopping 75" in said
    assert "rank 1: 4 steps, code None, stopping 75" in said
    assert newest(folder).name == "step_00000004.ckpt"
    assert status_of(folder) == "KILLED"
    code, said = start(folder, "nothing", 0)
    assert code == 0, said
    assert newest(folder).name == "step_00000008.ckpt"
    assert status_of(folder) == "FINISHED"
    with Image.open(folder / "samples" / "step_00000008.png") as grid:
        assert grid.height > 3 * 32  # three rows, gathered from both ranks
    client = MlflowClient(store_uri(None, folder.parent))
    history = client.get_metric_history(read_record(folder)["mlflow_run_id"], "perf/samples_per_s")
    assert [point.step for point in history] == [6, 8]


@pytest.mark.slow
def test_a_signal_in_validation_stops_both(place):
    folder = place / "signal-in-validation"
    code, said = start(folder, "signal-in-validation", 1)
    assert code == 75, said
    assert newest(folder).name == "step_00000004.ckpt"
    assert wait_until(lambda: not left_over(folder))
    assert status_of(folder) == "KILLED"
