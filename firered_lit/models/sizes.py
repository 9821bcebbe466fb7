"""The size of every image: the one place that loader, trainer, validation and export ask."""

import math
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from ..errors import UserError

RATIOS = tuple(Fraction(*r) for r in [(2, 1), (16, 9), (3, 2), (4, 3), (1, 1), (3, 4), (2, 3), (9, 16), (1, 2)])
SIDE = 32  # the stock pipelines round every side to this
SMALLEST, LARGEST = SIDE * SIDE, 1 << 28  # pixels of an image

Shape = tuple[int, int]  # (height, width) in pixels


def calculate_dimensions(area: int, ratio: float) -> tuple[int, int]:
    """(width, height) near `area` pixels at width / height = `ratio`, sides to multiples of 32.

    The rule of diffusers' `QwenImageEditPlusPipeline` (a test holds the two equal), without its import time.
    """
    width = math.sqrt(area * ratio)
    return round(width / SIDE) * SIDE, round(width / ratio / SIDE) * SIDE


@dataclass(frozen=True)
class Sizes:
    """Pixel areas of the three roles of an image. The defaults are the stock pipeline's constants.

    target_area: the edited image; reference_area: a reference as the VAE sees it; condition_area: a reference as the
    vision-language model sees it. `max_upscale`: an image is refused when it would be enlarged more than this.

    Attributes:
        max_upscale: How many times a picture may be enlarged to its shape; a smaller one is refused.
    """

    target_area: int = 1024 * 1024
    reference_area: int = 1024 * 1024
    condition_area: int = 384 * 384
    max_upscale: float = 4.0

    @classmethod
    def read(cls, content: Any, where: str) -> "Sizes":
        """Return the sizes that a file holds.

        Args:
            content: name -> number, as `as_dict` returns it; what is left out has its default.
            where: the file and the entry, for the message.

        Raises:
            UserError: it holds something else.
        """
        defaults = asdict(cls())
        if not isinstance(content, dict):
            raise UserError(f"{where}: expected {', '.join(defaults)} by name, got {content!r}")
        for name, value in content.items():
            if name not in defaults:
                raise UserError(f"{where}: no size is called {name!r}; there are {', '.join(defaults)}")
            whole = isinstance(defaults[name], int)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (whole and not isinstance(value, int)):
                raise UserError(f"{where}.{name}: expected a {'whole ' if whole else ''}number, got {value!r}")
            if whole and not SMALLEST <= value <= LARGEST:
                raise UserError(f"{where}.{name}: expected pixels from {SMALLEST} to {LARGEST}, got {value}")
            if not whole and value <= 0:
                raise UserError(f"{where}.{name}: expected a number above 0, got {value}")
        return cls(**content)

    def as_dict(self) -> dict[str, float]:
        return asdict(self)

    def largest_sample(self, references: int) -> int:
        """Return the visual tokens of the largest sample: a target and so many references, each of any shape."""
        return largest_tokens(self.target_area) + references * largest_tokens(self.reference_area)

    def capacity(self, samples: int, references: int = 0, sides: int = 1) -> int:
        """Return the capacity that holds a micro-batch of these samples, whatever their shapes.

        Args:
            samples: samples of the micro-batch; of preferences, pairs.
            references: of each sample.
            sides: 2 for preference pairs, whose winner and loser both come with the references; else 1.
        """
        return samples * sides * self.largest_sample(references)


def shape_table(area: int) -> tuple[Shape, ...]:
    """Return the candidate shapes (height, width) of a pixel area, one for each of nine ratios, widest first.

    Inference applies `calculate_dimensions` to the image that it is shown. Every shape here keeps its size under that
    rule, so a crop of this shape is seen at inference as it was in training.
    """
    shapes = [_settled(area, float(ratio)) for ratio in RATIOS]
    return tuple(dict.fromkeys(shape for shape in shapes if min(shape) > 0))


def _settled(area: int, ratio: float) -> Shape:
    """Return the shape (height, width) at which `calculate_dimensions`, applied again and again, stays.

    For a few areas (704 x 704, 832 x 832) the rounded sides have another ratio, at which the rule gives other sides.
    Sides only grow or only shrink with the ratio, so the repetition ends; mostly it ends at once.
    """
    width, height = calculate_dimensions(area, ratio)
    while min(width, height) > 0:
        before = width, height
        width, height = calculate_dimensions(area, width / height)
        if (width, height) == before:
            break
    return height, width


def assign(height: int, width: int, table: tuple[Shape, ...]) -> Shape:
    """The shape that loses the least area when an image is resized to cover it and centre-cropped.

    Ties go to the smaller |H*W - h*w| (method: multi-condition aware buckets).
    """

    def loss(shape: Shape) -> tuple[float, int]:
        h, w = shape
        scale = max(h / height, w / width)
        return round(1 - (h * w) / (scale * scale * height * width), 9), abs(height * width - h * w)

    return min(table, key=loss)


def cover(height: int, width: int, shape: Shape) -> float:
    """The scale that makes an image just cover `shape`."""
    return max(shape[0] / height, shape[1] / width)


def crop_box(height: int, width: int, shape: Shape) -> tuple[float, float, float, float]:
    """The centre region (left, top, right, bottom) of the image, in its own pixels, that becomes `shape`."""
    scale = cover(height, width, shape)
    w, h = shape[1] / scale, shape[0] / scale
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def condition_size(height: int, width: int, area: int) -> Shape:
    """(height, width) at which a reference of the given size is shown, at its own aspect ratio."""
    w, h = calculate_dimensions(area, width / height)
    return h, w


def tokens(shape: Shape) -> int:
    """Visual tokens of an image: one per 16x16 pixels."""
    return (shape[0] // 16) * (shape[1] // 16)


def largest_tokens(area: int) -> int:
    """Return the visual tokens of the largest shape in an area's table: at 1024 x 1024, 4144 of 1184x896."""
    return max(map(tokens, shape_table(area)))
