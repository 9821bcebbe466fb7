"""Frozen encoders that tell whether two regions show the same: a face recogniser, or any vision encoder from a folder.

Differentiable in the image. Each says what size of canvas it looks at (`size`) and takes pixels in [-1, 1].
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from ..draws import generator
from ..errors import UserError, first_line
from ..places import user_path
from ..textfiles import read_object
from .component import read_config, weight_files

FACE = (112, 112)


class IdentityEncoder(nn.Module):
    """Frozen, in evaluation mode. `forward(images (N, 3, H, W) in [-1, 1]) -> features (N, D)`; any H, W is resized."""

    size: tuple[int, int]  # height, width of the canvas

    def features(self, images: Tensor) -> Tensor:
        """images (N, 3, *size)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        if tuple(images.shape[-2:]) != self.size:
            images = interpolate(images, self.size, mode="bicubic", align_corners=False, antialias=True)
        return self.features(images.to(next(self.parameters()).dtype)).float()

    def freeze(self) -> "IdentityEncoder":
        return self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "IdentityEncoder":
        """Stays in evaluation mode when a stage that holds it goes to training."""
        return super().train(False)


def open_encoder(path: str | Path) -> IdentityEncoder:
    """A frozen encoder: a folder of a Hugging Face vision model, or a weights file of an ArcFace-style IResNet.

    "tiny" is a small one with fixed random weights, for laptops and tests: it tells pictures apart, not people.
    Raises UserError when there is neither, when the folder's model has no vision part, and when the file holds code or
    the weights of something else.
    """
    if path == "tiny":
        return _tiny().freeze()
    place = user_path(path)
    if (place / "config.json").is_file():
        return VisionEncoder(place).freeze()
    if place.is_file():
        return read_iresnet(place).freeze()
    raise UserError(f"{place}: no encoder; give a folder with config.json (DINOv2, SigLIP, CLIP) or an IResNet file")


class Block(nn.Module):
    """The improved residual block of ArcFace (1801.07698, 3.1): BN - conv - BN - PReLU - conv - BN."""

    def __init__(self, wide: int, out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(wide, eps=1e-5)
        self.conv1 = nn.Conv2d(wide, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out, eps=1e-5)
        self.prelu = nn.PReLU(out)
        self.conv2 = nn.Conv2d(out, out, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out, eps=1e-5)
        self.downsample = None
        if stride != 1 or wide != out:
            self.downsample = nn.Sequential(nn.Conv2d(wide, out, 1, stride, bias=False), nn.BatchNorm2d(out, eps=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        main = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return main + (x if self.downsample is None else self.downsample(x))


class IResNet(IdentityEncoder):
    """ArcFace's residual network for aligned faces of 112x112, with the parameter names that its weights come with.

    blocks: of each level; (2, 2, 2, 2), (3, 4, 6, 3), (3, 4, 14, 3) and (3, 13, 30, 3) are IResNet-18, 34, 50 and 100.
    widths: channels of the stem and of each level. dimension: of the features.
    """

    def __init__(
        self,
        blocks: tuple[int, ...] = (3, 4, 14, 3),
        widths: tuple[int, ...] = (64, 64, 128, 256, 512),
        dimension: int = 512,
        size: tuple[int, int] = FACE,
    ) -> None:
        super().__init__()
        self.size = size
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0], eps=1e-5)
        self.prelu = nn.PReLU(widths[0])
        for level, count in enumerate(blocks):
            wide, out = widths[level], widths[level + 1]
            rows = [Block(wide if i == 0 else out, out, 2 if i == 0 else 1) for i in range(count)]
            setattr(self, f"layer{level + 1}", nn.Sequential(*rows))
        self.levels = len(blocks)
        self.bn2 = nn.BatchNorm2d(widths[-1], eps=1e-5)
        cells = (size[0] // 2**self.levels) * (size[1] // 2**self.levels)
        self.fc = nn.Linear(widths[-1] * cells, dimension)
        self.features_norm = nn.BatchNorm1d(dimension, eps=1e-5)

    def features(self, images: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(images)))
        for level in range(self.levels):
            x = getattr(self, f"layer{level + 1}")(x)
        return self.features_norm(self.fc(self.bn2(x).flatten(1)))


def _tiny() -> IResNet:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        net = IResNet((1, 1, 1, 1), (8, 8, 16, 16, 24), 32, (64, 64))
        net.fc.bias.zero_()
        for name, weight in net.named_parameters():
            if weight.ndim > 1:
                spread = (2 / weight[0].numel()) ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator("tiny encoder", name)) * spread)
    return net


