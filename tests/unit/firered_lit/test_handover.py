"""From one stage to the next, and out of the last: changes that are smaller than a step of bfloat16 are kept."""

import json

import pytest
import torch

from firered_lit.checkpoints.average import average
from firered_lit.checkpoints.checkpoint import AtomicCheckpointIO
from firered_lit.draws import gaussian
from firered_lit.errors import UserError
from firered_lit.exporting import PARTS, export
from firered_lit.models.family import open_base
from firered_lit.run.start import start_folder

SMALL = 1e-3  # of a weight: under half a step of bfloat16, which is at least 2e-3 of it


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The tiny base with its transformer stored in bfloat16, as released ones are."""
    folder, tiny = tmp_path_factory.mktemp("base"), open_base("tiny")
    tiny.transformer(torch.bfloat16).save_pretrained(folder / "transformer")
    for name in (*PARTS, "model_index.json", "firered_lit.json"):
        if (tiny.folder / name).exists():
            (folder / name).symlink_to(tiny.folder / name)
    return open_base(str(folder))


def made(run, base, weights, step=1):
    """A run's folder with a checkpoint of these weights."""
    state = {f"transformer.{name}": value for name, value in weights.items()}
    path = run / "checkpoints" / f"step_{step:08d}.ckpt"
    path.parent.mkdir(parents=True, exist_ok=True)
    AtomicCheckpointIO().save_checkpoint({"state_dict": state, "global_step": step}, path)
    facts = {"stage": "DPO", "base": str(base.folder), "base_folder": str(base.folder), "sizes": base.sizes.as_dict()}
    (run / "run.json").write_text(json.dumps(facts))
    return run


def trained(base, size=SMALL):
    """Float32 weights a little beside the base's."""
    state = base.transformer().state_dict()
    return {
        name: tensor.float() * (1 + size * gaussian(tuple(tensor.shape), (0,), name)[0].clamp(-1, 1))
        for name, tensor in state.items()
    }


def stored(folder):
    return open_base(str(folder)).transformer().state_dict()


def test_the_next_stage_starts_from_the_very_weights(base, tmp_path):
    """In the precision in which it keeps them; what is exported of it is in that of the base all the same."""
    weights = trained(base)
    first = made(tmp_path / "first", base, weights)
    start = start_folder(str(first), tmp_path / "second", base, "float32")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in stored(start).items())
    second = made(tmp_path / "second", open_base(str(start)), weights)
    export(str(second), str(tmp_path / "model"))
    assert {tensor.dtype for tensor in stored(tmp_path / "model").values()} == {torch.bfloat16}
    export(str(second), str(tmp_path / "whole"), dtype="float32")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in stored(tmp_path / "whole").items())


def test_a_transformer_is_loaded_as_it_is_stored(base):
    """diffusers would make it float32."""
    assert base.precision == torch.bfloat16
    assert base.transformer().dtype == torch.bfloat16
    assert base.transformer(torch.float32).dtype == torch.float32


@pytest.mark.parametrize("size", [SMALL, 0.3])
def test_a_change_that_rounding_would_lose_is_said(size, base, tmp_path, capsys, recwarn):
    run = made(tmp_path / "run", base, trained(base, size))
    start_folder(str(run), tmp_path / "next", base, "bfloat16")
    export(str(run), str(tmp_path / "model"))
    lines = [str(w.message) for w in recwarn if "is left in bfloat16" in str(w.message)]
    printed = capsys.readouterr().out
    if size == SMALL:
        assert "run.start_dtype=float32 keeps all of it" in lines[0]
        assert "is left in bfloat16" in printed
        assert "--dtype float32 keeps all of it" in printed
    else:
        assert not lines
        assert "is left in" not in printed


def test_the_mean_of_half_precision_checkpoints_is_not_rounded_to_it(base, tmp_path):
    low = {name: tensor.clone() for name, tensor in base.transformer().state_dict().items()}
    high = {name: torch.nextafter(tensor, torch.full_like(tensor, torch.inf)) for name, tensor in low.items()}
    run = made(tmp_path / "run", base, low, 1)
    made(run, base, high, 2)
    average(str(run), str(tmp_path / "mean.ckpt"), last=2)
    mean = torch.load(tmp_path / "mean.ckpt", weights_only=True)["state_dict"]
    for name in low:
        value = mean[f"transformer.{name}"]
        assert value.dtype == torch.float32
        assert torch.equal(value, (low[name].double() + high[name].double()).div(2).float())


def test_the_files_of_a_lora_are_float32(base, tmp_path):
    run = made(tmp_path / "run", base, {})
    path = run / "checkpoints" / "step_00000001.ckpt"
    content = torch.load(path, weights_only=True) | {"lora": {"rank": 2, "alpha": 2}}
    AtomicCheckpointIO().save_checkpoint(content, path)
    with pytest.raises(UserError, match="--dtype bfloat16: the files of a LoRA are float32"):
        export(str(run), str(tmp_path / "model"), dtype="bfloat16")
