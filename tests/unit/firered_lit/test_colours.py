"""A picture's numbers mean what its profile and its depth say; without a profile they stay what they are."""

import hashlib
import io

import numpy as np
import pytest
from icc import DISPLAY_P3, SRGB, grey_profile, in_srgb, rgb_profile
from PIL import Image, ImageCms, PngImagePlugin

from datamodules.sources import images
from datamodules.sources.images import load
from firered_lit.colours import as_seen
from firered_lit.inference.prompt_file import open_picture

P3 = rgb_profile(DISPLAY_P3, "Display P3")
VALUES = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
FORMATS = [("a.png", {}), ("a.tiff", {}), ("a.webp", {"lossless": True}), ("a.avif", {"quality": 100}), ("a.jpg", {})]


@pytest.mark.parametrize(("name", "options"), FORMATS, ids=[name for name, _ in FORMATS])
def test_a_display_p3_picture_becomes_what_it_shows_in_srgb(tmp_path, name, options):
    if name == "a.jpg":
        options = {"quality": 100, "subsampling": 0}
    smooth = Image.fromarray(VALUES).resize((64, 48), Image.Resampling.BICUBIC, box=(0, 0, 8, 6))
    smooth.save(tmp_path / name, icc_profile=P3, **options)
    with Image.open(tmp_path / name) as image:
        stored = np.asarray(image.convert("RGB"))
    seen = np.asarray(load(tmp_path / name)).astype(int)
    assert np.abs(seen - in_srgb(stored, DISPLAY_P3)).max() <= 2
    assert np.abs(seen - stored).max() > 10


