"""Every kind of bad image is refused by name; every kind of odd one becomes upright 8-bit RGB."""

import io
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from datamodules.sources import images
from datamodules.sources.images import BadImageError, crop, fit, load
from firered_lit.models.sizes import Sizes, shape_table


def photo(width=96, height=64, seed=0):
    """Smooth noise, so that nothing compresses to nothing."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def truncated(path):
    photo().save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def animated(path):
    photo().save(path, save_all=True, append_images=[photo(seed=1)])


def bomb(path):
    """A header of 20000 x 20000, and a few bytes of data."""
    Image.new("1", (20000, 20000)).save(path, "PNG")
    assert path.stat().st_size < 1 << 20


BAD = [
    ("absent.png", lambda path: None, "missing image"),
    ("zero.png", lambda path: path.touch(), "empty image"),
    ("text.png", lambda path: path.write_text("not an image" * 20), "unreadable image"),
    ("folder.png", lambda path: path.mkdir(), "unreadable image"),
    ("pipe.png", os.mkfifo, "unreadable image"),
    ("half.png", truncated, "truncated image"),
    ("half.jpg", truncated, "truncated image"),
    ("half.webp", truncated, ""),
    ("narrow.png", lambda path: photo(31, 200).save(path), "image too small"),
    ("moving.gif", animated, "animated image"),
    ("moving.png", animated, "animated image"),
    ("moving.webp", animated, "animated image"),
    ("bomb.png", bomb, "too many pixels"),
    ("script.eps", lambda path: photo().save(path), "unreadable image"),
    ("float.tiff", lambda path: Image.new("F", (64, 64)).save(path), "unreadable image"),
    ("nul\0.png", lambda path: None, "unreadable image"),
]


@pytest.mark.parametrize(("name", "make", "reason"), BAD, ids=[repr(name) for name, *_ in BAD])
def test_bad_images_are_refused_by_category(tmp_path, name, make, reason):
    path = tmp_path / name
    make(path)
    with pytest.raises(BadImageError) as refusal:
        load(path)
    assert refusal.value.reason == reason or (not reason and "image" in refusal.value.reason)
    assert name in refusal.value.detail
    assert "\n" not in refusal.value.detail


def test_pixel_limit_is_settable_and_held_against_the_header(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    photo(96, 64).save(path)
    assert load(path, max_pixels=96 * 64).size == (96, 64)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(BadImageError, match="max_pixels = 6143"):
        load(path, max_pixels=96 * 64 - 1)


def test_a_limit_above_pillows_own_is_honoured(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    photo(96, 64).save(tmp_path / "a.png")
    assert load(tmp_path / "a.png").size == (96, 64)
    assert Image.MAX_IMAGE_PIXELS == images.MAX_PIXELS


def red(path, mode, **save):
    image = Image.new("RGB", (64, 48), (200, 30, 40))
    (image.quantize() if mode == "P" else image.convert(mode)).save(path, **save)


@pytest.mark.parametrize(("mode", "name"), [("CMYK", "a.jpg"), ("P", "a.png"), ("P", "a.gif"), ("RGBA", "a.png")])
def test_other_colour_modes_become_the_same_rgb(tmp_path, mode, name):
    red(tmp_path / name, mode)
    image = load(tmp_path / name)
    assert image.mode == "RGB"
    assert np.abs(np.asarray(image).astype(int) - (200, 30, 40)).max() <= 4


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (48, 1))
    Image.fromarray(ramp).save(tmp_path / name)
    row = np.asarray(load(tmp_path / name))[0, :, 1]
    assert (row[0], row[-1]) == (0, 255)
    assert np.abs(row - np.linspace(0, 255, 64)).max() <= 1


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_composited_over_white(tmp_path, mode):
    image = Image.new("RGBA", (64, 48), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 32, 48))
    image.convert(mode).save(tmp_path / "a.png")
    pixels = np.asarray(load(tmp_path / "a.png"))
    assert pixels[:, :32].max() == 0
    assert pixels[:, 32:].min() == 255


def test_half_transparent_black_is_grey(tmp_path):
    Image.new("RGBA", (64, 48), (0, 0, 0, 128)).save(tmp_path / "a.png")
    assert np.asarray(load(tmp_path / "a.png"))[0, 0, 0] == pytest.approx(127, abs=1)


def test_exif_rotation_is_applied(tmp_path):
    upright = photo(96, 64)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned left; to be shown turned right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    assert load(tmp_path / "a.png").tobytes() == upright.tobytes()


def test_crop_of_an_image_that_fits_is_the_image():
    image = photo(96, 64)
    assert crop(image, (64, 96)) is image


def test_crop_keeps_the_centre_and_the_aspect_ratio():
    """A disc in the middle of a wide image is a disc in the middle of the square crop."""
    y, x = np.mgrid[:100, :200]
    disc = (np.hypot(x - 99.5, y - 49.5) < 30).astype(np.uint8) * 255
    mask = np.asarray(crop(Image.fromarray(disc).convert("RGB"), (64, 64)))[..., 0] > 127
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    assert abs(len(rows) - 60 * 0.64) <= 1
    assert abs(len(columns) - len(rows)) <= 1
    assert abs(rows.mean() - 31.5) <= 0.5
    assert abs(columns.mean() - 31.5) <= 0.5


def test_crop_takes_any_shape_of_any_image():
    for width, height in [(33, 47), (641, 427), (768, 513), (1000, 37)]:
        for shape in shape_table(64 * 64):
            assert crop(Image.new("RGB", (width, height)), shape).size == shape[::-1]


def test_fit_chooses_the_nearest_aspect_ratio_height_first():
    wide, tall = fit(photo(320, 180), 128 * 128, Sizes()), fit(photo(180, 320), 128 * 128, Sizes())
    assert wide.size == tall.size[::-1]
    assert wide.width > wide.height


def test_fit_refuses_to_enlarge_beyond_the_limit():
    sizes = Sizes(max_upscale=2.0)
    assert fit(photo(64, 64), 128 * 128, sizes).size == (128, 128)
    with pytest.raises(BadImageError, match=r"enlarged 2.1 times to 128x128.*max_upscale"):
        fit(photo(60, 60), 128 * 128, sizes)


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = io.BytesIO()
        photo().save(body, "PNG")
        body = body.getvalue()
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.end_headers()
            return
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        if self.path == "/slow":
            for i in range(len(body)):
                if self.server.closing.wait(0.1):
                    return
                self.wfile.write(body[i : i + 1])
                self.wfile.flush()
        elif self.path == "/large":
            self.wfile.write(body + bytes(1 << 20))
        elif self.path != "/nothing":
            self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.closing = threading.Event()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.closing.set()
        server.shutdown()


@pytest.fixture
def address(server, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return f"http://127.0.0.1:{server.server_port}"


def test_urls_are_refused_unless_allowed(address):
    with pytest.raises(BadImageError, match="allow_urls"):
        load(f"{address}/photo")
    assert load(f"{address}/photo", allow_urls=True).tobytes() == photo().tobytes()


@pytest.mark.parametrize(
    "url", ["file:///etc/hostname", "ftp://127.0.0.1/a.png", "gopher://a/b", "FILE:///etc/hostname"]
)
def test_only_http_is_fetched(url):
    with pytest.raises(BadImageError, match="only http and https"):
        load(url, allow_urls=True)


def test_redirects_stay_on_http(server, address, tmp_path):
    photo().save(tmp_path / "secret.png")
    server.redirects = {"/to/photo": f"{address}/photo", "/to/file": (tmp_path / "secret.png").as_uri()}
    server.redirects["/to/ftp"] = "ftp://127.0.0.1/a.png"
    assert load(f"{address}/to/photo", allow_urls=True).size == (96, 64)
    for path in ("/to/file", "/to/ftp"):
        with pytest.raises(BadImageError, match="not allowed"):
            load(address + path, allow_urls=True)


@pytest.mark.parametrize(
    ("path", "limits", "message"),
    [
        ("/large", {"url_bytes": 1 << 20}, "larger than 1048576 bytes"),
        ("/slow", {"url_seconds": 0.5}, "not complete after 0.5 s"),
        ("/absent", {}, "404"),
        ("/nothing", {}, "zero bytes"),
    ],
)
def test_urls_have_limits(address, path, limits, message):
    start = time.monotonic()
    with pytest.raises(BadImageError, match=message):
        load(address + path, allow_urls=True, **limits)
    assert time.monotonic() - start < 5


def test_a_server_that_is_not_there():
    with pytest.raises(BadImageError, match="refused"):
        load("http://127.0.0.1:1/a.png", allow_urls=True, url_seconds=2)
