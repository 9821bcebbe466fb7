"""What a recipe says wrong is one line that names its key, with exit code 2; what it says right is trained."""

import random
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest

from firered_lit.cli import main
from firered_lit.config import ranges, recipe
from firered_lit.config.nameable import NAMES
from firered_lit.config.signature import signature

ROOT = Path(__file__).resolve().parents[2]


class Reached(BaseException):
    """Everything was built, and the trainer would begin with its first step."""


@pytest.fixture
def outcome(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Callable:
    """Runs the command line as far as the first step. Returns "accepted", or the exit code and the last line."""

    def stop(*_: object) -> None:
        raise Reached

    monkeypatch.setattr(L.Trainer, "_run_stage", stop)

    def run(*settings: str, name: str = "sft") -> tuple[int, str] | str:
        given = [f"data.root={world}", f"run.dir={tmp_path / 'run'}", "logger=null", *settings]
        capfd.readouterr()
        try:
            code = main(["fit", "--recipe", f"recipes/tiny/{name}.yaml", *given])
        except Reached:
            return "accepted"
        return code, capfd.readouterr().err.strip().splitlines()[-1]

    return run


WRONG = {
    "trainer.precision=99": "trainer.precision",
    "trainer.devices=0": "trainer",
    "trainer.accelerator=abacus": "trainer.accelerator",
    "trainer.strategy=abacus": "trainer.strategy",
    "trainer.profiler=1": "trainer.profiler",
    "trainer.max_steps=-5": "trainer.max_steps",
    "trainer.gradient_clip_val=-1": "trainer.gradient_clip_val",
    "trainer.accumulate_grad_batches=0": "trainer.accumulate_grad_batches",
    "stage.optimizer.lr=-1": "stage.optimizer.lr",
    "stage.optimizer.lr=.inf": "stage.optimizer.lr",
    "stage.optimizer.betas=[0.9, .nan]": "stage.optimizer.betas",
    "stage.optimizer.betas=[0.9, 2.0]": "stage.optimizer",
    "stage.schedule.warmup=-5": "stage.schedule.warmup",
    "stage.preview.steps=-5": "stage.preview.steps",
    "stage.preview=8": "stage.preview",
    "data.workers=-1": "data.workers",
    "run.validate_every=0": "run.validate_every",
    "logger=1": "logger",
    "checkpoint=1": "checkpoint",
    "callbacks.grid=1": "callbacks.grid",
}


@pytest.mark.parametrize("setting", WRONG)
def test_what_is_written_wrong_is_one_line_that_names_its_key(outcome: Callable, setting: str) -> None:
    code, line = outcome(setting)
    assert code == 2, line
    assert WRONG[setting] in line


def test_settings_that_do_not_go_together_are_one_line(outcome: Callable) -> None:
    fused = ("stage.optimizer.fused=true", "trainer.precision=bf16-mixed")
    code, line = outcome(*fused, "trainer.gradient_clip_val=1.0")
    assert (code, "stage.optimizer.fused" in line) == (2, True), line
    assert outcome(*fused, "trainer.gradient_clip_val=null") == "accepted"
    code, line = outcome("trainer.accumulate_grad_batches=2", name="nft")
    assert (code, "trainer.accumulate_grad_batches" in line) == (2, True), line


VALUES = ("-1", "0", "-5", "1.5", ".nan", ".inf", "1e30", "true", "null", "word", "[]", "{}", "[1, x]")


def test_whatever_value_is_written_is_accepted_or_one_line(outcome: Callable) -> None:
    """Forty draws of a leaf of the recipe and of a plausible wrong value for it."""
    draw = random.Random("written wrong")
    leaves = [key for key, _ in recipe.leaves(recipe.load("recipes/tiny/sft.yaml").root)]
    keys = [key for key in leaves if not key.endswith("_") and key not in ("run.dir", "data.root", "logger.dir")]
    for _ in range(40):
        setting = f"{draw.choice(keys)}={draw.choice(VALUES)}"
        found = outcome(setting)
        assert found == "accepted" or found[0] == 2, (setting, found)


def test_every_number_of_every_part_has_a_range() -> None:
    """A parameter of a name that no table knows is added to it, and says what may stand there."""
    unknown = set()
    for target in NAMES:
        if target.startswith(("firered_lit.", "datamodules.", "callbacks.")):
            found = signature(target)
            for parameter in found.parameters:
                alternatives = (parameter.annotation or "").split(" | ")
                if {"int", "float"} & set(alternatives) and ranges.range_of(found.name, parameter.name) is None:
                    unknown.add(f"{found.name}.{parameter.name}")
    assert not unknown
