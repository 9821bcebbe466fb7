"""What users write is read from regular files of bounded size: nothing hangs, and what is wrong is said in one line."""

import os
import shutil
import socket

import pytest

from callbacks.judge.prompt import read_prompt
from callbacks.judge.server import Replay
from callbacks.ocr.models import model
from datamodules.sources import tables
from firered_lit import cli
from firered_lit.errors import UserError
from firered_lit.models.family import open_base
from firered_lit.models.identity import open_encoder
from firered_lit.textfiles import read_bytes, read_object, read_text

pytestmark = pytest.mark.timeout(60)  # what hangs fails here


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with one of everything that is no regular file."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    os.mkdir("folder")
    os.symlink("round", "round")
    with socket.socket(socket.AF_UNIX) as file:
        file.bind("socket")
        yield tmp_path


IRREGULAR = {
    "fifo": "not a regular file",
    "folder": "Is a directory",
    "round": "Too many levels of symbolic links",
    "socket": "No such device or address",
    "/dev/zero": "not a regular file",
    "/dev/null": "not a regular file",
    "none": "No such file or directory",
    "a\0b": "no file can have this name",
    "\ud800": "no file can have this name",
    "": "No such file or directory",
    "x" * 300: "File name too long",
}


@pytest.mark.parametrize("name", IRREGULAR, ids=ascii)
def test_only_regular_files_are_read(place, name):
    with pytest.raises(OSError, match=r"\[") as refused:
        read_bytes(name, 10)
    assert refused.value.strerror == IRREGULAR[name]


def test_a_file_is_read_up_to_its_limit(place):
    (place / "a").write_bytes(b"\xef\xbb\xbf1\r\n2\r3\n")
    assert read_bytes("a", 10) == b"\xef\xbb\xbf1\r\n2\r3\n"
    assert read_text("a", 10, "utf-8-sig") == "1\n2\n3\n"
    os.symlink("a", "link")
    assert len(read_bytes("link", 10)) == 10
    with pytest.raises(OSError, match="larger than") as refused:
        read_bytes("a", 9)
    assert refused.value.strerror.startswith("larger than ")
    os.truncate("a", 1 << 40)  # holds nothing, and would fill the memory
    with pytest.raises(OSError, match="larger than 64 MB"):
        read_text("a")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[1]", "expected a JSON object, not a list"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": "\xff"}'.encode("latin-1"), "not valid JSON"),
    ],
)
def test_a_config_is_a_json_object(place, text, what):
    (place / "c.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=what) as refused:
        read_object("c.json")
    assert "\n" not in str(refused.value)


def rows_of(name):
    return list(tables.rows(tables.files(name)[0]))


def no_model(folder, part):
    """A copy of the tiny base, one of whose configs never ends."""
    shutil.copytree(open_base("tiny").folder, folder / "base", symlinks=True)
    (folder / "base" / part).unlink()
    os.mkfifo(folder / "base" / part)
    return open_base(str(folder / "base")).fingerprints


def encoder_without_end(folder):
    (folder / "enc").mkdir()
    os.mkfifo(folder / "enc" / "config.json")
    open_encoder(folder / "enc")


def ocr_without_end(folder):
    (folder / "ocr").mkdir()
    os.mkfifo(folder / "ocr" / "inference.yml")
    model(str(folder / "ocr"))


def named(folder, name):
    os.mkfifo(folder / name)
    return name


READERS = {
    "rows as lines": lambda f: rows_of(named(f, "a.jsonl")),
    "rows as an array": lambda f: rows_of(named(f, "a.json")),
    "rows as cells": lambda f: rows_of(named(f, "a.csv")),
    "rows as columns": lambda f: tables.survey(named(f, "a.parquet")),
    "a prompt": lambda f: read_prompt(named(f, "p.txt")),
    "a judge's record": lambda f: Replay(named(f, "r.jsonl")),
    "a pipeline's index": lambda f: no_model(f, "model_index.json"),
    "a model's config": lambda f: no_model(f, "transformer/config.json"),
    "an encoder's config": encoder_without_end,
    "an OCR model's config": ocr_without_end,
}


@pytest.mark.parametrize("reader", READERS)
def test_no_reader_waits_at_a_fifo(place, reader):
    with pytest.raises(UserError) as refused:
        READERS[reader](place)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_a_caption_that_is_no_file_is_its_rows_refusal(place, kind):
    for folder in ("target", "control"):
        (place / folder).mkdir()
        for stem in "ab":
            (place / folder / f"{stem}.png").write_bytes(b"x")
    os.rename(kind, "target/a.txt")
    (place / "target" / "b.txt").write_text("Make it red")
    first, second = (row for _, row in tables.rows(tables.files(place)[0]))
    assert first.args[:2] == ("caption", "unreadable caption")
    assert second["caption"] == "Make it red"


@pytest.mark.parametrize(
    "words",
    [
        ["check", "--recipe", "fifo"],
        ["check", "--recipe", "/dev/zero"],
        ["fit", "--recipe", "socket"],
        ["prepare", "--recipe", "a\0b"],
        ["mine", "--recipe", "\ud800"],
        ["check", "--data", "rows.jsonl"],
    ],
    ids=ascii,
)
def test_the_command_line_says_so_in_one_line(place, capsys, words):
    os.mkfifo("rows.jsonl")
    assert cli.main(words) == 2
    assert capsys.readouterr().err.count("\n") == 1
