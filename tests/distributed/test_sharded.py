"""FSDP2 and HSDP on gloo: as one process computes, cut off and continued, on another number of processes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import verbs
from warm import ranks, script

from datamodules.synthetic import write
from firered_lit.checkpoints.checkpoint import newest
from firered_lit.checkpoints.sharded import read
from firered_lit.cli import main

pytestmark = pytest.mark.timeout(900)  # the first test of a worker waits for a fixture of many runs
HERE, ROOT = Path(__file__).parent, Path(__file__).resolve().parents[2]
STEPS, LONG = 12, 50
QUICK = [
    "run.validate_every=null",
    "logger=null",
    "callbacks.progress=null",
    "callbacks.grid=null",
    "checkpoint.keep=9",
]
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "WORLD_SIZE", "NODE_RANK")}
CLIP = "trainer.gradient_clip_val=0.5"
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write(folder / "source", 28)
    prepare = ["prepare", "--recipe", "recipes/tiny/prepare.yaml", f"source={folder / 'source'}"]
    assert main([*prepare, f"out={folder / 'data'}"]) == 0
    return folder / "data"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


def arguments(run, data, processes, accumulate=1, *more, recipe="recipes/tiny/sft_fsdp.yaml", steps=STEPS):
    """The command line of a training whose global batch is `processes * accumulate` micro-batches."""
    record = f"callbacks.record={{_target_: record.Record, path: {run}.jsonl}}"
    wide = [f"trainer.devices={processes}"] if processes > 1 else []
    sizes = [*wide, f"trainer.accumulate_grad_batches={accumulate}", f"trainer.max_steps={steps}"]
    places = [f"data.root={data}", f"run.dir={run}", "--allow", "record", record]
    return ["fit", "--recipe", recipe, *places, *QUICK, *sizes, CLIP, f"checkpoint.every={max(steps // 2, 1)}", *more]


def script_of(folder, commands, single):
    """A file for verbs.py: each command in float64, then each of `single` in float32."""
    script = folder / "commands.json"
    script.write_text(json.dumps([(True, command) for command in commands] + [(False, command) for command in single]))
    return str(script)


def environment_in(folder):
    return ENVIRONMENT | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled")}  # none that a killed process left torn


def torchrun(folder, processes, commands, single=(), timeout=480):
    """Commands in as many processes, started as a user does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    done = subprocess.run(
        [*command, str(HERE / "verbs.py"), script_of(folder, commands, single)],
        cwd=ROOT,
        env=environment_in(folder),
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def together(folder, commands, single):
    """Commands in two processes that need not import the libraries."""
    said = folder / "said_by_2"
    given = {"log": said, "environment": environment_in(folder), "folder": ROOT, "timeout": 480}
    code = ranks(2, script, HERE / "verbs.py", script_of(folder, commands, single), **given)
    assert code == 0, said.read_text()


def alone(command):
    """One process, this one, in float64."""
    assert verbs.run(True, command) == 0


def lines_of(run):
    return [json.loads(line) for line in Path(f"{run}.jsonl").read_text().splitlines()]


def curve(run):
    """step -> the mean of its micro-batches' losses; step -> the gradient's norm before clipping."""
    losses: dict[int, list[float]] = {}
    for line in (line for line in lines_of(run) if "loss" in line):
        losses.setdefault(line["step"], []).append(line["loss"])
    norms = {line["step"]: line["norm"] for line in lines_of(run) if "norm" in line}
    return {step: sum(values) / len(values) for step, values in losses.items()}, norms


def first_steps(run, until, copy, after=0):
    """A run's record from one step to another, beside the weights that it ended with."""
    kept = [line for line in lines_of(run) if after <= line.get("step", -1) < until]
    Path(f"{copy}.jsonl").write_text("\n".join(map(json.dumps, kept)))
    if not copy.exists():
        copy.symlink_to(run)
    return copy


def content(run):
    path = newest(run)
    return read(path) if path.is_dir() else torch.load(path, weights_only=True)


def half_of(run, steps=STEPS):
    return run / "checkpoints" / f"step_{steps // 2:08d}.ckpt"


def before(path):
    return sorted(path.parent.glob("step_*.ckpt"))[-2]


def step_of(path):
    return int(path.stem.removeprefix("step_")) if path else 0


def apart(a, b, weigh=True):
    """The largest difference between two runs' losses, norms (both relative) and weights."""
    (loss_a, norm_a), (loss_b, norm_b) = curve(a), curve(b)
    assert loss_a
    assert loss_a.keys() == loss_b.keys()
    assert norm_a.keys() == norm_b.keys()
    loss = max(abs(loss_a[s] - loss_b[s]) / loss_a[s] for s in loss_a)
    norm = max(abs(norm_a[s] - norm_b[s]) / norm_a[s] for s in norm_a)
    weight = difference(content(a)["state_dict"], content(b)["state_dict"]) if weigh else 0.0
    print(f"{a.name} and {b.name}: loss {loss:.1e}, norm {norm:.1e}, weights {weight:.1e} over {len(loss_a)} steps")
    return max(loss, norm, weight)


def average_apart(a, b):
    return difference(content(a)["ema"]["weights"], content(b)["ema"]["weights"])


def difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[k].double() - second[k].double()).abs().max()) for k in first)


