"""Scenes and how they are drawn: things on a background, a sign with a word, a face, and what was done to the whole."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from firered_lit.draws import seed_of

from .vocabulary import COLOURS, SHAPES, SIZES, TEXTURES, colour_of

SIDE = 64  # coordinates count pixels of a canvas of this side, whatever side a scene is drawn at
SHARP = 4  # drawn so many times larger, then reduced: smooth edges
MARGIN = 2  # pixels between a thing and the edge of its cell
CELL = (8, 16)  # width, height of a letter
Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """A shape around (x, y)."""

    shape: str
    colour: str
    x: float
    y: float
    size: str = "large"
    texture: str = "plain"

    @property
    def en(self) -> str:
        texture = "" if self.texture == "plain" else f"{self.texture} "
        return f"{texture}{self.colour} {self.shape}"

    @property
    def cn(self) -> str:
        texture = "" if self.texture == "plain" else TEXTURES[self.texture]
        return f"{texture}{COLOURS[self.colour][0]}{SHAPES[self.shape]}"

    @property
    def box(self) -> tuple[float, float, float, float]:
        r = SIZES[self.size][1] / 2 - MARGIN
        return self.x - r, self.y - r, self.x + r, self.y + r


@dataclass(frozen=True)
class Sign:
    """A board across the canvas with a word, its letters in cells of 8x16 from the second column on."""

    word: str
    board: str
    ink: str
    y: int = 40  # of its top


@dataclass(frozen=True)
class Face:
    """A head seen from the front, around (x, y)."""

    x: float
    y: float
    skin: tuple[int, int, int]
    hair: str
    mouth: str = "neutral"  # or "smile", "frown"
    eyes: str = "open"  # or "closed"
    glasses: bool = False
    spots: tuple[Point, ...] = ()  # relative to the centre
    lips: str = "plain"  # or "red"
    cheeks: str = "plain"  # or "rosy"

    @property
    def landmarks(self) -> list[Point]:
        """Eyes, nose and corners of the mouth, left before right as seen."""
        offsets = ((-8, -3), (8, -3), (0, 4), (-7, 12), (7, 12))
        return [(self.x + dx, self.y + dy) for dx, dy in offsets]


@dataclass(frozen=True)
class Scene:
    """The content of a picture. `looks` are done to the whole picture, in their order (`done`)."""

    background: str
    things: tuple[Thing, ...] = ()
    pattern: str = "plain"
    sign: Sign | None = None
    face: Face | None = None
    looks: tuple[str, ...] = ()


def draw(scene: Scene, side: int = SIDE) -> Image.Image:
    """Return a scene as a square RGB image of `side` pixels."""
    scale = SHARP * side / SIDE
    large = Image.new("RGB", (SHARP * side, SHARP * side), colour_of(scene.background))
    if scene.pattern != "plain":
        _texture(large, scene.pattern, None, colour_of(scene.background), scale)
    for thing in scene.things:
        _thing(large, thing, scale)
    if scene.sign:
        top = scene.sign.y * scale
        ImageDraw.Draw(large).rectangle(
            (0, top, large.width, top + CELL[1] * scale - 1), fill=colour_of(scene.sign.board)
        )
    if scene.face:
        _face(large, scene.face, scale)
    image = large.resize((side, side), Image.Resampling.BOX)
    if scene.sign:
        _word(image, scene.sign, side / SIDE)
    for look in scene.looks:
        image = done(image, look)
    return image


def _thing(large: Image.Image, thing: Thing, scale: float) -> None:
    """Draw a thing on the enlarged canvas; `scale`: its pixels for one of the scene."""
    mask = Image.new("L", large.size)
    pen = ImageDraw.Draw(mask)
    left, top, right, bottom = (value * scale for value in thing.box)
    x = (left + right) / 2
    y = (top + bottom) / 2
    r = (right - left) / 2
    if thing.shape in ("circle", "ring"):
        pen.ellipse((left, top, right, bottom), fill=255)
        if thing.shape == "ring":
            pen.ellipse((x - r / 2, y - r / 2, x + r / 2, y + r / 2), fill=0)
    elif thing.shape == "square":
        pen.rectangle((left, top, right, bottom), fill=255)
    elif thing.shape == "triangle":
        pen.polygon([(x, top), (right, bottom), (left, bottom)], fill=255)
    elif thing.shape == "diamond":
        pen.polygon([(x, top), (right, y), (x, bottom), (left, y)], fill=255)
    else:
        pen.rectangle((left, y - r / 3, right, y + r / 3), fill=255)
        pen.rectangle((x - r / 3, top, x + r / 3, bottom), fill=255)
    box = mask.getbbox()  # to paste there alone is several times faster
    large.paste(colour_of(thing.colour), box, mask.crop(box))
    if thing.texture != "plain":
        _texture(large, thing.texture, mask, colour_of(thing.colour), scale)


def _texture(
    large: Image.Image, texture: str, mask: Image.Image | None, colour: tuple[int, int, int], scale: float
) -> None:
    """Draw stripes or dots in a shade of the colour, on a grid of the canvas, where `mask` is white."""
    marks = Image.new("L", large.size)
    pen = ImageDraw.Draw(marks)
    for i in range(0, SIDE, 8 if texture == "striped" else 4):
        if texture == "striped":
            pen.rectangle((0, i * scale, large.width, (i + 3) * scale - 1), fill=255)
            continue
        for j in range(0, SIDE, 4):
            pen.ellipse(((j + 1) * scale, (i + 1) * scale, (j + 3) * scale - 1, (i + 3) * scale - 1), fill=255)
    if mask is not None:
        marks = Image.fromarray(np.minimum(np.asarray(marks), np.asarray(mask)))
    shade = tuple(value // 2 if sum(colour) > 150 else value + 110 for value in colour)
    box = marks.getbbox()
    large.paste(shade, box, marks.crop(box))


def _face(large: Image.Image, face: Face, scale: float) -> None:
    """Draw a face on the enlarged canvas; `scale`: its pixels for one of the scene."""
    pen = ImageDraw.Draw(large)

    def box(dx: float, dy: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        x = face.x + dx
        y = face.y + dy
        return (x - rx) * scale, (y - ry) * scale, (x + rx) * scale, (y + ry) * scale

    def width(pixels: float) -> int:
        return max(1, round(pixels * scale))

    pen.ellipse(box(0, -4, 22, 23), fill=colour_of(face.hair))
    pen.ellipse(box(0, 2, 18, 21), fill=face.skin)
    ink = (30, 22, 20)
    if face.cheeks == "rosy":
        for dx in (-12, 12):
            pen.ellipse(box(dx, 6, 3.5, 3.5), fill=(240, 110, 120))
    for spot in face.spots:
        pen.ellipse(box(*spot, 2, 2), fill=(110, 0, 20))
    for dx in (-8, 8):
        if face.eyes == "open":
            pen.ellipse(box(dx, -3, 3.5, 3.5), fill=(255, 255, 255))
            pen.ellipse(box(dx, -3, 2, 2), fill=ink)
        else:
            pen.arc(box(dx, -4, 3.5, 2.5), 10, 170, fill=ink, width=width(1.4))
        if face.glasses:
            pen.ellipse(box(dx, -3, 6, 6), outline=(20, 20, 90), width=width(1.6))
    if face.glasses:
        pen.line((box(-2, -3, 0, 0)[:2], box(2, -3, 0, 0)[:2]), fill=(20, 20, 90), width=width(1.6))
    pen.ellipse(box(0, 4, 1.6, 2.2), fill=tuple(value * 2 // 3 for value in face.skin))
    lips = (214, 20, 50) if face.lips == "red" else tuple(value * 2 // 5 for value in face.skin)
    if face.mouth == "neutral":
        pen.rectangle(box(0, 12, 7, 1.2), fill=lips)
    elif face.mouth == "smile":
        pen.chord(box(0, 12, 7, 5), 0, 180, fill=lips)
    else:
        pen.chord(box(0, 15, 7, 5), 180, 360, fill=lips)


def _word(image: Image.Image, sign: Sign, scale: float) -> None:
    width, height = round(CELL[0] * scale), round(CELL[1] * scale)
    for i, letter in enumerate(sign.word):
        place = round((i + 1) * CELL[0] * scale), round(sign.y * scale)
        image.paste(
            colour_of(sign.ink), (*place, place[0] + width, place[1] + height), mask=glyph(letter, width, height)
        )


@cache
def glyph(letter: str, width: int = CELL[0], height: int = CELL[1]) -> Image.Image:
    """Return a letter that fills its cell but for a margin; a narrow one keeps its shape."""
    font = ImageFont.load_default(96)
    left, top, right, bottom = font.getbbox(letter)
    large = Image.new("L", (round(right - left), round(bottom - top)))
    ImageDraw.Draw(large).text((-left, -top), letter, fill=255, font=font, stroke_width=2, stroke_fill=255)
    tall = round(height * 0.75)
    wide = min(width - 1, max(2, round(large.width * tall / large.height)))
    cell = Image.new("L", (width, height))
    cell.paste(large.resize((wide, tall), Image.Resampling.BOX), ((width - wide) // 2, (height - tall) // 2))
    return cell


def done(image: Image.Image, look: str) -> Image.Image:
    """Return the picture after one of the looks, faults and turns; a fault's name carries a seed: "noise:7"."""
    name = look.partition(":")[0]
    x = np.asarray(image).astype(np.float32) / 255
    rng = np.random.default_rng(seed_of("look", look))
    grey = (x @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    if name in ("mirror", "upside down"):
        return _image(np.fliplr(x) if name == "mirror" else np.flipud(x))
    if name == "blur":
        return image.filter(ImageFilter.GaussianBlur(2.2 * image.width / SIDE))
    if name == "mosaic":
        few = SIDE // 8
        return image.resize((few, few), Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)
    if name == "noise":
        return _image(x + rng.normal(0, 0.16, x.shape))
    if name == "scratches":
        return _scratched(image, rng)
    change = {
        "brighter": lambda: 0.3 + 0.7 * x,
        "darker": lambda: 0.55 * x,
        "contrast": lambda: 0.5 + 1.7 * (x - 0.5),
        "faded": lambda: grey + 0.4 * (x - grey),
        "grey": lambda: np.repeat(grey, 3, -1),
        "negative": lambda: 1 - x,
        "sepia": lambda: grey * np.array([1.05, 0.85, 0.6], np.float32) + 0.02,
    }
    return _image(change[name]())


def _scratched(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    large = image.resize((image.width * SHARP, image.height * SHARP), Image.Resampling.NEAREST)
    pen = ImageDraw.Draw(large)
    for _ in range(4):
        ends = [tuple(map(float, rng.uniform(0, large.width, 2))) for _ in range(2)]
        pen.line(ends, fill=(235, 235, 235), width=SHARP * image.width // SIDE)
    return large.resize(image.size, Image.Resampling.BOX)


def _image(x: np.ndarray) -> Image.Image:
    return Image.fromarray((x.clip(0, 1) * 255).round().astype(np.uint8))
