"""The base of the learning world: a codec without loss, a text encoder that tells instructions apart, first weights."""

import re

import pytest
import torch

from datamodules.world.sample import edit
from datamodules.world.scene import draw
from firered_lit.batch import Condition, Text
from firered_lit.flow.path import interpolate
from firered_lit.flow.sampler import schedule
from firered_lit.models import qwen_image
from firered_lit.models.codec import to_image, to_pixels
from firered_lit.models.family import open_base
from firered_lit.models.sampling import sample
from firered_lit.models.words import ROLES, RULER, embed, roles, tokens
from firered_lit.models.world import ROPE, first_transformer, waves


def test_the_codec_gives_every_pixel_back_at_its_place() -> None:
    codec = open_base("world-untrained").codec()
    picture = draw(edit(0, 0).target)
    latents = codec.encode(to_pixels(picture)[None])
    assert latents.shape == (1, 48, 16, 16)
    assert to_image(codec.decode(latents)[0]).tobytes() == picture.tobytes()
    latents[:, :, 0, 1] += 1
    changed = (codec.decode(latents)[0] != to_pixels(picture)).any(0)
    assert changed[:4, 4:8].any()
    assert not changed[4:].any()
    assert not changed[:, 8:].any()


def test_parts_are_the_pictures_with_a_gradient_and_without_a_clamp() -> None:
    codec = open_base("world-untrained").codec()
    latents = torch.stack([codec.encode(to_pixels(draw(edit(0, i).target))[None])[0] for i in range(2)])
    latents = (2 * latents).requires_grad_()
    parts = codec.parts(latents, torch.tensor([1, 0, 1]), torch.tensor([[0, 0, 9, 9], [4, 4, 60, 60], [1, 2, 3, 4]]))
    for part, row in zip(parts, (1, 0, 1), strict=True):
        assert (part.left, part.top) == (0, 0)
        assert part.pixels.abs().max() > 1
        torch.testing.assert_close(part.pixels.clamp(-1, 1), codec.decode(latents[row : row + 1]))
    (given,) = torch.autograd.grad(parts[1].pixels.sum(), latents)
    torch.testing.assert_close(given[0], codec.std.expand_as(latents[:1])[0])
    assert (given[1] == 0).all()


def test_instructions_of_the_world_are_told_apart() -> None:
    texts = {text for number in range(90) for text in edit(0, number).texts.values()}
    rows = {tuple(embed(text).flatten().tolist()) for text in texts}
    assert len(rows) == len(texts)
    near = embed("Put the red circle of Picture 1 in Picture 2"), embed("Put the red circle of Picture 2 in Picture 1")
    assert (near[0] - near[1]).abs().sum(-1).gt(0).sum() >= 2
    chinese = embed("把图1中的物体放到图2的左上角"), embed("把图2中的物体放到图1的左上角")
    assert (chinese[0] - chinese[1]).abs().sum(-1).gt(0).sum() >= 2


def said(prompt: str) -> torch.Tensor:
    return roles([word for word, place in tokens(prompt) if not place])


@pytest.mark.parametrize("family", ["add", "remove", "replace", "color", "background", "motion", "compose"])
def test_every_way_to_ask_for_an_edit_has_its_roles(family: str) -> None:
    """Both languages and all kinds of caption; another thing, colour or place has others."""
    found = [edit(0, number, families=(family,)) for number in range(60)]
    asked = [{tuple(said(text).tolist()) for text in one.texts.values()} for one in found]
    assert all(len(one) == 1 for one in asked)
    assert len(set.union(*asked)) > 5


def test_roles_tell_what_is_spoken_of_from_what_is_new() -> None:
    names = {"red": "blue", "blue": "red"}
    for prompt in ("Make the red circle blue", "Replace the red circle with a blue circle", "用红色圆形代替蓝色圆形"):
        swapped = re.sub("red|blue", lambda match: names[match[0]], prompt)
        swapped = swapped.translate(str.maketrans("红蓝", "蓝红"))
        assert not torch.equal(said(prompt), said(swapped))
    assert torch.equal(said("用红色圆形代替蓝色圆形"), said("Swap the blue circle for a red circle"))
    assert torch.equal(said("Make it brighter"), torch.zeros(ROLES))
    first, second = (said(f"Put the object of Picture {i} at the top left of Picture {3 - i}") for i in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, said("在图2里，把图1中的物体放到左上角"))