def same(first, second):
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[k], second[k]) for k in first)
    return torch.equal(first, second)


def holds(dump, saved):
    """What a process held as training went on, whole tensors, is what the checkpoint has, to the last bit."""
    held = torch.load(dump, weights_only=True)
    (state,) = saved["optimizer_states"]
    trained = [name for name in held if f"exp_avg of {name}" in held]
    assert len(trained) == len(state["state"]) > 30
    for name, tensor in saved["state_dict"].items():
        assert torch.equal(held[name], tensor), name
    decayed = [n for n in trained if held[n].ndim > 1] + [n for n in trained if held[n].ndim <= 1]
    for number, name in enumerate(decayed):
        for key, tensor in state["state"][number].items():
            assert torch.equal(held[f"{key} of {name}"], tensor), (key, name)
    assert same(held["ema"], saved["ema"]["weights"])


ONE = "recipes/tiny/sft.yaml"
AVERAGE = "callbacks.ema={_target_: callbacks.ema.EMA, decay: 0.9}"
LORA = "stage.backbone.lora={_target_: firered_lit.models.lora.LoRA, rank: 4, alpha: 8}"
SPOIL = "callbacks.spoil={_target_: record.Spoil, step: 2}"
CONSISTENCY = "stage.consistency={_target_: firered_lit.stages.consistency.Consistency, encoder: tiny, eta: 5.0}"
REGIONS = ["callbacks.regions={_target_: record.Regions}", CONSISTENCY]
EIGHT_BIT = [
    AVERAGE,
    "stage.optimizer={_target_: firered_lit.optim.adamw8bit, _partial_: true, lr: 1.0e-3, weight_decay: 0.01}",
]
STOCHASTIC = [
    AVERAGE,
    "stage.backbone.dtype=bfloat16",
    "stage.optimizer={_target_: firered_lit.optim.stochastic_adamw8bit, _partial_: true, lr: 2.0e-5}",
]
FINE = "stage.optimizer={_target_: torch.optim.AdamW, _partial_: true, lr: 2.0e-5}"
HALF_FORWARD = [AVERAGE, FINE, "trainer.strategy.compute=bfloat16"]
FEW, KILLED = 6, 14
NO_WORKERS = "data.workers=0"  # the long runs read by workers
SHORT = {  # run -> (processes, accumulation, further arguments), each against one process with as many micro-batches
    "lora": (2, 1, [LORA, AVERAGE, "trainer.gradient_clip_val=0.001"]),
    "accumulated": (2, 2, []),
    "whole_gradients": (2, 2, ["trainer.strategy.whole_gradients=true"]),
    "checkpointed": (2, 1, ["stage.backbone.gradient_checkpointing=true"]),
    "products": (2, 1, ["stage.backbone.gradient_checkpointing=products"]),
    "spoiled": (2, 1, [SPOIL, AVERAGE]),
    "regions": (2, 1, REGIONS),
}


