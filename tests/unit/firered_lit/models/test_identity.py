"""Frozen encoders: tiny random ones of every kind, from real folders and files."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import cosine_similarity

from firered_lit.draws import generator
from firered_lit.errors import UserError
from firered_lit.models.identity import Block, IResNet, open_encoder

SHAPES = {"blocks": (1, 2, 1, 1), "widths": (8, 8, 16, 16, 24), "dimension": 32}


def noise(*shape, key=0):
    return torch.rand(shape, generator=generator("identity test", key)) * 2 - 1


def filled(net):
    """Weights that differ everywhere, and statistics of normalisation that are not the identity."""
    for n, (name, value) in enumerate(net.state_dict().items()):
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator(name, n)) * (1.0 if "var" in name else 0.2) + 0.02)
    return net


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from transformers import (
        CLIPConfig,
        CLIPModel,
        Dinov2Config,
        Dinov2Model,
        Qwen2Config,
        Qwen2Model,
        SiglipConfig,
        SiglipModel,
    )

    home = tmp_path_factory.mktemp("encoders")
    wide = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = wide | {"image_size": 28, "patch_size": 14}
    text = wide | {"vocab_size": 8, "max_position_embeddings": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {
            "clip": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)),
            "siglip": SiglipModel(SiglipConfig(text_config=text, vision_config=vision)),
            "dinov2": Dinov2Model(
                Dinov2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14)
            ),
            "words": Qwen2Model(Qwen2Config(**wide, vocab_size=8, num_key_value_heads=2)),
        }
    for name, model in made.items():
        model.save_pretrained(home / name)
    processor = {"image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4], "size": {"shortest_edge": 42}}
    (home / "dinov2" / "preprocessor_config.json").write_text(json.dumps(processor))
    crop = {"size": {"shortest_edge": 32}, "crop_size": {"height": 28, "width": 28}}
    (home / "clip" / "preprocessor_config.json").write_text(json.dumps(crop))
    return home


def test_its_parameters_are_named_as_arcface_names_them():
    names = set(IResNet((3, 13, 30, 3)).state_dict())
    released = [
        "conv1.weight", "bn1.running_var", "prelu.weight", "layer1.0.bn1.weight", "layer1.0.conv1.weight",
        "layer1.0.bn2.bias", "layer1.0.prelu.weight", "layer1.0.conv2.weight", "layer1.0.bn3.running_mean",
        "layer1.0.downsample.0.weight", "layer1.0.downsample.1.weight", "layer3.29.conv2.weight", "layer4.2.bn3.weight",
        "bn2.weight", "fc.weight", "fc.bias",
    ]  # fmt: skip
    assert set(released) <= names
    assert "layer1.1.downsample.0.weight" not in names


def test_iresnet_50_has_the_known_number_of_weights():
    with torch.device("meta"):
        net = IResNet((3, 4, 14, 3))
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(43.59e6, rel=1e-3)
    assert net.fc.weight.shape == (512, 512 * 7 * 7)


def test_a_block_is_its_equation():
    block = filled(Block(4, 6, 2)).eval()
    x = noise(2, 4, 8, 8)

    def norm(layer, x):
        mean, var, weight, bias = (
            t.reshape(1, -1, 1, 1) for t in (layer.running_mean, layer.running_var, layer.weight, layer.bias)
        )
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    h = torch.conv2d(norm(block.bn1, x), block.conv1.weight, padding=1)
    h = norm(block.bn2, h)
    h = torch.where(h > 0, h, h * block.prelu.weight.reshape(1, -1, 1, 1))
    h = norm(block.bn3, torch.conv2d(h, block.conv2.weight, stride=2, padding=1))
    skip = norm(block.downsample[1], torch.conv2d(x, block.downsample[0].weight, stride=2))
    torch.testing.assert_close(block(x), h + skip)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_an_iresnet_file_is_read_whatever_its_depth(tmp_path, suffix):
    net = filled(IResNet(**SHAPES, size=(32, 32))).eval()
    path = tmp_path / f"face.{suffix}"
    state = {"module." + k.replace("features_norm", "features"): v for k, v in net.state_dict().items()}
    save_file(state, path) if suffix == "safetensors" else torch.save({"state_dict": state}, path)
    encoder = open_encoder(path)
    x = noise(2, 3, 32, 32)
    torch.testing.assert_close(encoder(x), net(x))
    assert encoder.size == (32, 32)
    assert encoder(noise(2, 3, 50, 40)).shape == (2, 32)


@pytest.mark.parametrize("kind", ["clip", "siglip", "dinov2", "iresnet"])
def test_an_encoder_is_frozen_differentiable_and_sees_the_image(folder, kind, tmp_path):
    path = folder / kind
    if kind == "iresnet":
        path = tmp_path / "face.safetensors"
        save_file(filled(IResNet(**SHAPES, size=(32, 32))).state_dict(), path)
    encoder = open_encoder(path)
    encoder.train()
    assert not encoder.training
    assert not any(p.requires_grad for p in encoder.parameters())
    image = noise(1, 3, 40, 56).requires_grad_()
    other = encoder(noise(1, 3, 40, 56, key=1))
    similarity = cosine_similarity(encoder(image), other)
    (gradient,) = torch.autograd.grad(similarity.sum(), image)
    assert gradient.abs().flatten(1).max() > 0
    ascent = image + 1e-2 * gradient / gradient.norm()
    assert cosine_similarity(encoder(ascent), other) > similarity, "the direction of the gradient"
    assert cosine_similarity(encoder(image), encoder(image)).item() == pytest.approx(1.0, abs=1e-5)


def test_size_and_normalisation_are_the_processors(folder):
    encoder = open_encoder(folder / "dinov2")
    assert encoder.size == (42, 42)
    assert open_encoder(folder / "clip").size == (28, 28)
    assert open_encoder(folder / "siglip").size == (28, 28)
    x = noise(1, 3, 42, 42)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    expected = encoder.model(pixel_values=((x + 1) / 2 - mean) / std).pooler_output
    torch.testing.assert_close(encoder(x), expected)


def test_what_is_no_encoder_is_refused_in_one_line(folder, tmp_path):
    class Planted:
        def __reduce__(self):
            return print, ("code ran",)

    torch.save({"fc.weight": Planted()}, tmp_path / "code.pt")
    save_file({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"\x10")
    (tmp_path / "text.pt").write_text("no weights")
    cases = {
        tmp_path / "code.pt": "holds code",
        tmp_path / "other.safetensors": "not the weights of an IResNet",
        tmp_path / "short.safetensors": "not a weights file",
        tmp_path / "text.pt": "holds code|not a weights file",
        tmp_path / "nowhere": "no encoder",
        folder / "words": "does not look at images",
    }
    for path, reason in cases.items():
        with pytest.raises(UserError, match=reason) as refused:
            open_encoder(path)
        assert "\n" not in str(refused.value)


def test_the_tiny_encoder_is_always_the_same_and_tells_pictures_apart():
    before = torch.random.get_rng_state()
    first, again = open_encoder("tiny"), open_encoder("tiny")
    assert torch.equal(before, torch.random.get_rng_state())
    shown = torch.rand((2, 3, 64, 64), generator=generator("tiny encoder test")) * 2 - 1
    shown[1, :, :32] = 1.0
    assert torch.equal(first(shown), again(shown))
    assert cosine_similarity(*first(shown)[:, None]) < 0.95


@pytest.mark.parametrize("kind", ["cut", "pickled", "missing", "config of text"])
def test_a_damaged_encoder_folder_is_refused_in_one_line(folder, kind, tmp_path):
    home = shutil.copytree(folder / "clip", tmp_path / "clip")
    (weights,) = home.glob("*.safetensors")
    if kind == "cut":
        weights.write_bytes(weights.read_bytes()[:-9])
    elif kind == "pickled":
        weights.rename(home / "pytorch_model.bin")
    elif kind == "missing":
        weights.unlink()
    else:
        (home / "config.json").write_text('{"model_type": 3}')
    with pytest.raises(UserError, match="clip") as caught:
        open_encoder(home)
    assert "\n" not in str(caught.value)
