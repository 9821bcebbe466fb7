"""Models of the hub: a revision is resolved once and kept to, and only the files that are needed are downloaded.

The hub is a stand-in, a server on this machine that answers the requests of huggingface_hub as the hub does; the
library, its cache and its files are the real ones.
"""

import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from datamodules.edits import check_data
from firered_lit.checkpoints import lineage
from firered_lit.errors import UserError
from firered_lit.exporting import PARTS, _copy_parts
from firered_lit.models.backbone import Backbone
from firered_lit.models.family import open_base
from firered_lit.models.hub import parse, snapshot_of
from firered_lit.models.tiny import cached_tiny

NAME = "somebody/an-editor"
WEIGHTS = re.compile(r"\.safetensors$")


class Hub:
    """A stand-in for the hub: one repository whose branch `main` and tags point at commits, each a folder.

    served: files that were downloaded.
    """

    def __init__(self) -> None:
        self.commits: dict[str, Path] = {}
        self.names: dict[str, str] = {}
        self.served: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                hub.answer(self, body=False)

            def do_GET(self) -> None:
                hub.answer(self, body=True)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def commit(self, folder: Path, *names: str) -> str:
        """Publish a folder under a new commit, to which `names` point from now on."""
        digest = hashlib.sha1(str(len(self.commits)).encode()).hexdigest()
        self.commits[digest] = folder
        self.names |= dict.fromkeys(names, digest)
        return digest

    def answer(self, request: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(urlsplit(request.path).path)
        about = re.fullmatch(rf"/api/models/{NAME}/(revision|tree)/([^/]+)", path)
        file = re.fullmatch(rf"/{NAME}/resolve/([^/]+)/(.+)", path)
        commit = self.names.get(
            (about and about[2]) or (file and file[1]) or "", (about and about[2]) or (file and file[1])
        )
        if commit not in self.commits:
            code = "RevisionNotFound" if about or file else "RepoNotFound"
            request.send_response(404)
            request.send_header("X-Error-Code", code)
            request.end_headers()
            return
        if about and about[1] == "revision":
            self.send(request, json.dumps({"id": NAME, "sha": commit, "siblings": []}).encode(), {}, body)
        elif about:
            files = [path for path in sorted(self.commits[commit].rglob("*")) if path.is_file()]
            rows = [
                {
                    "type": "file",
                    "path": str(path.relative_to(self.commits[commit])),
                    "size": path.stat().st_size,
                    "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
                }
                for path in files
            ]
            self.send(request, json.dumps(rows).encode(), {}, body)
        else:
            content = (self.commits[commit] / file[2]).read_bytes()
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            if body:
                self.served.append(file[2])
            self.send(request, content, headers, body)

    @staticmethod
    def send(request: BaseHTTPRequestHandler, content: bytes, headers: dict[str, str], body: bool) -> None:
        request.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if body:
            request.wfile.write(content)

    def weights(self) -> set[str]:
        """The components whose weights were downloaded since this was asked last."""
        found = {name.partition("/")[0] for name in self.served if WEIGHTS.search(name)}
        self.served.clear()
        return found


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, with the tiny model as its first commit, and an empty cache."""
    server = Hub()
    server.commit(cached_tiny(), "main", "v1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def second(hub: Hub, tmp_path: Path) -> str:
    """A second commit, another model, that `main` points at once the first was opened."""
    folder = shutil.copytree(cached_tiny(), tmp_path / "second")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"zero_cond_t": False}))
    return str(folder)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("a/b", ("a/b", None)),
        ("Qwen/Qwen-Image-Edit-2511@main", ("Qwen/Qwen-Image-Edit-2511", "main")),
        ("a/b@refs/pr/5", ("a/b", "refs/pr/5")),
        ("a/b@", None),
        ("a/b/c", None),
        ("/a/b", None),
        ("./b", None),
        ("../b", None),
        ("~/b", None),
        ("a", None),
        ("a/b c", None),
    ],
)
def test_a_hub_id_is_a_repository_and_a_revision(name: str, found: tuple[str, str | None] | None) -> None:
    assert parse(name) == found


def test_each_component_is_downloaded_when_it_is_asked_for(hub: Hub) -> None:
    """Configs first; `prepare` asks for the frozen parts, `fit` for the transformer, a LoRA's export for none."""
    base = open_base(NAME)
    assert hub.weights() == set()
    assert base.origin("vae") == f"{NAME}@{hub.names['main']}"
    base.codec()
    assert hub.weights() == {"vae"}
    base.transformer()
    assert hub.weights() == {"transformer"}
    lineage.facts_of(base)
    assert hub.weights() == set(), "its commit says which text encoder it is"
    base.conditioner()
    assert hub.weights() == {"text_encoder"}
    open_base(NAME).conditioner()
    assert hub.served == [], "all is in the cache"
    assert base.fingerprints == open_base("tiny").fingerprints


def test_a_whole_export_takes_every_component_along(hub: Hub, tmp_path: Path) -> None:
    base = open_base(NAME)
    (tmp_path / "out").mkdir()
    _copy_parts(base, tmp_path / "out")
    assert hub.weights() == {"vae", "text_encoder"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*PARTS, "model_index.json"}


def test_a_revision_is_a_branch_a_tag_or_a_commit(hub: Hub, second: str) -> None:
    first = hub.names["main"]
    newer = hub.commit(Path(second), "main")
    for name, commit in ((NAME, newer), (f"{NAME}@main", newer), (f"{NAME}@v1", first), (f"{NAME}@{first}", first)):
        base = open_base(name)
        assert lineage.revision_of(base) == commit
        assert base.zero_cond_t == (commit == first)
        assert base.name == name
    assert snapshot_of(base.folder).repository == NAME


@pytest.mark.parametrize("name", [f"{NAME}@no-such-branch", "somebody/else", f"{NAME}@{'0' * 40}"])
def test_what_the_hub_does_not_have_is_one_line(hub: Hub, name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: .*the hub does not give it") as caught:
        open_base(name)
    assert "\n" not in str(caught.value)


def test_a_run_keeps_to_the_commit_that_it_began_with(hub: Hub, second: str, tmp_path: Path) -> None:
    """By its record, also where the cache is gone and the branch has moved on."""
    first = hub.names["main"]
    base = open_base(NAME)
    run = tmp_path / "run"
    run.mkdir()
    record = {"base": NAME, "base_folder": str(base.folder), "revision": lineage.revision_of(base)}
    (run / "run.json").write_text(json.dumps(record))
    hub.commit(Path(second), "main")
    assert lineage.place_of(run, NAME) == str(base.folder)
    shutil.rmtree(tmp_path / "cache")
    assert lineage.place_of(run, NAME) == f"{NAME}@{first}"
    held = Backbone(NAME).at(lineage.place_of(run, NAME))
    assert lineage.revision_of(held.base) == first
    assert held.base.name == NAME

    facts = lineage.facts_of(held.base)
    assert facts["revision"] == first
    shutil.rmtree(tmp_path / "cache")
    found = lineage.base_of(run / "checkpoints" / "step_00000001.ckpt", facts)
    assert lineage.revision_of(found) == first
    with pytest.raises(UserError, match=r"trained over somebody/an-editor at .* is another model"):
        lineage.refuse_other_base(facts, open_base(NAME), "run.resume")


def test_data_of_the_same_commit_needs_no_text_encoder(hub: Hub, tmp_path: Path) -> None:
    base = open_base(NAME)
    made_by = {"fingerprints": open_base("tiny").fingerprints, "sizes": base.sizes.as_dict()}
    (tmp_path / "data.json").write_text(json.dumps(made_by | {"origin": base.origin("vae")}))
    check_data(tmp_path, base)
    assert hub.weights() == set()
    (tmp_path / "data.json").write_text(json.dumps(made_by))
    check_data(tmp_path, base)
    assert hub.weights() == {"vae", "text_encoder"}, "of other data only the weights themselves can say"


def test_a_download_that_was_stopped_goes_on(hub: Hub) -> None:
    base = open_base(NAME)
    (weights,) = base.part("transformer").glob("*.safetensors")
    weights.resolve().unlink()
    weights.unlink()
    hub.weights()
    base.transformer()
    assert hub.weights() == {"transformer"}


def test_without_a_network_what_is_in_the_cache_is_enough(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    open_base(NAME).transformer()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    base = open_base(NAME)
    base.transformer()
    with pytest.raises(UserError, match="the hub does not give it"):
        base.conditioner()
