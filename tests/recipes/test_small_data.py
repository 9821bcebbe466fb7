"""A few pairs of one's own: some are held out, every pair is seen equally often, and a run that gets no better ends."""

import json
from pathlib import Path

import pytest
from PIL import Image

from datamodules.prepare.held_out import choose
from datamodules.sources.records import Record
from firered_lit.cli import main
from firered_lit.config.build import build
from firered_lit.config.recipe import load


def row(group: str, held_out: bool | None = None) -> list[Record]:
    instructions = {"original/en": "Make it blue"}
    return [Record(group, "color", group, (group,), instructions, group, held_out=held_out, group=group)]


@pytest.mark.parametrize("count", [1, 2, 5, 8, 40, 200])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_small_set_holds_out_at_least_four_but_never_more_than_half(count, seed):
    data = [row(f"{number}.png") for number in range(count)]
    choice = choose(lambda: data, count, 0.002, 4, seed)
    held = sum(choice(one) for one in data)
    assert held == min(4, count // 2) or held >= 4
    assert held <= max(count // 2, 0.05 * count)


def test_the_edits_of_one_source_stay_together():
    data = [row(f"{number // 5}.png") for number in range(40)]
    choice = choose(lambda: data, 40, 0.002, 4, 0)
    held = [index // 5 for index, one in enumerate(data) if choice(one)]
    assert len(held) == 5
    assert len(set(held)) == 1


def test_a_large_set_is_not_read_for_the_choice():
    def unread():
        raise AssertionError("read")

    large = choose(unread, 1_000_000, 0.002, 4, 0)
    assert large == choose(unread, 10, 0.002, 0, 0)


def test_what_rows_say_themselves_counts_and_stays():
    data = [row(f"{number}.png", held_out=number < 4) for number in range(8)] + [row("other.png")]
    choice = choose(lambda: data, 9, 0.002, 4, 0)
    assert [choice(one) for one in data] == [True] * 4 + [False] * 5


def test_nothing_is_held_out_where_nothing_is_asked_for():
    data = [row(f"{number}.png") for number in range(40)]
    assert not any(choose(lambda: data, 40, 0.0, 4, 0)(one) for one in data)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twelve pairs of one's own, prepared for the tiny base as the full-size recipe prepares them."""
    folder = tmp_path_factory.mktemp("small")
    lines = []
    for number in range(12):
        for name in ("source", "target"):
            Image.new("RGB", (96, 96), (20 * number, 90, 200 if name == "target" else 10)).save(
                folder / f"{name}{number}.png"
            )
        files = {"source_image": f"source{number}.png", "target_image": f"target{number}.png"}
        lines.append(json.dumps(files | {"instruction": f"Make it blue, number {number}"}))
    (folder / "edits.jsonl").write_text("\n".join(lines), encoding="utf-8")
    prepare = ["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={folder / 'edits.jsonl'}"]
    assert main([*prepare, f"out={folder / 'data'}", "held_out=0.002", "held_out_least=4"]) == 0
    return folder


def test_pairs_are_held_out_and_the_run_says_which_checkpoint_to_take_and_why_it_ended(prepared, capsys):
    assert json.loads((prepared / "data/data.json").read_text())["held_out"] == 4
    run = prepared / "run"
    fit = ["fit", "--recipe", "recipes/tiny/sft_lora_small.yaml", f"data.root={prepared / 'data'}", f"run.dir={run}"]
    fit += [
        "logger=null",
        "callbacks.progress=null",
        "callbacks.grid=null",
        "stage.preview.steps=1",
        "run.validate_every=2",
    ]
    fit += ["checkpoint.every=2", "callbacks.patience.patience=1", "callbacks.patience.min_delta=10.0"]
    assert main(fit) == 0
    said = (run / "summary.txt").read_text(encoding="utf-8")
    assert "note        stopped early at step 4: val/loss has not improved in 1 validations" in said
    (take,) = [line for line in said.splitlines() if line.startswith("take ")]
    assert "the best val/loss of all validations" in take
    assert Path(take.split()[1].rstrip(":")).is_file()


def test_passes_end_a_run_that_has_no_last_step(prepared, tmp_path):
    run = tmp_path / "run"
    settings = [f"data.root={prepared / 'data'}", f"run.dir={run}", "logger=null", "trainer.max_epochs=3"]
    settings += ["run.validate_every=100", "run.validate_first=false", "data.max_batch=3"]
    settings += [f"callbacks.{name}=null" for name in ("progress", "patience", "grid")]
    assert main(["fit", "--recipe", "tiny/sft_lora_small", *settings]) == 0
    steps_of_a_pass = len(build(load("tiny/sft_lora_small", settings).root["data"]).train_dataloader())
    assert steps_of_a_pass > 1
    assert f"steps       {3 * steps_of_a_pass}\n" in (run / "summary.txt").read_text(encoding="utf-8")