@pytest.fixture(scope="module")
def one(data, runs):
    """One process, two micro-batches a step: the truth. And the short ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        patch.chdir(ROOT)
        alone(arguments(runs / "one", data, 1, 2, AVERAGE, recipe=ONE))
        few = [(2, f"one_{name}", SHORT[name][2]) for name in ("lora", "spoiled", "regions")]
        for accumulate, name, more in [*few, (4, "one_of_four", [])]:
            alone(arguments(runs / name, data, 1, accumulate, *more, recipe=ONE, steps=FEW))
    return runs / "one"


@pytest.fixture(scope="module")
def two(data, runs, one):
    """Two processes; the same on from the single process's checkpoint of step 25, a file; the short ones."""
    half = half_of(one)
    dump = f"callbacks.record.dump={runs / 'from_file.dump'}"
    commands = [arguments(runs / "two", data, 2, 1, AVERAGE)]
    commands += [arguments(runs / "from_file", data, 2, 1, AVERAGE, f"run.resume={half}", dump)]
    for name, (processes, accumulate, more) in SHORT.items():
        commands += [arguments(runs / name, data, processes, accumulate, *more, NO_WORKERS, steps=FEW)]
    for name in ("spoiled", "regions"):
        replicated = [*SHORT[name][2], NO_WORKERS, "trainer.strategy=ddp"]
        commands += [arguments(runs / f"{name}_ddp", data, 2, 1, *replicated, recipe=ONE, steps=FEW)]
    single = []
    for name, more in (("whole", [AVERAGE]), ("eight_bit", EIGHT_BIT), ("stochastic", STOCHASTIC)):
        single += [arguments(runs / name, data, 2, 1, *more, NO_WORKERS, steps=FEW)]
        cut = f"run.resume={half_of(runs / name, FEW)}"
        single += [arguments(runs / f"{name}_resumed", data, 2, 1, *more, NO_WORKERS, cut, steps=FEW)]
    cut = f"run.resume={half_of(runs / 'whole', FEW)}"
    single += [arguments(runs / "whole_then_eight_bit", data, 2, 1, *EIGHT_BIT, NO_WORKERS, cut, steps=FEW)]
    single += [arguments(runs / "fine", data, 2, 1, AVERAGE, FINE, NO_WORKERS, steps=FEW)]
    single += [arguments(runs / "half_forward", data, 2, 1, *HALF_FORWARD, NO_WORKERS, steps=FEW)]
    together(runs, commands, single)
    return runs / "two"


@pytest.fixture(autouse=True)
def _place(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(HERE))


def test_two_processes_compute_what_one_does(one, two):
    """Losses and norms of clipped steps, all weights after them and their average, in float64."""
    assert min(curve(one)[1].values()) > 0.5  # every step was clipped
    assert apart(one, two) < 1e-8
    assert average_apart(one, two) < 1e-6  # it is kept in float32


def test_each_process_holds_half(two):
    shares = [line["share"] / line["of"] for line in lines_of(two) if "share" in line]
    assert len(shares) == 2
    assert sum(shares) == 1
    assert max(shares) < 0.52


@pytest.mark.parametrize(("name", "truth"), [("lora", "one_lora"), ("accumulated", "one_of_four")])
def test_adapters_and_accumulation_too(name, truth, runs, two):
    assert apart(runs / truth, runs / name) < 1e-8


@pytest.mark.parametrize("name", ["whole_gradients", "checkpointed", "products"])
def test_what_trades_memory_for_time_changes_nothing(name, runs, two):
    truth = runs / "accumulated" if name == "whole_gradients" else first_steps(runs / "two", FEW, runs / "two_began")
    assert apart(truth, runs / name, weigh=name == "whole_gradients") < 1e-8


@pytest.mark.parametrize("name", ["spoiled", "spoiled_ddp"])
def test_a_gradient_that_one_process_has_spoilt_is_left_out_by_all(name, runs, two):
    truth, found = content(runs / "one_spoiled"), content(runs / name)
    assert difference(found["state_dict"], truth["state_dict"]) < 1e-8
    assert average_apart(runs / name, runs / "one_spoiled") < 1e-6
    for saved in (truth, found):
        assert saved["guard"]["skipped"] == 1
        assert saved["ema"]["updates"] == FEW - 1
        assert {int(state["step"]) for state in saved["optimizer_states"][0]["state"].values()} == {FEW - 1}
    assert [step for step, norm in curve(runs / name)[1].items() if norm != norm] == [2]
    said = (runs / "said_by_2").read_text().splitlines()
    lines = {line[line.index("step 2 left out") :] for line in said if "step 2 left out" in line}
    assert len(lines) == 1  # of one process's samples, in both runs
    assert 1 <= lines.pop().count("0-0") <= 8


@pytest.mark.parametrize("name", ["regions", "regions_ddp"])
def test_processes_may_differ_in_what_they_have_to_compare(name, runs, two):
    """One decodes in every step, the other never: nobody waits, and the loss is that of one process."""
    assert apart(runs / "one_regions", runs / name) < 1e-5  # the encoder and the VAE compute in float32
    plain = first_steps(runs / "two", FEW, runs / "two_began")
    assert apart(plain, runs / name, weigh=False) > 1e-3


