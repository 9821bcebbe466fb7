"""Files: whole or absent, read without running code, found by name."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from enum import StrEnum

import numpy as np
import pytest
import torch
from toy_run import Toy
from warm import Started, inline

from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO, check_architecture, name_of, newest, resolve
from firered_lit.errors import UserError

SMALL = {"state_dict": {"weight": torch.arange(6.0)}, "global_step": 3, "nested": [{"a": (1, None, "x")}]}
LARGE = {"state_dict": {"weight": torch.zeros(1_000_000)}}


@pytest.fixture
def run_dir(tmp_path):
    for step in (4, 8):
        AtomicCheckpointIO().save_checkpoint(SMALL, tmp_path / "checkpoints" / name_of(step))
    return tmp_path


def test_what_was_saved_is_read_back(tmp_path):
    AtomicCheckpointIO().save_checkpoint(SMALL, tmp_path / "a.ckpt")
    again = AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(again["state_dict"]["weight"], torch.arange(6.0))
    assert (again["global_step"], again["nested"]) == (3, [{"a": (1, None, "x")}])
    assert os.listdir(tmp_path) == ["a.ckpt"]


@pytest.fixture
def little_room():
    """No file of this process may grow beyond 1 MB: writes really fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_write_that_fails_is_one_clear_error_and_harms_nothing(run_dir, little_room):
    before = (run_dir / "checkpoints" / name_of(8)).read_bytes()
    for name in (name_of(12), name_of(8)):  # a new one, and one over an old one
        with pytest.raises(
            UserError, match=rf"{name}: the checkpoint could not be written \(File too large\)"
        ) as error:
            AtomicCheckpointIO().save_checkpoint(LARGE, run_dir / "checkpoints" / name)
        assert "\n" not in str(error.value)
    assert sorted(os.listdir(run_dir / "checkpoints")) == [name_of(4), name_of(8)]
    assert (run_dir / "checkpoints" / name_of(8)).read_bytes() == before


def test_a_full_disk_is_one_clear_error(tmp_path):
    """On a real file system of 1 MB, in a mount namespace of its own."""
    code = (
        "import sys, torch; from pathlib import Path; from firered_lit.checkpoints.checkpoint import"
        " AtomicCheckpointIO as IO\n"
        "folder = Path(sys.argv[1]); IO().save_checkpoint({'state_dict': {}}, folder / 'step_00000001.ckpt')\n"
        "try: IO().save_checkpoint({'state_dict': {'w': torch.zeros(10**6)}}, folder / 'step_00000002.ckpt')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
        "print(sorted(path.name for path in folder.iterdir()))"
    )
    mount = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "{sys.executable}" -c "$0" "{tmp_path}"'
    if not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, code], capture_output=True, text=True)
    if "mount" in done.stderr:
        pytest.skip("mounting is not permitted here")
    said, left = done.stdout.strip().splitlines()
    assert said.startswith("UserError")
    assert os.strerror(errno.ENOSPC) in said
    assert left == "['step_00000001.ckpt']"


def test_an_interrupted_write_leaves_no_trace(run_dir, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        AtomicCheckpointIO().save_checkpoint(SMALL, run_dir / "checkpoints" / name_of(12))
    assert newest(run_dir).name == name_of(8)
    assert len(os.listdir(run_dir / "checkpoints")) == 2


def test_a_process_killed_while_it_writes_leaves_nothing_that_is_picked(run_dir, tmp_path):
    lines = (
        "import os, sys, torch; from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), 9)\n"
        "AtomicCheckpointIO().save_checkpoint({'state_dict': {'w': torch.zeros(10)}}, sys.argv[1])"
    )
    path = run_dir / "checkpoints" / name_of(12)
    with Started(inline, lines, str(path), log=tmp_path / "said") as process:
        assert process.wait(60) == -9
    assert len(os.listdir(path.parent)) == 3  # something half-written is there
    assert newest(run_dir).name == name_of(8)
    assert resolve(run_dir, "last").name == name_of(8)


def test_the_file_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("sync"), sync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("name"), replace(a, b)))
    AtomicCheckpointIO().save_checkpoint(SMALL, tmp_path / "a.ckpt")
    assert calls == ["sync", "name", "sync"]  # the file, its name, its folder


