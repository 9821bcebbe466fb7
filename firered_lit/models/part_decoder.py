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


class Part(NamedTuple):
    """A crop of a decoded picture."""

    pixels: Tensor  # (1, 3, h, w), about [-1, 1]: not clamped, a clamp has no gradient
    left: int
    top: int


class Decoder(Protocol):
    """A codec that decodes parts of pictures with a gradient."""

    factor: int

    def parts(self, latents: Tensor, owner: Tensor, boxes: Tensor, checkpointed: bool = True) -> list[Part]:
        """See `decode_parts`."""


def decode_parts(
    codec: "Codec", latents: Tensor, owner: Tensor, boxes: Tensor, checkpointed: bool = True
) -> list[Part]:
    """The pictures of latents (B, 16, h, w) inside boxes (N, 4: left, top, right, bottom, in pixels).

    owner (N,): the sample that a box is of. A part is its box, grown to whole latents. As `Codec.decode`, but with a
    gradient and without its clamp: the first layers, whose attention looks at everything, run on the whole latents of
    the samples asked for, the others on the boxes and the margin that reaches them; boxes that lie near share a crop.
    checkpointed: keep the activations between layers only, and compute the others again in the backward.
    """
    if not len(owner):
        return []
    decoder, margin = codec.vae.decoder, reach(codec.vae.decoder)
    rows, place = owner.to(latents.device).unique(return_inverse=True)
    z = latents[rows].to(codec.mean) * codec.std + codec.mean
    trunk = _run(partial(_first_layers, decoder), codec.vae.post_quant_conv(z[:, :, None]), checkpointed)
    found: dict[int, Part] = {}
    for row, crop, members in _crops(place.tolist(), boxes.tolist(), trunk.shape[-2:], codec.factor, margin):
        x = trunk[row : row + 1, ..., crop[1] : crop[3], crop[0] : crop[2]]
        for layer in _layers(decoder):
            x = _run(layer, x, checkpointed)
        for i, box in members.items():
            left, top, right, bottom = ((edge - crop[k % 2]) * codec.factor for k, edge in enumerate(box))
            found[i] = Part(x[:, :, 0, top:bottom, left:right], box[0] * codec.factor, box[1] * codec.factor)
    return [found[i] for i in range(len(owner))]


def reach(decoder: Any) -> int:
    """Latents beyond a box's edge that the layers after the attention look at: 13 in the released VAE."""
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

    boxes are in pixels; sides: height, width of the latents.
    """
    found: list[tuple[int, Box, dict[int, Box]]] = []
    for i, (row, pixels) in enumerate(zip(rows, boxes, strict=True)):
        box = (pixels[0] // factor, pixels[1] // factor, -(-pixels[2] // factor), -(-pixels[3] // factor))
        low, high = (max(0, box[0] - margin), max(0, box[1] - margin)), (box[2] + margin, box[3] + margin)
        crop, members = (*low, min(sides[1], high[0]), min(sides[0], high[1])), {i: box}
        for other in [other for other in found if other[0] == row]:
            both = _around(crop, other[1])
            if _area(both) <= _area(crop) + _area(other[1]):
                found.remove(other)
                crop, members = both, members | other[2]
        found.append((row, crop, members))
    return found


def _around(a: Box, b: Box) -> Box:
    return min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def _run(layer: Callable[[Tensor], Tensor], x: Tensor, checkpointed: bool) -> Tensor:
    return checkpoint(layer, x, use_reentrant=False) if checkpointed and x.requires_grad else layer(x)


def _first_layers(decoder: Any, x: Tensor) -> Tensor:
    """Up to the end of the middle block."""
    first, *others = decoder.mid_block.resnets
    x = _residual(first, _frame(decoder.conv_in, x))
    for attention, block in zip(decoder.mid_block.attentions, others):
        x = _residual(block, attention(x))
    return x


def _layers(decoder: Any) -> Iterator[Callable[[Tensor], Tensor]]:
    """Return the layers that follow the middle block."""
    for block in decoder.up_blocks:
        yield from (partial(_residual, layer) for layer in block.resnets)
        yield from block.upsamplers or ()
    yield lambda x: _frame(decoder.conv_out, silu(decoder.norm_out(x)))


def _residual(block: Any, x: Tensor) -> Tensor:
    """A residual block of the decoder, on a single frame."""
    same = isinstance(block.conv_shortcut, nn.Identity)
    h = _frame(block.conv1, silu(block.norm1(x)))
    return (x if same else _frame(block.conv_shortcut, x)) + _frame(block.conv2, silu(block.norm2(h)))


def _frame(conv: Any, x: Tensor) -> Tensor:
    """A causal convolution on a single frame (B, C, 1, h, w): frames before it are zero, and need no products."""
    wide, _, high, *_ = conv._padding
    return conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, padding=(high, wide))[:, :, None]
