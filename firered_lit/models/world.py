"""The base of the learning world: the real transformer class at a size that a CPU can train, a codec and a text encoder
without weights, and sizes of 64 pixels."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from . import patches, words
from .cache import appear, cache_folder
from .qwen_image import pack, unused_parameters
from .sizes import Sizes

SIZES = Sizes(target_area=64 * 64, reference_area=64 * 64, condition_area=64 * 64, max_upscale=2.0)
PATCH = 4  # pixels of a latent's side; a token is 8x8 pixels, 192 numbers
ROPE = (16, 24, 24)  # frame, row, column; a head
SHARPNESS = 2.0  # of queries and keys in the numbers that tell distances
OFFSET = 2.0  # the constant that tokens are moved by, beside which their own length hardly shows to a layer norm
POWER = 1.5  # mean square of a picture's numbers
QUIET = 0.1  # what is left of the weights of all that does not copy
LEAST_SIGMA = 0.1  # under which the velocity is not made louder
SEED = 0
WEIGHTS = Path(__file__).with_name("world.safetensors")  # pretrained, when they are there
# How much each frequency of an axis counts where a head looks at a place: the fastest tell neighbours apart, the next
# ones those that are six apart.
NEARNESS = ((0.30,), (0.27, 0.08), (0.27, 0.08))


def cached_world(trained: bool = True) -> Path:
    """The folder of the world's base, built on first use, once per version of its parts. trained: with the pretrained
    weights where they are shipped; else as `first_transformer` makes it."""
    import diffusers

    parts = [Path(module).read_bytes() for module in (__file__, patches.__file__, words.__file__)]
    parts += [diffusers.__version__.encode()]
    parts += [WEIGHTS.read_bytes()] if trained and WEIGHTS.exists() else []
    folder = cache_folder() / f"world-{hashlib.blake2b(b'|'.join(parts), digest_size=6).hexdigest()}"
    return folder if (folder / "model_index.json").exists() else make_world(folder, trained)


def make_world(folder: Path, trained: bool = True) -> Path:
    """Write the world's base in the layout of a diffusers folder; what has no weights is a config alone."""

    def fill(staging: Path) -> None:
        transformer = first_transformer()
        if trained and WEIGHTS.exists():
            from safetensors.torch import load_file

            shipped = {name: value.float() for name, value in load_file(WEIGHTS).items()}
            unused = {name: transformer.get_parameter(name) for name in unused_parameters(transformer)}
            transformer.load_state_dict(shipped | unused)
        transformer.save_pretrained(staging / "transformer")
        configs = {
            "vae/config.json": patches.patch_config(PATCH),
            "text_encoder/config.json": {"_class_name": words.NAME, "width": words.WIDTH, "version": words.VERSION},
            "tokenizer/tokenizer_config.json": {"_class_name": words.NAME},
            "scheduler/scheduler_config.json": scheduler_config(),
            "firered_lit.json": {"sizes": SIZES.as_dict()},
            "model_index.json": {"_class_name": "QwenImageEditPlusPipeline"},
        }
        for name, config in configs.items():
            (staging / name).parent.mkdir(exist_ok=True)
            (staging / name).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    return appear(folder, fill)


def transformer_config(layers: int = 2, heads: int = 4, text: int = words.WIDTH) -> dict[str, Any]:
    """Arguments of the `QwenImageTransformer2DModel`: wider than a token has numbers, so that there is room beside a
    picture and its noise."""
    channels = 3 * PATCH**2
    return {
        "patch_size": 2, "in_channels": 4 * channels, "out_channels": channels, "num_layers": layers,
        "attention_head_dim": sum(ROPE), "num_attention_heads": heads, "joint_attention_dim": text,
        "axes_dims_rope": ROPE, "zero_cond_t": False,
    }  # fmt: skip


