"""A run whose recipe has one value changed at random trains a step, or is refused in one line with exit code 2."""

import contextlib
import random
import shutil
from pathlib import Path

import pytest
from commands import Reached, ended_well
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

import callbacks.signals
from firered_lit.config import build, recipe
from firered_lit.config.dialect import flow
from firered_lit.config.nameable import NAMES
from firered_lit.errors import UserError

QUICK, SLOW = 40, 600
SECONDS = 120.0  # of one fit

VALUES = (
    *("-1", "0", "1", "2", "3", "-5", "17", "1.5", "-0.1", "0.5", "1e-9", "1e9", "1e30", ".nan", ".inf", "-.inf"),
    *("true", "false", "null", "word", "''", "'1'", "[]", "{}", "[1, x]", "[0.5, 0.5]", "[2, -1]", "{a: 1}", "{a: x}"),
    *("cpu", "tiny", "bfloat16", "float32", "online", "last", "best", "'???'", "[null]", "99999999999999999999"),
)
UNTOUCHED = (  # where the run lies, and how long it is
    *("run.dir", "data.root", "logger.dir", "trainer.max_steps", "trainer.max_epochs", "trainer.min_steps"),
)
TINY = ("sft", "pretrain", "sft_lora", "sft_consistency", "continued_pretrain")
OTHER_PARTS = tuple(sorted(name for name in NAMES if name.startswith(("firered_lit.", "callbacks.", "torch.optim."))))
MORE = (  # keys that no shipped recipe gives
    *("trainer.limit_train_batches", "trainer.overfit_batches", "trainer.fast_dev_run", "trainer.val_check_interval"),
    *("trainer.check_val_every_n_epoch", "trainer.detect_anomaly", "trainer.sync_batchnorm", "trainer.deterministic"),
    *("trainer.num_nodes", "trainer.benchmark", "trainer.inference_mode", "trainer.gradient_clip_algorithm"),
    *("trainer.num_sanity_val_steps", "trainer.reload_dataloaders_every_n_epochs", "trainer.max_time"),
    *("stage.optimizer.eps", "stage.optimizer.amsgrad", "stage.optimizer.foreach", "stage.optimizer.maximize"),
    *("stage.backbone.gradient_checkpointing", "stage.backbone.dtype", "stage.backbone.quantize", "stage.weight"),
    *("data.weights", "data.captions", "data.languages", "data.text_drop", "data.alignment", "data.reference_drop"),
    *("data.held_out_max", "data.plan_ranks", "data.left_out", "data.on_error", "data.fetch", "data.cache_limit"),
    *("data.batch_weight", "checkpoint.monitor", "checkpoint.keep", "checkpoint.every", "checkpoint.mode"),
    *("stage.guard", "stage.rotate_every", "stage.resolution_shift", "run.start_from", "run.resume"),
)


def settings(draw: random.Random, name: str) -> list[str]:
    """Return one or two changes of a recipe for the command line."""
    tree = recipe.load(f"recipes/tiny/{name}.yaml").root
    leaves = {key: value for key, value in recipe.leaves(tree) if key not in UNTOUCHED}
    found = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        key = draw.choice((*leaves, *MORE))
        number = isinstance(leaves.get(key), int | float)
        value = flow(plausible(draw, leaves[key])) if number and draw.random() < 0.6 else draw.choice(VALUES)
        if key.endswith("_target_"):
            value = draw.choice(OTHER_PARTS)
        elif draw.random() < 0.1:
            value = f"{{_target_: {draw.choice(OTHER_PARTS)}, _partial_: {flow(draw.random() < 0.5)}}}"
        found.append(f"{key}={value}")
    return found


def passing(draw: random.Random, name: str) -> list[str]:
    """Return changes that mostly pass what is read from signatures alone, so that something is built and trained."""
    for _ in range(20):
        found = settings(draw, name)
        if draw.random() < 0.1:
            break
        with contextlib.suppress(UserError):
            changed = recipe.load(f"recipes/tiny/{name}.yaml", found)
            if not any(build.problems(changed, supplied=("recipe",))):
                break
    return found


def plausible(draw: random.Random, value: float) -> float:
    """Return another number of the same kind, as somebody who tries things out would write."""
    if isinstance(value, bool):
        return not value
    changed = value * draw.choice((0, 0.5, 2, 3, 10, 1000)) + draw.choice((0, 0, 1, -1))
    return int(changed) if isinstance(value, int) else float(changed)


def fuzz(seeds: range, folder: Path, data: Path) -> dict[str, int]:
    """Fit one step with each seed's changes; returns how often each ending came."""
    endings: dict[str, int] = {}
    for seed in seeds:
        draw = random.Random(f"value {seed}")
        name = draw.choice(TINY)
        given = [f"run.dir={folder / 'run'}", f"data.root={data}", "trainer.max_steps=1", "data.workers=0"]
        given += ["logger=null", "callbacks.progress=null", *passing(draw, name)]
        arguments = ["fit", "--recipe", f"recipes/tiny/{name}.yaml", *given]
        code = ended_well(arguments, SECONDS, f"seed {seed}: {name} {given}")
        endings[str(code)] = endings.get(str(code), 0) + 1
        shutil.rmtree(folder / "run", ignore_errors=True)
    print(endings)
    return endings


@pytest.fixture(autouse=True)
def _one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count a run of several processes as accepted, before it starts them."""

    def reach(*_: object, **__: object) -> None:
        raise Reached

    monkeypatch.setattr(_SubprocessScriptLauncher, "launch", reach)
    monkeypatch.setattr(callbacks.signals, "_PATIENCE", 1e6)  # after which one of several ends its process


def test_a_changed_value_trains_a_step_or_is_refused_in_one_line(small_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    endings = fuzz(range(QUICK), tmp_path, small_data / "data")
    assert min(endings["0"], endings["2"]) >= 5


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_many_changed_values_train_a_step_or_are_refused(small_data: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    fuzz(range(QUICK, SLOW), tmp_path, small_data / "data")
