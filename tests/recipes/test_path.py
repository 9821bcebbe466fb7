"""The path from end to end: prepare, fit, kill, resume, export, edit."""

import json
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient
from PIL import Image
from process import Process
from warm import Started, inline

from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.config import build, recipe
from firered_lit.models.family import open_base
from firered_lit.run.store import read_record

FIT = ["fit", "--recipe", "recipes/tiny/sft.yaml"]
QUICK = ["run.validate_every=null", "logger=null", "callbacks.progress=null"]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(newest(run), weights_only=True)["state_dict"]


def same(a: Path, b: Path) -> bool:
    first, second = weights(a), weights(b)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def steps(run: Path) -> int:
    found = newest(run)
    return int(found.stem.removeprefix("step_")) if found else 0


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty steps of the tiny recipe as it stands, logger, grid and all."""
    run = tmp_path_factory.mktemp("runs") / "trained"
    assert main([*FIT, f"data.root={world}", f"run.dir={run}", "trainer.max_steps=20", "run.validate_every=10"]) == 0
    return run


def test_a_run_says_what_it_made(trained: Path) -> None:
    assert steps(trained) == 20
    said = (trained / "summary.txt").read_text()
    for word in (
        "run ",
        "train/loss",
        "val/loss",
        "val/psnr",
        "val/ssim",
        "grid",
        "mlflow ui --backend-store-uri sqlite:///",
    ):
        assert word in said
    assert (trained / "recipe.yaml").exists()
    grids = sorted((trained / "samples").glob("*.png"))
    assert grids[0].name == "step_00000000.png"  # beside the base model
    record = read_record(trained)
    client, number = MlflowClient(record["mlflow_uri"]), record["mlflow_run_id"]
    history = {name: client.get_metric_history(number, name) for name in ("val/loss", "train/loss")}
    assert [point.step for point in history["val/loss"]] == [0, 10, 20] == [int(grid.stem[5:]) for grid in grids]
    assert [point.step for point in history["train/loss"]] == list(range(1, 21))
    assert np.asarray(Image.open(grids[-1])).std() > 10


def test_a_folder_that_holds_a_run_is_not_overwritten(trained: Path, world: Path, capfd: pytest.CaptureFixture) -> None:
    assert main([*FIT, f"data.root={world}", f"run.dir={trained}", *QUICK]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert "holds a run already" in error
    assert "run.resume=last" in error


KILLED = [*QUICK, "trainer.max_steps=14", "checkpoint.every=1", "trainer.accumulate_grad_batches=2", "data.workers=2"]


@pytest.fixture(scope="module")
def uninterrupted(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    process = Process(folder / "log", *FIT, f"data.root={world}", f"run.dir={folder / 'run'}", *KILLED)
    assert process.wait() == 0, process.output
    return folder / "run"


@pytest.mark.parametrize("trial", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(1, 10))])
def test_killed_at_a_random_step_and_resumed_is_bit_exact(
    trial: int, world: Path, uninterrupted: Path, launch, tmp_path: Path
) -> None:
    """kill -9, two data workers, accumulation of two, over an epoch's end: the same weights to the last bit."""
    run = tmp_path / "run"
    arguments = [*FIT, f"data.root={world}", f"run.dir={run}", *KILLED]
    at = random.Random(f"kill {trial}").randint(1, 12)
    process = launch(*arguments)
    process.until(lambda: steps(run) >= at)
    process.send(signal.SIGKILL)
    process.wait()
    assert 0 < steps(run) < 14, "killed too late to show anything"
    again = launch(*arguments, "run.resume=last")
    assert again.wait() == 0, again.output
    assert steps(run) == 14
    assert same(run, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_and_resumed_is_bit_exact_where_weights_are_rounded_at_random(
    world: Path, launch, tmp_path: Path
) -> None:
    """Stochastic rounding of bfloat16 weights draws by seed and step, so that it goes on as it began."""
    rounded = ["stage.backbone.dtype=bfloat16", f"data.root={world}"]
    rounded += ["stage.optimizer={_target_: firered_lit.optim.stochastic_adamw8bit, _partial_: true, lr: 1.0e-3}"]
    straight = launch(*FIT, *rounded, f"run.dir={tmp_path / 'straight'}", *KILLED)
    assert straight.wait(400) == 0, straight.output

    run = tmp_path / "run"
    process = launch(*FIT, *rounded, f"run.dir={run}", *KILLED)
    process.until(lambda: steps(run) >= 5)
    process.send(signal.SIGKILL)
    process.wait()
    assert 0 < steps(run) < 14, "killed too late to show anything"
    again = launch(*FIT, *rounded, f"run.dir={run}", *KILLED, "run.resume=last")
    assert again.wait(400) == 0, again.output
    assert same(run, tmp_path / "straight")


def test_the_comparison_can_fail(world: Path, uninterrupted: Path, launch, tmp_path: Path) -> None:
    """Another seed gives other weights."""
    process = launch(*FIT, f"data.root={world}", f"run.dir={tmp_path / 'run'}", *KILLED, "stage.seed=1")
    assert process.wait() == 0, process.output
    assert not same(tmp_path / "run", uninterrupted)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_leaves_its_code(number: int, code: int, world: Path, launch, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = launch(
        *FIT, f"data.root={world}", f"run.dir={run}", *QUICK, "checkpoint.every=3", "trainer.max_steps=100000"
    )
    process.until(lambda: steps(run) >= 3)
    process.send(number)
    assert process.wait(60) == code, process.output
    assert steps(run) >= 3
    assert "Traceback" not in process.output


def overfit(world: Path, run: Path, max_steps: int) -> tuple[float, float]:
    """Mean loss on the training samples at fixed noise, before and after training on them."""
    overrides = [f"data.root={world}", f"run.dir={run}", f"trainer.max_steps={max_steps}", *QUICK]
    stage = build.build(recipe.load("recipes/tiny/sft.yaml", overrides).root["stage"])
    data = build.build(recipe.load("recipes/tiny/sft.yaml", overrides).root["data"])
    data.setup("fit")
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(8))]
    stage.configure_model()

    def loss() -> float:
        with torch.no_grad():
            return torch.cat([stage.fixed_loss(batch) for batch in batches]).mean().item()

    before = loss()
    assert main([*FIT, *overrides]) == 0
    stage.load_state_dict(weights(run))
    return before, loss()


