"""Each stage starts from the last one's output: pretraining, continued pretraining, SFT."""

from pathlib import Path

import torch

from firered_lit.checkpoint import newest
from firered_lit.cli import main

QUICK = ["run.validate_every=null", "logger=null", "callbacks.progress=null", "data.workers=0"]


def fit(recipe: str, data: Path, run: Path, *more: str) -> dict[str, torch.Tensor]:
    code = main(
        ["fit", "--recipe", f"recipes/tiny/{recipe}.yaml", f"data.root={data}", f"run.dir={run}", *QUICK, *more]
    )
    assert code == 0
    return torch.load(newest(run), weights_only=True)["state_dict"]


def test_the_supervised_chain(world: Path, tmp_path: Path) -> None:
    first = fit("pretrain", world, tmp_path / "pretrain", "trainer.max_steps=3")
    started = fit(
        "continued_pretrain", world, tmp_path / "zero", "trainer.max_steps=0", f"run.start_from={tmp_path / 'pretrain'}"
    )
    assert all(torch.equal(started[k], first[k]) for k in first)
    second = fit(
        "continued_pretrain", world, tmp_path / "ct", "trainer.max_steps=3", f"run.start_from={tmp_path / 'pretrain'}"
    )
    assert not all(torch.equal(second[k], first[k]) for k in first)
    third = fit("sft", world, tmp_path / "sft", "trainer.max_steps=0", f"run.start_from={tmp_path / 'ct'}")
    assert all(torch.equal(third[k], second[k]) for k in second)