def test_words_are_spelled_in_quotation_marks_alone() -> None:
    assert ('"B', "new 1") in tokens('Write "ABA" on it')
    assert tokens("把“X”改成“A”")[1::2][:2] == [('"X', "old 0"), ('"A', "new 0")]
    assert [place for _, place in tokens('It should say "A", not "XY"') if place] == ["new 0", "old 0", "old 1"]
    assert ("aba", "") in tokens("Write ABA on it")
    assert len(embed(" ")) == RULER + 1
    assert torch.equal(embed("Make it red")[:RULER], embed("变红")[:RULER])


def test_the_basis_of_a_token_is_orthonormal_and_begins_coarse() -> None:
    basis = waves()
    assert torch.allclose(basis.T @ basis, torch.eye(192), atol=1e-5)
    flat = open_base("world-untrained").codec().encode(torch.full((1, 3, 8, 8), 0.3)).reshape(48, 4).flatten()
    shares = (basis.T @ flat).square()
    assert shares[:3].sum() > 0.999 * shares.sum()


def looks(block: int, head: int) -> torch.Tensor:
    """(128, 20 + 128): where tokens of two pictures of 8x8 look, at first, over 20 tokens of text and the pictures."""
    from diffusers.models.transformers.transformer_qwenimage import QwenEmbedRope, apply_rotary_emb_qwen

    attention, draw_from = first_transformer().transformer_blocks[block].attn, torch.Generator().manual_seed(0)
    pictures, text = (torch.randn((1, n, 256), generator=draw_from) for n in (128, 20))
    own, others = QwenEmbedRope(10000, list(ROPE), scale_rope=True)([[(1, 8, 8)] * 2], None, 20)
    sides = [(pictures, attention.to_q, attention.norm_q, own), (pictures, attention.to_k, attention.norm_k, own)]
    sides += [(text, attention.add_k_proj, attention.norm_added_k, others)]
    with torch.no_grad():
        q, k, t = (
            apply_rotary_emb_qwen(norm(linear(x).unflatten(-1, (4, -1))), freqs, use_real=False)[0, :, head]
            for x, linear, norm, freqs in sides
        )
    return (q @ torch.cat([t, k]).T / 8).softmax(-1)


def test_heads_begin_by_looking_where_an_edit_has_to_look() -> None:
    """The same place one picture on; the token's row and its column on the ruler; the text."""
    targets, places = torch.arange(64), torch.arange(128) % 64
    for head in range(3):
        assert torch.equal(looks(1, head)[:64].argmax(-1), 20 + 64 + targets)
    assert torch.equal(looks(0, 1).argmax(-1), places // 8)
    assert torch.equal(looks(0, 2).argmax(-1), places % 8)
    for block in range(2):
        assert looks(block, 3)[:, :20].sum(-1).mean() > 0.7
    assert looks(0, 0)[:, :20].sum(-1).mean() < 0.5


@pytest.mark.parametrize("sigma", [0.3, 0.6, 0.9, 1.0])
def test_the_untrained_transformer_is_a_copier(sigma: float) -> None:
    """Its velocity is that to the first reference, within a tenth of what pictures differ by."""
    transformer, codec = first_transformer(), open_base("world-untrained").codec()
    edits = [edit(0, n, families=("remove",)) for n in range(4)]
    source = codec.encode(torch.stack([to_pixels(draw(one.sources[0])) for one in edits]))
    eps = torch.randn(source.shape, generator=torch.Generator().manual_seed(0))
    condition = Condition(Text.pad([embed("Keep it")] * 4), (source,))
    x_t = interpolate(source, eps, torch.full((4,), sigma))
    with torch.no_grad():
        found = x_t - sigma * qwen_image.velocity(transformer, x_t, torch.full((4,), sigma), condition)
    assert (found - source).square().mean() < 0.1 * (source - source.roll(1, 0)).square().mean()
    assert (found - source.roll(1, 0)).square().mean() > 0.5 * (source - source.roll(1, 0)).square().mean()


def test_a_solver_draws_the_reference_from_the_untrained_weights() -> None:
    base, transformer = open_base("world-untrained"), first_transformer()
    codec = base.codec()
    source = to_pixels(draw(edit(0, 0, families=("remove",)).sources[0]))[None]
    noise = torch.randn((1, 48, 16, 16), generator=torch.Generator().manual_seed(0))
    condition = Condition(Text.pad([embed("Keep it")]), (codec.encode(source),))
    drawn = codec.decode(sample(transformer, noise, schedule(6, 64, base.scheduler_config), condition))
    assert (drawn - source).abs().mean() < 0.05
