"""Broken, missing, slow: what passes is waited for, what does not is one error or is counted; and object storage."""

import atexit
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from functools import cache
from itertools import islice

import boto3
import pytest
from test_edits import loader, mixed, print_of, prints

from datamodules.chunks import remote
from datamodules.chunks.remote import Gone, patiently
from datamodules.chunks.samples import Chunks
from datamodules.edits import EditDataModule
from datamodules.prepare.parts import Parts
from firered_lit.errors import UserError

CHUNKS = 13


@pytest.fixture
def root(tmp_path):
    """Five samples to a chunk."""
    parts, samples = Parts(tmp_path / "data"), list(mixed(60, held_out=5))
    for number in range(CHUNKS):
        parts.write(number, 5, samples[5 * number : 5 * number + 5], [])
    parts.finish({"fingerprints": {"vae": "v", "text_encoder": "t"}, "model": "tiny", "sizes": {}})
    return tmp_path / "data"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_deleted_chunk_is_one_error_that_names_chunk_and_sample(root, workers):
    (root / "chunks" / "part-00002-0.bin").unlink()
    begun, edits = time.monotonic(), loader(root, workers=workers)
    with pytest.raises(UserError) as error:
        list(islice(edits, 2 * len(edits)))
    assert "part-00002-0.bin: sample " in str(error.value)
    assert "\n" not in str(error.value)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("workers", [0, 2])
def test_skipping_shows_others_of_the_bucket_and_counts(root, workers, caplog):
    whole = loader(root)
    lost = {f"id{i}" for i in range(10, 15)}
    expected = list(islice(whole, 2 * len(whole)))
    (root / "chunks" / "part-00002-0.bin").write_bytes(b"rubbish")
    data = EditDataModule(str(root), capacity=64, workers=workers, plan_ranks=1, on_error="skip")
    edits = data.train_dataloader()
    with caplog.at_level(logging.WARNING):
        found = list(islice(edits, len(expected)))
    edits.close()
    assert edits.skipped == sum(name in lost for batch in expected for name in batch.ids) > 5
    assert f"skipped, {edits.skipped} so far" in caplog.messages[-1]
    assert "part-00002-0.bin: sample " in caplog.messages[-1]
    for a, b in zip(expected, found, strict=True):
        assert (a.target.shape, a.slots, a.step, a.tasks) == (b.target.shape, b.slots, b.step, b.tasks)
        kept = [name for name in a.ids if name not in lost]
        assert not lost & set(b.ids)
        assert kept == [name for name, before in zip(b.ids, a.ids) if before not in lost]


def test_a_bucket_that_is_lost_whole_is_an_error_even_when_skipping(root):
    for chunk in (root / "chunks").glob("*.bin"):
        chunk.unlink()
    data = EditDataModule(str(root), capacity=64, workers=0, plan_ranks=1, on_error="skip")
    with pytest.raises(UserError, match="cannot be read"):
        next(iter(data.train_dataloader()))
    with pytest.raises(UserError, match="raise or skip"):
        EditDataModule(str(root), capacity=64, on_error="ignore")


def test_a_read_that_fails_for_a_moment_is_tried_again(root, monkeypatch):
    """A network folder that answers with errors twice, then does."""
    monkeypatch.setattr(remote, "PAUSES", (0.01, 0.02, 0.04))
    chunks, calls = Chunks(root / "chunks"), []
    real = os.pread

    def flaky(*args):
        calls.append(args)
        if len(calls) % 3:
            raise OSError(5, "Input/output error")
        return real(*args)

    monkeypatch.setattr(os, "pread", flaky)
    name = chunks.read(7).id
    assert len(calls) == 3 * 3  # of each part: where it lies, its head, its tensors
    monkeypatch.undo()
    assert chunks.read(7).id == name


def test_patience_has_an_end_and_none_for_what_is_gone():
    calls = []

    def fail(error):
        calls.append(error)
        raise error

    with pytest.raises(TimeoutError):
        patiently(lambda: fail(TimeoutError()), (0.0, 0.0))
    assert len(calls) == 3
    for error in (FileNotFoundError(), PermissionError(), Gone(), ValueError()):
        calls.clear()
        with pytest.raises(type(error)):
            patiently(lambda error=error: fail(error), (0.0, 0.0))
        assert len(calls) == 1


