"""The VAE's decoder with a gradient, for parts of a picture: a loss on regions needs no more of 1024 px."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from torch import Tensor, nn
from torch.nn.functional import conv2d, silu
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from .codec import Codec


Box = tuple[int, int, int, int]  # left, top, right, bottom


class DecodedCrop(NamedTuple):
    """A crop of a decoded picture."""

    pixels: Tensor  # (1, 3, h, w), about [-1, 1]: not clamped, a clamp has no gradient
    left: int
    top: int


class Decoder(Protocol):
    """A codec that decodes parts of pictures with a gradient."""

    factor: int

    def parts(self, latents: Tensor, owner: Tensor, boxes: Tensor, checkpointed: bool = True) -> list[DecodedCrop]:
        """See `decode_parts`."""


def decode_parts(
    codec: "Codec", latents: Tensor, owner: Tensor, boxes: Tensor, checkpointed: bool = True
) -> list[DecodedCrop]:
    """Decode the boxes of pictures as `Codec.decode` does, but with a gradient and without its clamp.

    The first layers, whose attention looks at everything, run on the whole latents of the samples that are asked for,
    the others on the boxes and the margin that reaches them. Boxes that lie near share a crop.

    Args:
        codec: the frozen VAE.
        latents: (B, 16, h, w), normalised.
        owner: (N,), the sample of each box.
        boxes: (N, 4), left, top, right, bottom in pixels.
        checkpointed: keep the activations between layers only, and compute the others again in the backward.

    Returns:
        N parts, each its box grown to whole latents.
    """
    if not len(owner):
        return []
    decoder = codec.vae.decoder
    factor = codec.factor

    # The first layers, on whole pictures.
    rows, place = owner.to(latents.device).unique(return_inverse=True)
    z = latents[rows].to(codec.mean) * codec.std + codec.mean
    trunk = _run(partial(_first_layers, decoder), codec.vae.post_quant_conv(z[:, :, None]), checkpointed)

    # The others, on crops.
    parts: dict[int, DecodedCrop] = {}
    for row, crop, members in _crops(place.tolist(), boxes.tolist(), trunk.shape[-2:], factor, reach(decoder)):
        crop_left, crop_top, crop_right, crop_bottom = crop
        x = trunk[row : row + 1, ..., crop_top:crop_bottom, crop_left:crop_right]
        for layer in _layers(decoder):
            x = _run(layer, x, checkpointed)

        # The boxes in this crop.
        for number, (left, top, right, bottom) in members.items():
            columns = slice((left - crop_left) * factor, (right - crop_left) * factor)
            lines = slice((top - crop_top) * factor, (bottom - crop_top) * factor)
            parts[number] = DecodedCrop(x[:, :, 0, lines, columns], left * factor, top * factor)
    return [parts[number] for number in range(len(owner))]


def reach(decoder: Any) -> int:
    """Return how many latents beyond a box the layers after the attention look at: 13 in the released VAE."""
    pixels = 1  # the last convolution
    for block in reversed(decoder.up_blocks):
        if block.upsamplers is not None:
            pixels = (pixels + 2) // 2  # a convolution at the higher resolution, rounded up
        pixels += 2 * len(block.resnets)
    return pixels


def _crops(
    rows: list[int], boxes: list[list[int]], sides: Sequence[int], factor: int, margin: int
) -> list[tuple[int, Box, dict[int, Box]]]:
    """Return the crops to decode, in latents: (row, crop, the boxes in it by number).

    Two crops become one where that is less to decode.

    Args:
        rows: (N,), the row of each box.
        boxes: (N, 4) in pixels.
        sides: height and width of the latents.
        factor: pixels of a latent.
        margin: latents that a crop has beyond its boxes.
    """
    height, width = sides
    crops: list[tuple[int, Box, dict[int, Box]]] = []
    for number, (row, pixels) in enumerate(zip(rows, boxes, strict=True)):
        # The box grown to whole latents, and its crop.
        left, top = pixels[0] // factor, pixels[1] // factor
        right, bottom = -(-pixels[2] // factor), -(-pixels[3] // factor)
        crop = (
            max(0, left - margin),
            max(0, top - margin),
            min(width, right + margin),
            min(height, bottom + margin),
        )
        members = {number: (left, top, right, bottom)}

        # Crops of the same row that are cheaper to decode together.
        for other in list(crops):
            other_row, other_crop, other_members = other
            both = _around(crop, other_crop)
            if other_row == row and _area(both) <= _area(crop) + _area(other_crop):
                crops.remove(other)
                crop = both
                members = members | other_members
        crops.append((row, crop, members))
    return crops


def _around(a: Box, b: Box) -> Box:
    """Return the box around two boxes."""
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _area(box: Box) -> int:
    """Return the area of a box."""
    return (box[2] - box[0]) * (box[3] - box[1])


def _run(layer: Callable[[Tensor], Tensor], x: Tensor, checkpointed: bool) -> Tensor:
    """Apply a layer; with `checkpointed`, its activations are computed again in the backward."""
    if checkpointed and x.requires_grad:
        return checkpoint(layer, x, use_reentrant=False)
    return layer(x)


def _first_layers(decoder: Any, x: Tensor) -> Tensor:
    """Apply the layers up to the end of the middle block."""
    first, *others = decoder.mid_block.resnets
    x = _residual(first, _frame(decoder.conv_in, x))
    for attention, block in zip(decoder.mid_block.attentions, others):
        x = _residual(block, attention(x))
    return x


def _layers(decoder: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yield the layers that follow the middle block."""
    for block in decoder.up_blocks:
        for layer in block.resnets:
            yield partial(_residual, layer)
        yield from block.upsamplers or ()
    yield lambda x: _frame(decoder.conv_out, silu(decoder.norm_out(x)))


def _residual(block: Any, x: Tensor) -> Tensor:
    """Apply a residual block of the decoder on a single frame."""
    h = _frame(block.conv1, silu(block.norm1(x)))
    shortcut = x
    if not isinstance(block.conv_shortcut, nn.Identity):
        shortcut = _frame(block.conv_shortcut, x)
    return shortcut + _frame(block.conv2, silu(block.norm2(h)))


def _frame(conv: Any, x: Tensor) -> Tensor:
    """Apply a causal convolution on a single frame (B, C, 1, h, w): frames before it are zero, so nothing is added."""
    wide, _, high, *_ = conv._padding
    return conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, padding=(high, wide))[:, :, None]
