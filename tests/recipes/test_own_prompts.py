"""Prompts of one's own: drawn by the base, then every N steps with the same noise, beside an unchanged training."""

import json
import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from PIL import Image

from callbacks.prompts import Prompts
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.cli import main
from firered_lit.errors import UserError
from firered_lit.inference.prompt_file import read_prompts

FIT = ["fit", "--recipe", "recipes/tiny/sft_lora.yaml", "run.validate_every=null", "callbacks.progress=null"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """Three control pictures, two languages, and a row without a picture."""
    folder = tmp_path_factory.mktemp("prompts")
    for name, colour in {"a": "red", "b": "green", "c": "blue"}.items():
        Image.new("RGB", (96, 64), colour).save(folder / f"{name}.png")
    rows = [
        {"instruction": "Make it winter", "images": ["a.png"]},
        {"instruction": "把图1放到图2的背景里", "images": ["b.png", "c.png"], "seed": 3},
        {"instruction": "A red house", "width": 64, "height": 96},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "prompts.jsonl"


def command(world: Path, run: Path, prompts: Path, *options: str) -> list[str]:
    node = f"callbacks.prompts={{_target_: callbacks.prompts.Prompts, file: '{prompts}', every: 2, steps: 2}}"
    return [*FIT, f"data.root={world}", f"run.dir={run}", "logger=null", node, "checkpoint.every=2", *options]


def pictures(run: Path) -> dict[str, bytes]:
    return {str(path.relative_to(run)): path.read_bytes() for path in sorted((run / "prompts").rglob("*.png"))}


@pytest.fixture(scope="module")
def whole(prompts, world, tmp_path_factory):
    """A run of five steps with its prompts, and the world that it learned from."""
    run = tmp_path_factory.mktemp("whole") / "run"
    assert main(command(world, run, prompts, "trainer.max_steps=5")) == 0
    return world, run


def test_prompts_are_drawn_by_the_base_then_every_n_steps_and_at_the_end(whole):
    _, run = whole
    grids = [path.name for path in sorted((run / "prompts").glob("step_*.png"))]
    assert grids == [f"step_{step:08d}.png" for step in (0, 2, 4, 5)]
    for number in (1, 2, 3):
        assert (run / f"prompts/strip_{number:02d}.png").is_file()
    with Image.open(run / "prompts/pictures/step_00000000/03.png") as picture:
        assert picture.size == (64, 96)
    with Image.open(run / "prompts/pictures/step_00000000/01.png") as picture:
        assert picture.width > picture.height  # as its control picture


def test_a_prompt_shows_what_was_learned_and_not_another_noise(whole):
    _, run = whole
    first = (run / "prompts/pictures/step_00000000/01.png").read_bytes()
    last = (run / "prompts/pictures/step_00000005/01.png").read_bytes()
    assert first != last


def test_a_resumed_run_draws_the_same_pictures_and_training_is_as_without_them(whole, prompts, tmp_path):
    world, run = whole
    resumed = tmp_path / "resumed"
    assert main(command(world, resumed, prompts, "trainer.max_steps=2")) == 0
    assert main(command(world, resumed, prompts, "trainer.max_steps=5", "run.resume=last")) == 0
    assert pictures(resumed) == pictures(run)

    plain = tmp_path / "plain"
    options = [f"data.root={world}", f"run.dir={plain}", "logger=null", "trainer.max_steps=5", "checkpoint.every=2"]
    assert main([*FIT, *options]) == 0
    with_prompts = torch.load(newest(run), weights_only=True)["state_dict"]
    without = torch.load(newest(plain), weights_only=True)["state_dict"]
    assert with_prompts.keys() == without.keys()
    assert all(torch.equal(with_prompts[name], without[name]) for name in without)


def test_a_run_that_a_signal_ends_draws_no_more(world, prompts, tmp_path):
    run = tmp_path / "run"
    ended = threading.Event()

    def stop_when_saved() -> None:
        while not ended.wait(0.02):
            if newest(run) is not None:
                os.kill(os.getpid(), signal.SIGTERM)
                return

    thread = threading.Thread(target=stop_when_saved)
    thread.start()
    code = main(command(world, run, prompts, "callbacks.prompts.every=100000", "trainer.max_steps=100000"))
    ended.set()
    thread.join()
    assert code == 75
    assert [path.name for path in (run / "prompts").glob("step_*.png")] == ["step_00000000.png"]


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_with_the_same_pictures(whole, prompts, tmp_path, launch):
    world, run = whole
    killed = tmp_path / "killed"
    process = launch(*command(world, killed, prompts, "trainer.max_steps=5"))
    process.until(lambda: (killed / "prompts/step_00000002.png").exists())
    process.popen.kill()
    process.popen.wait()
    assert main(command(world, killed, prompts, "trainer.max_steps=5", "run.resume=last")) == 0
    assert pictures(killed) == pictures(run)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no prompts in it"),
        ("{", "prompts.jsonl:1: no JSON"),
        ("[]", "prompts.jsonl:1: a prompt is an object"),
        ('{"prompt": "x"}', "prompts.jsonl:1: 'prompt' is no key of a prompt"),
        ('{"instruction": ""}', "prompts.jsonl:1: instruction: expected text"),
        ('{"instruction": "x", "images": [1]}', "prompts.jsonl:1: images: expected a list of paths"),
        ('{"instruction": "x", "images": ["no.png"]}', "no.png: no such file"),
        ('{"instruction": "x", "seed": -1}', "prompts.jsonl:1: seed: expected a whole number of at least 0, got -1"),
        ('{"instruction": "x", "width": true}', "prompts.jsonl:1: width: expected a whole number of at least 16"),
    ],
)
def test_a_row_that_cannot_be_drawn_is_one_line_before_training(tmp_path, text, said):
    file = tmp_path / "prompts.jsonl"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as refusal:
        read_prompts(file, "file")
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("number", [{"every": 0}, {"steps": 0}, {"side": 1}])
def test_numbers_out_of_range_are_refused(prompts, number):
    with pytest.raises(UserError, match="at least"):
        Prompts(str(prompts), **number)