SERVER = """
import sys, time
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
port = server.get_host_and_port()[1]
print(port, flush=True)
for seconds in map(float, sys.stdin):
    server.stop()
    print("stopped", flush=True)
    time.sleep(seconds)
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
"""


class Store:
    """An S3 server on this machine, in a process of its own."""

    def __init__(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
        self.server = subprocess.Popen([sys.executable, "-c", SERVER], **pipes)
        self.port = int(self.server.stdout.readline())
        self.address = f"http://127.0.0.1:{self.port}"

    def fill(self, root):
        """Make the bucket `edits`, with the data under `v1`."""
        self.client = boto3.client("s3")
        self.client.create_bucket(Bucket="edits")
        for path in root.rglob("*"):
            if path.is_file():
                self.client.upload_file(str(path), "edits", f"v1/{path.relative_to(root)}")

    def empty(self):
        """Take away every bucket."""
        request = urllib.request.Request(f"{self.address}/moto-api/reset", method="POST")
        with urllib.request.urlopen(request, timeout=10):
            pass

    def stop_for(self, seconds):
        """Returns when nothing listens any more."""
        print(seconds, file=self.server.stdin, flush=True)
        assert self.server.stdout.readline() == "stopped\n"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.port))

    def close(self):
        self.server.kill()
        self.server.communicate()


@cache
def storage():
    """Return the server of all tests of this process."""
    store = Store()
    atexit.register(store.close)
    return store


@pytest.fixture
def store(root, monkeypatch):
    """The server, which holds this test's data alone."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", storage().address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage().fill(root)
    yield storage()
    storage().empty()


@pytest.mark.parametrize("workers", [0, 2])
def test_object_storage_gives_the_same_batches_though_it_stops_for_five_seconds(root, store, tmp_path, workers):
    local = loader(root)
    expected = prints(local, 2 * len(local))
    edits = loader("s3://edits/v1", workers=workers, cache=str(tmp_path / "cache"))
    found = [print_of(batch) for batch in islice(edits, 3)]
    copied = list((tmp_path / "cache").rglob("*.bin"))
    assert 0 < len(copied) < CHUNKS - 3
    begun = time.monotonic()
    store.stop_for(5.0)
    found += [print_of(batch) for batch in islice(edits, len(expected) - 3)]
    assert time.monotonic() - begun > 4
    edits.close()
    assert found == expected
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_a_cache_is_used_again_and_mended_and_other_data_has_its_own(root, store, tmp_path):
    options = {"cache": str(tmp_path / "cache"), "workers": 0}
    edits = loader("s3://edits/v1", **options)
    expected = prints(edits, len(edits))
    chunk = next((tmp_path / "cache").rglob("*.bin"))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    for kept in ("part-00003-0.bin", "part-00004-0.bin"):
        store.client.delete_object(Bucket="edits", Key=f"v1/chunks/{kept}")  # what is there is not asked for again
    assert prints(loader("s3://edits/v1", **options), len(edits)) == expected
    (root / "data.json").write_text((root / "data.json").read_text() + "\n")
    store.client.upload_file(str(root / "data.json"), "edits", "v1/data.json")
    with pytest.raises(UserError, match=r"s3://edits/v1/chunks/part-0000[34]-0\.bin: sample \d .*404"):
        prints(loader("s3://edits/v1", **options), 2 * len(edits))
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_validation_reads_from_object_storage(store, tmp_path):
    data = EditDataModule("s3://edits/v1", capacity=64, cache=str(tmp_path))
    assert sorted(batch.ids[0] for batch in data.val_dataloader()) == [f"id{i}" for i in range(60, 65)]


def test_what_is_not_there_is_one_line(store, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"s3://edits/other: no finished data can be read there: .*404"):
        EditDataModule("s3://edits/other", capacity=64, cache=str(tmp_path))
    with pytest.raises(UserError, match="s3://bucket/prefix"):
        EditDataModule("ftp://edits", capacity=64)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(UserError, match="set AWS_ACCESS_KEY_ID") as error:
        EditDataModule("s3://edits/v1", capacity=64, cache=str(tmp_path))
    assert "\n" not in str(error.value)
