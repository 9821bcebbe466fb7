"""Text drawn by the tests, at a known place and size: Latin in Pillow's own font, Chinese in the subset beside."""

import re
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

CHINESE = Path(__file__).resolve().parents[1] / "fonts" / "DroidSansFallback.subset.ttf"
RUNS = re.compile(r"[\u4e00-\u9fff]+|[^\u4e00-\u9fff]+")


@cache
def font(size, chinese):
    return ImageFont.truetype(CHINESE, size) if chinese else ImageFont.load_default(size)


def length(text, size):
    return sum(font(size, run[0] >= "\u4e00").getlength(run) for run in RUNS.findall(text))


def paper(size=(512, 288), colour="white"):
    return Image.new("RGB", size, colour)


def write(image, text, centre, size, ink="black", angle=0):
    """`text` with its middle at `centre`, in letters of `size` px, turned by `angle` degrees against the clock."""
    width = int(length(text, size)) + 8
    mask = Image.new("L", (width, 2 * size), 0)
    draw, x = ImageDraw.Draw(mask), 4
    for run in RUNS.findall(text):
        letters = font(size, run[0] >= "\u4e00")
        draw.text((x, size), run, 255, letters, anchor="lm")
        x += letters.getlength(run)
    mask = mask.rotate(angle, Image.BICUBIC, expand=True)
    place = (round(centre[0] - mask.width / 2), round(centre[1] - mask.height / 2))
    image.paste(Image.new("RGB", mask.size, ink), place, mask)
    return image
