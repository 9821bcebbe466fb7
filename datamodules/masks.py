"""Masks of what an edit may change: on the target's crop, stored as one bit a pixel, batched."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from firered_lit.models.sizes import Shape

from .images import window
from .refusals import Refuse

KEY = "mask"  # among a sample's tensors: the bytes of a PNG file
ALIKE = 0.01  # by how much the sides' ratio of a mask of another size may differ from its picture's


def on_crop(mask: Image.Image, views: Sequence[tuple[tuple[int, int], Shape]], shape: Shape, name: str) -> Image.Image:
    """A mask (255: may change) as the crop of `shape` sees it, one bit a pixel.

    views: of the target and, when there is one, of the first source: (width, height) and the shape of its crop. The
    mask belongs to the first of its own size, else to the first of its own ratio. Refuse when it belongs to none.
    """
    width, height = mask.size
    same = [view for view in views if view[0] == mask.size]
    same += [view for view in views if abs(width * view[0][1] / (height * view[0][0]) - 1) <= ALIKE]
    if not same:
        sizes = " or ".join(f"{w}x{h}" for (w, h), _ in views)
        raise Refuse(name, "bad mask", f"it has {width}x{height} pixels, the picture that it is of {sizes}")
    (own_width, own_height), own = same[0]
    left, top, right, bottom = window((own_width, own_height), own)
    x, y = width / own_width, height / own_height
    box = left * x, top * y, min(right * x, width), min(bottom * y, height)
    cropped = mask.resize(shape[::-1], Image.Resampling.BILINEAR, box=box)
    return cropped.point(lambda value: 255 * (value >= 128)).convert("1", dither=Image.Dither.NONE)


def packed(mask: Image.Image) -> Tensor:
    """(N,) uint8: a one-bit mask as a PNG file, some kilobytes even of large pictures."""
    file = io.BytesIO()
    mask.save(file, "PNG", compress_level=6)
    return torch.from_numpy(np.frombuffer(file.getvalue(), np.uint8).copy())


def unpacked(file: Tensor) -> Tensor:
    """(1, H, W) float32: 1 where the edit may change the picture."""
    with Image.open(io.BytesIO(file.numpy().tobytes())) as image:
        return torch.from_numpy(np.array(image.convert("L"))).float()[None] / 255


def stacked(samples: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
    """(B, 1, H, W) of samples' tensors, all 1 where one has no mask; None when none has."""
    masks = [unpacked(tensors[KEY]) if KEY in tensors else None for tensors in samples]
    first = next((mask for mask in masks if mask is not None), None)
    if first is None:
        return None
    return torch.stack([torch.ones_like(first) if mask is None else mask for mask in masks])
