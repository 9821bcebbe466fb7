"""The local page: models side by side in a real browser, nothing from elsewhere, nothing beyond loopback.

Chromium comes from the distribution's packages. Without one the tests of the page skip, and say so.
"""

import asyncio
import io
import re
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from aiohttp import FormData
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image
from process import Process

from datamodules.photos import write
from firered_lit.cli import main
from firered_lit.errors import UserError
from firered_lit.serve.choices import Loaded, choices_of_model, choices_of_run
from firered_lit.serve.server import OURS, State, application, changed, serve

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps over the learning world's weights, with a checkpoint of each and an average."""
    folder = tmp_path_factory.mktemp("served")
    write(folder / "rows", 8, 1)
    prepare = ["prepare", "--recipe", "recipes/world/prepare.yaml", f"source={folder / 'rows/edits.jsonl'}"]
    assert main([*prepare, f"out={folder / 'data'}"]) == 0
    fit = ["fit", "--recipe", "recipes/world/photos.yaml", f"data.root={folder / 'data'}", f"run.dir={folder / 'run'}"]
    small = [
        "trainer.max_steps=2",
        "checkpoint.every=1",
        "run.validate_every=2",
        "run.validate_first=false",
        "logger=null",
    ]
    average = ["callbacks.ema={_target_: callbacks.ema.EMA}"]
    assert main([*fit, *small, *average]) == 0
    return folder / "run"


def photo(colour="red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, format="PNG")
    return buffer.getvalue()


# In a browser


@pytest.fixture
def browser():
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser is installed (looked for {', '.join(BROWSERS)}): apt-get install chromium")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")
    with driver.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@pytest.fixture
def served(run, tmp_path):
    """The server as a user starts it, and its address."""
    process = Process(tmp_path / "log", "serve", "--run", str(run), "--port", "0", "--steps", "2", "--guidance", "1")
    process.until(lambda: "serving" in process.output)
    yield process, re.search(r"http://\S+", process.output).group()
    process.popen.kill()
    process.wait()


def test_a_photo_is_dropped_and_two_checkpoints_are_compared_in_a_browser(served, browser, tmp_path):
    process, address = served
    page = browser.new_page()
    asked = []
    errors = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)

    # All of the run is there to choose from; the base and the average are chosen.
    page.wait_for_selector("#models label")
    names = [label.strip() for label in page.locator("#models label").all_inner_texts()]
    assert names == ["base", "step_00000001", "step_00000002", "step_00000002, averaged"]
    for box, wanted in zip(page.locator("#models input").all(), (True, True, True, False), strict=True):
        box.set_checked(wanted)

    # A photo is dropped, as from a folder.
    script = """async (bytes) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(bytes)], "<b>photo.png", {type: "image/png"}));
      document.getElementById("drop").dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true}));
    }"""
    page.evaluate(script, list(photo()))
    page.wait_for_selector("#photos img")

    # An edit by each.
    page.fill("#prompt", "Print it as a cyanotype")
    page.click("#draw")
    page.locator("#results img[src^='data:']").nth(2).wait_for(timeout=120_000)
    pictures = page.locator("#results img").evaluate_all("images => images.map(image => image.dataset.picture)")
    assert len(set(pictures)) > 1, "the checkpoints draw what the base draws"
    assert page.inner_text("#message") == ""

    # What changed, in place of the pictures; and the grids of the run.
    page.check("#mask")
    shown = page.locator("#results img").evaluate_all("images => images.map(image => image.src)")
    masks = page.locator("#results img").evaluate_all("images => images.map(image => image.dataset.changed)")
    assert shown == masks
    assert page.inner_text("#step-name") == "step 2"
    assert page.evaluate("document.getElementById('grid').naturalWidth") > 100
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)

    # Nothing came from elsewhere, and nothing listens beyond loopback.
    assert errors == []
    elsewhere = [url for url in asked if not url.startswith(("data:", "blob:", address))]
    assert elsewhere == []
    assert listening(process.popen.pid) == {"0100007F"}
    page.close()


def listening(pid: int) -> set[str]:
    """Return the addresses, as /proc writes them, on which a process listens."""
    sockets = {path.readlink().name for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()}
    inodes = {match.group(1) for name in sockets if (match := re.match(r"socket:\[(\d+)\]", name))}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                found.add(fields[1].split(":")[0])
    return found


