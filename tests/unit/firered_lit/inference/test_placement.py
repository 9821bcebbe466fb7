"""Where a model's parts lie while it draws: by the GPU's memory, and the same pictures wherever that is."""

import json
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from firered_lit.editing import Editor
from firered_lit.errors import UserError
from firered_lit.inference.placement import Placement, _parameters, placement_for
from firered_lit.models.cost.memory import GB
from firered_lit.models.family import FULL_SIZE, Base, Sizes, Variant, open_base
from firered_lit.models.lora import delta, merge, put_beside

ELSEWHERE = Placement(encoder=False, transformer="layer by layer")


@pytest.fixture(scope="module")
def full_size(tmp_path_factory):
    """A full-size base's configs, without its weights."""
    folder = tmp_path_factory.mktemp("full")
    (folder / "transformer").mkdir()
    (folder / "vae").mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "QwenImageEditPlusPipeline"}')
    (folder / "transformer/config.json").write_text(json.dumps(FULL_SIZE))
    (folder / "vae/config.json").write_text('{"_class_name": "AutoencoderKLQwenImage"}')
    return Base("Qwen/Qwen-Image-Edit-2509", folder, Variant.EDIT_PLUS, False, Sizes())


@pytest.mark.parametrize(
    ("memory", "encoder", "transformer"),
    [
        (80, True, "whole"),
        (48, False, "whole"),
        (32, False, "8bit"),
        (24, False, "4bit"),
        (20, False, "4bit"),
        (12, False, "layer by layer"),
    ],
)
def test_the_memory_of_the_card_decides_what_lies_on_it(full_size, memory, encoder, transformer):
    assert placement_for(full_size, memory, size=2) == Placement(encoder, transformer)


def test_a_card_that_cannot_even_decode_is_refused(full_size):
    with pytest.raises(UserError, match=r"--memory 4: decoding a picture and one layer at a time take 6\.\d GB"):
        placement_for(full_size, 4, size=2)
    assert sum(_parameters(full_size)) * 2 / GB == pytest.approx(38.05, abs=0.1)


def test_without_a_memory_everything_is_on_the_device():
    assert Editor("tiny").placement == Placement()


def test_factors_beside_a_layer_add_what_merged_ones_do():
    g = torch.Generator().manual_seed(1)
    trained = {"0": (torch.randn(4, 8, generator=g), torch.randn(6, 4, generator=g))}
    merged = torch.nn.Sequential(torch.nn.Linear(8, 6))
    beside = torch.nn.Sequential(torch.nn.Linear(8, 6))
    beside.load_state_dict(merged.state_dict())
    merge(merged, trained, 0.5)
    put_beside(beside, trained, 0.5)
    x = torch.randn(3, 5, 8, generator=g)
    assert torch.allclose(merged(x), beside(x), atol=1e-5)
    assert delta(*trained["0"]).abs().sum() > 0


def drawn(placement, **options):
    """Return a picture of the tiny model as numbers, and what was seen of the text encoder and the transformer."""
    editor = Editor(replace_sizes(open_base("tiny")), keep_encoder=False, **options)
    editor.placement = placement
    load_conditioner = editor._load_conditioner
    load_transformer = editor._load_transformer
    seen = {"encoders": []}

    def conditioner():
        loaded = load_conditioner()
        seen["encoders"].append(weakref.ref(loaded.encoder))
        seen["held"] = {parameter.device.type for parameter in loaded.encoder.parameters()}
        return loaded

    def transformer():
        seen["freed"] = all(encoder() is None for encoder in seen["encoders"])
        seen["transformer"] = load_transformer()
        return seen["transformer"]

    editor._load_conditioner = conditioner
    editor._load_transformer = transformer
    picture = editor([Image.new("RGB", (64, 64), "red")], "Make it blue", steps=1, guidance=1, width=64, height=64)
    return np.asarray(picture).astype(float), seen


def replace_sizes(base):
    """Return the base at sizes that our own sampler draws at."""
    from firered_lit.inference.trained import Opened

    return Opened(base.resized(replace(base.sizes, target_area=64 * 64, reference_area=64 * 64)))


def test_layers_that_come_from_the_host_draw_the_same_picture():
    expected, _ = drawn(Placement())
    picture, seen = drawn(ELSEWHERE)
    assert (picture == expected).all()
    assert seen["held"] == {"meta"}  # between two forwards nothing lies on the device
    assert {parameter.device.type for parameter in seen["transformer"].parameters()} == {"meta"}


@pytest.mark.parametrize("placement", [Placement(False, "4bit"), Placement(False, "8bit"), ELSEWHERE, Placement()])
def test_the_text_encoder_is_gone_before_the_transformer_is_loaded(placement):
    picture, seen = drawn(placement)
    assert seen["freed"]
    layer = seen["transformer"].transformer_blocks[0].attn.to_q
    names = {"4bit": "Linear4bit", "8bit": "Frozen8bit"}
    assert type(layer).__name__ == names.get(placement.transformer, "Linear")
    assert picture.std() > 0


@pytest.mark.parametrize("transformer", ["whole", "4bit", "layer by layer"])
def test_the_stock_pipeline_s_text_encoder_is_offloaded_by_hooks(transformer):
    editor = Editor("tiny", stock=True)
    editor.placement = Placement(False, transformer)
    editor([], "A red house", steps=1, guidance=1, width=64, height=64)
    (pipeline,) = editor._pipelines.values()
    assert hasattr(pipeline.text_encoder, "_hf_hook")
    assert bool(getattr(pipeline, "_all_hooks", [])) == (transformer != "layer by layer")