class Colour(StrEnum):
    RED = "red"


@pytest.mark.parametrize("value", [Colour.RED, np.float64(1.0), np.zeros(2), print, object(), torch.nn.Linear(1, 1)])
def test_what_could_not_be_read_back_is_refused_at_saving(tmp_path, value):
    state = {"state_dict": {}, "callbacks": {"EMA": [0, {"decay": value}]}}
    with pytest.raises(UserError, match=r"checkpoint key callbacks\.EMA\[1\]\.decay"):
        AtomicCheckpointIO().save_checkpoint(state, tmp_path / "a.ckpt")
    assert not list(tmp_path.iterdir())


def test_keys_are_looked_at_too(tmp_path):
    with pytest.raises(UserError, match="Colour"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {Colour.RED: 1}}, tmp_path / "a.ckpt")


class Planted:
    def __reduce__(self):
        return open, ("planted", "w")


def test_a_file_with_code_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "extra": Planted()}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: refused, it holds Python objects .*open"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(UserError):  # even when a caller says that it trusts the file
        AtomicCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert not (tmp_path / "planted").exists()


def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path):
    AtomicCheckpointIO().save_checkpoint(SMALL, tmp_path / "whole.ckpt")
    whole = (tmp_path / "whole.ckpt").read_bytes()
    files = {
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "text": b"hello",
        "hole": whole[:200] + bytes(800) + whole[1000:],
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "bare")
    for name in (*files, "list", "bare", "absent"):
        with pytest.raises(UserError) as error:
            AtomicCheckpointIO().load_checkpoint(tmp_path / name)
        assert str(error.value).startswith(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_weights_of_another_architecture_are_named():
    module = Toy()
    check_architecture(module, module.state_dict())
    other = {"net.weight": torch.zeros(16, 8), "net.scale": torch.zeros(1)}
    with pytest.raises(UserError) as error:
        check_architecture(module, other)
    said = str(error.value)
    assert "1 missing (net.bias" in said
    assert "1 unknown (net.scale" in said
    assert "net.weight is (16, 8) for (16, 16)" in said


def test_the_newest_is_the_highest_step_that_is_whole(run_dir):
    folder = run_dir / "checkpoints"
    assert newest(run_dir).name == name_of(8)
    os.utime(folder / name_of(4), (2e9, 2e9))  # copied later: the step counts
    (folder / ".step_00000012.ckpt.part").write_bytes(b"half")
    (folder / name_of(16)).write_bytes((folder / name_of(8)).read_bytes()[:300])
    (folder / "set_aside_step_00000099.ckpt").write_bytes((folder / name_of(8)).read_bytes())
    assert newest(run_dir).name == name_of(8)
    shutil.copy(folder / name_of(8), folder / name_of(123_456_789))
    assert newest(run_dir).name == name_of(123_456_789)


def test_resume_means_what_it_says(run_dir):
    folder = run_dir / "checkpoints"
    assert resolve(run_dir, None) is None
    assert resolve(run_dir, "last") == folder / name_of(8)
    for said in (name_of(4), f"checkpoints/{name_of(4)}", str(folder / name_of(4))):
        assert resolve(run_dir, said) == folder / name_of(4)
    assert resolve(run_dir, str(run_dir)) == folder / name_of(8)  # another run's folder
    (folder / "best.json").write_text(f'{{"name": "{name_of(4)}"}}')
    assert resolve(run_dir, "best") == folder / name_of(4)


def test_last_of_a_run_without_any_starts_from_scratch(tmp_path):
    assert resolve(tmp_path / "nothing", "last") is None


@pytest.mark.parametrize("said", ["best", "step_00000005.ckpt", "/no/such/file.ckpt"])
def test_what_is_not_there_is_said_with_what_is(run_dir, said):
    with pytest.raises(UserError, match=rf"run\.resume={said}: no such checkpoint.*{name_of(4)}, {name_of(8)}"):
        resolve(run_dir, said)