def test_four_pairs_are_overfitted_in_300_steps(tmp_path: Path) -> None:
    from datamodules.synthetic import write

    write(tmp_path / "source", 4)
    prepare = ["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={tmp_path / 'source'}"]
    assert main([*prepare, f"out={tmp_path / 'data'}", "held_out=0"]) == 0
    before, after = overfit(tmp_path / "data", tmp_path / "run", 300)
    print(f"loss on the four pairs at fixed noise: {before:.3f} -> {after:.3f}")
    assert after < before / 2


def test_zero_steps_export_the_base_bit_for_bit(world: Path, tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "model"
    assert main([*FIT, f"data.root={world}", f"run.dir={run}", *QUICK, "trainer.max_steps=0"]) == 0
    assert main(["export", "--run", str(run), "--out", str(out)]) == 0
    base, exported = open_base("tiny"), open_base(str(out))
    assert exported.fingerprints == base.fingerprints
    a, b = base.transformer().state_dict(), exported.transformer().state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


STOCK = """
import sys, torch
from diffusers import QwenImageEditPlusPipeline
from PIL import Image
pipe = QwenImageEditPlusPipeline.from_pretrained(sys.argv[1])
image = pipe(image=Image.open(sys.argv[2]).convert("RGB"), prompt=sys.argv[3], true_cfg_scale=1.0, width=128, height=96,
             num_inference_steps=2, generator=torch.Generator().manual_seed(0)).images[0]
image.save(sys.argv[4])
"""


def test_an_export_is_edited_with_by_the_stock_pipeline(trained: Path, tmp_path: Path) -> None:
    out, photo = tmp_path / "model", tmp_path / "photo.png"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((210, 150), Image.Resampling.BICUBIC).save(
        photo
    )
    assert main(["export", "--run", str(trained), "--out", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "base_model: tiny" in card
    assert "stage:" in card
    prompt = "Make the sky red, 变红"
    stock, ours, own = (tmp_path / f"{name}.png" for name in ("stock", "ours", "own"))
    drawn = Started(inline, STOCK, str(out), str(photo), prompt, str(stock), log=tmp_path / "said")
    assert drawn.wait(200) == 0, (tmp_path / "said").read_text()
    edit = ["edit", "--model", str(out), "--image", str(photo), "--prompt", prompt, "--steps", "2", "--seed", "0"]
    edit += ["--width", "128", "--height", "96", "--guidance", "1"]
    assert main([*edit, "--out", str(ours), "--stock"]) == 0
    assert np.array_equal(np.asarray(Image.open(stock)), np.asarray(Image.open(ours)))
    assert main([*edit, "--out", str(own)]) == 0  # at the sizes it was trained at
    assert Image.open(own).size == (128, 96)
    assert not np.array_equal(np.asarray(Image.open(own)), np.asarray(Image.open(ours)))
    a, b = open_base("tiny").transformer().state_dict(), open_base(str(out)).transformer().state_dict()
    assert not all(torch.equal(a[k], b[k]) for k in a)


def test_real_edits_go_all_the_way(shared_data: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """23 of 23 rows kept, twenty steps, a continued run, an export, an edited photo."""
    source, data, run = shared_data / "real_edits" / "edits.jsonl", tmp_path / "data", tmp_path / "run"
    assert main(["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={source}", f"out={data}"]) == 0
    assert "23" in capfd.readouterr().out
    assert json.loads((data / "data.json").read_text())["kept"] == 23
    arguments = [*FIT, f"data.root={data}", f"run.dir={run}", "trainer.max_steps=20", "checkpoint.every=4"]
    assert main(arguments) == 0
    assert main([*arguments, "run.resume=last", "trainer.max_steps=24"]) == 0
    assert steps(run) == 24
    assert main(["export", "--run", str(run), "--out", str(tmp_path / "model")]) == 0
    photo = str(shared_data / "real_edits" / "images" / "book_source.jpg")
    edit = ["edit", "--model", str(tmp_path / "model"), "--image", photo, "--prompt", "2nd Edition", "--steps", "2"]
    assert main([*edit, "--out", str(tmp_path / "edited.png"), "--seed", "0", "--guidance", "1"]) == 0
    assert (tmp_path / "edited.png").exists()
