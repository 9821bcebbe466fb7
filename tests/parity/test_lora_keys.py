"""Which names of LoRA tensors load as what: the installed diffusers' own loader, and ComfyUI's key map restated.

The rows are why an export bakes the scale into B, writes no `.alpha`, and comes as two files. A factor of 1 is the
trained weight change; the scale of these adapters is alpha / rank = 8 / 4.
"""

import logging

import pytest
import torch
from peft.utils.error import NoMatchingPeftModuleError

from firered_lit.editing import stock_pipeline
from firered_lit.models.family import open_base
from firered_lit.models.lora import LoRA, add_adapter, delta, factors
from firered_lit.models.lora_files import COMFYUI, DIFFUSERS, hollow, through_comfyui, write_lora

RANK, ALPHA = 4, 8
SCALE = ALPHA / RANK
NOTHING, REFUSED = "nothing", "refused"


@pytest.fixture(scope="module")
def trained() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    transformer = open_base("tiny").transformer()
    add_adapter(transformer, LoRA(RANK, ALPHA), seed=0)
    g = torch.Generator().manual_seed(1)
    pairs = factors(transformer.state_dict())
    return {name: (a.detach(), 0.1 * torch.randn(b.shape, generator=g)) for name, (a, b) in pairs.items()}


@pytest.fixture(scope="module")
def pipeline():
    return stock_pipeline(open_base("tiny"), True)


def tensors(trained, prefix, middle="", baked=True, alpha=None) -> dict[str, torch.Tensor]:
    named = {}
    for module, (a, b) in trained.items():
        named[f"{prefix}{module}.lora_A{middle}.weight"] = a.clone()
        named[f"{prefix}{module}.lora_B{middle}.weight"] = b * (SCALE if baked else 1.0)
        if alpha is not None:
            named[f"{prefix}{module}.alpha"] = torch.tensor(float(alpha))
    return named


def ratio(found: dict[str, torch.Tensor], trained) -> float | str:
    """The one factor by which every found weight change differs from the trained one."""
    changed = {name: change for name, change in found.items() if change.abs().max() > 0}
    if not changed:
        return NOTHING
    assert changed.keys() == trained.keys()
    ratios = []
    for name, (a, b) in trained.items():
        want = SCALE * (b.double() @ a.double())
        ratios.append(((changed[name].double() * want).sum() / want.square().sum()).item())
        assert torch.allclose(changed[name].double(), ratios[-1] * want, atol=1e-4 * want.abs().max())
    assert max(ratios) - min(ratios) < 1e-3
    return round(sum(ratios) / len(ratios), 3)


def through_pipeline(pipeline, source, trained, **options) -> float | str:
    """Load with the stock pipeline, fuse, and look at the weights themselves."""
    modules = {name: pipeline.transformer.get_submodule(name) for name in trained}
    before = {name: module.weight.detach().clone() for name, module in modules.items()}
    try:
        pipeline.load_lora_weights(source, adapter_name="it", **options)
    except NoMatchingPeftModuleError:
        return REFUSED
    fused = hasattr(pipeline.transformer, "peft_config")
    if fused:
        pipeline.fuse_lora()
    after = {name: pipeline.transformer.get_submodule(name) for name in trained}
    after = {name: getattr(module, "base_layer", module).weight.detach().clone() for name, module in after.items()}
    if fused:
        pipeline.unfuse_lora()
        pipeline.unload_lora_weights()
        for name, weight in before.items():
            pipeline.transformer.get_submodule(name).weight.data.copy_(weight)
    return ratio({name: after[name] - before[name] for name in after}, trained)


ROWS = [  # prefix, middle, baked, alpha -> diffusers, ComfyUI
    ("transformer.", "", True, None, 1.0, 1.0),  # what the export writes for diffusers
    ("diffusion_model.", "", True, None, 1.0, 1.0),  # and for ComfyUI
    ("transformer.", "", False, None, 0.5, 0.5),  # the scale is nowhere
    ("transformer.", "", False, ALPHA, REFUSED, 1.0),
    ("diffusion_model.", "", False, ALPHA, 1.0, 1.0),
    ("diffusion_model.", "", False, RANK, 0.5, 0.5),  # an `.alpha` that only says the rank
    ("diffusion_model.", "", True, ALPHA, 2.0, 2.0),  # the scale is there twice
    ("diffusion_model.", ".default", False, None, 0.5, 0.5),  # peft's own names
    ("transformer.", ".default", True, None, REFUSED, 1.0),
    ("", "", True, None, NOTHING, 1.0),  # diffusers loads nothing, with a warning only
    ("base_model.model.", "", True, None, NOTHING, NOTHING),  # what the authors write
    ("base_model.model.", ".default", True, None, REFUSED, NOTHING),
]


@pytest.mark.parametrize(("prefix", "middle", "baked", "alpha", "diffusers", "comfyui"), ROWS)
def test_the_key_table(pipeline, trained, prefix, middle, baked, alpha, diffusers, comfyui) -> None:
    named = tensors(trained, prefix, middle, baked, alpha)
    assert through_pipeline(pipeline, dict(named), trained) == diffusers
    seen = through_comfyui(named, hollow(dict(pipeline.transformer.config)))
    assert ratio({name: delta(*pair) for name, pair in seen.items()}, trained) == comfyui


def test_keys_that_load_as_nothing_warn_and_no_more(pipeline, trained, caplog) -> None:
    """Fault 6 of the authors' code, second half: their files are a silent no-op in diffusers."""
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        assert through_pipeline(pipeline, tensors(trained, "base_model.model."), trained) == NOTHING
    finally:
        logger.removeHandler(caplog.handler)
    assert "No LoRA keys associated" in caplog.text


def test_the_written_files_load_exactly(pipeline, trained, tmp_path) -> None:
    write_lora(trained, SCALE, tmp_path, dict(pipeline.transformer.config), "QwenImageEditPlusPipeline")
    assert {path.name for path in tmp_path.iterdir()} == {DIFFUSERS, COMFYUI}
    assert through_pipeline(pipeline, tmp_path, trained, weight_name=DIFFUSERS) == 1.0
    assert through_pipeline(pipeline, tmp_path, trained, weight_name=COMFYUI) == 1.0
    assert through_pipeline(pipeline, tmp_path, trained) in (1.0,)  # a folder alone: diffusers' default name


def test_the_odd_names_of_other_trainers_in_comfyui(trained) -> None:
    model = hollow(open_base("tiny").transformer().config)
    for prefix, down, up in (("lora_unet_", "lora_down", "lora_up"), ("lycoris_", "lora_down", "lora_up")):
        named = {}
        for module, (a, b) in trained.items():
            flat = module.replace(".", "_")
            named |= {f"{prefix}{flat}.{down}.weight": a, f"{prefix}{flat}.{up}.weight": b}
            named[f"{prefix}{flat}.alpha"] = torch.tensor(float(ALPHA))
        found = through_comfyui(named, model)
        assert ratio({name: delta(*pair) for name, pair in found.items()}, trained) == 1.0
