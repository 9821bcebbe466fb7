"""The server of the page: on loopback by default, and with nothing from elsewhere."""

import asyncio
import base64
import contextlib
import io
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image, ImageChops

from firered_lit.colours import as_seen
from firered_lit.errors import UserError
from firered_lit.serve.choices import Loaded, choices_of_model, choices_of_run

ASSETS = Path(__file__).with_name("assets")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_BYTES = 64 << 20  # of one request
MOST_IMAGES = 8
MOST_PIXELS = 100_000_000  # of one picture
GRIDS = ("samples", "prompts")  # folders of a run
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
OURS = "X-Firered-Lit"  # a header that a page of another site cannot send here

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class State:
    """Models and grids that a server shows.

    Attributes:
        loaded: The models.
        run: The folder of the run; None without one.
        steps: Of the sampler, as the page proposes.
        guidance: The stock pipelines' `true_cfg_scale`, as the page proposes.
        hosts: Names that a browser may call the server by; None: any.
    """

    loaded: Loaded
    run: Path | None
    steps: int
    guidance: float
    hosts: tuple[str, ...] | None


STATE = web.AppKey("state", State)


def serve(
    run: str | None = None,
    model: str | None = None,
    loras: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8765,
    steps: int = 40,
    guidance: float = 4.0,
    keep: int = 1,
) -> None:
    """Serve the page until Ctrl-C.

    Args:
        run: A run's folder: its base, its checkpoints and their average are compared, its grids are shown.
        model: A diffusers folder, a hub id or a built-in base, in place of a run.
        loras: LoRAs over `model`, PATH or PATH@STRENGTH; each is compared with the model alone.
        host: The address to listen on. Any but a loopback one lets others use this machine.
        port: The port; 0 takes a free one.
        steps: Of the sampler, as the page proposes.
        guidance: The stock pipelines' `true_cfg_scale`, as the page proposes.
        keep: How many models stay in memory.

    Raises:
        UserError: Neither a run nor a model, or both; one that cannot be opened; an address that is taken.
    """
    if (run is None) == (model is None):
        raise UserError("serve: name one of --run RUN and --model MODEL")
    if run is not None and loras:
        raise UserError("serve: --lora goes with --model; a run's checkpoints are compared by themselves")
    choices = choices_of_run(Path(run)) if run is not None else choices_of_model(str(model), loras)
    hosts = LOOPBACK if host in LOOPBACK else None
    named = {choice.name: choice for choice in choices}
    state = State(Loaded(named, keep), None if run is None else Path(run), steps, guidance, hosts)
    if hosts is None:
        print(f"note: {host} is no loopback address: whoever reaches it can use this machine to draw")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(application(state), host, port))


async def _serve(app: web.Application, host: str, port: int) -> None:
    """Listen until cancelled."""
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as problem:
            raise UserError(f"serve: {host}:{port}: cannot listen there: {problem.strerror}") from problem
        address = runner.addresses[0]
        print(f"serving     http://{host}:{address[1]}/   (Ctrl-C ends it)", flush=True)
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


def application(state: State) -> web.Application:
    """Return the server's routes over what it shows."""
    app = web.Application(client_max_size=MOST_BYTES, middlewares=[guarded])
    app[STATE] = state
    app.router.add_get("/", page)
    app.router.add_get("/{name:page\\.(?:js|css)}", asset)
    app.router.add_get("/about", about)
    app.router.add_post("/edit", edit)
    app.router.add_get("/grids/{folder}/{name}", grid)
    return app


@web.middleware
async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer own pages alone, bad input in one line, and with the page's policy on everything."""
    state = request.app[STATE]
    host = request.url.host or ""
    if state.hosts is not None and host not in state.hosts:
        return web.json_response({"error": f"{host} is not this server"}, status=403, headers=HEADERS)
    if request.method != "GET" and request.headers.get(OURS) != "1":
        return web.json_response({"error": "not asked by this server's page"}, status=403, headers=HEADERS)
    try:
        response = await handler(request)
    except UserError as error:
        response = web.json_response({"error": " ".join(str(error).splitlines())}, status=400)
    except web.HTTPException as error:
        response = web.json_response({"error": error.reason}, status=error.status)
    response.headers.update(HEADERS)
    return response


async def page(request: web.Request) -> web.StreamResponse:
    """The page."""
    return web.FileResponse(ASSETS / "index.html")


async def asset(request: web.Request) -> web.StreamResponse:
    """The page's script and style."""
    return web.FileResponse(ASSETS / request.match_info["name"])


