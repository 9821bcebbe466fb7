"""The decoder on parts: inside a box the full decode, its gradient, and nothing of what is outside of the margin."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLQwenImage

from firered_lit.draws import generator
from firered_lit.models.family import open_base
from firered_lit.models.part_decoder import decode_parts, reach

BOXES = torch.tensor([[0, 0, 30, 20], [70, 30, 100, 61], [150, 3, 192, 20], [0, 0, 192, 64]])
OWNER = torch.tensor([1, 1, 0, 0])


def wrapped(vae):
    """What `decode_parts` reads of a codec, around any VAE."""
    return SimpleNamespace(vae=vae.eval().requires_grad_(False), factor=8, mean=torch.zeros(1), std=torch.ones(1))


def released(**more):
    """The released VAE's depth and upsampling, narrow, with random weights that let everything through."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        given = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
        return AutoencoderKLQwenImage(**given, temperal_downsample=[False, True, True], **more)


@pytest.fixture(scope="module")
def codec():
    return open_base("tiny").codec()


@pytest.fixture(scope="module")
def latents():
    return torch.randn(2, 16, 8, 24, generator=generator("parts"))


def full(codec, latents):
    z = latents * codec.std + codec.mean
    return codec.vae.decoder(codec.vae.post_quant_conv(z[:, :, None]))[:, :, 0]


@pytest.mark.parametrize("kind", ["tiny", "released"])
def test_a_part_is_the_full_decode_inside_its_box(kind, codec, latents):
    codec = codec if kind == "tiny" else wrapped(released())
    picture = full(codec, latents)
    parts = decode_parts(codec, latents, OWNER, BOXES)
    assert [(part.left, part.top) for part in parts] == [(0, 0), (64, 24), (144, 0), (0, 0)]
    for part, owner in zip(parts, OWNER):
        h, w = part.pixels.shape[2:]
        whole = picture[owner : owner + 1, :, part.top : part.top + h, part.left : part.left + w]
        torch.testing.assert_close(part.pixels, whole, atol=2e-5, rtol=1e-5)
    assert parts[1].pixels.shape[2:] == (40, 40)  # the box, grown to whole latents


def test_it_is_what_the_codec_decodes(codec, latents):
    small = 0.3 * latents
    (part,) = decode_parts(codec, small, torch.tensor([1]), torch.tensor([[0, 0, 192, 64]]))
    torch.testing.assert_close(part.pixels.clamp(-1, 1), codec.decode(small)[1:], atol=2e-5, rtol=1e-5)


def test_the_margin_is_the_reach_of_the_layers_and_no_more(codec):
    """In the layers after the attention, a latent at the reach's edge still matters, one beyond it does not."""
    for decoder, expected in ((codec.vae.decoder, 5), (released().decoder, 13)):
        assert reach(decoder) == expected
        h = torch.randn(1, decoder.mid_block.dim, 1, 1, 48, generator=generator("trunk"), requires_grad=True)
        x = h.expand(-1, -1, -1, 3, -1)
        for block in decoder.up_blocks:
            x = block(x)
        decoder.conv_out(decoder.norm_out(x))[..., 24 * 8].sum().backward()
        seen = h.grad.abs().sum((0, 1, 2, 3)).nonzero().flatten()
        assert 24 - expected <= int(seen.min())
        assert int(seen.min()) <= 24 - expected + 1  # a box of one pixel reaches a little less far than one of a latent
        assert int(seen.max()) <= 24 + expected


@pytest.mark.parametrize("checkpointed", [True, False])
def test_the_gradient_is_that_of_the_full_decode(codec, latents, checkpointed):
    box = BOXES[1:2]
    z = latents.clone().requires_grad_()
    (part,) = decode_parts(codec, z, OWNER[1:2], box, checkpointed)
    part.pixels.square().sum().backward()
    other = latents.clone().requires_grad_()
    full(codec, other)[1, :, 24:64, 64:104].square().sum().backward()
    torch.testing.assert_close(z.grad, other.grad, atol=1e-3, rtol=1e-4)
    assert z.grad[0].abs().sum() == 0
    assert all(parameter.grad is None for parameter in codec.vae.parameters())


def test_a_checkpointed_decode_keeps_less(codec, latents):
    """Bytes held for the backward, counted."""

    def held(checkpointed):
        sizes = []
        z = latents.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.nbytes) or t, lambda t: t):
            decode_parts(codec, z, OWNER, BOXES, checkpointed)
        return sum(sizes)

    assert held(True) < held(False) / 3


def test_boxes_that_lie_near_are_decoded_together(codec, monkeypatch):
    """Three near ones and a far one of one sample, and the near ones of another: three crops for seven boxes."""
    seen, head = [], codec.vae.decoder.norm_out.forward
    monkeypatch.setattr(codec.vae.decoder.norm_out, "forward", lambda x: seen.append(tuple(x.shape[-2:])) or head(x))
    near = [[0, 0, 32, 32], [16, 16, 48, 48], [24, 0, 56, 32]]
    boxes, owner = torch.tensor([*near, [288, 0, 320, 32], *near]), torch.tensor([0, 0, 0, 0, 1, 1, 1])
    latents = torch.randn(2, 16, 12, 40, generator=generator("near"))
    parts = decode_parts(codec, latents, owner, boxes)
    assert sorted(seen) == sorted([(88, 96), (72, 72), (88, 96)])
    picture = full(codec, latents)
    for part, row, box in zip(parts, owner, boxes.tolist()):
        whole = picture[row : row + 1, :, box[1] : box[3], box[0] : box[2]]
        torch.testing.assert_close(part.pixels, whole, atol=2e-5, rtol=1e-5)


def test_nothing_asked_nothing_decoded(codec, latents, monkeypatch):
    monkeypatch.setattr(codec.vae, "post_quant_conv", None)
    assert decode_parts(codec, latents, OWNER[:0], BOXES[:0]) == []