def first_transformer(**settings: Any) -> Any:
    """The untrained transformer, which begins as a copier: its velocity is x_t minus the first reference, over sigma.

    Pictures enter turned into a part of the stream; beside them stands a constant, so that layer norms hardly see how
    bright a token is. The first heads of the last block read the same place one picture on, and take that token out of
    the target's, coarse before fine: until then a reference can become, free of noise, what is to be drawn. Two heads
    of the first block read the token's row and column off the ruler (`words.RULER`); the last of every block reads the
    text. The global random state is left as it was.
    """
    from diffusers import QwenImageTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        transformer = QwenImageTransformer2DModel(**transformer_config(**settings))
        width, numbers = transformer.inner_dim, transformer.config.in_channels
        level = torch.linalg.qr(torch.cat([torch.ones(width, 1), torch.randn(width, width - 1)], 1))[0]
        turn, constant = level[:, 1 : 1 + numbers], OFFSET * width**0.5 * level[:, 1 + numbers]  # norms see no mean
    blocks = transformer.transformer_blocks
    with torch.no_grad():
        _pass_through(transformer, turn, constant)
        for block in blocks:
            _quieten(block)
            look_at_text(block.attn, head=block.attn.heads - 1)
        for axis in (1, 2):
            look_at_ruler(blocks[0].attn, head=axis, axis=axis)
        for head, share in enumerate((turn @ waves()).split(sum(ROPE), dim=1)):
            look_at_reference(blocks[-1].attn, head)
            _subtract(blocks[-1].attn, share, head)
    return transformer.eval()


def _pass_through(transformer: Any, turn: Tensor, constant: Tensor) -> None:
    """Tokens in, turned; the same tokens out, over sigma: what is left of x_t without the picture is sigma (eps - x_0).
    The scale of the last norm is fitted to that, by least squares over sigma."""
    transformer.img_in.weight.copy_(turn)
    transformer.img_in.bias.copy_(constant)
    transformer.proj_out.weight.copy_(turn.T)
    transformer.proj_out.bias.zero_()
    for parameter in transformer.time_text_embed.timestep_embedder.linear_2.parameters():
        parameter.mul_(3)  # louder, so that what reads it needs no large weights
    sigma = torch.linspace(0.02, 1, 393, dtype=torch.float64)
    least = sigma.clamp(min=LEAST_SIGMA)
    filled = turn.shape[1] / turn.shape[0]
    length = (OFFSET**2 + filled * (1 + POWER) * sigma.square()).sqrt()  # what the norm divides by
    known = torch.nn.functional.silu(transformer.time_text_embed(sigma.float(), torch.zeros(1)).double())
    known = torch.cat([known, torch.ones(len(sigma), 1)], 1) * least[:, None]
    ridge = 1e-3 * torch.eye(known.shape[1], dtype=torch.float64)
    fitted = torch.linalg.solve(known.T @ known + ridge, known.T @ (length - least))
    scale = transformer.norm_out.linear  # diffusers: scale, then shift
    scale.weight.zero_()
    scale.bias.zero_()
    scale.weight[: turn.shape[0]] = fitted[:-1].float()
    scale.bias[: turn.shape[0]] = float(fitted[-1])


def waves() -> Tensor:
    """An orthonormal basis (192, 192) of a token's numbers, its columns from coarse to fine: the cosine transform of
    each colour's 8x8 pixels."""
    side = 2 * PATCH
    place, order = torch.arange(side) + 0.5, torch.arange(side)
    line = torch.cos(math.pi / side * place[:, None] * order) * math.sqrt(2 / side)  # (pixel, frequency)
    line[:, 0] /= math.sqrt(2)
    plane = torch.einsum("yf,xg->yxfg", line, line).reshape(side, side, -1)
    plane = plane[..., torch.argsort((order[:, None] ** 2 + order**2).flatten(), stable=True)]
    picture = torch.einsum("yxf,cd->fdcyx", plane, torch.eye(3)).reshape(-1, 3, side, side)
    return pack(pixel_unshuffle(picture, PATCH))[:, 0].T


def _quieten(block: Any) -> None:
    """What heads and perceptrons add is quiet at first, and the same at every sigma. Gates open."""
    for linear in (block.attn.to_out[0], block.attn.to_add_out, block.img_mlp.net[2], block.txt_mlp.net[2]):
        linear.weight.mul_(QUIET)
        linear.bias.zero_()
    for modulation in (block.img_mod[1], block.txt_mod[1]):
        modulation.weight.mul_(QUIET**2)
        modulation.bias.zero_()
        for gate in (2, 5):  # shift, scale, gate; twice
            modulation.bias.view(6, -1)[gate] = 1.0


