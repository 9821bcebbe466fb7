import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline

from firered_lit.errors import UserError
from firered_lit.models.family import Variant, open_base
from firered_lit.models.qwen_image import freeze_unused, unused_parameters
from firered_lit.models.tiny import cache_folder, cached_tiny, make_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("bases") / "tiny")


def test_the_tiny_pipeline_round_trips(tiny: Path, tmp_path: Path) -> None:
    first = DiffusionPipeline.from_pretrained(tiny)
    first.save_pretrained(tmp_path / "again")
    second = DiffusionPipeline.from_pretrained(tmp_path / "again")
    for part in ("transformer", "vae", "text_encoder"):
        a, b = (getattr(p, part).state_dict() for p in (first, second))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) for k in a)
    width = first.transformer.config.attention_head_dim * first.transformer.config.num_attention_heads
    assert width >= first.transformer.config.in_channels  # hidden size at least the numbers per token


def test_the_tiny_pipeline_is_the_same_every_time_and_leaves_the_global_generator_alone(tiny: Path) -> None:
    before = torch.random.get_rng_state()
    again = open_base(str(make_tiny(tiny.parent / "again")))
    assert torch.equal(before, torch.random.get_rng_state())
    assert again.fingerprints == open_base(str(tiny)).fingerprints == open_base("tiny").fingerprints


def test_the_tiny_pipeline_is_built_once() -> None:
    folder = cached_tiny()
    stamp = (folder / "model_index.json").stat().st_mtime_ns
    assert cached_tiny() == folder
    assert (folder / "model_index.json").stat().st_mtime_ns == stamp
    assert folder.parent == cache_folder()


@pytest.mark.parametrize("variant", list(Variant))
def test_the_variant_is_read_from_the_configs_not_the_name(variant: Variant, tmp_path: Path) -> None:
    misleading = tmp_path / "Qwen-Image-Edit-2511"
    base = open_base(str(make_tiny(misleading, variant=str(variant), zero_cond_t=False)))
    assert base.variant == variant
    assert not base.zero_cond_t
    config = misleading / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"zero_cond_t": True}))
    assert open_base(str(misleading)).zero_cond_t


def test_a_folder_without_own_sizes_has_the_stock_ones(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "copy")
    assert not open_base(str(tmp_path / "copy")).at_stock_sizes
    (tmp_path / "copy" / "firered_lit.json").unlink()
    assert open_base(str(tmp_path / "copy")).at_stock_sizes


def test_fingerprints_change_with_the_weights_and_the_config(tiny: Path, tmp_path: Path) -> None:
    reference = open_base(str(tiny)).fingerprints
    shutil.copytree(tiny, tmp_path / "copy")
    weights = next((tmp_path / "copy" / "vae").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(bytes(data))
    changed = open_base(str(tmp_path / "copy")).fingerprints
    assert changed["vae"] != reference["vae"]
    assert changed["text_encoder"] == reference["text_encoder"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/such/folder", "no such folder"),
        ("nobody/nothing-here", "the hub does not give it"),
        ("{empty}", "no model_index.json"),
        ("{other}", "not of the Qwen-Image family"),
        ("{partial}", "missing vae"),
        ("{broken}", "not valid JSON"),
    ],
)
def test_a_base_that_cannot_be_opened_is_one_clear_line(name: str, said: str, tiny: Path, tmp_path: Path) -> None:
    for kind in ("empty", "other", "partial", "broken"):
        folder = tmp_path / kind
        if kind == "partial":
            shutil.copytree(tiny, folder, ignore=shutil.ignore_patterns("vae"))
        else:
            folder.mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    (tmp_path / "broken" / "model_index.json").write_text("{")
    places = {kind: tmp_path / kind for kind in ("empty", "other", "partial", "broken")}
    with pytest.raises(UserError, match=said) as caught:
        open_base(name.format(**places))
    assert "\n" not in str(caught.value)


def test_only_what_no_loss_reaches_is_frozen() -> None:
    from firered_lit.batch import Condition, Text
    from firered_lit.models.qwen_image import velocity

    transformer = open_base("tiny").transformer().train()
    text = Text(torch.randn(1, 5, 64), None)
    v = velocity(
        transformer, torch.randn(1, 16, 8, 12), torch.tensor([0.4]), Condition(text, (torch.randn(1, 16, 8, 8),))
    )
    v.square().mean().backward()
    without = sorted(name for name, p in transformer.named_parameters() if p.grad is None)
    assert without == sorted(unused_parameters(transformer))
    freeze_unused(transformer)
    assert sorted(name for name, p in transformer.named_parameters() if not p.requires_grad) == without
