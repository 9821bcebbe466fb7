"""A picture that was damaged at random is taken, or refused in one line that names row and field, by `prepare`.

`check --data` looks at the same pictures, by `images.size`.
"""

import io
import warnings
from collections import Counter
from random import Random

import numpy as np
import pytest
from damage import damaged, one_line
from PIL import Image
from time_limit import within

from datamodules.prepare.crops import Cropped, Opening
from datamodules.sources import images
from datamodules.sources.images import BadImageError
from datamodules.sources.parquet import Embedded
from datamodules.sources.records import Record, Refusal
from firered_lit.models.sizes import Sizes

QUICK, SLOW = 1000, 30_000
SECONDS = 20.0  # of one picture
SIZES = Sizes(target_area=64 * 64, reference_area=64 * 64, condition_area=56 * 56)
PIXELS = 1 << 20
OPENING = Opening(SIZES, lambda row: False, max_pixels=PIXELS)
SAVED = {  # name -> mode, format, options
    "JPEG": ("RGB", "JPEG", {}),
    "JPEG, progressive": ("RGB", "JPEG", {"progressive": True, "quality": 90}),
    "JPEG, grey": ("L", "JPEG", {}),
    "JPEG, CMYK": ("CMYK", "JPEG", {}),
    "PNG": ("RGB", "PNG", {}),
    "PNG, transparent": ("RGBA", "PNG", {}),
    "PNG, palette": ("P", "PNG", {}),
    "PNG, 16 bits": ("I;16", "PNG", {}),
    "PNG, one bit": ("1", "PNG", {}),
    "WEBP": ("RGB", "WEBP", {}),
    "WEBP, lossless": ("RGBA", "WEBP", {"lossless": True}),
    "AVIF": ("RGB", "AVIF", {"speed": 10}),
    "TIFF": ("RGB", "TIFF", {}),
    "TIFF, LZW": ("RGB", "TIFF", {"compression": "tiff_lzw"}),
    "TIFF, deflate": ("L", "TIFF", {"compression": "tiff_adobe_deflate"}),
    "TIFF, JPEG": ("RGB", "TIFF", {"compression": "jpeg"}),
    "TIFF, real numbers": ("F", "TIFF", {}),
    "TIFF, 32 bits": ("I", "TIFF", {}),
    "BMP": ("RGB", "BMP", {}),
    "GIF": ("P", "GIF", {}),
    "PPM": ("RGB", "PPM", {}),
    "PGM": ("L", "PPM", {}),
    "JPEG 2000": ("RGB", "JPEG2000", {}),
}


def picture(mode: str) -> Image.Image:
    """A small picture in a mode."""
    noise = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(noise).resize((48, 40), Image.Resampling.BICUBIC)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    if mode in ("RGBA", "LA"):
        image.putalpha(image.convert("L"))
    return image.convert(mode)


def files() -> dict[str, bytes]:
    """A whole file of every kind, half of them with a profile and an orientation where their format has such."""
    from PIL import ImageCms

    exif = Image.Exif()
    exif[0x0112] = 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = {}
    for number, (name, (mode, kind, options)) in enumerate(SAVED.items()):
        extra = {}
        if number % 2 and kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
            extra = {"icc_profile": profile, "exif": exif}
        file = io.BytesIO()
        picture(mode).save(file, kind, **options, **extra)
        found[name] = file.getvalue()
    return found


FILES = files()
SOURCE = Embedded("source.png", FILES["PNG"])
TARGET = Embedded("target.png", FILES["PNG, one bit"])


def case(number: int) -> tuple[str, Embedded]:
    """(kind, picture) of a case: always the same."""
    random = Random(f"picture {number}")
    name = list(FILES)[number % len(FILES)]
    return name, Embedded(f"case_{number}", damaged(FILES[name], random, tuple(FILES.values())))


def refused_or_sized(image: Embedded) -> None:
    """Look at a picture's header as `check --data` does."""
    refusal = None
    try:
        height, width = images.size(image)
    except BadImageError as problem:
        refusal = problem
    if refusal is None:
        assert min(height, width) >= images.SMALLEST_SIDE
    else:
        assert image in refusal.detail
        assert one_line(f"{refusal.reason} {refusal.detail}"), refusal


def looked_at(image: Embedded) -> str:
    """Look at a picture as `check --data`, open it in every role as `prepare`; return what came of the last one."""
    for role in ("size", "mask", "target", "source"):
        if role == "size":
            refused_or_sized(image)
            continue
        paths = {"references": (SOURCE,), "target": TARGET}
        paths |= {"references": (image,)} if role == "source" else {role: image}
        record = Record(id="a", task="t", instructions={"original/en": "red"}, where="e.parquet:7", **paths)
        found = OPENING([record])
        if isinstance(found, Refusal):
            assert one_line(str(found)), found
            assert str(found).startswith("e.parquet:7: ")
            assert found.field in ("source_image", "target_image", "mask"), found
            assert found.reason, found
        else:
            assert all(isinstance(cropped, Cropped) for cropped in found)
    return found.reason if isinstance(found, Refusal) else "taken"


def fuzz(numbers: range) -> Counter[str]:
    """Count how damaged pictures ended. AssertionError names the first one that ended otherwise."""
    counts: Counter[str] = Counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what it reads in spite of damage
        for number in numbers:
            name, image = case(number)
            try:
                with within(SECONDS):
                    counts[looked_at(image)] += 1
            except BaseException as problem:
                if isinstance(problem, KeyboardInterrupt):
                    raise
                raise AssertionError(f"case({number}), {name}: {type(problem).__name__}: {problem}") from problem
    return counts


@pytest.mark.parametrize("name", FILES)
def test_a_whole_picture_is_taken(name: str) -> None:
    shape = images.size(Embedded("a", FILES[name]))
    assert sorted(shape) == [40, 48]
    if name != "TIFF, real numbers":
        assert images.load(Embedded("a", FILES[name])).mode == "RGB"


def test_damaged_pictures_are_taken_or_refused_in_one_line() -> None:
    counts = fuzz(range(QUICK))
    assert counts.total() == QUICK
    assert counts["taken"] > QUICK // 20, "the damage spares some"
    assert counts.total() - counts["taken"] > QUICK // 4, "the damage is damage"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_damaged_pictures_are_taken_or_refused_in_one_line() -> None:
    counts = fuzz(range(10**6, 10**6 + SLOW))
    print(dict(counts))
    assert counts.total() == SLOW
