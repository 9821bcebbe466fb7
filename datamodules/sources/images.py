"""Image files in, RGB crops out: what is refused, what is converted, and the one crop that every reader sees."""

import asyncio
import contextlib
import io
import os
import re
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from firered_lit.colours import DEPTHS, as_seen, in_srgb
from firered_lit.models.sizes import Shape, Sizes, assign, cover, crop_box, shape_table
from firered_lit.textfiles import open_regular

from .parquet import Embedded
from .refusals import Refuse, ends_the_work, said

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")  # none that runs other programs
SMALLEST_SIDE = 32
MASKS = (1, *DEPTHS)  # white in a mask: of labels, and of 8, 12 and 16 bits
HALF = 128  # from here on a mask lets the edit change the picture
MAX_PIXELS = 1 << 26  # 8192 x 8192
ORIENTATION = 0x0112  # of EXIF; from 5 on it swaps the sides
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
URL_SECONDS = 20.0
URL_BYTES = 64 << 20


class BadImageError(Exception):
    """An image that is refused. `reason` is its category, for counting; `detail` is for the person who mends it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def load(
    path: str | os.PathLike[str],
    *,
    max_pixels: int = MAX_PIXELS,
    allow_urls: bool = False,
    url_seconds: float = URL_SECONDS,
    url_bytes: int = URL_BYTES,
    mask: bool = False,
) -> Image.Image:
    """Return the image at a path, or at an http(s) URL when `allow_urls`, upright, in 8-bit RGB.

    Colours, depth and transparency are as `firered_lit.colours` says; palettes, CMYK and EXIF rotation are resolved,
    `info` then says "turned".

    Args:
        path: The path, the address, or an image that lies in a table.
        max_pixels: Pixels of the image, at most; held against the header, before anything is decoded.
        allow_urls: Fetch http(s) addresses.
        url_seconds: Seconds that a fetch may take.
        url_bytes: Bytes that it may have.
        mask: Return 8-bit grey instead, 255 where the image is white or transparent.

    Raises:
        BadImageError: It cannot be used.
    """
    name = os.fspath(path)
    with _open(name, allow_urls, url_seconds, url_bytes) as file:
        return decode(file, name, max_pixels, mask)[1]


def read(path: str | os.PathLike[str], allow_urls: bool = False) -> bytes:
    """Return the bytes of an image file, of one that lies in a table, or of a URL.

    Raises:
        BadImageError: There are none, or they cannot be had.
    """
    name = os.fspath(path)
    with _open(name, allow_urls, URL_SECONDS, URL_BYTES) as file:
        try:
            return file.read()
        except OSError as problem:
            raise BadImageError("unreadable image", f"{name}: {problem}") from None


def decode(
    file: IO[bytes], name: str, max_pixels: int = MAX_PIXELS, mask: bool = False
) -> tuple[Image.Image, Image.Image]:
    """Decode an image.

    Args:
        file: Its file.
        name: For messages.
        max_pixels: Held against the header, before anything is decoded.
        mask: See `load`.

    Returns:
        The image as its file has it, with all that its header says; and upright in 8-bit RGB, or grey for a mask.

    Raises:
        BadImageError: It cannot be used.
    """
    with _refusing(name), _header(file, name, max_pixels) as image:
        image.load()
        upright = _white(ImageOps.exif_transpose(image), name) if mask else as_seen(image)
        upright.info["turned"] = image.getexif().get(ORIENTATION) in range(2, 9)
        return image, upright


def size(path: str | os.PathLike[str], *, allow_urls: bool = False, url_seconds: float = URL_SECONDS) -> Shape:
    """Return (height, width) of an image as `load` would give it, by its header alone. Raises BadImageError."""
    name = os.fspath(path)
    opened = _open(name, allow_urls, url_seconds, URL_BYTES)
    with opened as file, _refusing(name), _header(file, name, MAX_PIXELS) as image:
        turned = image.getexif().get(ORIENTATION) in range(5, 9)
        return (image.width, image.height) if turned else (image.height, image.width)


@contextlib.contextmanager
def refusing_field(field: str) -> Iterator[None]:
    """Have an image that is refused be the refusal of its row.

    Args:
        field: The column that names the image.

    Raises:
        Refuse: A BadImageError was raised.
    """
    try:
        yield
    except BadImageError as problem:
        raise Refuse(field, problem.reason, problem.detail) from None


@contextlib.contextmanager
def _refusing(name: str) -> Iterator[None]:
    """Have whatever a decoder raises be a BadImageError; a damaged file may raise anything, out of memory included."""
    try:
        yield
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError("unreadable image", f"{name} is not an image of a known format") from None
    except Image.DecompressionBombError as problem:
        raise BadImageError("too many pixels", f"{name}: {problem}") from None
    except Exception as problem:
        if ends_the_work(problem) and not isinstance(problem, MemoryError):
            raise
        reason = "truncated image" if "truncat" in str(problem).lower() else "unreadable image"
        raise BadImageError(reason, f"{name}: {said(problem)}") from problem


def shape_of(image: Image.Image, area: int, sizes: Sizes, like: Image.Image | None = None) -> Shape:
    """Return the shape near `area` pixels that suits an image, or `like`, best.

    Raises:
        BadImageError: The image would be enlarged too much.
    """
    model = like or image
    shape = assign(model.height, model.width, shape_table(area))
    scale = cover(image.height, image.width, shape)
    if scale > sizes.max_upscale:
        detail = f"{image.width}x{image.height} would be enlarged {scale:.1f} times to {shape[1]}x{shape[0]}"
        raise BadImageError("image too small", f"{detail}; the limit is {sizes.max_upscale:g} (sizes.max_upscale)")
    return shape


def fit(image: Image.Image, area: int, sizes: Sizes, like: Image.Image | None = None) -> Image.Image:
    """Return the crop of an image to its `shape_of`."""
    return crop(image, shape_of(image, area, sizes, like))


def crop(image: Image.Image, shape: Shape) -> Image.Image:
    """Return the centre of an image at `shape` (height, width), in one resampling; an image of that shape as it is.

    VAE and vision-language model both see this crop, so the stock pipeline on it gives identical tensors.
    """
    height, width = shape
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.LANCZOS, box=window(image.size, shape))


def from_png(file: bytes) -> Image.Image:
    """Return a stored crop, a PNG file, as an RGB image."""
    return Image.open(io.BytesIO(file)).convert("RGB")


def window(size: tuple[int, int], shape: Shape) -> tuple[float, float, float, float]:
    """Return what `crop` shows of an image of `size` (width, height): left, top, right, bottom in its pixels."""
    left, top, right, bottom = crop_box(size[1], size[0], shape)
    return max(left, 0.0), max(top, 0.0), min(right, size[0]), min(bottom, size[1])  # rounding may step outside


def _open(name: str, allow_urls: bool, seconds: float, limit: int) -> IO[bytes]:
    """Open the file, the one that lies in a table, or the whole body of the URL."""
    if isinstance(name, Embedded):
        if not name.data:
            raise BadImageError("empty image", f"{name} has zero bytes")
        return io.BytesIO(name.data)
    if URL.match(name):
        if not allow_urls:
            raise BadImageError("URL", f"{name}: URLs are not fetched unless allow_urls is true")
        return io.BytesIO(_fetch(name, seconds, limit))
    try:
        file = open_regular(name)
    except (FileNotFoundError, NotADirectoryError):
        raise BadImageError("missing image", f"{name} does not exist") from None
    except OSError as problem:
        if ends_the_work(problem):
            raise
        raise BadImageError("unreadable image", f"{name}: {problem.strerror}") from None
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise BadImageError("empty image", f"{name} has zero bytes")
    return file


def _header(file: IO[bytes], name: str, max_pixels: int) -> Image.Image:
    """Return an image that is not decoded yet. Raises BadImageError when its header promises nothing usable."""
    if Image.MAX_IMAGE_PIXELS is not None and max_pixels > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow's own limit would stop an image that the user allows
    image = Image.open(file, formats=FORMATS)
    size = f"{name}: {image.width}x{image.height}"
    if image.width * image.height > max_pixels:
        raise BadImageError("too many pixels", f"{size} is more than max_pixels = {max_pixels}")
    if min(image.size) < SMALLEST_SIDE:
        raise BadImageError("image too small", f"{size}, the smallest side allowed is {SMALLEST_SIDE}")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with a preview or a second view: the first is the photo
        raise BadImageError("animated image", f"{name} has {frames} frames")
    return image


def _white(image: Image.Image, name: str) -> Image.Image:
    """Return a mask in 8-bit grey, 255 where it is white, or transparent where it has transparency."""
    if not image.has_transparency_data:
        return _levels(image, name)
    picture = image.convert("RGBA")
    alpha = picture.getchannel("A")
    if alpha.getextrema()[0] == 255:
        return _levels(image, name)
    opaque = np.asarray(picture.convert("L"))[np.asarray(alpha) >= HALF]
    if len(opaque) and opaque.min() >= 250:
        raise BadImageError("bad mask", f"{name} is white on transparent: which of them the edit may change is unclear")
    return ImageOps.invert(alpha)


def _levels(image: Image.Image, name: str) -> Image.Image:
    """Return a mask without transparency in 8-bit grey, where white is the largest value of its range.

    Its range is the least that holds its values: 0 to 1, or that of 8, 12 or 16 bits; of real numbers 0 to 1 or 255.
    Raises BadImageError when it holds something and nothing of it is white.
    """
    if image.mode.startswith(("I", "F")):
        whites = MASKS[:2] if image.mode == "F" else MASKS
        grey = _scaled(np.asarray(image).astype(np.float64), whites, name)
    else:
        grey = in_srgb(image).convert("L")
    brightest = int(np.asarray(grey).max())
    if brightest == 1:
        return grey.point(lambda value: 255 * value)
    if 0 < brightest < HALF:
        detail = f"{name}: its brightest value is {brightest} of 255, so what the edit may change is unclear"
        raise BadImageError("bad mask", f"{detail}; draw it in black and white")
    return grey


def _scaled(values: np.ndarray, whites: tuple[int, ...], name: str) -> Image.Image:
    """Return values (H, W) in 8-bit grey, scaled by the least of `whites` that holds them. Raises BadImageError."""
    white = next((white for white in whites if values.max() <= white), 0)
    if not white or values.min() < 0 or np.isnan(values).any():
        raise BadImageError("bad mask", f"{name}: its values have no known range")
    return Image.fromarray(np.rint(values / (white / 255)).astype(np.uint8))


def _fetch(url: str, seconds: float, limit: int) -> bytes:
    """Return the body of an http(s) URL, all of which, from the name's look-up on, takes `seconds` at most."""
    if not url.lower().startswith(("http://", "https://")):
        raise BadImageError("URL", f"{url}: only http and https are fetched")
    import aiohttp  # 0.1 s, which no other use of this module should wait for

    try:
        body = _run(_body(url, seconds, limit))
    except TimeoutError:
        raise BadImageError("URL", f"{url}: not complete after {seconds:g} s") from None
    except aiohttp.NonHttpUrlClientError as problem:
        detail = f"{url}: leads to {problem}, which is not allowed; only http and https are fetched"
        raise BadImageError("URL", detail) from None
    except (aiohttp.ClientError, OSError, ValueError) as problem:
        code = getattr(problem, "errno", None)
        reason = os.strerror(code) if code else said(problem)
        raise BadImageError("URL", f"{url}: {reason}") from None
    if not body:
        raise BadImageError("empty image", f"{url} has zero bytes")
    return body


async def _body(url: str, seconds: float, limit: int) -> bytes:
    """Return the body of a URL. Raises BadImageError when the server refuses it, or when it is too large."""
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=seconds)
    address = urlsplit(url)
    proxy = None
    if not proxy_bypass(address.netloc):
        proxy = getproxies().get(address.scheme.lower())
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, proxy=proxy) as response:
        if response.status >= 400:
            raise BadImageError("URL", f"{url}: the server answers {response.status} {response.reason or ''}")
        body = bytearray()
        async for piece in response.content.iter_chunked(1 << 16):
            body += piece
            if len(body) > limit:
                raise BadImageError("URL", f"{url}: larger than {limit} bytes")
        return bytes(body)


def _run(work: Coroutine[Any, Any, bytes]) -> bytes:
    """Return what a coroutine returns, in a thread of its own: a notebook's own thread runs a loop already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
