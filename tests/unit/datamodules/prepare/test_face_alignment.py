"""From a row's face to the encoder's canvas: turned, scaled and cropped pictures show one face in one place."""

import math

import pytest
import torch
from PIL import Image

from datamodules.sources.images import crop, window
from datamodules.sources.regions import stacked, through
from datamodules.world.scene import Face, Scene, draw
from firered_lit.losses.consistency import FACE_SIZE, region_transforms, warp
from firered_lit.models.codec import to_pixels

FACES = Face(32, 30, (224, 172, 132), "black", glasses=True), Face(32, 30, (140, 90, 60), "yellow", mouth="smile")
SIDE = 256


def pictured(face, angle=0.0, scale=1.0, size=(SIDE, SIDE), at=(128.0, 128.0)):
    """A drawn face, turned and scaled, with its middle at a place of a picture of `size`; and where its points are."""
    upright = draw(Scene("blue", (), face=face), SIDE)
    points = torch.tensor(face.landmarks, dtype=torch.float64) * (SIDE / 64)
    turn = scale * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]).double()
    middle = points.mean(0)
    back = torch.linalg.inv(turn)
    shift = middle - back @ torch.tensor(at, dtype=torch.float64)
    rows = [*back[0].tolist(), float(shift[0]), *back[1].tolist(), float(shift[1])]
    picture = upright.transform(size, Image.Transform.AFFINE, rows, Image.Resampling.BICUBIC, fillcolor=(44, 90, 200))
    moved = (points - middle) @ turn.T + torch.tensor(at, dtype=torch.float64) - 0.5  # pixel centres are integers
    return picture, tuple(map(tuple, moved.tolist()))


def aligned(picture, face, shape):
    """What the encoder sees of a row's face, after the crop to `shape`."""
    regions = stacked([through([face], window(picture.size, shape), shape)])
    assert regions is not None
    owner, maps = region_transforms(regions, 1, shape, FACE_SIZE)
    assert owner.tolist() == [0]
    return warp(to_pixels(crop(picture, shape))[None], maps, FACE_SIZE)[0]


def offset(a, b, most=4):
    """By how many pixels (dx, dy) to move `a` so that it is most like `b`, around the features."""
    inner = slice(30, 100)

    def error(dx, dy):
        return float((a.roll((dy, dx), (1, 2)) - b)[:, inner, inner].square().mean())

    moves = [(dx, dy) for dx in range(-most, most + 1) for dy in range(-most, most + 1)]
    return min(moves, key=lambda move: error(*move))


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize(
    ("angle", "scale", "size", "at", "shape"),
    [
        (0.5, 1.0, (256, 256), (128, 128), (256, 256)),
        (-0.7, 0.6, (400, 300), (210, 140), (192, 256)),
        (0.2, 1.5, (500, 420), (250, 200), (384, 480)),
        (3.0, 0.8, (300, 320), (150, 170), (320, 288)),
    ],
)
def test_a_drawn_face_lands_on_the_template_within_a_pixel(face, angle, scale, size, at, shape):
    upright, points = pictured(face)
    expected = aligned(upright, points, (SIDE, SIDE))
    picture, moved = pictured(face, angle, scale, size, at)
    found = aligned(picture, moved, shape)
    assert offset(found, expected) == (0, 0)
    assert float((found - expected)[:, 30:100, 30:100].abs().mean()) < 0.12
    wrong = tuple((x + 6 * scale, y) for x, y in moved)  # the test sees a slip
    assert offset(aligned(picture, wrong, shape), expected) != (0, 0)