def test_a_single_file_is_gone_on_from_by_two(runs, one, two):
    """Every tensor that the file has is in its place, and the training goes on as the one process did."""
    holds(runs / "from_file.dump.1", torch.load(half_of(one), weights_only=True))
    assert apart(first_steps(one, STEPS, runs / "one_ended", after=STEPS // 2), runs / "from_file") < 1e-8
    assert average_apart(one, runs / "from_file") < 1e-6


def test_a_folder_is_gone_on_from_by_one(data, runs, one, two):
    half = half_of(two)
    run, dump = runs / "from_folder", f"callbacks.record.dump={runs / 'from_folder.dump'}"
    alone(arguments(run, data, 1, 2, AVERAGE, f"run.resume={half}", dump, recipe=ONE))
    holds(runs / "from_folder.dump.0", read(half))
    assert apart(first_steps(one, STEPS, runs / "one_ended", after=STEPS // 2), run) < 1e-8
    assert average_apart(one, run) < 1e-6


def test_a_folder_is_exported_and_averaged_by_one_process(runs, two):
    from firered_lit.models.family import open_base

    assert main(["export", "--run", str(two), "--out", str(runs / "model"), "--ema"]) == 0
    saved, out = read(newest(two)), open_base(str(runs / "model")).transformer().state_dict()
    average = {**saved["state_dict"], **saved["ema"]["weights"]}
    assert all(torch.equal(tensor, average[f"transformer.{name}"].float()) for name, tensor in out.items())
    assert main(["average", "--run", str(two), "--last", "2", "--out", str(runs / "mean.ckpt")]) == 0
    mean, half = torch.load(runs / "mean.ckpt", weights_only=True)["state_dict"], read(before(newest(two)))
    for name, tensor in mean.items():
        assert torch.allclose(tensor, (saved["state_dict"][name] + half["state_dict"][name]) / 2)


@pytest.mark.parametrize("name", ["whole", "eight_bit", "stochastic"])
def test_resumed_is_bit_exact(name, runs, two):
    """Weights, average and moments: in float32, as 8-bit codes, and of bfloat16 weights that are rounded at random."""
    alike(runs / f"{name}_resumed", runs / name)


def alike(first, second):
    first, second = (read(newest(run)) for run in (first, second))
    assert same(first["state_dict"], second["state_dict"])
    assert same(first["ema"]["weights"], second["ema"]["weights"])
    assert same(first["optimizer_states"][0]["state"], second["optimizer_states"][0]["state"])


@pytest.mark.parametrize("name", ["half_forward", "stochastic"])
def test_sharded_weights_move_as_float32_would_move_them(name, runs, two, one):
    """At the rate of fine-tuning, to what a forward in bfloat16 adds to Adam's first steps, which follow signs."""
    from firered_lit.models.family import open_base

    start = open_base("tiny").transformer(torch.float32).state_dict()
    states = [read(newest(runs / kind))["state_dict"] for kind in ("fine", name)]
    moves = [
        torch.cat([(state[f"transformer.{key}"].float() - value).flatten() for key, value in start.items()])
        for state in states
    ]
    exact, found = moves
    projection = float(found @ exact / (exact @ exact))
    print(f"{name}: {projection:.3f}")
    assert projection > 0.9


def test_moments_in_8_bits_go_where_float32_goes_and_change_into_each_other(data, runs, two):
    """The optimizer is changed at a checkpoint, by two processes and by one, which reads codes as what they mean."""
    for name in ("eight_bit", "whole_then_eight_bit"):
        (loss, _), (truth, _) = curve(runs / name), curve(runs / "whole")
        assert 0 < max(abs(loss[step] / truth[step] - 1) for step in loss) < 0.02
    half, run = half_of(runs / "eight_bit", FEW), runs / "eight_bit_then_one"
    dump = f"callbacks.record.dump={run}.dump"
    assert verbs.run(False, arguments(run, data, 1, 2, AVERAGE, f"run.resume={half}", dump, recipe=ONE, steps=FEW)) == 0
    holds(f"{run}.dump.0", read(half))


def start(log, run, data, *more):
    command = [
        sys.executable,
        "-m",
        "firered_lit",
        *arguments(run, data, 2, 1, *more, steps=KILLED),
        "checkpoint.every=1",
    ]
    environment = ENVIRONMENT | {"PYTHONPATH": str(HERE)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=log.open("wb"), stderr=subprocess.STDOUT, start_new_session=True
    )


@pytest.mark.slow
def test_killed_and_resumed_is_bit_exact(data, runs, two, tmp_path):
    """kill -9 of both processes while they save after every step; float32, by Lightning's own launcher."""
    torchrun(runs, 2, [], [arguments(runs / "uninterrupted", data, 2, 1, AVERAGE, steps=KILLED)])
    log, run = tmp_path / "log", tmp_path / "run"
    process = start(log, run, data, AVERAGE)
    until = time.monotonic() + 150
    while process.poll() is None and time.monotonic() < until and step_of(newest(run)) < 4:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed = step_of(newest(run))
    assert 4 <= killed < KILLED, log.read_text()
    process = start(log, run, data, AVERAGE, "run.resume=last")
    assert process.wait(200) == 0, log.read_text()
    assert not list((run / "checkpoints").glob(".*"))  # nothing half-written is left
    alike(run, runs / "uninterrupted")


@pytest.mark.slow
def test_compiled_blocks_compute_the_same_on_shards(data, runs, two):
    """Regional torch.compile under FSDP2, and the compiled step of the 8-bit AdamW, against the same as they are."""
    compiled = ["stage.backbone.compile_blocks=true", AVERAGE]
    commands = [arguments(runs / "compiled", data, 2, 1, *compiled, steps=FEW)]
    commands += [arguments(runs / "eight_bit_compiled", data, 2, 1, *EIGHT_BIT, steps=FEW)]
    torchrun(runs, 2, [], commands, timeout=1200)
    assert apart(runs / "whole", runs / "compiled", weigh=False) < 1e-4
    assert apart(runs / "eight_bit", runs / "eight_bit_compiled", weigh=False) < 1e-3


@pytest.mark.slow
def test_two_processes_over_fifty_steps(data, runs):
    truth, run = runs / "one_long", runs / "two_long"
    alone(arguments(truth, data, 1, 2, AVERAGE, recipe=ONE, steps=LONG))
    torchrun(runs, 2, [arguments(run, data, 2, 1, AVERAGE, steps=LONG)])
    assert min(curve(truth)[1].values()) > 0.5
    assert len(curve(truth)[0]) == LONG
    assert apart(truth, run) < 1e-8
    assert average_apart(truth, run) < 1e-6


@pytest.mark.slow
def test_hsdp_and_four_to_two_to_one(data, runs, one):
    """2 x 2 and 4 processes against one; then 4 -> 2 -> 1, everything in its place each time."""
    truth = runs / "one_of_four_long"
    alone(arguments(truth, data, 1, 4, AVERAGE, recipe=ONE, steps=LONG))
    commands = [arguments(runs / "four", data, 4, 1, AVERAGE, steps=LONG)]
    commands += [arguments(runs / "hsdp", data, 4, 1, AVERAGE, "trainer.strategy.replicate=2", steps=LONG)]
    commands += [arguments(runs / "hsdp_accumulated", data, 4, 2, "trainer.strategy.replicate=2", steps=FEW)]
    commands += [arguments(runs / "four_lora", data, 4, 1, *SHORT["lora"][2], steps=FEW)]
    torchrun(runs, 4, commands, timeout=600)
    for name in ("four", "hsdp"):
        assert apart(truth, runs / name) < 1e-8
        assert average_apart(truth, runs / name) < 1e-6
    alone(arguments(runs / "one_lora_of_four", data, 1, 4, *SHORT["lora"][2], recipe=ONE, steps=FEW))
    assert apart(runs / "one_lora_of_four", runs / "four_lora") < 1e-8
    alone(arguments(runs / "one_of_eight", data, 1, 8, recipe=ONE, steps=FEW))
    assert apart(runs / "one_of_eight", runs / "hsdp_accumulated") < 1e-8
    for name in ("four", "hsdp"):
        four_to_two_to_one(data, runs, name, truth)


def four_to_two_to_one(data, runs, name, truth):
    first, run2, run1 = half_of(runs / name, LONG), runs / f"{name}_2", runs / f"{name}_1"
    dump = f"callbacks.record.dump={run2}.dump"
    more = [AVERAGE, f"run.resume={first}", dump, "checkpoint.every=10"]
    torchrun(runs, 2, [arguments(run2, data, 2, 2, *more, steps=40)])
    for rank in (0, 1):
        holds(f"{run2}.dump.{rank}", read(first))
    more = [AVERAGE, f"run.resume={newest(run2)}", f"callbacks.record.dump={run1}.dump"]
    alone(arguments(run1, data, 1, 4, *more, recipe=ONE, steps=LONG))
    holds(f"{run1}.dump.0", read(newest(run2)))
    assert apart(first_steps(truth, LONG, runs / "ended", after=40), run1) < 1e-8
    assert average_apart(truth, run1) < 1e-6