async def about(request: web.Request) -> web.StreamResponse:
    """Return what there is to choose from: models, and grids in the order of their steps."""
    state = request.app[STATE]
    content = {
        "title": state.run.name if state.run is not None else "",
        "models": list(state.loaded.choices),
        "steps": state.steps,
        "guidance": state.guidance,
        "grids": {folder: grids(state.run, folder) for folder in GRIDS},
    }
    return web.json_response(content)


async def grid(request: web.Request) -> web.StreamResponse:
    """One grid of the run."""
    state = request.app[STATE]
    folder, name = request.match_info["folder"], request.match_info["name"]
    if state.run is None or folder not in GRIDS or name not in grids(state.run, folder):
        raise web.HTTPNotFound
    return web.FileResponse(state.run / folder / name)


def grids(run: Path | None, folder: str) -> list[str]:
    """Return the names of a run's grids by step."""
    if run is None:
        return []
    return sorted(path.name for path in (run / folder).glob("step_*.png") if path.is_file())


async def edit(request: web.Request) -> web.StreamResponse:
    """Draw with one model: the edited picture, what it changed, and how long it took."""
    state = request.app[STATE]
    fields = await request.post()
    uploads = fields.getall("image", [])
    pictures = [upload.file.read() if isinstance(upload, web.FileField) else b"" for upload in uploads]
    asked = DrawRequest(
        model=str(fields.get("model", "")),
        prompt=str(fields.get("prompt", "")),
        pictures=tuple(pictures),
        seed=_number(fields, "seed", int, 0, 2**63 - 1),
        steps=_number(fields, "steps", int, 1, 1000),
        guidance=_number(fields, "guidance", float, 0.0, 100.0),
    )
    return web.json_response(await asyncio.to_thread(draw, state.loaded, asked))


@dataclass(frozen=True)
class DrawRequest:
    """Request of the page.

    Attributes:
        model: Name of a choice.
        prompt: The instruction.
        pictures: Files of the references, in their order.
        seed: Of the noise.
        steps: Of the sampler.
        guidance: The stock pipelines' `true_cfg_scale`.
    """

    model: str
    prompt: str
    pictures: tuple[bytes, ...]
    seed: int
    steps: int
    guidance: float


def draw(loaded: Loaded, asked: DrawRequest) -> dict[str, Any]:
    """Return an edit as the page reads it: `picture` and `changed` as data URLs, `seconds`.

    Raises:
        UserError: Too many pictures, one that cannot be read, no instruction, or what the model refuses.
    """
    if not asked.prompt.strip():
        raise UserError("write an instruction first")
    if len(asked.pictures) > MOST_IMAGES:
        raise UserError(f"{len(asked.pictures)} pictures: at most {MOST_IMAGES} can be shown to a model")
    references = [_opened(data, number) for number, data in enumerate(asked.pictures, start=1)]
    begin = time.perf_counter()
    with loaded.drawing:
        editor = loaded.editor(asked.model)
        size = editor.size_like(references)
        picture = editor.draw(references, asked.prompt, asked.steps, asked.seed, size, asked.guidance)
    seconds = time.perf_counter() - begin
    result: dict[str, Any] = {"picture": _data_url(picture), "seconds": round(seconds, 1)}
    if references:
        result["changed"] = _data_url(changed(references[0], picture))
    return result


def changed(source: Image.Image, edited: Image.Image) -> Image.Image:
    """Return where an edit differs from its source: white where a channel differs by a quarter of its range or more."""
    shown = source.resize(edited.size, Image.Resampling.LANCZOS).convert("RGB")
    red, green, blue = ImageChops.difference(shown, edited.convert("RGB")).split()
    largest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    return largest.point([min(255, 4 * level) for level in range(256)])


def _opened(data: bytes, number: int) -> Image.Image:
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MOST_PIXELS:
                raise UserError(f"picture {number}: larger than {MOST_PIXELS // 1_000_000} megapixels")
            return as_seen(image)
    except UserError:
        raise
    except Exception as problem:  # a damaged file may raise anything
        raise UserError(f"picture {number} cannot be read as an image") from problem


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _number(fields: Any, name: str, kind: type[Any], lowest: float, highest: float) -> Any:
    """Return a number of the form, checked."""
    text = str(fields.get(name, ""))
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not lowest <= value <= highest:
        raise UserError(f"{name}={text!r}: expected a number from {lowest:g} to {highest:g}")
    return value
