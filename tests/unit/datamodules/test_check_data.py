"""`check --data` ends with 2 when nothing can be prepared, and no address keeps it waiting."""

import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from datamodules import summary
from datamodules.sources import images
from firered_lit import cli

EDIT = {"source_image": "a.png", "target_image": "b.png", "instruction": "red"}


@pytest.fixture
def folder(tmp_path):
    for name, shade in (("a", 10), ("b", 20)):
        Image.new("RGB", (96, 64), (shade, 0, 0)).save(tmp_path / f"{name}.png")
    return tmp_path


def jsonl(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checked(capsys, path, *options):
    """The exit code of `check --data`, and all that it says."""
    code = cli.main(["check", "--data", str(path), *options])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return code, said.out + said.err


def test_good_rows_end_with_0_though_others_are_refused(folder, capsys):
    code, said = checked(capsys, jsonl(folder / "e.jsonl", EDIT, EDIT | {"target_image": "none.png", "id": "x"}))
    assert code == 0
    assert "2: 1 good, 1 refused" in said


def empty_parquet(path):
    pq.write_table(pa.table({name: pa.array([], pa.string()) for name in EDIT}), path)


EMPTY = {
    "e.jsonl": lambda path: path.touch(),
    "blank.jsonl": lambda path: path.write_text("\n \n"),
    "e.json": lambda path: path.write_text("[]"),
    "e.csv": lambda path: path.write_text("source_image,target_image,instruction\n"),
    "nothing.csv": lambda path: path.touch(),
    "e.parquet": empty_parquet,
}


@pytest.mark.parametrize("name", EMPTY)
def test_a_table_without_rows_ends_with_2(tmp_path, capsys, name):
    EMPTY[name](tmp_path / name)
    code, said = checked(capsys, tmp_path / name)
    assert code == 2
    assert f"error: {tmp_path / name}: it holds no rows" in said


@pytest.mark.parametrize(
    "row", [EDIT | {"target_image": "none.png"}, EDIT | {"instruction": ""}, {"image": "a.png"}, EDIT | {"id": [1]}]
)
def test_a_table_without_a_good_row_ends_with_2(folder, capsys, row):
    code, said = checked(capsys, jsonl(folder / "e.jsonl", row, row))
    assert code == 2
    assert f"error: {folder / 'e.jsonl'}: none of its 2 rows is good" in said


# -- Addresses --
class Handler(BaseHTTPRequestHandler):
    """A server that answers, or lets its header or its body drip for ever."""

    def do_GET(self):
        if self.path == "/photo.png":
            body = io.BytesIO()
            Image.new("RGB", (96, 64), (30, 0, 0)).save(body, "PNG")
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body.getvalue())
        elif self.path == "/absent.png":
            self.send_error(404)
        else:
            self.drip(b"HTTP/1.0 200 OK\r\nX-Filler: " if "header" in self.path else b"HTTP/1.0 200 OK\r\n\r\n")

    def drip(self, begin):
        self.wfile.write(begin)
        while not self.server.closing.wait(0.05):
            try:
                self.wfile.write(b"x")
                self.wfile.flush()
            except OSError:
                return

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.closing = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.closing.set()
        server.shutdown()


@pytest.mark.parametrize("path", ["/dripping_header.png", "/dripping_body.png"])
def test_all_of_a_fetch_ends_within_its_seconds(address, path):
    start = time.monotonic()
    for look in (images.load, images.size):
        with pytest.raises(images.BadImageError, match=r"not complete after 0\.4 s"):
            look(address + path, allow_urls=True, url_seconds=0.4)
    assert time.monotonic() - start < 5


def test_an_address_is_refused_as_prepare_refuses_it(folder, address, capsys):
    code, said = checked(capsys, jsonl(folder / "e.jsonl", EDIT | {"source_image": f"{address}/photo.png"}))
    assert code == 2
    assert "source_image:" in said
    assert "URLs are not fetched unless allow_urls is true" in said


def test_addresses_are_looked_at_where_they_are_allowed(folder, address, capsys):
    rows = [EDIT | {"target_image": f"{address}/{name}.png", "id": name} for name in ("photo", "absent")]
    code, said = checked(capsys, jsonl(folder / "e.jsonl", *rows), "--allow-urls")
    assert code == 0
    assert "2: 1 good, 1 refused" in said
    assert "target_image: " in said
    assert "the server answers 404" in said
    assert "96x64 1" in said


def test_all_addresses_together_have_a_time(folder, address, monkeypatch, capsys):
    monkeypatch.setattr(summary, "URL_TOTAL", 0.6)
    monkeypatch.setattr(images, "URL_SECONDS", 0.4)
    rows = [EDIT | {"target_image": f"{address}/dripping_header_{i}.png", "id": f"{i}"} for i in range(20)]
    start = time.monotonic()
    code, said = checked(capsys, jsonl(folder / "e.jsonl", *rows), "--allow-urls")
    assert time.monotonic() - start < 10
    assert "2 fetched, 18 passed over after 0.6 s" in said
    assert code == 0
