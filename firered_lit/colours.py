"""Pictures as training and inference see them: upright, 8 bits a channel, RGB in sRGB, transparency over white.

What a number means is taken from the picture: its colours from its ICC profile, its depth from the largest value. A
picture without a profile, or with that of sRGB, keeps its numbers.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

DEPTHS = (255, 4095, 65535)  # white of 8, 12 and 16 bits; what a whole picture stays below, it was written in
SAME = 2  # of 255: a profile that changes no colour by more is sRGB
STEPS = 9  # colours of each channel by which a profile is compared with sRGB
SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of a profile -> of the pictures that it can be about
GREYS = ("1", "L", "LA", "La")
LARGEST_TEXT = 16 << 20  # bytes of a text or a profile in a PNG file; Pillow's own limit is one megabyte

PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, LARGEST_TEXT)


def as_seen(image: Image.Image) -> Image.Image:
    """Return a picture upright, in 8-bit sRGB, its transparency over white.

    A profile that cannot be read, or that is of another kind of picture, is left aside, as viewers do.

    Raises:
        ValueError: its numbers have no known range.
    """
    return in_srgb(ImageOps.exif_transpose(image), image.info.get("icc_profile"))


def in_srgb(image: Image.Image, profile: bytes | None = None) -> Image.Image:
    """Return a picture in 8-bit sRGB, its transparency over white.

    Args:
        image: of any mode.
        profile: its ICC profile; None to take its numbers as sRGB.

    Raises:
        ValueError: its numbers have no known range.
    """
    if image.mode.startswith(("I", "F")):
        image = eight_bits(image)
    if not image.has_transparency_data:
        return _converted(image, profile)
    picture = image.convert("RGBA")
    if profile:
        alpha = picture.getchannel("A")
        picture = _converted(image.convert("L") if image.mode in GREYS else picture.convert("RGB"), profile)
        picture.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def eight_bits(image: Image.Image) -> Image.Image:
    """Return a grey picture of 16 or 32 bits in 8, scaled by the least depth that holds all its values.

    Raises:
        ValueError: no depth holds them.
    """
    values = np.asarray(image).astype(np.float64)
    largest = values.max()
    if image.mode == "F" or largest > DEPTHS[-1]:
        raise ValueError(f"{image.mode} pixels, 32 bits a channel, have no known range")
    white = next(white for white in DEPTHS if largest <= white)
    return Image.fromarray(np.rint(values / (white / 255)).clip(0, 255).astype(np.uint8))


def _converted(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an opaque 8-bit picture in RGB, through its profile where that says something."""
    if profile:
        space = _space(bytes(profile))
        fits = {"RGB": image.mode not in ("CMYK", "LAB"), "L": image.mode in GREYS, "CMYK": image.mode == "CMYK"}
        if space and fits[space]:
            transform = _transform(bytes(profile), space)
            if transform is not None:
                return transform.apply(image.convert(space))
    return image.convert("RGB")


@lru_cache(16)
def _space(profile: bytes) -> str:
    """Return the mode of the pictures that a profile is about; "" when it cannot be read, or is of no such picture."""
    try:
        space = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space
    except Exception:  # whatever a damaged profile raises, the picture is none the worse
        return ""
    return SPACES.get(space.strip(), "")


@lru_cache(16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return what converts pictures of a mode to sRGB; None for the profile of sRGB itself, and for a damaged one."""
    flags = ImageCms.Flags.NOCACHE  # threads share it
    if mode == "L":
        flags |= ImageCms.Flags.NOOPTIMIZE  # a table of few greys would be too coarse in the dark
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.PERCEPTUAL,
            flags,
        )
        if mode == "CMYK":
            return transform
        colours = _colours(mode)
        change = np.asarray(transform.apply(colours)).astype(int) - np.asarray(colours.convert("RGB"))
    except Exception:
        return None
    return transform if np.abs(change).max() > SAME else None


def _colours(mode: str) -> Image.Image:
    """Return a picture of colours from all over the range of a mode: L or RGB."""
    if mode == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    levels = np.rint(np.linspace(0, 255, STEPS)).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), -1)
    return Image.fromarray(grid.reshape(STEPS, STEPS**2, 3))
