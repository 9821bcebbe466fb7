"""Speed is measured right, and shown right."""

import csv
import io
import re
import sys
import time

import pytest
from lightning.pytorch.profilers import SimpleProfiler
from toy_run import Edits, Toy, fit, trainer

from callbacks.checkpoint import Checkpoint
from callbacks.progress import Progress, short, total_steps
from callbacks.throughput import Throughput
from firered_lit.checkpoints.checkpoint import newest


class Slow(Edits):
    """A loader that takes 30 ms for a batch."""

    def batch(self, step):
        time.sleep(0.03)
        return super().batch(step)


def rows(folder, key):
    with (folder / "csv" / "version_0" / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row[key])) for row in csv.DictReader(file) if row.get(key)]


def test_throughput_counts_samples_tokens_and_waiting(tmp_path):
    """30 ms for data, 10 ms for a step, 300 ms for a validation that does not count. 24 tokens a batch of two."""

    def act(module, phase, index):
        time.sleep(0.01 if phase == "train" else 0.3)

    run = trainer(tmp_path, [Throughput(every=2), Checkpoint(every=99)], max_steps=4, profiler=SimpleProfiler())
    run.fit(Toy(act), Slow(), Edits(2, validation=True))
    for (step, wait), (_, samples), (_, tokens) in zip(
        rows(tmp_path, "perf/data_wait_share"),
        rows(tmp_path, "perf/samples_per_s"),
        rows(tmp_path, "perf/tokens_per_s"),
    ):
        assert step in (2, 4)
        assert 0.4 < wait < 0.9
        assert 5 < samples < 50  # at most 2 in 40 ms, fewer on a busy machine
        assert tokens == pytest.approx(samples * Edits().batch(0).tokens / 2)
    assert len(rows(tmp_path, "perf/data_wait_share")) == 2
    assert isinstance(run.profiler, SimpleProfiler)
    assert "[_TrainingEpochLoop].train_dataloader_next" in run.profiler.recorded_durations


def test_what_is_done_to_a_batch_before_its_step_is_part_of_it(tmp_path):
    """Online alignment encodes its prompts there."""

    class Encoding(Toy):
        def on_after_batch_transfer(self, batch, number):
            time.sleep(0.1)
            return batch

    run = trainer(tmp_path, [Throughput(every=2), Checkpoint(every=99)], max_steps=4)
    run.fit(Encoding(), Slow(), Edits(2, validation=True))
    assert [step for step, rate in rows(tmp_path, "perf/samples_per_s") if rate < 2 / 0.1] == [2, 4]
    assert all(wait < 0.6 for _, wait in rows(tmp_path, "perf/data_wait_share"))


def test_lines_where_nobody_watches(tmp_path, capsys):
    fit(tmp_path, [Progress(every=2), Checkpoint(every=1)], max_steps=5)
    said = capsys.readouterr().out.splitlines()
    steps = [line for line in said if line.startswith("step")]
    assert [line.split(",")[0] for line in steps] == ["step 2/5", "step 4/5", "step 5/5"]
    form = r"step 2/5, loss \d\.\d{4}, [\d.]+k? samples/s, [\d.]+k? tokens/s, 0:00:\d\d left"
    assert re.fullmatch(form, steps[0]), steps[0]
    assert any(line.startswith("validation at step 2: loss") for line in said)
    fit(tmp_path, [Progress(every=2), Checkpoint(every=1)], resume=newest(tmp_path), max_steps=8)
    again = [line.split(",")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("step")]
    assert again == ["step 6/8", "step 8/8"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_one_bar_to_the_last_step_where_somebody_watches(tmp_path, monkeypatch):
    fit(tmp_path, [Checkpoint(every=1)], max_steps=3)
    monkeypatch.setattr(sys, "stdout", Terminal())
    fit(tmp_path, [Progress(), Checkpoint(every=1)], resume=newest(tmp_path), max_steps=6)
    shown = sys.stdout.getvalue()
    bars = re.split("[\r\n]", shown)
    assert any("| 3/6 [" in bar for bar in bars)  # begins where the run was
    last = [bar for bar in bars if "/6 [" in bar][-1]
    assert re.search(r"training: 100%.*\| 6/6 \[.*loss \d\.\d{4}, [\d.]+k? samples/s, [\d.]+k? tokens/s\]", last), last


def test_the_total_is_the_nearest_limit(tmp_path):
    run = trainer(tmp_path, [Checkpoint(every=9)], max_steps=-1, max_epochs=2, limit_val_batches=0)
    run.fit(Toy(), Edits())
    assert (run.global_step, total_steps(run)) == (8, 8)  # 7 batches in twos are 4 steps
    run.fit_loop.epoch_loop.max_steps = 5
    assert total_steps(run) == 5


@pytest.mark.parametrize(("number", "said"), [(0.534, "0.534"), (12.34, "12.3"), (4560, "4.56k"), (7.891e6, "7.89M")])
def test_short_numbers(number, said):
    assert short(number) == said