def read_iresnet(path: Path) -> IResNet:
    """An IResNet whose shape is read from its weights. RGB, as ArcFace's released weights are trained."""
    state = {_own_name(name): value for name, value in _read_weights(path).items()}
    try:
        levels = sorted({int(name[5 : name.index(".")]) for name in state if re.match(r"layer\d+\.", name)})
        blocks = tuple(
            1 + max(int(name.split(".")[1]) for name in state if name.startswith(f"layer{n}.")) for n in levels
        )
        widths = tuple(state[name].shape[0] for name in ["conv1.weight", *(f"layer{n}.0.conv2.weight" for n in levels)])
        dimension, flat = state["fc.weight"].shape
        side = round((flat / widths[-1]) ** 0.5) * 2 ** len(levels)
        net = IResNet(blocks, widths, dimension, (side, side))
        net.load_state_dict(state)
    except (KeyError, ValueError, IndexError, RuntimeError) as problem:
        raise UserError(f"{path}: not the weights of an IResNet ({str(problem).splitlines()[0]})") from problem
    return net


def _own_name(name: str) -> str:
    """Names as released, without the wrappers of training; `features` is a method here."""
    name = name.removeprefix("module.").removeprefix("backbone.")
    return re.sub(r"^features\.", "features_norm.", name)


def _read_weights(path: Path) -> Mapping[str, Tensor]:
    """safetensors, or a torch file without code."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise UserError(f"{path}: holds code; only plain tensors are loaded, convert it to safetensors") from problem
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as problem:
        raise UserError(f"{path}: not a weights file ({str(problem).splitlines()[0]})") from problem
    found = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: holds no tensors by name")
    return found


class VisionEncoder(IdentityEncoder):
    """A Hugging Face vision model; of CLIP and SigLIP the vision part. Features: pooled, else the mean of the tokens.

    The canvas and the normalisation are read from `preprocessor_config.json`, else the model's own size and [-1, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.model = _vision_part(folder)
        config: Any = self.model.config
        given = _processor(folder)
        self.size = _size(given) or (config.image_size, config.image_size)
        for name in ("mean", "std"):
            value = torch.tensor(given.get(f"image_{name}") or [0.5] * 3).reshape(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def features(self, images: Tensor) -> Tensor:
        unit = (images + 1) / 2
        out = self.model(pixel_values=(unit - self.mean.to(unit)) / self.std.to(unit))
        pooled = getattr(out, "pooler_output", None)
        return out.last_hidden_state.mean(1) if pooled is None else pooled.flatten(1)


def _vision_part(folder: Path) -> nn.Module:
    from transformers import AutoModel

    read_config(folder)
    weight_files(folder)
    try:
        model = AutoModel.from_pretrained(folder, use_safetensors=True, local_files_only=True, trust_remote_code=False)
    except torch.OutOfMemoryError:
        raise
    except Exception as problem:  # a library's own words for a file that it cannot use
        raise UserError(f"{folder}: no model that transformers knows ({first_line(problem)})") from problem
    model = getattr(model, "vision_model", model)
    if getattr(model, "main_input_name", None) != "pixel_values":
        raise UserError(f"{folder}: {type(model).__name__} does not look at images")
    return model


def _processor(folder: Path) -> dict[str, Any]:
    file = folder / "preprocessor_config.json"
    return read_object(file) if file.exists() else {}


def _size(given: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width of what the processor makes: the crop, else the size; a shortest edge is made square."""
    size = (given.get("do_center_crop", True) and given.get("crop_size")) or given.get("size")
    if isinstance(size, int):
        return size, size
    if not isinstance(size, Mapping):
        return None
    edge = size.get("shortest_edge")
    return (edge, edge) if edge else (size["height"], size["width"])
