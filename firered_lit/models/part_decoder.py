"""The VAE's decoder with a gradient, for parts of a picture: a loss on regions needs no more of 1024 px."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from .codec import Codec


class Part(NamedTuple):
    """A crop of a decoded picture."""

    pixels: Tensor  # (1, 3, h, w), about [-1, 1]: not clamped, a clamp has no gradient
    left: int
    top: int


def decode_parts(
    codec: "Codec", latents: Tensor, owner: Tensor, boxes: Tensor, checkpointed: bool = True
) -> list[Part]:
    """The pictures of latents (B, 16, h, w) inside boxes (N, 4: left, top, right, bottom, in pixels).

    owner (N,): the sample that a box is of. A part is its box, grown to whole latents. As `Codec.decode`, but with a
    gradient and without its clamp: the first layers, whose attention looks at everything, run on the whole latents of
    the samples asked for, the others on each box and the margin that reaches it.
    checkpointed: keep the activations between layers only, and compute the others again in the backward.
    """
    if not len(owner):
        return []
    decoder, margin = codec.vae.decoder, reach(codec.vae.decoder)
    rows, place = owner.to(latents.device).unique(return_inverse=True)
    z = latents[rows].to(codec.mean) * codec.std + codec.mean
    trunk = _run(
        lambda x: decoder.mid_block(decoder.conv_in(x)), codec.vae.post_quant_conv(z[:, :, None]), checkpointed
    )
    return [
        _part(decoder, trunk[row : row + 1], box, codec.factor, margin, checkpointed)
        for row, box in zip(place.tolist(), boxes.tolist(), strict=True)
    ]


def reach(decoder: nn.Module) -> int:
    """Latents beyond a box's edge that the layers after the attention look at: 13 in the released VAE."""
    pixels = 1  # the last convolution
    for block in reversed(decoder.up_blocks):
        if block.upsamplers is not None:
            pixels = (pixels + 2) // 2  # a convolution at the higher resolution, rounded up
        pixels += 2 * len(block.resnets)
    return pixels


def _part(decoder: nn.Module, trunk: Tensor, box: list[int], factor: int, margin: int, checkpointed: bool) -> Part:
    """One box of one sample's features (1, C, 1, h, w)."""
    limit = (trunk.shape[-1], trunk.shape[-2])
    low = [edge // factor for edge in box[:2]]
    high = [-(-edge // factor) for edge in box[2:]]
    begin = [max(0, edge - margin) for edge in low]
    end = [min(most, edge + margin) for edge, most in zip(high, limit)]
    x = trunk[..., begin[1] : end[1], begin[0] : end[0]]
    for layer in _layers(decoder):
        x = _run(layer, x, checkpointed)
    cut = [slice((lo - b) * factor, (hi - b) * factor) for lo, hi, b in zip(low, high, begin)]
    return Part(x[:, :, 0, cut[1], cut[0]], low[0] * factor, low[1] * factor)


def _run(layer: Callable[[Tensor], Tensor], x: Tensor, checkpointed: bool) -> Tensor:
    return checkpoint(layer, x, use_reentrant=False) if checkpointed and x.requires_grad else layer(x)


def _layers(decoder: nn.Module) -> Iterator[Callable[[Tensor], Tensor]]:
    """What follows the middle block, on a single frame."""
    for block in decoder.up_blocks:
        yield from block.resnets
        yield from block.upsamplers or ()
    yield lambda x: decoder.conv_out(silu(decoder.norm_out(x)))