def _subtract(attention: Any, share: Tensor, head: int) -> None:
    """The head's values are a share of a token, columns of `share` (width, numbers), and leave the target's stream."""
    size = sum(ROPE)
    rows, used = slice(head * size, (head + 1) * size), slice(head * size, head * size + share.shape[1])
    value, out = attention.to_v, attention.to_out[0]
    length = math.sqrt(OFFSET**2 + POWER * math.prod((3, 2, 2, PATCH, PATCH)) / attention.inner_dim)
    value.weight[rows], value.bias[rows], out.weight[:, rows] = 0, 0, 0
    value.weight[used], out.weight[:, used] = share.T, -length * share


@torch.no_grad()
def look_at_reference(attention: Any, head: int = 0, content: float = 0.2) -> None:
    """Biases of `head`, so that a token's query meets the key of the same place one picture on.

    The rotary embedding turns a constant query and a constant key into a function of their distance alone; it peaks
    where the key's bias is the query's, turned back by one picture. content: what is left of the weights.
    """
    one_picture_on = [(axis, share, 1 if axis == 0 else 0) for axis, share in enumerate(NEARNESS)]
    _meet(attention, "to_k", head, one_picture_on, content)


@torch.no_grad()
def look_at_ruler(attention: Any, head: int, axis: int, content: float = 0.2) -> None:
    """Biases of `head`, so that a token of a picture meets the token of the ruler that stands for its place on `axis`.

    Places of a picture's tokens count from its middle, -4 to 3; the ruler's follow those of the largest picture, 4 to
    11: so place p meets place p + 8.
    """
    _meet(attention, "add_k_proj", head, [(axis, (0.6, 0.4), words.RULER)], content)


@torch.no_grad()
def look_at_text(attention: Any, head: int, strength: float = 2.0, loudness: float = 2.0) -> None:
    """Biases of `head`, so that pictures' queries meet the keys of the text, wherever they stand: in the slowest
    frequency of each axis, which hardly turns. Which word, the weights choose. loudness: of what is read."""
    size = sum(ROPE)
    slow = [head * size + sum(ROPE[: axis + 1]) - 2 for axis in range(3)]
    rows = slice(head * size, (head + 1) * size)
    for linear in (attention.to_q, attention.add_k_proj):
        linear.bias[slow] = strength * math.sqrt(size / 36)
    attention.add_v_proj.weight[rows] *= loudness


def _meet(attention: Any, key: str, head: int, axes: list[tuple[int, tuple[float, ...], int]], content: float) -> None:
    """Biases that meet at a distance. axes: (axis, how much each of its frequencies counts, the distance on it)."""
    size = sum(ROPE)
    rows = slice(head * size, (head + 1) * size)
    here, there = torch.zeros(size), torch.zeros(size)
    for axis, shares, distance in axes:
        start, width = sum(ROPE[:axis]), ROPE[axis]
        for i, share in enumerate(shares):
            angle, place = distance * 10000.0 ** (-2 * i / width), start + 2 * i
            here[place] = 8 * math.sqrt(share)
            there[place : place + 2] = here[place] * torch.tensor([math.cos(angle), -math.sin(angle)])
    for linear, bias in ((attention.to_q, here), (getattr(attention, key), there)):
        linear.weight[rows] *= content
        linear.bias[rows] = bias
    for norm in (attention.norm_q, attention.norm_k if key == "to_k" else attention.norm_added_k):
        norm.weight[(here != 0) | (there != 0)] = SHARPNESS


def scheduler_config() -> dict[str, Any]:
    """A shift towards noise: given the reference and the instruction, what is left to decide is decided there."""
    return {
        "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": True, "base_shift": 2.0, "max_shift": 2.3,
        "base_image_seq_len": 64, "max_image_seq_len": 256, "shift_terminal": None, "time_shift_type": "exponential",
    }  # fmt: skip
