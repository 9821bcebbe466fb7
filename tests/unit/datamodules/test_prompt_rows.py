"""Edit-R1 rows, prompts with a source and no target: prepared, refused where a target is learnt, learnt from by NFT."""

import json
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.chunks.samples import Chunks
from datamodules.edits import EditDataModule
from datamodules.preferences import PreferenceDataModule
from datamodules.prepare.write import prepare
from datamodules.prompts import PromptDataModule
from datamodules.sampling.buckets import Index
from firered_lit.cli import main
from firered_lit.errors import UserError
from firered_lit.models.sizes import Sizes, assign, shape_table

SIZES = Sizes(target_area=64 * 64, reference_area=96 * 96, condition_area=56 * 56)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Six prompts over sources of three shapes, one with a region and a mask, prepared; some held out."""
    folder = tmp_path_factory.mktemp("prompts")
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(noise).resize([(96, 64), (64, 96), (80, 80)][i % 3]).save(folder / f"s{i}.png")
    Image.new("L", (96, 64), 255).save(folder / "m.png")
    rows = [{"image": f"s{i}.png", "prompt": f"edit {i}", "requirement": f"is it {i}", "id": f"p{i}"} for i in range(6)]
    rows[0] |= {"regions": [{"box": [30, 20, 60, 50]}], "mask": "m.png"}
    (folder / "e.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare(str(folder / "e.jsonl"), str(folder / "out"), "tiny", SIZES, held_out=0.3, seed=3, device="cpu")
    return folder / "out"


def test_a_prompt_is_stored_without_a_target_in_the_shape_of_its_first_source(root):
    data = json.loads((root / "data.json").read_text())
    assert (data["samples"], data["prompts"], data["regions"], data["masks"]) == (6, 6, 1, 1)
    assert 0 < data["held_out"] < 6
    chunks = Chunks(root / "chunks")
    for sample in (chunks.read(i, images=True) for i in range(6)):
        number = int(sample.id[1:])
        width, height = [(96, 64), (64, 96), (80, 80)][number % 3]
        assert tuple(sample.meta["target"]) == assign(height, width, shape_table(SIZES.target_area))
        assert {name for name in sample.tensors if "." not in name} == ({"mask"} if number == 0 else set())
        assert set(sample.images) == {"reference.0"}
        assert sample.meta["requirement"] == f"is it {number}"
        if number == 0:
            ((left, top), (right, bottom)), shape = sample.meta["regions"][0], sample.meta["references"][0]
            assert 0 < left < right < shape[1]
            assert 0 < top < bottom < shape[0]
    buckets = Index.open(root / "index" / "train").buckets
    assert {bucket.target for bucket in buckets} <= set(shape_table(SIZES.target_area))


def test_groups_have_the_shape_to_draw_and_no_picture_of_a_target(root):
    data = PromptDataModule(str(root), groups=1, workers=0)
    for batch in islice(iter(data.train_dataloader()), 6):
        (group,) = batch.groups
        assert not group.known
        assert group.pixels is None
        assert not group.target.any()
        height, width = group.target.shape[-2:]
        assert (8 * height, 8 * width) in shape_table(SIZES.target_area)
        (facts,) = group.facts
        assert facts.requirement == f"is it {facts.id[1:]}"
        assert group.sources[0].shape[-1] == 8 * group.condition.references[0].shape[-1]
        assert group.repeated(3).facts == (facts,) * 3
    (shown, *_) = data.val_dataloader()
    assert (shown.known, shown.pixels) == (False, None)
    assert shown.unconditional is not None


@pytest.mark.parametrize("module", [EditDataModule, PreferenceDataModule])
def test_where_targets_are_learnt_prompts_are_one_error(root, module):
    with pytest.raises(UserError, match=r"6 of 6 samples are prompts without a target.*PromptDataModule"):
        module(str(root), capacity=10**6)


def test_nft_learns_from_prompts_and_validates_by_its_rewards(root, tmp_path, capfd):
    run = tmp_path / "run"
    fit = ["fit", "--recipe", "recipes/tiny/nft_consistency.yaml", f"data.root={root}", f"run.dir={run}"]
    fit += ["trainer.max_steps=2", "run.validate_every=2", "data.groups=1", "data.workers=0", "logger=null"]
    fit += ["checkpoint.monitor=reward/consistency", "checkpoint.mode=max", "checkpoint.every=2"]
    fit += ["stage.group_size=2", "stage.rollout_steps=2", "data.held_out_max=1", "callbacks.progress=null"]
    assert main(fit) == 0, capfd.readouterr().err
    said = (run / "summary.txt").read_text()
    assert "rollout/total/mean" in said
    assert "val/loss" not in said  # validation drew an edit and scored it, or its best checkpoint would be refused
    assert (run / "samples" / "step_00000002.png").exists()
    assert torch.load(next((run / "checkpoints").rglob("*.ckpt")), weights_only=True)["global_step"] == 2
    wrong = [*fit, f"run.dir={tmp_path / 'wrong'}", "callbacks.reward={_target_: callbacks.rewards.pixel.PixelReward}"]
    assert main(wrong) == 2
    assert "prompts without a target need another reward" in capfd.readouterr().err