def test_the_same_photo_in_both_colours_is_one_photo(tmp_path):
    """A source in Display P3 beside a target in sRGB teaches no shift of colours."""
    Image.fromarray(VALUES // 2 + 64).save(tmp_path / "p3.png", icc_profile=P3)
    Image.fromarray(in_srgb(VALUES // 2 + 64, DISPLAY_P3).astype(np.uint8)).save(tmp_path / "srgb.png")
    first, second = (np.asarray(load(tmp_path / name)).astype(int) for name in ("p3.png", "srgb.png"))
    assert np.abs(first - second).max() <= 2


PROFILES = {
    "Pillow's sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    "sRGB by its primaries": rgb_profile(SRGB, "something else"),
    "a damaged profile": P3[:200],
    "no profile at all": b"not a profile",
    "a profile of grey pictures": grey_profile(1.0),
}


@pytest.mark.parametrize("name", PROFILES)
def test_pictures_in_srgb_or_with_a_profile_of_no_use_keep_their_numbers(tmp_path, name):
    Image.fromarray(VALUES).save(tmp_path / "a.png", icc_profile=PROFILES[name])
    assert np.array_equal(load(tmp_path / "a.png"), VALUES)


def test_transparency_is_laid_over_white_after_the_colours_are_converted(tmp_path):
    picture = Image.fromarray(VALUES)
    picture.putalpha(128)
    picture.save(tmp_path / "a.png", icc_profile=P3)
    expected = in_srgb(VALUES, DISPLAY_P3) * (128 / 255) + 127
    assert np.abs(np.asarray(load(tmp_path / "a.png")) - expected).max() <= 2


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_a_grey_picture_follows_a_profile_of_grey(tmp_path, mode):
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (48, 1))
    deep = ramp.astype(np.uint16) * 257
    deep[0, 0] = 65535
    picture = Image.fromarray(deep) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    picture.save(tmp_path / "a.png", icc_profile=grey_profile(1.0))
    seen = np.asarray(load(tmp_path / "a.png")).astype(int)[1:]
    linear = ramp[1:] / 255
    expected = 255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear)
    assert np.abs(seen - expected[..., None]).max() <= 2


def test_a_profile_turns_with_nothing(tmp_path):
    """The orientation is applied beside the profile."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(VALUES).save(tmp_path / "a.png", icc_profile=P3, exif=exif)
    assert np.abs(np.asarray(load(tmp_path / "a.png")) - np.rot90(in_srgb(VALUES, DISPLAY_P3), -1)).max() <= 2


def test_edit_sees_a_picture_as_prepare_does(tmp_path):
    picture = Image.fromarray(VALUES)
    picture.putalpha(100)
    picture.save(tmp_path / "a.png", icc_profile=P3)
    deep = Image.fromarray((VALUES[..., 0].astype(np.uint16)) * 257)
    deep.save(tmp_path / "deep.png")
    for name in ("a.png", "deep.png"):
        assert open_picture(tmp_path / name, "--image").tobytes() == load(tmp_path / name).tobytes()


# What the version before profiles were read made of these pictures, by a hash of the pixels.
BEFORE = {
    "RGB": "e5756b9122c67bea",
    "RGBA": "333cf970b0d374a1",
    "L": "41e55d2ee7e76ae0",
    "LA": "185c48bf4af3cf39",
    "P": "87860e77673e20b1",
    "CMYK": "e5756b9122c67bea",
    "1": "c867f9fa64402f94",
    "I;16": "9909f954b2aa918b",
}


def in_mode(mode):
    """The same picture in another mode; of 16 bits, over all of their range."""
    if mode == "I;16":
        return Image.fromarray((np.arange(48 * 64, dtype=np.uint32).reshape(48, 64) * 65535 // 3071).astype(np.uint16))
    picture = Image.fromarray(VALUES)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(VALUES[..., 0]))
    return picture.convert(mode)


@pytest.mark.parametrize("mode", BEFORE)
def test_a_picture_without_a_profile_keeps_every_bit(mode):
    file = io.BytesIO()
    in_mode(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    seen = as_seen(Image.open(file))
    assert hashlib.blake2b(seen.tobytes(), digest_size=8).hexdigest() == BEFORE[mode]


# -- Text in PNG files --
@pytest.mark.parametrize("kind", ["text", "compressed text", "profile"])
def test_a_png_with_megabytes_of_text_or_profile_is_read(tmp_path, kind):
    words = np.random.default_rng(0).integers(97, 123, 6 << 20, np.uint8).tobytes()
    text = PngImagePlugin.PngInfo()
    options = {"icc_profile": P3 + words} if kind == "profile" else {"pnginfo": text}
    if kind != "profile":
        text.add_text("workflow", words.decode(), zip=kind == "compressed text")
    Image.fromarray(VALUES).save(tmp_path / "a.png", **options)
    assert load(tmp_path / "a.png").size == (64, 48)


def test_a_png_whose_text_grows_without_bound_is_refused(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("bomb", "\0" * (40 << 20), zip=True)
    Image.fromarray(VALUES).save(tmp_path / "a.png", pnginfo=text)
    assert (tmp_path / "a.png").stat().st_size < 1 << 20
    with pytest.raises(images.BadImageError, match=r"a\.png"):
        load(tmp_path / "a.png")


# -- Depths --
RAMP = np.tile(np.arange(64, dtype=np.int64) * 4 + 3, (48, 1))


@pytest.mark.parametrize(
    ("name", "kind", "white"),
    [("a.tiff", np.int32, 255), ("a.png", np.uint16, 4095), ("a.tiff", np.uint16, 4095), ("a.tiff", np.int32, 65535),
     ("a.png", np.uint16, 65535), ("a.png", np.uint16, 255)],
)  # fmt: skip
def test_a_grey_picture_is_as_bright_as_its_depth_says(tmp_path, name, kind, white):
    Image.fromarray((RAMP * white // 255).astype(kind)).save(tmp_path / name)
    assert np.abs(np.asarray(load(tmp_path / name))[..., 0].astype(int) - RAMP).max() <= 1


def test_numbers_beyond_sixteen_bits_are_refused(tmp_path):
    Image.fromarray((RAMP * 10**6).astype(np.int32)).save(tmp_path / "a.tiff")
    with pytest.raises(images.BadImageError, match="no known range"):
        load(tmp_path / "a.tiff")


# -- Masks --
SHAPE = np.zeros((48, 64), bool)
SHAPE[8:24, 16:40] = True
MASKS = {
    "0 and 1 in 8 bits": ("m.png", SHAPE.astype(np.uint8)),
    "0 and 255 in 8 bits": ("m.png", SHAPE.astype(np.uint8) * 255),
    "0 and 1 in 16 bits": ("m.png", SHAPE.astype(np.uint16)),
    "0 and 255 in 16 bits": ("m.png", SHAPE.astype(np.uint16) * 255),
    "0 and 4095 in 16 bits": ("m.tiff", SHAPE.astype(np.uint16) * 4095),
    "0 and 65535 in 16 bits": ("m.png", SHAPE.astype(np.uint16) * 65535),
    "0 and 1 in 32 bits": ("m.tiff", SHAPE.astype(np.int32)),
    "0 and 255 in 32 bits": ("m.tiff", SHAPE.astype(np.int32) * 255),
    "0 and 1 as real numbers": ("m.tiff", SHAPE.astype(np.float32)),
    "0 and 255 as real numbers": ("m.tiff", SHAPE.astype(np.float32) * 255),
    "0 and 1, three channels": ("m.png", np.repeat(SHAPE.astype(np.uint8)[..., None], 3, -1)),
    "one bit": ("m.png", SHAPE),
    "grey at the edges": ("m.png", SHAPE.astype(np.uint8) * 180 + 20),
}


@pytest.mark.parametrize("name", MASKS)
def test_a_mask_is_white_by_its_range(tmp_path, name):
    file, values = MASKS[name]
    Image.fromarray(values).save(tmp_path / file)
    assert np.array_equal(np.asarray(load(tmp_path / file, mask=True)) >= 128, SHAPE)


def test_a_mask_with_a_palette_of_labels_is_white_by_its_range(tmp_path):
    picture = Image.fromarray(SHAPE.astype(np.uint8)).convert("P")
    picture.putpalette([value for index in range(256) for value in (index,) * 3])
    picture.save(tmp_path / "m.png")
    assert np.array_equal(np.asarray(load(tmp_path / "m.png", mask=True)) >= 128, SHAPE)


def test_a_black_mask_lets_nothing_change(tmp_path):
    Image.new("L", (64, 48)).save(tmp_path / "m.png")
    assert load(tmp_path / "m.png", mask=True).getextrema() == (0, 0)


@pytest.mark.parametrize("values", [SHAPE.astype(np.uint8) * 3, SHAPE.astype(np.uint8) * 100])
def test_a_mask_that_holds_something_and_nothing_white_is_refused(tmp_path, values):
    Image.fromarray(values).save(tmp_path / "m.png")
    with pytest.raises(images.BadImageError, match="its brightest value is") as refusal:
        load(tmp_path / "m.png", mask=True)
    assert refusal.value.reason == "bad mask"


@pytest.mark.parametrize("values", [SHAPE * 10.0**6, SHAPE * -1.0, np.where(SHAPE, np.nan, 0)])
def test_a_mask_of_real_numbers_of_no_known_range_is_refused(tmp_path, values):
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "m.tiff")
    with pytest.raises(images.BadImageError, match="no known range"):
        load(tmp_path / "m.tiff", mask=True)
