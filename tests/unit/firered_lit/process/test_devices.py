"""Processes of one machine take a GPU each."""

import fcntl
import types

import pytest
import torch

from firered_lit.process import devices


@pytest.fixture
def gpus(monkeypatch, tmp_path):
    """Two GPUs, faked: this machine has none. Returns the file whose lock is that of a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: types.SimpleNamespace(uuid=f"id-{number}"))
    monkeypatch.setattr(devices.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(devices, "_taken", {})

    def lock(number):
        (found,) = tmp_path.glob(f"*-gpu-id-{number}")
        return found

    return lock


def test_a_process_takes_the_first_gpu_that_is_free_and_keeps_it(gpus, monkeypatch):
    assert devices.chosen_device("auto") == "cuda:0"
    assert devices.chosen_device("auto") == "cuda:0"
    monkeypatch.setattr(devices, "_taken", {})  # as another process sees it
    assert devices.chosen_device("auto") == "cuda:1"
    monkeypatch.setattr(devices, "_taken", {})
    assert devices.chosen_device("auto") in ("cuda:0", "cuda:1")  # shared, where there are too few
    with gpus(1).open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_device_that_is_named_and_the_only_one_are_taken_as_they_are(gpus, monkeypatch):
    assert devices.chosen_device("cuda:7") == "cuda:7"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.chosen_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.chosen_device("auto") == "cpu"
