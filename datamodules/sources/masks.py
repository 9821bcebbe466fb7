"""Masks of the pixels that an edit may change: on the target's crop, stored as one bit a pixel, batched."""

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
ALIKE = 0.01  # relative difference between the aspect ratios of a mask of another size and of its picture


def on_crop(mask: Image.Image, views: Sequence[tuple[tuple[int, int], Shape]], shape: Shape, name: str) -> Image.Image:
    """Return a mask as a crop sees it, one bit a pixel.

    Args:
        mask: Grey image; 255 where the edit may change the picture.
        views: (width, height) and the shape of its crop, of the target and, when there is one, of the first source.
            The mask belongs to the first of its own size, else to the first of its own aspect ratio.
        shape: (height, width) of the crop.
        name: Column of the mask, for the refusal.

    Raises:
        Refuse: The mask belongs to none of the views.
    """
    size, crop = _view_of(mask, views, name)

    # The part that the crop shows, in the mask's pixels.
    left, top, right, bottom = window(size, crop)
    x_scale = mask.width / size[0]
    y_scale = mask.height / size[1]
    box = (left * x_scale, top * y_scale, min(right * x_scale, mask.width), min(bottom * y_scale, mask.height))

    cropped = mask.resize(shape[::-1], Image.Resampling.BILINEAR, box=box)
    sharp = cropped.point(lambda value: 255 * (value >= 128))
    return sharp.convert("1", dither=Image.Dither.NONE)


def _view_of(
    mask: Image.Image, views: Sequence[tuple[tuple[int, int], Shape]], name: str
) -> tuple[tuple[int, int], Shape]:
    """Return the view that a mask belongs to; arguments as in `on_crop`."""
    for view in views:
        if view[0] == mask.size:
            return view
    for view in views:
        width, height = view[0]
        if abs(mask.width * height / (mask.height * width) - 1) <= ALIKE:
            return view
    sizes = " or ".join(f"{width}x{height}" for (width, height), _ in views)
    raise Refuse(name, "bad mask", f"it has {mask.width}x{mask.height} pixels, the picture that it is of {sizes}")


def packed(mask: Image.Image) -> Tensor:
    """Return a one-bit mask as the (N,) uint8 bytes of a PNG file, some kilobytes even for a large picture."""
    file = io.BytesIO()
    mask.save(file, "PNG", compress_level=6)
    return torch.from_numpy(np.frombuffer(file.getvalue(), np.uint8).copy())


def unpacked(file: Tensor) -> Tensor:
    """Return a packed mask as (1, H, W) float32: 1 where the edit may change the picture."""
    with Image.open(io.BytesIO(file.numpy().tobytes())) as image:
        return torch.from_numpy(np.array(image.convert("L"))).float()[None] / 255


def stacked(samples: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
    """Return the masks of B samples as (B, 1, H, W), all 1 for a sample without one; None when no sample has one.

    Args:
        samples: Tensors of each sample, by name.
    """
    masks = {i: unpacked(tensors[KEY]) for i, tensors in enumerate(samples) if KEY in tensors}
    if not masks:
        return None
    everywhere = torch.ones_like(next(iter(masks.values())))
    return torch.stack([masks.get(i, everywhere) for i in range(len(samples))])
