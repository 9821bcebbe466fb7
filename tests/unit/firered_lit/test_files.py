"""Durable writes: whole or absent, on the disk before they have their name, with the mode that the umask gives."""

import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from firered_lit import files
from firered_lit.files import appearing, replacing, settle, write_json, write_text

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def fail():
    raise ZeroDivisionError


def test_an_error_in_the_middle_leaves_what_was_there(tmp_path):
    write_text(tmp_path / "deep" / "a", "one")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "deep" / "a") as file:
        print("half", file=file, flush=True, end=str(fail()))
    assert (tmp_path / "deep" / "a").read_text() == "one"
    with pytest.raises(ZeroDivisionError), appearing(tmp_path / "folder") as staging:
        (staging / "half").write_text(str(fail()))
    assert os.listdir(tmp_path) == ["deep"]
    assert os.listdir(tmp_path / "deep") == ["a"]


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (calls.append("sync"), sync(handle)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("name"), replace(a, b)))
    write_json(tmp_path / "a.json", {"a": 1})
    assert calls == ["sync", "name", "sync"]  # the file, its name, the list of names
    calls.clear()
    with appearing(tmp_path / "folder") as staging:
        (staging / "part").mkdir()
        (staging / "part" / "a").write_text("a")
    assert calls == ["sync", "sync", "sync", "name", "sync"]  # the folder, the one in it, the file; the name, the list


@pytest.mark.parametrize("when", ["fsync", "replace"])
def test_a_process_killed_while_it_writes_leaves_nothing_under_the_name(tmp_path, when):
    code = (
        "import os, sys; from pathlib import Path; from firered_lit.files import appearing, write_text\n"
        f"os.{when} = lambda *_: os.kill(os.getpid(), 9)\n"
        "if os.fork() == 0: write_text(sys.argv[1], 'half')\n"
        "os.wait()\n"
        "with appearing(sys.argv[2]) as folder: (folder / 'a').write_text('half')\n"
    )
    write_text(tmp_path / "a", "whole")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a"), str(tmp_path / "folder")])
    assert done.returncode == -9
    assert (tmp_path / "a").read_text() == "whole"
    assert not (tmp_path / "folder").exists()


def test_what_is_written_has_the_mode_that_the_umask_gives(tmp_path, umask):
    """A library that writes through a temporary file leaves 0600, and copies keep the mode of their source."""
    with appearing(tmp_path / "export") as staging:
        (staging / "part").mkdir(mode=0o700)
        save_file({"a": np.zeros(1)}, staging / "part" / "a.safetensors")
        (staging / "part" / "read_only").touch(mode=0o400)
        (staging / "link").symlink_to(sys.executable)
    write_text(tmp_path / "a", "")
    of = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("export", "export/part", "a")}
    assert of == {"export": 0o777 & ~umask, "export/part": 0o777 & ~umask, "a": 0o666 & ~umask}
    for name in ("a.safetensors", "read_only"):
        assert (tmp_path / "export" / "part" / name).stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / "export" / "link").is_symlink()


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    with appearing(tmp_path / "empty") as staging:
        (staging / "new").touch()
    with pytest.raises(OSError), appearing(tmp_path / "empty") as staging:  # noqa: PT011 - its number varies
        (staging / "other").touch()
    assert os.listdir(tmp_path / "empty") == ["new"]
    assert os.listdir(tmp_path) == ["empty"]


def test_half_a_character_is_written_as_json_escapes_it(tmp_path):
    content = {"words": "half \ud800 and whole \U0001f642 and \\ud800", "\udfff": "\x00\u2028"}
    write_json(tmp_path / "a.json", content)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == content


def test_many_writers_of_one_path_leave_one_whole_file(tmp_path):
    def write(letter):
        for _ in range(20):
            write_text(tmp_path / "a", letter * 100_000)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_text() in {letter * 100_000 for letter in "abcd"}
    assert os.listdir(tmp_path) == ["a"]


def test_settling_twice_changes_nothing(tmp_path):
    (tmp_path / "a").touch()
    settle(tmp_path)
    before = (tmp_path / "a").stat().st_mode
    settle(tmp_path)
    assert (tmp_path / "a").stat().st_mode == before
    assert os.listdir(tmp_path) == ["a"]


BY_HAND = re.compile(r"os\.(replace|rename|fsync)\(|tempfile\.(mkdtemp|mkstemp|NamedTemporaryFile)")


def test_one_module_writes_beside_and_renames():
    modules = [path for room in ("firered_lit", "datamodules", "callbacks") for path in (ROOT / room).rglob("*.py")]
    found = [path.relative_to(ROOT).as_posix() for path in modules if BY_HAND.search(path.read_text())]
    assert found == ["firered_lit/files.py"]


def test_importing_it_imports_nothing_heavy():
    """The lightest commands write files too."""
    code = "import sys; before = set(sys.modules); import firered_lit.files; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours = {name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names}
    assert ours == {"firered_lit", "firered_lit.files"}
    assert files.SUFFIX == ".part"
