"""Every kind of model that an evaluation draws with draws what it draws elsewhere."""

import base64
import io
import json
import sys
import threading
from collections import deque
from collections.abc import Iterator
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.append(str(Path(__file__).resolve().parents[3] / "old_work"))
from opened import unpack

from firered_lit.editing import edit
from firered_lit.errors import UserError
from firered_lit.evaluation.models.local import Local
from firered_lit.evaluation.models.opening import Drawing, name_of, open_model
from firered_lit.evaluation.models.pictures import Pictures
from firered_lit.evaluation.models.pipeline import Pipeline
from firered_lit.evaluation.models.server import ServerModel
from firered_lit.evaluation.protocols import Item
from firered_lit.exporting import export


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(tmp_path_factory.mktemp("old"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "source.png"
    noise = np.random.default_rng(0).integers(0, 255, (6, 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 96)).save(path)
    return path


def item_of(instruction: str = "Make it red") -> Item:
    return Item("rededit_en", "1", "color", "en", instruction, ("source.png",), "color/color-1.png")


def drawn(model: Local, source: Path, seed: int = 5) -> np.ndarray:
    with Image.open(source) as picture:
        return np.asarray(model.draw(item_of(), [picture.convert("RGB")], seed))


@pytest.mark.parametrize(("model", "guidance"), [("world", 1.0), ("world", 4.0), ("tiny", 4.0)])
def test_a_model_loaded_once_draws_what_edit_draws_however_often(model, guidance, source, tmp_path) -> None:
    out = str(tmp_path / "edited.png")
    edit(model, [str(source)], "Make it red", out, steps=2, seed=5, guidance=guidance)
    loaded = Local(model, steps=2, guidance=guidance)
    first = drawn(loaded, source)
    other = drawn(loaded, source, seed=6)
    assert np.array_equal(first, np.asarray(Image.open(out)))
    assert not np.array_equal(first, other)
    assert np.array_equal(first, drawn(loaded, source)), "the seed is set anew for every picture"


def test_a_run_draws_what_its_export_draws(old: Path, source: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(old)
    of_run = Local("full", steps=1, guidance=1.0)
    of_export = Local("export_full", steps=1, guidance=1.0)
    assert np.array_equal(drawn(of_run, source), drawn(of_export, source))
    assert not np.array_equal(drawn(Local("base", steps=1, guidance=1.0), source), drawn(of_run, source))

    # A LoRA in a run, and its files over the base.
    of_run = Local("lora", steps=1, guidance=1.0)
    of_export = Local("tiny", loras=["export_lora"], steps=1, guidance=1.0)
    assert np.abs(drawn(of_run, source).astype(int) - drawn(of_export, source).astype(int)).max() <= 1
    assert len({one.fingerprint() for one in (of_run, of_export, Local("tiny", steps=1, guidance=1.0))}) == 3
    merged = tmp_path / "merged"
    export("lora", str(merged), merge=True)
    assert np.array_equal(drawn(of_run, source), drawn(Local(str(merged), steps=1, guidance=1.0), source))


def test_a_fingerprint_tells_settings_and_weights_apart(old: Path, monkeypatch) -> None:
    monkeypatch.chdir(old)
    models = [
        Local("tiny"),
        Local("tiny", steps=8),
        Local("tiny", guidance=1.0),
        Local("tiny", stock=True),
        Local("tiny", loras=["export_lora"]),
        Local("tiny", loras=["export_lora@0.5"]),
        Local("world"),
        Local("base"),
        Local("full"),
        Local("export_full"),
    ]
    prints = [model.fingerprint() for model in models]
    assert len(set(prints)) == len(models)
    assert prints == [model.fingerprint() for model in models]


def test_a_name_means_what_lies_there(old: Path, source: Path, monkeypatch) -> None:
    monkeypatch.chdir(old)
    settings = Drawing(steps=3, loras=("export_lora",))
    assert isinstance(open_model(str(source.parent), settings), Pictures)
    for name in ("full", "export_full", "tiny", "someone/somewhere"):
        opened = open_model(name, settings)
        assert isinstance(opened, Local)
        assert (opened.steps, opened.loras) == (3, ("export_lora",))
    shown = old / "export_lora" / "pictures"  # of a model card
    shown.mkdir()
    Image.new("RGB", (8, 8)).save(shown / "after.jpg")
    with pytest.raises(UserError, match="export_lora: a LoRA alone; name its base as the model"):
        open_model("export_lora", Drawing())
    for nothing in (7, {"model": "tiny"}, ["tiny"]):
        with pytest.raises(UserError, match="name a folder, a hub id, or a node with a _target_"):
            open_model(nothing, Drawing())
    assert name_of("export_full") == "export_full"
    assert name_of("FireRedTeam/FireRed-Image-Edit-1.0") == "FireRed-Image-Edit-1.0"
    assert name_of("a/<b> ..") == "_b_"
    assert name_of("..") == old.parent.name


def test_any_pipeline_of_diffusers_draws_by_its_own_class(source: Path) -> None:
    from firered_lit.models.family import open_base

    folder = str(open_base("tiny").folder)
    small = {"width": 32, "height": 48, "true_cfg_scale": 1.0}
    model = Pipeline(folder, "QwenImageEditPlusPipeline", steps=2, arguments=small, dtype="float32")
    with Image.open(source) as picture:
        first = model.draw(item_of(), [picture.convert("RGB")], 1)
        other = model.draw(item_of(), [picture.convert("RGB")], 2)
    assert first.size == other.size == (32, 48)
    assert first.tobytes() != other.tobytes()
    assert model.fingerprint() != Pipeline(folder, "QwenImageEditPlusPipeline", steps=3).fingerprint()

    # What cannot be.
    for name in ("NoSuchPipeline", "AutoencoderKL", "os.system", "__import__"):
        with pytest.raises(UserError, match="has no pipeline of that name"):
            Pipeline(folder, name).draw(item_of(), [], 1)
    with pytest.raises(UserError, match="QwenImageEditPlusPipeline takes no 'strength'"):
        Pipeline(folder, "QwenImageEditPlusPipeline", arguments={"strength": 1}).draw(item_of(), [], 1)
    with pytest.raises(UserError, match=r"arguments\.prompt: is given by the evaluation itself"):
        Pipeline(folder, arguments={"prompt": "x"})
    for dtype in ("int4", "load", "__doc__"):
        with pytest.raises(UserError, match=rf"dtype={dtype}: choose one of float32, bfloat16, float16"):
            Pipeline(folder, dtype=dtype)
    with pytest.raises(UserError, match="model /nowhere: "):
        Pipeline("/nowhere").draw(item_of(), [], 1)


class EditServer:
    """A server with `images/edits` that answers as it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: deque[tuple[int, dict[str, str], bytes]] = deque()
        self.forms: list[list[tuple[str, str | None, bytes]]] = []
        self.paths: list[str] = []
        self.keys: list[str | None] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                kind = self.headers["Content-Type"].encode()
                parts = message_from_bytes(b"Content-Type: " + kind + b"\r\n\r\n" + body).get_payload()
                form = []
                for part in parts:
                    name = part.get_param("name", header="content-disposition")
                    form.append((name, part.get_filename(), part.get_payload(decode=True)))
                owner.forms.append(form)
                owner.paths.append(self.path)
                owner.keys.append(self.headers.get("Authorization"))
                status, headers, answer = owner.answers.popleft()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server() -> Iterator[EditServer]:
    found = EditServer()
    yield found
    found.http.shutdown()
    found.http.server_close()


def png(color: str = "red") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def answer(picture: bytes) -> bytes:
    return json.dumps({"data": [{"b64_json": base64.b64encode(picture).decode()}]}).encode()


def test_a_server_is_asked_as_openai_s_interface_has_it(server: EditServer, monkeypatch) -> None:
    monkeypatch.setenv("EDITS_API_KEY", "a secret")
    model = ServerModel(server.url, "editor", key_variable="EDITS_API_KEY", fields={"size": "auto", "steps": 40})
    server.answers.append((200, {}, answer(png())))
    picture = Image.new("RGB", (8, 6), "blue")
    assert model.draw(item_of("把它变红"), [picture], 43) == png()
    (form,) = server.forms
    texts = {name: content.decode() for name, file, content in form if file is None}
    wanted = {"model": "editor", "prompt": "把它变红", "n": "1", "response_format": "b64_json", "seed": "43"}
    assert texts == wanted | {"size": "auto", "steps": "40"}
    ((name, _, content),) = [part for part in form if part[1] is not None]
    assert name == "image"
    assert Image.open(io.BytesIO(content)).tobytes() == picture.tobytes()
    assert server.paths == ["/v1/images/edits"]
    assert server.keys == ["Bearer a secret"]

    # Several sources, no seed.
    server.answers.append((200, {}, answer(png())))
    ServerModel(server.url, "editor", send_seed=False).draw(item_of(), [picture, picture], 43)
    names = [name for name, _, _ in server.forms[1]]
    assert names.count("image[]") == 2
    assert "seed" not in names


def test_a_server_that_is_busy_is_asked_again_and_one_that_declines_is_not(server: EditServer) -> None:
    model = ServerModel(server.url, "editor", backoff=0.01, retries=3)
    whole = (200, {}, answer(png()))
    passing = [(429, {"Retry-After": "0"}, b""), (503, {}, b"busy"), (200, {}, b"{half")]
    server.answers.extend([*passing, whole])
    assert model.draw(item_of(), [], 1) == png()
    assert len(server.forms) == 4

    # It never recovers.
    server.answers.extend([(500, {}, b"")] * 4)
    with pytest.raises(UserError, match="HTTP 500, after 4 tries"):
        model.draw(item_of(), [], 1)

    # It does not want to.
    lasting = {
        "HTTP 400: .*safety": (400, {}, b'{"error": "safety"}'),
        "HTTP 302": (302, {"Location": "http://example.com/"}, b""),
        "addresses of pictures are not followed": (200, {}, b'{"data": [{"url": "http://example.com/x.png"}]}'),
    }
    for message, reply in lasting.items():
        server.answers.append(reply)
        with pytest.raises(UserError, match=message):
            model.draw(item_of(), [], 1)
    assert len(server.forms) == 4 + 4 + 3


def test_a_server_that_is_not_there_is_named_in_one_line() -> None:
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/v1: .*, after 1 tries"):
        ServerModel("http://127.0.0.1:9/v1", "editor", retries=0).draw(item_of(), [], 1)
    with pytest.raises(UserError, match="carries a name or a password"):
        ServerModel("http://me:secret@localhost/v1", "editor")