# Without a browser


def ask(run_dir, *requests):
    """Return status and JSON of requests to a server: functions of a client."""

    async def talk():
        choices = {choice.name: choice for choice in choices_of_model("world", [])}
        state = State(Loaded(choices), run_dir, 2, 1.0, ("127.0.0.1",))
        async with TestClient(TestServer(application(state))) as client:
            answers = []
            for request in requests:
                response = await request(client)
                body = await response.json() if "json" in response.content_type else await response.read()
                answers.append((response.status, body))
            return answers

    return asyncio.run(talk())


def form(**changes):
    fields = {"model": "world", "prompt": "Make it red", "seed": "1", "steps": "2", "guidance": "1"} | changes
    data = FormData()
    for name, value in fields.items():
        if name == "image":
            for picture in value:
                data.add_field("image", picture, filename="photo.png", content_type="image/png")
        else:
            data.add_field(name, value)
    return data


def edit(headers=None, **changes):
    headers = {OURS: "1"} if headers is None else headers
    return lambda client: client.post("/edit", data=form(**changes), headers=headers)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": " "}, "write an instruction first"),
        ({"image": [b"no picture"]}, "picture 1 cannot be read as an image"),
        ({"image": [photo()] * 9}, "9 pictures: at most 8"),
        ({"model": "other"}, "no model 'other' here; there are world"),
        ({"seed": "x"}, "seed='x': expected a number from 0"),
        ({"steps": "0"}, "steps='0': expected a number from 1 to 1000"),
        ({"guidance": "nan"}, "guidance='nan': expected a number from 0 to 100"),
    ],
)
def test_what_cannot_be_drawn_is_one_line_on_the_page(changes, said):
    ((status, answer),) = ask(None, edit(**changes))
    assert status == 400
    assert said in answer["error"]


def test_pages_of_other_sites_and_other_names_of_this_machine_are_refused(run):
    other_site = edit(headers={})
    rebound = lambda client: client.get("/about", headers={"Host": "evil.example"})  # noqa: E731
    outside = [lambda client, name=name: client.get(f"/grids/{name}") for name in ("samples/..%2Frun.json", "x/y.png")]
    answers = ask(run, other_site, rebound, *outside)
    assert [status for status, _ in answers] == [403, 403, 404, 404]


def test_one_seed_draws_one_picture_and_says_what_changed():
    first, again, other = ask(None, edit(image=[photo()]), edit(image=[photo()]), edit(image=[photo()], seed="2"))
    assert first[1]["picture"] == again[1]["picture"] != other[1]["picture"]
    assert first[1]["changed"].startswith("data:image/png;base64,")


def test_the_mask_is_black_where_nothing_changed_and_white_where_much_did():
    source = Image.new("RGB", (8, 8), (100, 100, 100))
    edited = source.copy()
    edited.paste((200, 100, 100), (0, 0, 4, 8))
    mask = np.asarray(changed(source, edited))
    assert (mask[:, :4] == 255).all()
    assert (mask[:, 4:] == 0).all()


def test_a_run_offers_its_base_its_checkpoints_and_their_average(run):
    names = [choice.name for choice in choices_of_run(run)]
    assert names == ["base", "step_00000001", "step_00000002", "step_00000002, averaged"]


def test_no_more_models_stay_in_memory_than_asked_for(run):
    choices = {choice.name: choice for choice in choices_of_run(run)}
    loaded = Loaded(choices, keep=2)
    for name in ("base", "step_00000001", "base", "step_00000002"):
        loaded.editor(name)
    assert list(loaded._editors) == ["base", "step_00000002"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "name one of --run RUN and --model MODEL"),
        ({"run": "a", "model": "b"}, "name one of --run RUN and --model MODEL"),
        ({"run": "a", "loras": ["b"]}, "--lora goes with --model"),
        ({"run": "nowhere"}, "nowhere: not a run's folder"),
        ({"model": "nowhere"}, "nowhere: no such folder, and not a hub id"),
        ({"model": "world", "loras": ["nowhere"]}, "nowhere: no LoRA there"),
    ],
)
def test_what_cannot_be_served_is_one_line(options, said):
    with pytest.raises(UserError, match=re.escape(said)):
        serve(**options)


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot listen there"):
            serve(model="world", port=taken.getsockname()[1])
