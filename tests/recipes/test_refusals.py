"""What cannot be trained or exported is refused in one line, with exit code 2, before anything is computed."""

import pytest

from firered_lit.cli import main

QUICK = ["logger=null", "callbacks.grid=null", "callbacks.progress=null", "run.validate_every=null", "data.workers=0"]
FSDP, SFT, LORA = (f"recipes/tiny/{name}.yaml" for name in ("sft_fsdp", "sft", "sft_lora"))
EIGHT_BIT = "stage.optimizer={_target_: bitsandbytes.optim.AdamW8bit, _partial_: true, lr: 1.0e-4}"
OURS = "stage.optimizer={_target_: firered_lit.optim.adamw8bit, _partial_: true, lr: 1.0e-4}"
OTHER = "trainer.strategy={_target_: lightning.pytorch.strategies.ModelParallelStrategy}"


def fit(world, run, recipe, *more):
    return main(
        ["fit", "--recipe", recipe, f"data.root={world}", f"run.dir={run}", "trainer.max_steps=1", *QUICK, *more]
    )


@pytest.fixture(scope="module")
def full(world, tmp_path_factory):
    """One step of all weights, without an average."""
    run = tmp_path_factory.mktemp("full") / "run"
    assert fit(world, run, SFT) == 0
    return run


def refused(capsys, code):
    assert code == 2
    (line,) = [text for text in capsys.readouterr().err.splitlines() if "error:" in text]
    return line


@pytest.mark.parametrize(
    ("recipe", "more", "said"),
    [
        (
            FSDP,
            ["trainer.devices=4", "trainer.strategy.replicate=3"],
            "replicate=3: 4 processes cannot be divided",
        ),
        (FSDP, ["trainer.strategy.shard=8"], "times shard=8 needs 8 processes, there are 2"),
        (FSDP, [EIGHT_BIT], "bitsandbytes cannot step sharded parameters; use firered_lit.optim.adamw8bit"),
        (SFT, [OURS, OTHER], "no 8-bit optimizer works under ModelParallelStrategy; use one GPU"),
        (
            LORA,
            ["stage.backbone.lora.targets=[to_q, to_query]"],
            "no linear layer is named 'to_query'; the nearest",
        ),
    ],
)
def test_before_a_step(world, tmp_path, capsys, recipe, more, said):
    assert said in refused(capsys, fit(world, tmp_path / "run", recipe, *more))


def test_a_checkpoint_of_another_architecture(world, full, tmp_path, capsys):
    """An adapter cannot go on from whole weights: the first keys of either side are named."""
    resume = f"run.resume={full / 'checkpoints' / 'step_00000001.ckpt'}"
    line = refused(capsys, fit(world, tmp_path / "run", LORA, resume))
    assert "the checkpoint is of another architecture" in line
    assert line.count(".lora_") == 3
    assert "unknown (transformer.img_in.bias, transformer.img_in.weight, " in line


def test_an_average_that_is_not_there(full, tmp_path, capsys):
    line = refused(capsys, main(["export", "--run", str(full), "--out", str(tmp_path / "model"), "--ema"]))
    assert "--ema, but the run kept no average" in line
